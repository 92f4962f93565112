"""Handles of results: reading, waiting, raising, walking."""

from __future__ import annotations

import asyncio
import copy
import io
import pickle
import threading
import time
from datetime import UTC, datetime
from typing import Any

import pytest

from celeriac.app.app import Celeriac
from celeriac.app.eager_result import EagerResult
from celeriac.app.handle import AsyncResult
from celeriac.app.joining import allow_join_result, denied_join_result
from celeriac.app.lineage import result_from_tuple
from celeriac.app.result_set import GroupResult, ResultSet
from celeriac.errors import IncompleteStream, TaskRevokedError, TimeoutError
from celeriac.runtime.context import Context, current
from tests.app.conftest import Broker


def later(action: Any, seconds: float = 0.05) -> threading.Timer:
    """Do it in a moment."""
    timer = threading.Timer(seconds, action)
    timer.start()
    return timer


def test_nothing_is_known_of_an_unknown_id(app: Celeriac) -> None:
    """It is PENDING for ever."""
    result: AsyncResult[Any] = app.AsyncResult("who")
    assert (result.state, result.status, result.result, result.info) == ("PENDING", "PENDING", None, None)
    assert (result.children, result.traceback, result.date_done, result.ignored) == (None, None, None, False)
    assert not result.ready()
    assert not result.successful()
    assert not result.failed()
    assert not result.exists()
    with pytest.raises(TimeoutError, match=r"who within 0\.05 s"):
        result.get(timeout=0.05)


def test_a_result_that_is_there(app: Celeriac, broker: Broker) -> None:
    """Read once: a final state is kept."""
    broker.finish("a", {"x": [1]}, children=[["b", None], None])
    result = app.AsyncResult("a")
    assert result.get(timeout=1) == {"x": [1]}
    assert result.ready()
    assert result.successful()
    assert result.date_done == datetime(2026, 11, 24, 6, 49, 42, 429739, tzinfo=UTC)
    broker.server.forget(["a"])
    assert result.state == "SUCCESS"
    assert app.AsyncResult("a").state == "PENDING"


def test_get_waits(app: Celeriac, broker: Broker) -> None:
    """And hears of other states by `on_message`."""
    heard: list[Any] = []
    later(lambda: broker.finish("a", {"n": 1}, "PROGRESS"), 0.03)
    later(lambda: broker.finish("a", 5), 0.08)
    called: list[Any] = []
    result = app.AsyncResult("a")
    value = result.get(timeout=5, on_message=heard.append, callback=lambda *args: called.append(args))
    assert value == 5
    assert [meta["status"] for meta in heard] == ["PROGRESS", "SUCCESS"]
    assert called == [("a", 5)]


def test_on_interval_is_called(app: Celeriac, broker: Broker) -> None:
    """Every `interval` seconds, and the timeout counts for all together."""
    ticks: list[float] = []
    later(lambda: broker.finish("a", 5), 0.2)
    assert app.AsyncResult("a").get(timeout=5, interval=0.02, on_interval=lambda: ticks.append(time.time())) == 5
    assert len(ticks) >= 3
    began = time.monotonic()
    with pytest.raises(TimeoutError):
        app.AsyncResult("b").get(timeout=0.1, interval=0.02, on_interval=lambda: None)
    assert time.monotonic() - began < 1


def test_a_failure_is_raised(app: Celeriac, broker: Broker) -> None:
    """As the exception it was; `result` is the same object; `propagate=False` returns it."""
    broker.finish("a", KeyError("nope", 3), "FAILURE", traceback="Traceback ...")
    result = app.AsyncResult("a")
    with pytest.raises(KeyError, match="nope") as caught:
        result.get(timeout=1)
    assert caught.value.args == ("nope", 3)
    assert result.result is caught.value
    assert result.get(propagate=False) is caught.value
    assert result.traceback == "Traceback ..."
    assert result.failed()
    with pytest.raises(KeyError):
        result.maybe_throw()
    with pytest.raises(KeyError):
        result.throw()
    broker.finish("b", TaskRevokedError("revoked"), "REVOKED")
    with pytest.raises(TaskRevokedError):
        app.AsyncResult("b").get(timeout=1)
    broker.finish("c", ValueError("again"), "RETRY")
    assert repr(app.AsyncResult("c").result) == "ValueError('again')"


