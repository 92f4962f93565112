"""From complete chords to what follows, and the repair of those that stand still; with a store and a pool made up."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from celeriac.errors import OperationalError, RefusedError
from celeriac.model.message import ACK, Dead, Envelope, Fire, Part, Receipt, Standing, Store
from celeriac.model.outcome import Report
from celeriac.pools.handle import Call
from celeriac.wire.record import document, entry
from celeriac.wire.task import Head
from celeriac.worker.documents import entry_of
from celeriac.worker.joins import FEWEST, TRIES, Joins, Sweeper
from celeriac.worker.outbox import Complete, Held, Outbox


def standing(group: str, held: str = "", counted: tuple[str, ...] = ("a:0", "b:1"), size: int = 2) -> Standing:
    return Standing(group, size, b"{}", (b"1", b"2"), counted, b"", ("a:0", "b:1"), 9.0, held)


class Backend:
    """Keeps what it is given."""

    def __init__(self) -> None:
        self.chords: dict[str, Standing] = {}
        self.documents: dict[str, bytes] = {}
        self.idle: list[Standing] = []
        self.limits: list[int] = []
        self.counted: list[Part] = []
        self.held: list[Fire] = []
        self.broken = False
        self.refuses = ""

    async def chord(self, group: str) -> Standing | None:
        if self.broken:
            raise OperationalError("gone")
        return self.chords.get(group)

    async def standing(self, idle: float, limit: int) -> list[Standing]:
        self.limits.append(limit)
        return self.idle[:limit]

    async def hold(self, fire: Fire, hold: float) -> bool:
        if fire.group == self.refuses:
            raise RefusedError("not allowed")
        self.held.append(fire)
        self.chords[fire.group] = standing(fire.group, fire.token)
        return True

    async def fetch(self, ids: Any) -> dict[str, bytes]:
        return {one: self.documents[one] for one in ids if one in self.documents}

    async def count(self, parts: Any, hold: float) -> list[bool]:
        self.counted += parts
        self.chords[parts[-1].group] = standing(parts[-1].group, parts[-1].token)
        return [part is parts[-1] for part in parts]


class Pool:
    """Remembers calls."""

    def __init__(self) -> None:
        self.calls: list[Call] = []

    def first(self, call: Call) -> None:
        self.calls.append(call)

    def feed(self) -> None: ...


class Room:
    def __init__(self) -> None:
        self.backend: Any = Backend()
        self.pool = Pool()
        self.outbox = Outbox()
        self.joins = Joins(self.pool, self.outbox, 60.0)

    def sweeper(self) -> Sweeper:
        return Sweeper(self.joins, self.backend, "w", 4.0, lambda key, text: entry_of(key, text, "json", None))


def held() -> Held:
    return Held(Receipt("q", "1"), Head("b", "task"), None, blob=b"message")


def test_a_message_is_settled_with_what_follows() -> None:
    """Two chords were completed by one message: it is settled with the second, each is fired with its own token."""
    room = Room()
    room.backend.chords = {name: standing(name, "celeriac:b") for name in ("g1", "g2")}
    owner = held()
    room.joins.complete(owner, [Complete(name, "celeriac:b", b"body", "b") for name in ("g1", "g2")], Dead("why"))
    for _ in range(2):
        asyncio.run(room.joins.fetch(room.backend))
        call = room.pool.calls.pop()
        assert (call.owner, call.blob) == (owner, b"message")
        report = Report(1, "SUCCESS", publish=(Envelope("x", "p", "q", b""),))
        room.joins.reported(owner, report, Store("x", b"d", "FAILURE"), [Store("y", b"d", "FAILURE")])
    first, second = (each for each in room.outbox.completions if each.fire is not None)
    assert (first.fire, first.receipt, first.settlement) == (Fire("g1", "celeriac:b"), None, ACK)
    assert (second.fire, second.receipt, second.settlement) == (Fire("g2", "celeriac:b"), owner.receipt, Dead("why"))
    assert room.outbox.held == [None, None, None, owner]
    assert not room.joins.waiting


def test_what_another_has_carried_out_is_only_settled() -> None:
    """The chord is done, or held by somebody else: nothing but the message is left."""
    room = Room()
    room.backend.chords = {"g1": standing("g1", "celeriac:other")}
    room.joins.complete(held(), [Complete("g1", "celeriac:b", b"", "b"), Complete("g2", "celeriac:b", b"", "b")], ACK)
    asyncio.run(room.joins.fetch(room.backend))
    (completion,) = room.outbox.completions
    assert (completion.receipt, completion.fire, completion.publish) == (Receipt("q", "1"), None, ())
    assert not room.pool.calls


def test_a_broken_store_loses_no_chord() -> None:
    """It waits for the next connection."""
    room = Room()
    room.backend.broken = True
    room.joins.complete(held(), [Complete("g1", "celeriac:b", b"", "b")], ACK)
    with pytest.raises(OperationalError):
        asyncio.run(room.joins.fetch(room.backend))
    assert len(room.joins.waiting) == 1


def test_a_child_that_dies_over_it_is_given_up_in_the_end() -> None:
    """After some tries the message is settled; the chord stays, for the sweeper of another worker."""
    room = Room()
    room.backend.chords = {"g1": standing("g1", "celeriac:b")}
    room.joins.complete(held(), [Complete("g1", "celeriac:b", b"", "b")], ACK)
    asyncio.run(room.joins.fetch(room.backend))
    for number in range(TRIES):
        room.joins.lost(room.pool.calls[-1], "signal 9")
        assert len(room.pool.calls) == min(number + 2, TRIES)
    (completion,) = room.outbox.completions
    assert (completion.receipt, completion.fire) == (Receipt("q", "1"), None)


def test_a_complete_chord_is_taken_over() -> None:
    """Nobody holds it: the sweeper does, and has a child say what follows. One that is held is left alone."""
    room = Room()
    room.backend.idle = [standing("g1"), standing("g2", "celeriac:somebody")]
    asyncio.run(room.sweeper().sweep())
    assert [fire.group for fire in room.backend.held] == ["g1"]
    (call,) = room.pool.calls
    assert call.blob == b""
    assert call.owner.receipt is None


def test_a_chord_that_can_not_be_touched_hides_no_other(caplog: pytest.LogCaptureFixture) -> None:
    """It is said once, and the others are seen to."""
    room = Room()
    room.backend.idle = [standing("g1"), standing("g2")]
    room.backend.refuses = "g1"
    sweeper = room.sweeper()
    for _ in range(3):
        asyncio.run(sweeper.sweep())
    assert {fire.group for fire in room.backend.held} == {"g2"}
    assert [record.getMessage() for record in caplog.records if "g1" in record.getMessage()] == [
        "chord g1 can't be carried on with: not allowed"
    ]


def test_members_that_ended_uncounted_are_counted() -> None:
    """With what their result says; those without a final result are waited for, and looked at ever more seldom."""
    room = Room()
    room.backend.idle = [standing("g1", counted=("a:0",))]
    sweeper = room.sweeper()
    asyncio.run(sweeper.sweep())
    assert not room.backend.counted
    room.backend.documents["b"] = document("b", "SUCCESS", 7)
    asyncio.run(sweeper.sweep())
    assert not room.backend.counted, "looked at again too soon"
    asyncio.run(room.sweeper().sweep())
    (part,) = room.backend.counted
    assert (part.group, part.id, part.index, part.entry) == ("g1", "b", 1, entry("b", "SUCCESS", 7))
    assert len(room.pool.calls) == 1


def test_many_that_stand_still_hide_no_other() -> None:
    """As long as a sweep is full, the next one looks at more."""
    room = Room()
    room.backend.idle = [standing(f"g{n}", counted=()) for n in range(3 * FEWEST)]
    sweeper = room.sweeper()
    for _ in range(4):
        asyncio.run(sweeper.sweep())
    assert room.backend.limits == [FEWEST, 2 * FEWEST, 4 * FEWEST, FEWEST]
