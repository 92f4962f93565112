"""What `retry` raises, and what `autoretry_for` does."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

import pytest

from celeriac.app.app import Celeriac
from celeriac.errors import Ignore, MaxRetriesExceededError, Reject, Retry
from celeriac.runtime.context import Context, current
from celeriac.wire.task import TaskMessage
from tests.app.conftest import Broker


@contextmanager
def running(task: Any, *args: Any, retries: int = 0, **kwargs: Any) -> Iterator[Context]:
    """As in a worker that runs this task."""
    message = TaskMessage(
        "id", task.name, list(args), kwargs, retries=retries, routing_key="q", priority=3, root_id="root",
        headers={"h": 1},
    )  # fmt: skip
    context = Context.of(message, task, "w@h")
    token = current.set(context)
    try:
        yield context
    finally:
        current.reset(token)


@pytest.fixture
def task(app: Celeriac) -> Any:
    """A task that may be retried three times."""

    @app.task(bind=True, name="t")
    def task(self: Any, a: Any, b: Any = 0, *rest: Any) -> None:
        pass

    return task


def test_called_directly(task: Any) -> None:
    """There is nothing to retry: the error is raised."""
    with pytest.raises(KeyError):
        task.retry(exc=KeyError("x"))
    with pytest.raises(Retry, match="can be retried"):
        task.retry()


def test_what_retry_says(task: Any) -> None:
    """Only what changes; `default_retry_delay` where nothing is said."""
    with running(task, 1), pytest.raises(Retry) as caught:
        task.retry(exc=KeyError("x"))
    again = caught.value
    assert (again.when, repr(again.exc), again.is_eager) == (180, "KeyError('x')", False)
    assert again.sig == {"task": "t", "options": {"countdown": 180}}
    when = datetime(2030, 1, 1, tzinfo=UTC)
    with running(task, 1), pytest.raises(Retry) as caught:
        task.retry(eta=when, queue="other", priority=7, time_limit=None)
    assert caught.value.sig["options"] == {"eta": when, "queue": "other", "priority": 7}


def test_the_delay_of_the_settings(app: Celeriac, task: Any) -> None:
    """`task_default_retry_delay`, unless the task has its own; 0 is a delay too."""
    app.conf.task_default_retry_delay = 5
    with running(task, 1), pytest.raises(Retry) as caught:
        task.retry()
    assert caught.value.when == 5
    task.default_retry_delay = 0
    with running(task, 1), pytest.raises(Retry) as caught:
        task.retry()
    assert caught.value.sig["options"] == {"countdown": 0}


def test_often_enough(task: Any) -> None:
    """The error itself, or MaxRetriesExceededError; `max_retries` of the call counts for that call alone."""
    with running(task, 1, retries=3), pytest.raises(KeyError):
        task.retry(exc=KeyError("x"))
    with running(task, 1, retries=3), pytest.raises(MaxRetriesExceededError) as caught:
        task.retry()
    assert str(caught.value) == "Can't retry t[id] args:[1] kwargs:{}"
    assert caught.value.task_args == [1]
    with running(task, 1, retries=3), pytest.raises(Retry):
        task.retry(max_retries=4)
    assert task.max_retries == 3
    task.max_retries = None
    with running(task, 1, retries=1000), pytest.raises(Retry):
        task.retry()


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"args": (5,)}, ([5], {"b": 2})),
        ({"args": (5, 6)}, ([5, 6], {})),
        ({"kwargs": {"b": 6}}, ([1], {"b": 6})),
        ({"kwargs": {"a": 5}}, ([], {"a": 5})),
        ({"args": (), "kwargs": {"c": 1}}, ([], {"c": 1})),
    ],
)
def test_new_arguments(task: Any, given: dict[str, Any], expected: Any) -> None:
    """What is not given stays, as far as it doesn't name the same parameter."""
    with running(task, 1, b=2), pytest.raises(Retry) as caught:
        task.retry(**given)
    assert (caught.value.sig["args"], caught.value.sig["kwargs"]) == expected


def test_a_named_parameter_in_front_of_others(task: Any) -> None:
    """Those behind it are named as well."""
    with running(task, 1, 2), pytest.raises(Retry) as caught:
        task.retry(kwargs={"a": 5})
    assert (caught.value.sig["args"], caught.value.sig["kwargs"]) == ([], {"a": 5, "b": 2})