def test_a_failed_ancestor_is_raised(app: Celeriac, broker: Broker) -> None:
    """While waiting for what it would have led to, unless `follow_parents=False`."""
    parent = app.AsyncResult("p")
    result = app.AsyncResult("a", parent=app.AsyncResult("m", parent=parent))
    later(lambda: broker.finish("p", ValueError("first"), "FAILURE"))
    with pytest.raises(ValueError, match="first"):
        result.get(timeout=5)
    with pytest.raises(TimeoutError):
        result.get(timeout=0.05, follow_parents=False)
    assert result.as_tuple() == (("a", (("m", (("p", None), None)), None)), None)
    assert result.as_list() == ["a", "m", "p"]


def test_an_ignored_result_is_not_waited_for(app: Celeriac) -> None:
    """There will be none."""
    result = app.AsyncResult("a")
    result.ignored = True
    assert result.get() is None


def test_get_inside_a_task_is_refused(app: Celeriac, broker: Broker) -> None:
    """It makes a worker wait for a worker; three ways to allow it."""
    broker.finish("a", 1)
    result = app.AsyncResult("a")
    token = current.set(Context(called_directly=False, id="outer"))
    try:
        with pytest.raises(RuntimeError, match="allow_join_result"):
            result.get(timeout=1)
        with pytest.raises(RuntimeError):
            app.ResultSet([result]).get(timeout=1)
        with allow_join_result():
            assert result.get(timeout=1) == 1
        assert result.get(timeout=1, disable_sync_subtasks=False) == 1
    finally:
        current.reset(token)
    assert result.get(timeout=1) == 1
    with denied_join_result(), pytest.raises(RuntimeError):
        result.get(timeout=1)


def test_without_a_result_backend(broker: Broker) -> None:
    """A broker without a result backend: asking is an error that says what to do."""
    app = Celeriac(broker=broker.url, set_as_current=False)
    task = app.task(name="t", shared=False)(lambda: None)
    result = task.delay()
    for ask in (lambda: result.get(timeout=1), lambda: result.state, lambda: result.ready(), lambda: result.forget()):
        with pytest.raises(NotImplementedError, match="result_backend"):
            ask()
    assert app.backend() is None
    assert app.backend.as_uri() == "disabled://"


def test_then(app: Celeriac, broker: Broker) -> None:
    """Called when the handle sees that the task has ended."""
    heard: list[Any] = []
    good, bad = app.AsyncResult("a"), app.AsyncResult("b")
    good.then(lambda result: heard.append(result.id))
    bad.then(lambda result: heard.append("wrong"), on_error=lambda error: heard.append(repr(error)))
    assert not heard
    broker.finish("a", 1)
    broker.finish("b", KeyError("x"), "FAILURE")
    assert good.get(timeout=1) == 1
    assert bad.ready()
    assert heard == ["a", "KeyError('x')"]
    good.then(lambda result: heard.append("at once"))
    assert heard[-1] == "at once"


def test_children_are_walked(app: Celeriac, broker: Broker) -> None:
    """`children`, `iterdeps`, `collect`, `get_leaf`, `graph`; a circle is walked once."""
    broker.finish("a", 1, children=[[["b", None], None], [["g", None], [[["c", None], None]]]])
    broker.finish("b", 2, children=[[["b", None], None]])
    broker.finish("c", 3)
    result = app.AsyncResult("a")
    assert [str(child) for child in result.children or ()] == ["b", "g"]
    assert isinstance((result.children or [])[1], GroupResult)
    assert [str(node) for _, node in result.iterdeps()] == ["a", "b", "g", "c"]
    assert [value for _, value in result.collect()] == [1, 2, [3], 3]
    assert result.get_leaf() == 3
    graph = result.graph
    assert ("a", "b") in [(str(parent), str(node)) for parent, node in graph.edges()]
    text = io.StringIO()
    graph.to_dot(text)
    assert '"a" -> "b"' in text.getvalue()
    broker.server.forget(["c"])
    with pytest.raises(IncompleteStream):
        list(app.AsyncResult("a").iterdeps())
    assert len(list(app.AsyncResult("a").iterdeps(intermediate=True))) == 3


