"""Running a task where it is called."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from celeriac import telemetry
from celeriac.app.app import Celeriac
from celeriac.app.eager_result import EagerResult
from celeriac.errors import EncodeError, Ignore, MaxRetriesExceededError, Reject
from celeriac.runtime.context import current
from tests.app.conftest import Broker


def test_apply_runs_the_task(app: Celeriac) -> None:
    """With a request as in a worker."""
    seen: dict[str, Any] = {}

    @app.task(bind=True, name="t")
    def look(self: Any, x: int, y: int = 0) -> int:
        seen.update(vars(self.request))
        return x + y

    result = look.apply((1,), {"y": 2}, task_id="id", headers={"h": 1}, priority=3, routing_key="r", expires=5)
    assert isinstance(result, EagerResult)
    assert (result.id, result.get(), result.state, result.name) == ("id", 3, "SUCCESS", "t")
    assert (seen["is_eager"], seen["called_directly"]) == (True, False)
    assert (seen["root_id"], seen["headers"]) == ("id", {"h": 1})
    assert seen["delivery_info"] == {
        "is_eager": True, "exchange": None, "routing_key": "r", "priority": 3, "redelivered": False,
    }  # fmt: skip
    assert current.get() is None


def test_always_eager(app: Celeriac, broker: Broker) -> None:
    """delay and apply_async run at once; arguments pass the serializer; nothing is sent."""
    app.conf.task_always_eager = True
    task = app.task(name="t")(lambda *args: args)
    result: Any = task.delay((1, 2), {"a": 1})
    assert isinstance(result, EagerResult)
    assert result.get() == ([1, 2], {"a": 1})
    assert task.apply_async((3,), countdown=60, queue="q").get() == (3,)
    with pytest.raises(EncodeError):
        task.delay(object())
    with pytest.raises(ValueError, match="soft_time_limit"):
        task.apply_async(soft_time_limit=2, time_limit=1)
    assert not broker.server.queues


def test_failures(app: Celeriac) -> None:
    """Kept in the result; raised with `throw` or `task_eager_propagates`."""

    def fail() -> None:
        raise KeyError("missing")

    task = app.task(name="t")(fail)
    result = task.apply()
    assert (result.state, result.failed()) == ("FAILURE", True)
    assert "KeyError: 'missing'" in (result.traceback or "")
    assert "celeriac/app/eager" not in (result.traceback or "")
    with pytest.raises(KeyError):
        result.get()
    with pytest.raises(KeyError):
        task.apply(throw=True)
    app.conf.task_eager_propagates = True
    with pytest.raises(KeyError):
        task.apply()
    assert task.apply(throw=False).state == "FAILURE"


def test_retries_run_at_once(app: Celeriac) -> None:
    """Without their delay, with new arguments if there are any, until there were enough."""
    seen: list[Any] = []

    @app.task(bind=True, name="t", max_retries=2)
    def again(self: Any, n: int) -> int:
        seen.append((n, self.request.retries))
        if self.request.retries < 2:
            raise self.retry(args=(n + 1,), countdown=100)
        return n

    assert again.apply((1,)).get() == 3
    assert seen == [(1, 0), (2, 1), (3, 2)]

    @app.task(bind=True, name="u", max_retries=1)
    def for_ever(self: Any) -> None:
        raise self.retry()

    result = for_ever.apply()
    assert isinstance(result.result, MaxRetriesExceededError)
    assert str(result.result) == f"Can't retry u[{result.id}] args:() kwargs:{{}}"


def test_handlers_and_signals(app: Celeriac) -> None:
    """In the order of a worker."""
    heard: list[Any] = []

    class Told(app.Task):  # type: ignore[misc, name-defined]
        def before_start(self, *args: Any) -> None:
            heard.append("before_start")

        def on_success(self, retval: Any, *args: Any) -> None:
            heard.append(("on_success", retval))

        def on_failure(self, exc: Any, *args: Any) -> None:
            heard.append(("on_failure", repr(exc)))

        def on_retry(self, exc: Any, *args: Any) -> None:
            heard.append(("on_retry", repr(exc)))

        def after_return(self, status: str, *args: Any) -> None:
            heard.append(("after_return", status))

    @app.task(base=Told, bind=True, name="t")
    def act(self: Any, what: str) -> str:
        if what == "retry" and not self.request.retries:
            raise self.retry(exc=KeyError("again"))
        if what == "fail":
            raise ValueError("bad")
        return what

    def listen(signal: Any = None, **_: Any) -> None:
        heard.append(signal.name)

    signals = (telemetry.task_prerun, telemetry.task_success, telemetry.task_failure, telemetry.task_postrun)
    for signal in signals:
        signal.connect(listen, sender=act)
    act.apply(("ok",))
    assert heard == [
        "task_prerun", "before_start", ("on_success", "ok"), "task_success", ("after_return", "SUCCESS"),
        "task_postrun",
    ]  # fmt: skip
    heard.clear()
    act.apply(("fail",))
    assert heard[2:] == [
        ("on_failure", "ValueError('bad')"), "task_failure", ("after_return", "FAILURE"), "task_postrun",
    ]  # fmt: skip
    heard.clear()
    act.apply(("retry",))
    assert heard[2:4] == [("on_retry", "KeyError('again')"), ("after_return", "RETRY")]
    assert heard[-2:] == [("after_return", "SUCCESS"), "task_postrun"]


def test_links_follow(app: Celeriac, broker: Broker) -> None:
    """Eagerly where everything is eager, else they are sent."""
    heard: list[Any] = []
    note = app.task(name="note")(heard.append)

    @app.task(name="errback")
    def errback(request: Any, exc: Any, traceback: Any) -> None:
        heard.append((request.id, repr(exc), "KeyError" in traceback))

    old = app.task(name="old")(lambda task_id: heard.append(task_id))
    add = app.task(name="add")(lambda x, y: x + y)

    @app.task(name="fail")
    def fail() -> None:
        raise KeyError("k")

    add.apply((1, 2), link=note.s())
    assert broker.last().args == [3]
    app.conf.task_always_eager = True
    add.apply_async((1, 2), link=[note.s(), add.s(10).set(link=note.s())])
    assert heard == [3, 13]
    heard.clear()
    result = fail.apply_async(link_error=[errback.s(), old.s()])
    assert heard == [(result.id, "KeyError('k')", True), result.id]


def test_predicates(app: Celeriac) -> None:
    """Ignore and Reject end it; a task inside a task knows its parent."""

    @app.task(name="ends")
    def ends(error: str) -> None:
        raise Ignore() if error == "ignore" else Reject("no")

    assert ends.apply(("ignore",)).state == "IGNORED"
    assert ends.apply(("reject",)).state == "REJECTED"
    app.conf.task_always_eager = True

    @app.task(bind=True, name="inner")
    def inner(self: Any) -> Any:
        return self.request.root_id, self.request.parent_id

    @app.task(bind=True, name="outer")
    def outer(self: Any) -> Any:
        return inner.delay().get()

    result: Any = outer.delay()
    assert result.get() == (result.id, result.id)


def test_results_are_stored_on_demand(app: Celeriac, broker: Broker) -> None:
    """With `task_store_eager_result`, or at a task; custom states as well."""

    @app.task(bind=True, name="t")
    def progress(self: Any) -> int:
        self.update_state(state="PROGRESS", meta={"n": 1})
        states.append(app.AsyncResult(self.request.id).state)
        return 1

    @app.task(bind=True, name="u")
    async def aprogress(self: Any) -> int:
        await self.aupdate_state(state="PROGRESS", meta={"n": 1})
        states.append(app.AsyncResult(self.request.id).state)
        return 1

    states: list[str] = []
    result = progress.apply()
    assert app.AsyncResult(result.id).state == "PENDING"
    app.conf.task_store_eager_result = True
    result = progress.apply()
    assert app.AsyncResult(result.id).get(timeout=1) == 1
    aprogress.apply()
    assert states == ["PENDING", "PROGRESS", "PROGRESS"]
    assert app.AsyncResult(progress.apply(ignore_result=True).id).state == "PROGRESS"


def test_replace(app: Celeriac) -> None:
    """The other call's value is the task's, returned or raised."""
    other = app.task(name="other")(lambda x: x * 2)

    @app.task(bind=True, name="t")
    def replaced(self: Any, x: int) -> Any:
        raise self.replace(other.s(x))

    assert replaced.apply((4,)).get() == 8


def test_coroutines(app: Celeriac) -> None:
    """Run to their end, also where a loop runs; in it with the asynchronous twin."""

    @app.task(bind=True, name="t", max_retries=1)
    async def slow(self: Any, x: int) -> Any:
        await asyncio.sleep(0)
        if not self.request.retries:
            raise self.retry()
        return x, self.request.is_eager

    app.conf.task_always_eager = True
    assert slow.delay(1).get() == (1, True)

    async def inside() -> None:
        assert slow.delay(2).get() == (2, True)
        assert await (await slow.adelay(3)) == (3, True)

    asyncio.run(inside())