def test_sending_at_once(task: Any, broker: Broker) -> None:
    """`throw=False`: same id, one retry more, back to its queue with its priority and headers."""
    with running(task, 1, b=2, retries=1):
        again = task.retry(throw=False, countdown=0, args=(7,))
    assert isinstance(again, Retry)
    message = broker.last("q")
    assert (message.id, message.retries, message.args, message.kwargs) == ("id", 2, [7], {"b": 2})
    assert (message.priority, message.root_id, message.headers, message.parent_id) == (3, "root", {"h": 1}, None)
    with running(task, 1):
        task.retry(throw=False, countdown=60)
    assert broker.scheduled("q")[0][1].retries == 1


def test_autoretry(app: Celeriac) -> None:
    """Errors of `autoretry_for`, but never those of `dont_autoretry_for`, Ignore, Reject and Retry."""

    @app.task(
        name="auto", autoretry_for=(LookupError,), dont_autoretry_for=(IndexError,), retry_kwargs={"countdown": 7},
        max_retries=1,
    )  # fmt: skip
    def auto(error: Any) -> Any:
        if error is None:
            return "fine"
        raise error

    with running(auto, None):
        assert auto.run(None) == "fine"
    with running(auto, 1), pytest.raises(Retry) as caught:
        auto.run(KeyError("x"))
    assert caught.value.sig["options"] == {"countdown": 7}
    assert repr(caught.value.exc) == "KeyError('x')"
    for error in (IndexError(), ValueError(), Ignore(), Reject(), Retry()):
        with running(auto, 1), pytest.raises(type(error)):
            auto.run(error)
    with running(auto, 1, retries=1), pytest.raises(KeyError):
        auto.run(KeyError("x"))
    with pytest.raises(KeyError):
        auto(KeyError("called directly"))


def test_autoretry_backs_off(app: Celeriac) -> None:
    """Doubled each time, up to a maximum, with jitter if it is wanted; fractions count."""

    def delays(**options: Any) -> list[float]:
        def fail(self: Any) -> None:
            raise KeyError("x")

        name = str(len(app.tasks))
        task = app.task(name=name, autoretry_for=(KeyError,), max_retries=None, bind=True, **options)(fail)
        found = []
        for retries in (0, 1, 5):
            with running(task, retries=retries), pytest.raises(Retry) as caught:
                task.run()
            found.append(caught.value.when)
        return found  # type: ignore[return-value]

    assert delays(retry_backoff=True, retry_jitter=False) == [1, 2, 32]
    assert delays(retry_backoff=0.5, retry_jitter=False, retry_backoff_max=10) == [0.5, 1, 10]
    assert all(0 <= delay <= 32 for delay in delays(retry_backoff=True))
    assert delays() == [180, 180, 180]


def test_autoretry_of_coroutines_and_classes(app: Celeriac) -> None:
    """Bound and asynchronous ones, and tasks that are classes."""

    @app.task(name="slow", autoretry_for=(KeyError,), bind=True)
    async def slow(self: Any, x: int) -> None:
        await asyncio.sleep(0)
        raise KeyError(x)

    class Auto(app.Task):  # type: ignore[misc, name-defined]
        autoretry_for = (KeyError,)
        name = "class"

        def run(self, x: int) -> None:
            raise KeyError(x)

    assert slow.is_async

    async def run() -> None:
        await slow.run(1)

    with running(slow, 1), pytest.raises(Retry):
        asyncio.run(run())
    task = app.register_task(Auto)
    with running(task, 1), pytest.raises(Retry):
        task.run(1)
    assert getattr(slow.run, "__self__", None) is slow
    assert getattr(task.run, "__self__", None) is task
    loose: Any = slow
    with pytest.raises(TypeError):
        loose.delay()
    slow.delay(1)


def test_replacing_a_run(app: Celeriac, task: Any, broker: Broker) -> None:
    """The other call takes its id, links, chain and stamps, and goes one deeper."""
    other = app.task(name="other")(lambda *args: None)
    with running(task, 1) as request:
        request.callbacks, request._message.callbacks = None, [dict(other.s(1))]  # type: ignore[union-attr]
        request._message.chain = [dict(other.s(2))]  # type: ignore[union-attr]
        request._message.stamps, request._message.stamped_headers = {"s": 1}, ["s"]  # type: ignore[union-attr]
        with pytest.raises(Ignore):
            task.replace(other.s(9).set(queue="elsewhere"))
    message = broker.last("elsewhere")
    assert (message.id, message.task, message.args, message.replaced_task_nesting) == ("id", "other", [9], 1)
    assert [link["args"] for link in message.callbacks or ()] == [[1]]
    assert [step["args"] for step in message.chain or ()] == [[2]]
    assert message.stamps == {"s": 1}