def test_forget(app: Celeriac, broker: Broker) -> None:
    """The stored result goes, and those of the parents."""
    broker.finish("a", 1)
    broker.finish("p", 1)
    result = app.AsyncResult("a", parent=app.AsyncResult("p"))
    assert result.exists()
    result.forget()
    assert not broker.server.fetch(["a", "p"])


def test_handles_compare_by_id(app: Celeriac) -> None:
    """With each other and with texts; they can be copied and pickled."""
    result = app.AsyncResult("a", parent=app.AsyncResult("p"))
    assert result == "a"
    assert result == AsyncResult("a", app=app)
    assert result != app.AsyncResult("b")
    assert {result, "a"} == {"a"}
    assert (str(result), repr(result), result.task_id) == ("a", "<AsyncResult: a>", "a")
    for other in (pickle.loads(pickle.dumps(result)), copy.copy(result)):
        assert (other, other.parent) == ("a", "p")
    assert isinstance(result, AsyncResult)
    with pytest.raises(ValueError, match="id"):
        AsyncResult(None)  # type: ignore[arg-type]


def test_a_result_from_its_tuple(app: Celeriac) -> None:
    """Single ones, groups, parents."""
    single = result_from_tuple([["a", [["p", None], None]], None], app)
    assert (single, single.parent) == ("a", "p")
    group = result_from_tuple([["g", None], [[["a", None], None], [["b", None], None]]], app)
    assert [str(member) for member in group] == ["a", "b"]
    assert result_from_tuple(group.as_tuple(), app) == group
    assert result_from_tuple(single) is single


def test_extended_results(app: Celeriac, broker: Broker) -> None:
    """With `result_extended` a result tells what it was."""
    extended = {"name": "t", "args": [1], "kwargs": {"a": 2}, "worker": "w@h", "retries": 3, "queue": "q"}
    broker.finish("a", 1, extended=extended)
    result = app.AsyncResult("a")
    assert {key: getattr(result, key) for key in extended} == extended


async def _waiting(app: Celeriac, broker: Broker) -> None:
    loop = asyncio.get_running_loop()
    loop.call_later(0.05, broker.finish, "a", 5)
    result = app.AsyncResult("a")
    assert await result.aget(timeout=5) == 5
    assert await result == 5
    with pytest.raises(TimeoutError, match="b within"):
        await app.AsyncResult("b").aget(timeout=0.05)
    broker.finish("c", KeyError("x"), "FAILURE")
    with pytest.raises(KeyError):
        await app.AsyncResult("c").aget(timeout=1)
    loop.call_later(0.05, broker.finish, "p", KeyError("p"), "FAILURE")
    with pytest.raises(KeyError, match="p"):
        await app.AsyncResult("d", parent=app.AsyncResult("p")).aget(timeout=5)
    for number in range(3):
        loop.call_later(0.01 * number, broker.finish, f"n{number}", number)
    results = app.ResultSet([app.AsyncResult(f"n{number}") for number in range(3)])
    assert await results.aget(timeout=5) == [0, 1, 2]
    with pytest.raises(TimeoutError, match="1 of 1"):
        await app.ResultSet([app.AsyncResult("x")]).aget(timeout=0.05)


def test_waiting_in_a_loop(app: Celeriac, broker: Broker) -> None:
    """`aget`, and `await` of the handle itself."""
    asyncio.run(_waiting(app, broker))
    asyncio.run(_waiting(app, broker))


# Many


