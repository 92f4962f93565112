"""How results hang together: ancestors, members, children; groups that are stored."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from celeriac.app.app import Celeriac
from celeriac.app.handle import AsyncResult
from celeriac.app.lineage import result_from_tuple
from celeriac.app.result_set import GroupResult
from celeriac.errors import IncompleteStream
from celeriac.wire import values
from tests.app.conftest import Broker


def test_a_long_line(app: Celeriac, broker: Broker) -> None:
    """A thousand ancestors are walked without recursion, in either direction."""
    result: Any = None
    for number in range(1000):
        result = app.AsyncResult(f"t{number}", parent=result)
        broker.finish(f"t{number}", number)
    back = result_from_tuple(result.as_tuple(), app)
    assert back.as_list() == result.as_list() == [f"t{number}" for number in reversed(range(1000))]
    assert back.get(timeout=5) == 999
    back.forget()
    assert not app.AsyncResult("t0").exists()


def test_tuples(app: Celeriac) -> None:
    """Of groups with groups in them and ancestors before them; as Celery writes them, and texts for parents."""
    header = app.GroupResult("g", [app.AsyncResult("a"), app.GroupResult("h", [app.AsyncResult("b")])])
    header.parent = app.AsyncResult("first")
    body = app.AsyncResult("body", parent=header)
    members = [[["a", None], None], [["h", None], [[["b", None], None]]]]
    form = [["body", [["g", [["first", None], None]], members]], None]
    assert json.loads(values.dumps(body)) == form
    back = result_from_tuple(form, app)
    assert back.as_tuple() == body.as_tuple()
    assert isinstance(back.parent, GroupResult)
    assert back.parent == header
    assert result_from_tuple([["x", "y"], None], app).parent.id == "y"
    assert result_from_tuple(["x", None], app).id == "x"


def test_walking_a_group(app: Celeriac, broker: Broker) -> None:
    """Down to all that its members have sent."""
    members = app.GroupResult("g", [app.AsyncResult("a"), app.AsyncResult("b")])
    with pytest.raises(IncompleteStream):
        list(members.iterdeps())
    assert [node.id for _, node in members.iterdeps(intermediate=True)] == ["g"]
    broker.finish("a", 1, children=[[["c", None], None]])
    broker.finish("b", 2)
    broker.finish("c", 3)
    assert [(node.id, value) for node, value in members.collect()] == [("g", [1, 2]), ("a", 1), ("b", 2), ("c", 3)]
    assert members.get_leaf() == 3
    assert [(parent.id, node.id) for parent, node in members.graph.edges()] == [("g", "a"), ("g", "b"), ("a", "c")]
    members.forget()
    assert not app.AsyncResult("b").exists()


async def _twins(app: Celeriac, members: GroupResult) -> list[Any]:
    await members.asave()
    found = await app.GroupResult.arestore("g")
    assert found is not None
    seen = [value async for value in found.aiterate(timeout=5)]
    again = [task_id async for task_id, _ in found.aiter_native(timeout=5)]
    joined = await found.ajoin(timeout=5)
    await found.adelete()
    assert await app.GroupResult.arestore("g") is None
    await found.aforget()
    await app.AsyncResult("c").aforget()
    return [sorted(seen), sorted(again), joined]


def test_twins_for_coroutines(app: Celeriac, broker: Broker) -> None:
    """Saving, restoring, joining, iterating, forgetting."""
    for number, task_id in enumerate("abc"):
        broker.finish(task_id, number)
    members = app.GroupResult("g", [app.AsyncResult("a"), app.AsyncResult("b")])
    assert asyncio.run(_twins(app, members)) == [[0, 1], ["a", "b"], [0, 1]]
    assert not app.AsyncResult("a").exists()
    assert not app.AsyncResult("c").exists()


def test_iterating_over_failures(app: Celeriac, broker: Broker) -> None:
    """They are raised, or given."""
    broker.finish("a", {"exc_type": "KeyError", "exc_message": ["k"], "exc_module": "builtins"}, "FAILURE")
    for make in (app.ResultSet, lambda found: app.GroupResult("g", found)):
        with pytest.raises(KeyError):
            list(make([app.AsyncResult("a")]).iterate(timeout=5))
        (error,) = make([app.AsyncResult("a")]).iterate(timeout=5, propagate=False)
        assert isinstance(error, KeyError)


async def _late(app: Celeriac) -> None:
    async for _ in app.ResultSet([app.AsyncResult("who")]).aiter_native(timeout=0.05):
        pass


def test_waiting_has_an_end(app: Celeriac) -> None:
    """Also for coroutines that iterate."""
    with pytest.raises(AsyncResult.TimeoutError, match="1 of 1 tasks"):
        asyncio.run(_late(app))
