"""The tasks that messages of peers name."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from celeriac.app.app import Celeriac
from celeriac.errors import ChordError, OperationalError, Retry
from celeriac.model.message import Chord
from celeriac.runtime.context import Context, current
from tests.app.conftest import Broker


@contextmanager
def running(task: Any, **fields: Any) -> Iterator[Context]:
    """As in a worker, without one."""
    request = Context(id="u", called_directly=False, instance=task, **fields)
    token = current.set(request)
    try:
        yield request
    finally:
        current.reset(token)


def run(app: Celeriac, name: str, *args: Any, retries: int = 0, **kwargs: Any) -> Any:
    """Run a built-in task."""
    task = app.tasks[name]
    with running(task, retries=retries, args=args, kwargs=kwargs):
        return task.run(*args, **kwargs)


def test_every_app_has_them(app: Celeriac) -> None:
    """Under Celery's names; a task of one's own stays."""
    own = app.task(name="celery.map")(lambda: None)
    assert app.tasks["celery.map"] is own
    assert {name for name in app.tasks if name.startswith("celery.")} == {
        "celery.accumulate", "celery.backend_cleanup", "celery.chain", "celery.chord", "celery.chord_unlock",
        "celery.chunks", "celery.group", "celery.map", "celery.starmap",
    }  # fmt: skip


def test_maps(app: Celeriac) -> None:
    """Of plain functions and of coroutine functions, from the form on the wire."""
    app.task(name="add")(lambda x, y=0: x + y)

    async def slow(x: int) -> int:
        return x * 10

    app.task(name="slow")(slow)
    add: dict[str, Any] = {
        "task": "add", "args": [], "kwargs": {}, "options": {}, "subtask_type": None, "immutable": False,
    }  # fmt: skip
    assert app.tasks["celery.map"].apply((add, [1, 2])).get() == [1, 2]
    assert app.tasks["celery.starmap"].apply((add, [[1, 2], [3, 4]])).get() == [3, 7]
    assert app.tasks["celery.map"].apply(({**add, "task": "slow"}, [1, 2])).get() == [10, 20]
    assert app.tasks["celery.map"].apply((add, [])).get() == []


def test_shapes(app: Celeriac, t: Any, broker: Broker, opened: list[Chord]) -> None:
    """As old producers send them."""
    add = dict(t.add.s(1).set(task_id="a"))
    result = run(app, "celery.group", [add], [["g", None], [[["a", None], None]]], "g", [5])
    assert (result.id, result[0].id) == ("g", "a")
    message = broker.last()
    assert (message.id, message.args, message.group) == ("a", [5, 1], "g")
    result = run(app, "celery.chord", [add], dict(t.xsum.s().set(task_id="body")), [6], countdown=1, eager=False)
    assert result.id == "body"
    assert broker.last().args == [6, 1]
    assert len(opened) == 1
    assert len(run(app, "celery.chunks", dict(t.add.s()), [[1], [2], [3]], 2)) == 2
    assert run(app, "celery.accumulate", 1, 2) == (1, 2)
    assert run(app, "celery.accumulate", [1, 2], index=0) == [1, 2]
    assert run(app, "celery.backend_cleanup") is None
    with pytest.raises(NotImplementedError):
        run(app, "celery.chain")


def unlock(app: Celeriac, t: Any, retries: int = 0, **kwargs: Any) -> None:
    """A look at a chord of two members."""
    app.task(name="told")(lambda task_id: None)
    body = dict(t.xsum.s().set(task_id="body", link_error=[dict(app.tasks["told"].s())], queue="q"))
    members = [[["a", None], None], [["b", None], None]]
    run(app, "celery.chord_unlock", "g", body, retries=retries, result=members, **kwargs)


def test_a_chord_that_is_watched(app: Celeriac, t: Any, broker: Broker) -> None:
    """Looked at again until all members have ended; then the body is sent."""
    broker.finish("a", 1)
    with pytest.raises(Retry) as again:
        unlock(app, t)
    assert again.value.when == 1.0
    with pytest.raises(Retry) as again:
        unlock(app, t, interval=5, _chord_unlock_exchange_type="topic")
    assert (again.value.when, again.value.sig["options"]["exchange_type"]) == (5, "topic")
    broker.finish("b", 2)
    unlock(app, t)
    message = broker.last("q")
    assert (message.id, message.args) == ("body", [[1, 2]])


def test_a_watched_chord_with_a_member_that_failed(app: Celeriac, t: Any, broker: Broker) -> None:
    """The body fails with its error, and the body's error links follow."""
    broker.finish("a", 1)
    broker.finish("b", {"exc_type": "KeyError", "exc_message": ["k"], "exc_module": "builtins"}, "FAILURE")
    heard: list[Any] = []

    def hear(request: Any, exc: BaseException, traceback: Any) -> None:
        heard.append((request.id, str(exc)))

    app.task(name="hear")(hear)
    unlock(app, t)
    result = app.AsyncResult("body")
    assert result.state == "FAILURE"
    assert isinstance(result.result, ChordError)
    assert str(result.result) == "Dependency b raised KeyError('k')"
    assert broker.last().args == ["body"]
    body = dict(t.xsum.s().set(task_id="body 2", link_error=[dict(app.tasks["hear"].s())]))
    run(app, "celery.chord_unlock", "g", body, result=[[["b", None], None]])
    assert heard == [("body 2", "Dependency b raised KeyError('k')")]


def test_a_watched_chord_is_given_up(app: Celeriac, t: Any, broker: Broker) -> None:
    """When its retries are used up, or when the members' results would be forgotten."""
    unlock(app, t, retries=3, max_retries=3)
    assert "retry celery.chord_unlock" in str(app.AsyncResult("body").result)
    broker.server.forget(["body"])
    unlock(app, t, retries=90_000)
    assert "have not ended within 86400 s" in str(app.AsyncResult("body").result)


def test_a_store_that_does_not_answer(app: Celeriac, t: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Is asked again."""

    def away(self: Any) -> bool:
        raise OperationalError("away")

    monkeypatch.setattr(app.GroupResult, "ready", away)
    with pytest.raises(Retry):
        unlock(app, t)


def test_groups_as_bodies_fail_as_a_whole(app: Celeriac, t: Any, broker: Broker) -> None:
    """Every task of a body that will not be sent has the error."""
    body = t.xsum.s() | t.mul.s()
    body.freeze("last")
    broker.finish("a", None, "REVOKED")
    run(app, "celery.chord_unlock", "g", dict(body), result=[[["a", None], None]])
    assert [app.AsyncResult(task.id).state for task in body.tasks] == ["FAILURE", "FAILURE"]