def test_many_results_are_waited_for_at_once(app: Celeriac, broker: Broker) -> None:
    """In the order of the set; one timeout for all."""
    results = app.ResultSet([app.AsyncResult(f"n{number}") for number in range(5)])
    for number in reversed(range(5)):
        later(lambda number=number: broker.finish(f"n{number}", number), 0.02 * (5 - number))
    assert not results.ready()
    assert results.waiting()
    assert results.get(timeout=5) == [0, 1, 2, 3, 4]
    assert results.successful()
    assert not results.failed()
    assert results.completed_count() == 5
    heard: list[Any] = []
    assert results.join(timeout=1, callback=lambda task_id, value: heard.append((task_id, value))) == []
    assert heard[0] == ("n0", 0)
    assert dict(results.iter_native()).keys() == {f"n{number}" for number in range(5)}
    with pytest.raises(TimeoutError):
        app.ResultSet([app.AsyncResult("n0"), app.AsyncResult("nobody")]).get(timeout=0.05)


def test_eager_results_among_many(app: Celeriac, broker: Broker) -> None:
    """They are not waited for, nor are ignored ones."""
    ignored = app.AsyncResult("i")
    ignored.ignored = True
    broker.finish("a", 2)
    results = app.ResultSet([EagerResult("e", 1, "SUCCESS"), app.AsyncResult("a"), ignored])
    assert results.get(timeout=1) == [1, 2, None]


def test_a_failure_among_many(app: Celeriac, broker: Broker) -> None:
    """Raised as soon as it is known; not with `propagate=False`."""
    results = app.ResultSet([app.AsyncResult("a"), app.AsyncResult("b")])
    broker.finish("b", KeyError("x"), "FAILURE")
    with pytest.raises(KeyError):
        results.get(timeout=5)
    assert results.failed()
    broker.finish("a", 1)
    assert [repr(value) for value in results.get(timeout=1, propagate=False)] == ["1", "KeyError('x')"]
    with pytest.raises(KeyError):
        results.maybe_throw()


def test_results_as_they_come(app: Celeriac, broker: Broker) -> None:
    """`iter_native` and `iterate` give them in the order of their ends."""
    results = app.ResultSet([app.AsyncResult("a"), app.AsyncResult("b")])
    broker.finish("b", 2)
    later(lambda: broker.finish("a", 1))
    assert [task_id for task_id, _ in results.iter_native(timeout=5)] == ["b", "a"]
    assert sorted(results.iterate()) == [1, 2]


def test_a_set_of_results(app: Celeriac) -> None:
    """Adding and removing."""
    results = app.ResultSet([app.AsyncResult("a")])
    results.add(app.AsyncResult("a"))
    results.update([app.AsyncResult("b"), app.AsyncResult("a")])
    assert len(results) == 2
    assert results[1] == "b"
    results.discard("c")
    results.remove("a")
    with pytest.raises(KeyError):
        results.remove("a")
    results.clear()
    assert list(results) == []
    assert app.ResultSet([]).get() == []
    assert ResultSet([]) == ResultSet([])


def test_a_group_is_saved_and_restored(app: Celeriac) -> None:
    """By its id."""
    group = app.GroupResult("g", [app.AsyncResult("a"), app.AsyncResult("b")], parent=app.AsyncResult("p"))
    group.save()
    again: Any = app.GroupResult.restore("g")
    assert again == group
    assert again.parent == "p"
    group.delete()
    assert app.GroupResult.restore("g") is None
    assert pickle.loads(pickle.dumps(group)) == group


def test_eager_results() -> None:
    """Known from the start."""
    result = EagerResult[int]("a", 5, "SUCCESS", name="t")
    assert (result.get(), result.wait(), result.state, result.result, result.name) == (5, 5, "SUCCESS", 5, "t")
    assert result.ready()
    assert repr(result) == "<EagerResult: a>"
    heard: list[Any] = []
    result.then(heard.append)
    assert heard == [result]
    failed = EagerResult[Any]("b", KeyError("x"), "FAILURE", "Traceback")
    with pytest.raises(KeyError):
        failed.get()
    assert isinstance(failed.get(propagate=False), KeyError)
    assert failed.traceback == "Traceback"
    result.revoke()
    assert result.state == "REVOKED"
