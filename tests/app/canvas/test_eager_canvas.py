"""Canvases that run where they are called."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from celeriac.app.app import Celeriac
from celeriac.app.canvas import chain, chord, group
from celeriac.app.result_set import GroupResult
from celeriac.errors import Ignore
from tests.app.conftest import Broker


@pytest.fixture
def n(app: Celeriac) -> Any:
    """Tasks that count."""
    seen: list[Any] = []

    def add(x: int, y: int = 0) -> int:
        return x + y

    def total(numbers: list[int]) -> int:
        return sum(numbers)

    def fail(x: int = 0) -> None:
        raise KeyError(x)

    def ignore(x: int) -> None:
        raise Ignore

    def note(x: Any) -> Any:
        seen.append(x)
        return x

    async def slow(x: int) -> int:
        await asyncio.sleep(0)
        return x * 10

    functions: tuple[Any, ...] = (add, total, fail, ignore, note, slow)
    return SimpleNamespace(seen=seen, **{f.__name__: app.task(name=f.__name__)(f) for f in functions})


def test_apply(app: Celeriac, n: Any, broker: Broker) -> None:
    """Each shape, one step after the other; nothing is sent."""
    line = chain(n.add.s(1, 2), n.add.s(3), n.slow.s()).apply()
    assert (line.get(), line.parent.get(), line.parent.parent.get()) == (60, 6, 3)
    assert chain(n.add.s(2), n.add.s(3)).apply((1,)).get() == 6
    members = group([n.add.s(1), n.add.s(2), group([n.add.s(3)])]).apply((10,))
    assert isinstance(members, GroupResult)
    assert members.get() == [11, 12, 13]
    assert members.successful()
    whole = chord([n.add.s(1), n.add.s(2)], n.total.s()).apply()
    assert (whole.get(), whole.parent.get()) == (3, [1, 2])
    assert (group([n.add.s(1), n.add.s(2)]) | n.total.s() | n.add.s(10)).apply().get() == 13
    assert (n.add.s(1) | group([n.add.s(1), n.add.s(2)]) | n.total.s()).apply((1,)).get() == 7
    assert chain().apply() is None
    assert n.add.chunks([(1, 2), (3, 4), (5, 6)], 2).apply().get() == [[3, 7], [11]]
    assert n.slow.map([1, 2]).apply().get() == [10, 20]
    assert n.add.map([1, 2])() == [1, 2]
    assert not broker.server.queues


def test_always_eager(app: Celeriac, n: Any, broker: Broker) -> None:
    """`delay` and `apply_async` do the same; options of the call reach the tasks, links the last step."""
    app.conf.task_always_eager = True
    assert chain(n.add.s(1, 2), n.add.s(3)).delay().get() == 6
    assert group([n.add.s(1)])(2).get() == [3]
    assert chord([n.add.s(1), n.add.s(2)])(n.total.s()).get() == 3
    assert n.add.chunks([(1, 2), (3, 4)], 1)().get() == [[3], [7]]
    chain(n.add.s(1), n.add.s(1)).apply_async(link=n.note.s())
    chord([n.add.s(1)], n.total.s()).apply_async(link=n.note.s())
    assert n.seen == [2, 1]
    assert chain(n.add.s(1), n.add.s(1)).apply_async(task_id="last").id == "last"
    assert asyncio.run(chain(n.add.s(1), n.slow.s()).aapply_async()).get() == 10
    assert asyncio.run(group([n.slow.s(1)]).adelay()).get() == [10]
    assert not broker.server.queues


def test_failures(app: Celeriac, n: Any) -> None:
    """A step that fails ends the chain; one that is ignored as well, without an error."""
    with pytest.raises(KeyError):
        chain(n.fail.s(), n.note.s()).apply()
    assert chain(n.note.s(1), n.fail.s()).apply().failed()
    assert chain(n.ignore.s(1), n.note.s()).apply().state == "IGNORED"
    assert n.seen == [1]
    with pytest.raises(KeyError):
        chord([n.fail.s()], n.total.s()).apply()


def test_inside_an_eager_task(app: Celeriac, n: Any) -> None:
    """A canvas may run in a task that itself runs eagerly."""
    app.conf.task_always_eager = True
    outer: Any = app.task(name="outer")(lambda: chord([n.add.s(1), n.add.s(2)], n.total.s()).delay().get())
    assert outer.delay().get() == 3
