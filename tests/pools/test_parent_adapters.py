"""Broker and results as a task sees them: over the line to the parent."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest

from celeriac.brokers.parent import ParentBackend, ParentReader, ParentSender
from celeriac.errors import OperationalError
from celeriac.model.message import Chord, Envelope, Store
from celeriac.pools.frames import Ask
from celeriac.pools.link import Link
from tests.pools.parentside import SideParent

READY: dict[str, bytes] = {}


def answer(op: Ask, args: Any) -> Any:
    """A parent with a result backend in a dictionary; a watch is answered at once with what is ready, as if woken."""
    match op:
        case Ask.PUBLISH:
            if args[0]["queue"] == "down":
                raise OperationalError("the broker is down")
            msgspec.convert(args, list[Envelope])
            return None
        case Ask.FETCH:
            return {i: READY[i] for i in args if i in READY}
        case Ask.WATCH:
            ids, left = args
            found = {i: READY[i] for i in ids if i in READY}
            if not found:
                time.sleep(min(left, 0.02))
            return dict(list(found.items())[:1])
        case Ask.STORE:
            READY.update({s.id: s.document for s in msgspec.convert(args, list[Store])})
        case Ask.FORGET:
            for task_id in args:
                READY.pop(task_id, None)
        case Ask.GROUP_SAVE:
            READY["group " + args[0]] = args[1]
        case Ask.GROUP_FETCH:
            return READY.get("group " + args)
        case Ask.GROUP_FORGET:
            READY.pop("group " + args)
        case Ask.CHORD_OPEN:
            READY.update({"chord " + c.group: c.body for c in msgspec.convert(args, list[Chord])})
        case Ask.CHORD_ADD:
            READY["chord " + args[0]] += "".join(f"+{member}" for member in args[1]).encode()
        case Ask.CLEAN_UP:
            READY.clear()
        case _:
            raise AssertionError(op)
    return None


@pytest.fixture
def link() -> Iterator[Link]:
    READY.clear()
    parent = SideParent(answer)
    yield Link(parent.child)
    parent.close()


def test_publish(link: Link) -> None:
    """An envelope arrives as it was; the parent's error is the caller's."""
    sender = ParentSender(link)
    sender.publish([Envelope("i", "p", "q", b"\x00blob", 3, 1.5, "e", "r")], 5)
    with pytest.raises(OperationalError, match="broker is down"):
        sender.publish([Envelope("i", "p", "down", b"")], 5)
    asyncio.run(sender.apublish([Envelope("i", "p", "q", b"")], 5))
    sender.close()


def test_results(link: Link) -> None:
    """Everything that ports.Reader can."""
    reader = ParentReader(link)
    reader.store([Store("a", b"A", "SUCCESS"), Store("b", b"B", "FAILURE", 5.0, True)])
    assert reader.fetch(["a", "b", "c"]) == {"a": b"A", "b": b"B"}
    reader.forget(["a"])
    assert reader.fetch(["a", "b"]) == {"b": b"B"}
    reader.save_group("g", b"G", None)
    assert reader.fetch_group("g") == b"G"
    reader.forget_group("g")
    assert reader.fetch_group("g") is None
    reader.close()


def test_chords(link: Link) -> None:
    """A task opens chords and adds to them, whole, over the line and over the loop."""
    reader = ParentReader(link)
    reader.open_chords([Chord("g", 2, b"\x00body", ("a", "b"), b"shape", 5.0), Chord("h", 1, b"H")])
    reader.add_to_chord("g", ["c:0", "d:0"])
    assert READY == {"chord g": b"\x00body+c:0+d:0", "chord h": b"H"}

    async def main() -> None:
        backend = ParentBackend(link)
        await backend.open_chords([Chord("i", 1, b"I", expires=None)])
        await backend.add_to_chord("i", ["j:0"])

    asyncio.run(main())
    assert READY["chord i"] == b"I+j:0"


def test_clean_up(link: Link) -> None:
    """A task has the parent delete what has expired."""
    READY["old"] = b"x"
    ParentReader(link).clean_up()
    assert READY == {}


def test_a_watch_gives_each_document_once(link: Link) -> None:
    """As they become ready; it ends when all are there."""
    reader = ParentReader(link)
    reader.store([Store("a", b"A", "SUCCESS"), Store("b", b"B", "SUCCESS")])
    with reader.watch(["a", "b"], 5) as changes:
        assert sorted(changes) == [("a", b"A"), ("b", b"B")]


def test_a_watch_ends_in_time(link: Link) -> None:
    """With what there was."""
    reader = ParentReader(link)
    reader.store([Store("a", b"A", "SUCCESS")])
    began = time.monotonic()
    with reader.watch(["a", "never"], 0.2) as changes:
        assert list(changes) == [("a", b"A")]
    assert 0.15 < time.monotonic() - began < 2


def test_results_for_coroutines(link: Link) -> None:
    """The same over the loop."""

    async def main() -> None:
        backend = ParentBackend(link)
        assert all(v.ok for v in await backend.store([Store("a", b"A", "SUCCESS")]))
        assert await backend.fetch(["a"]) == {"a": b"A"}
        async with backend.watch(["a"]) as changes:
            assert [c async for c in changes] == [("a", b"A")]
        await backend.save_group("g", b"G", None)
        assert await backend.fetch_group("g") == b"G"
        await backend.forget_group("g")
        await backend.forget(["a"])
        assert await backend.fetch(["a"]) == {}
        with pytest.raises(OperationalError):
            await backend.clock()
        await backend.close()

    asyncio.run(main())
