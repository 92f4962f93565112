"""The laws of chords: what a result store keeps of them, and what a cycle does with them. Part of the suites of
`contract_backend` and `contract_consumer`."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import pytest

from celeriac.model.message import (
    RETURN,
    Chord,
    Completion,
    Dead,
    Demand,
    Envelope,
    Fire,
    Part,
    Receipt,
    Settlement,
    Standing,
    Store,
    Verdict,
)
from celeriac.ports import Consumer, Place, ResultBackend
from celeriac.testing.rigs import BackendRig, BrokerRig, claim, done, envelope, in_loop, name_of, names, settle

HOLD = 30.0
"""Seconds that no test outlives."""
BODY = b'{"task": "tasks.body"}'


def part(name: str, index: int | None = 0, *, group: str = "g", entry: bytes | None = None) -> Part:
    """The end of the member `name`."""
    default = b'[1, "%s", "SUCCESS", 1]' % name.encode("utf-8", "surrogatepass")
    return Part(group, name, index, default if entry is None else entry, BODY)


def chord(size: int, *, group: str = "g", structure: bytes = b"", expires: float | None = 1000) -> Chord:
    """A chord of so many members."""
    return Chord(group, size, BODY, tuple(f"m{n}" for n in range(size)), structure, expires)


async def standing_of(backend: ResultBackend, group: str = "g") -> Standing:
    """The chord, which must stand."""
    standing = await backend.chord(group)
    assert standing is not None
    return standing


@asynccontextmanager
async def opened(rig: BackendRig) -> AsyncIterator[ResultBackend]:
    """A backend, closed at the end."""
    backend = rig.backend()
    try:
        yield backend
    finally:
        await backend.close()


class ChordStoreContract:
    """What whoever keeps chords apart from the broker may rely on."""

    @in_loop
    async def test_a_chord_begins_and_ends(self, rig: BackendRig) -> None:
        """Opened, counted, held by the member that completed it, looked at, fired, done."""
        async with opened(rig) as backend:
            assert await backend.chord("g") is None
            await backend.open_chords([chord(2)])
            standing = await standing_of(backend)
            assert (standing.group, standing.size, standing.body, standing.held) == ("g", 2, BODY, "")
            assert (standing.entries, standing.counted, standing.members) == ((), (), ("m0", "m1"))
            assert list(await backend.count([part("m0", 0)], HOLD)) == [False]
            assert list(await backend.count([part("m1", 1)], HOLD)) == [True]
            standing = await standing_of(backend)
            assert standing.held == part("m1").token
            assert standing.entries == (part("m0").entry, part("m1").entry)
            assert standing.counted == ("m0:0", "m1:1")
            assert list(await backend.fire([Fire("g", part("m1").token)], HOLD)) == [True]
            standing = await standing_of(backend)
            assert (standing.held, standing.size, standing.entries, standing.counted) == ("done", 0, (), ())

    @in_loop
    async def test_a_member_counts_once(self, rig: BackendRig) -> None:
        """A second run of a member changes nothing, also when it gave something else, here or in another process."""
        async with opened(rig) as backend, opened(rig) as other:
            await backend.open_chords([chord(2)])
            await backend.count([part("m0", 0), part("m0", 0)], HOLD)
            assert list(await other.count([part("m0", 0, entry=b'[1, "m0", "FAILURE", 2]')], HOLD)) == [False]
            standing = await standing_of(backend)
            assert (standing.entries, standing.counted) == ((part("m0").entry,), ("m0:0",))
            assert list(await other.count([part("m1", 1)], HOLD)) == [True]

    @in_loop
    async def test_one_task_at_two_places(self, rig: BackendRig) -> None:
        """A task that stands twice in a header, with one id and one result, counts twice."""
        async with opened(rig) as backend:
            await backend.open_chords([chord(3)])
            parts = [part("same", index, entry=b'[1, "same", "SUCCESS", 1]') for index in (0, 2, 1)]
            assert list(await backend.count(parts, HOLD)) == [False, False, True]
            entries = (await standing_of(backend)).entries
            assert [entry.strip() for entry in entries] == [b'[1, "same", "SUCCESS", 1]'] * 3

    @in_loop
    async def test_the_order_is_that_of_the_header(self, rig: BackendRig) -> None:
        """Entries stand by their index, whenever they came; those without one stand behind."""
        async with opened(rig) as backend:
            await backend.open_chords([chord(12)])
            for index in (None, 10, 2, 0, 9, 1):
                await backend.count([part(f"m{index}", index)], HOLD)
            standing = await standing_of(backend)
            assert standing.entries == tuple(part(f"m{index}").entry for index in (0, 1, 2, 9, 10, None))
            assert set(standing.counted) == {"m0:0", "m1:1", "m2:2", "m9:9", "m10:10", "mNone:+inf"}

    @in_loop
    async def test_the_size_may_come_late(self, rig: BackendRig) -> None:
        """Members that end before their chord is opened are counted; whoever comes after may complete it."""
        async with opened(rig) as backend:
            assert list(await backend.count([part("m0", 0), part("m1", 1)], HOLD)) == [False, False]
            standing = await standing_of(backend)
            assert (standing.size, standing.body, standing.counted) == (0, BODY, ("m0:0", "m1:1"))
            assert await backend.hold(Fire("g", "who"), HOLD) is False
            assert list(await backend.fire([Fire("g", "who")], HOLD)) == [False]
            await backend.open_chords([chord(3)])
            assert list(await backend.count([part("m2", 2)], HOLD)) == [True]
            await backend.count([part("late", 0, group="h")], HOLD)
            await backend.open_chords([chord(1, group="h")])
            assert (await standing_of(backend, "h")).held == ""
            assert await backend.hold(Fire("h", "who"), HOLD) is True
            assert (await standing_of(backend, "h")).held == "who"

    @in_loop
    async def test_members_may_be_added(self, rig: BackendRig) -> None:
        """Each that is added is waited for too, also one that was added before the chord is opened; it is listed behind
        the others."""
        async with opened(rig) as backend:
            await backend.add_to_chord("g", ["m1:0"])
            await backend.open_chords([chord(1)])
            await backend.add_to_chord("g", ["m2:0", "m3:+inf"])
            await backend.add_to_chord("g", [])
            standing = await standing_of(backend)
            assert (standing.size, standing.members[0]) == (4, "m0")
            assert sorted(standing.members[1:]) == ["m1:0", "m2:0", "m3:+inf"]
            parts = [part("m0"), part("m1"), part("m2"), part("m3", None)]
            assert list(await backend.count(parts, HOLD)) == [False, False, False, True]

    @in_loop
    async def test_a_member_is_added_once(self, rig: BackendRig) -> None:
        """Whoever adds it again, before or after it has ended, here or in another process, and whatever is opened
        again meanwhile."""
        async with opened(rig) as backend, opened(rig) as other:
            await backend.add_to_chord("g", ["m1:0"])
            await backend.open_chords([chord(1)])
            await other.add_to_chord("g", ["m1:0", "m1:0"])
            await backend.count([part("m1")], HOLD)
            await backend.open_chords([chord(1)])
            await other.add_to_chord("g", ["m1:0", "m2:0"])
            await backend.add_to_chord("g", ["m2:0"])
            standing = await standing_of(other)
            assert (standing.size, sorted(standing.members)) == (3, ["m0", "m1:0", "m2:0"])
            assert list(await other.count([part("m1"), part("m2"), part("m0")], HOLD)) == [False, False, True]

    @in_loop
    async def test_many_add_at_once(self, rig: BackendRig) -> None:
        """Two runs of one task that add the same members at the same time add each once."""
        async with opened(rig) as one, opened(rig) as two:
            await one.open_chords([chord(1)])
            adding = [(one, two)[n % 2].add_to_chord("g", [f"a{n // 2}:0", f"b{n // 4}:0"]) for n in range(40)]
            await asyncio.gather(*adding)
            assert (await standing_of(one)).size == 1 + 20 + 10

    @in_loop
    async def test_complete_exactly_once(self, rig: BackendRig) -> None:
        """Of many who count at the same time, one completes the chord."""
        async with opened(rig) as one, opened(rig) as two:
            await one.open_chords([chord(40)])
            counting = [(one, two)[n % 2].count([part(f"m{n}", n)], HOLD) for n in range(40)]
            assert sorted([mine for held in await asyncio.gather(*counting) for mine in held]) == [False] * 39 + [True]
            assert len((await standing_of(one)).entries) == 40

    @in_loop
    async def test_a_held_chord_is_nobody_elses(self, rig: BackendRig) -> None:
        """While a token holds a chord, only it takes, keeps and fires it; a second run of its member has it again."""
        async with opened(rig) as backend:
            await backend.open_chords([chord(2)])
            await backend.count([part("m0", 0), part("m1", 1)], HOLD)
            mine, other = Fire("g", part("m1").token), Fire("g", part("m0").token)
            assert list(await backend.count([part("m0", 0)], HOLD)) == [False]
            assert await backend.hold(other, HOLD) is False
            assert list(await backend.fire([other], HOLD)) == [False]
            assert await backend.hold(mine, HOLD) is True
            assert list(await backend.count([part("m1", 1, entry=b'["again"]')], HOLD)) == [True]
            assert list(await backend.fire([other, mine, mine], HOLD)) == [False, True, False]

    @in_loop
    async def test_what_nobody_holds_any_more_is_taken_over(self, rig: BackendRig) -> None:
        """After its time a hold is over: another token may take the chord, and then the first one can't fire it."""
        async with opened(rig) as backend:
            await backend.open_chords([chord(1)])
            first, second = Fire("g", part("m0").token), Fire("g", "second")
            assert list(await backend.count([part("m0", 0)], 0.5)) == [True]
            await rig.elapse(0.7)
            assert (await standing_of(backend)).held == ""
            assert await backend.hold(second, HOLD) is True
            assert await backend.hold(first, HOLD) is False
            assert list(await backend.fire([first, second], HOLD)) == [False, True]

    @in_loop
    async def test_a_hold_is_prolonged(self, rig: BackendRig) -> None:
        """To keep a chord counts its time anew."""
        async with opened(rig) as backend:
            await backend.open_chords([chord(1)])
            mine = Fire("g", part("m0").token)
            await backend.count([part("m0", 0)], 0.7)
            await rig.elapse(0.4)
            assert await backend.hold(mine, HOLD) is True
            await rig.elapse(0.5)
            assert await backend.hold(Fire("g", "other"), HOLD) is False

    @in_loop
    async def test_who_held_it_may_fire_it_late(self, rig: BackendRig) -> None:
        """A token whose hold is over fires all the same, as long as nobody else has taken the chord."""
        async with opened(rig) as backend:
            await backend.open_chords([chord(1)])
            await backend.count([part("m0", 0)], 0.3)
            await rig.elapse(0.5)
            assert list(await backend.fire([Fire("g", part("m0").token)], HOLD)) == [True]

    @in_loop
    async def test_only_what_is_complete_is_held(self, rig: BackendRig) -> None:
        """Nobody takes a chord whose members are still at work, one that is done, or one that is not there."""
        async with opened(rig) as backend:
            await backend.open_chords([chord(2)])
            await backend.count([part("m0", 0)], HOLD)
            assert await backend.hold(Fire("g", "who"), HOLD) is False
            assert await backend.hold(Fire("nobody", "who"), HOLD) is False
            await backend.count([part("m1", 1)], HOLD)
            assert list(await backend.fire([Fire("g", part("m1").token), Fire("nobody", "x")], HOLD)) == [True, False]
            assert await backend.hold(Fire("g", part("m1").token), HOLD) is False
            assert await backend.chord("nobody") is None

    @in_loop
    async def test_done_is_done(self, rig: BackendRig) -> None:
        """A chord that is done ignores late members and additions, until it is opened again: then it begins anew."""
        async with opened(rig) as backend:
            await backend.open_chords([chord(1)])
            await backend.add_to_chord("g", ["m1:0"])
            await backend.count([part("m1", 0), part("m0", 0)], HOLD)
            await backend.fire([Fire("g", part("m0").token)], HOLD)
            assert list(await backend.count([part("m0", 0), part("m1", 1)], HOLD)) == [False, False]
            await backend.add_to_chord("g", ["m2:0"])
            assert list(await backend.fire([Fire("g", part("m0").token)], HOLD)) == [False]
            assert await backend.standing(0, 10) == []
            assert (await standing_of(backend)).members == ("m0", "m1:0")
            await backend.open_chords([chord(2)])
            standing = await standing_of(backend)
            assert (standing.size, standing.entries, standing.counted, standing.held) == (2, (), (), "")
            assert standing.members == ("m0", "m1")
            await backend.add_to_chord("g", ["m1:0"])
            parts = [part("m0", 0), part("m1", 1), part("m1", 0)]
            assert list(await backend.count(parts, HOLD)) == [False, False, True]

    @in_loop
    async def test_opening_twice_keeps_what_was_counted(self, rig: BackendRig) -> None:
        """Whoever was not sure whether a chord was opened may open it again."""
        async with opened(rig) as backend:
            await backend.open_chords([])
            await backend.open_chords([chord(2)])
            await backend.count([part("m0", 0)], HOLD)
            await backend.open_chords([chord(2)])
            assert (await standing_of(backend)).counted == ("m0:0",)
            assert list(await backend.count([part("m1", 1)], HOLD)) == [True]

    @in_loop
    async def test_a_structure_is_the_groups_document(self, rig: BackendRig) -> None:
        """The structure is saved where a group's document is, and expires with the chord; without one there is none."""
        async with opened(rig) as backend:
            await backend.open_chords([chord(1, structure=b"\x00shape"), chord(1, group="plain")])
            assert await backend.fetch_group("g") == b"\x00shape"
            assert (await standing_of(backend)).structure == b"\x00shape"
            assert (await standing_of(backend, "plain")).structure == b""
            assert await backend.fetch_group("plain") is None

    @in_loop
    async def test_many_chords_and_large_ones(self, rig: BackendRig) -> None:
        """Hundreds of chords at once, and one of hundreds of members, any bytes in their entries."""
        async with opened(rig) as backend:
            await backend.open_chords([chord(1, group=f"g{n}") for n in range(250)])
            held = await backend.count([part("m", 0, group=f"g{n}") for n in range(250)], HOLD)
            assert list(held) == [True] * 250
            await backend.open_chords([chord(250)])
            parts = [part(f"m{n}", n, entry=b"\x93\x00%d\xff" % n) for n in range(250)]
            assert list(await backend.count(parts, HOLD)) == [False] * 249 + [True]
            standing = await standing_of(backend)
            assert standing.entries == tuple(each.entry for each in parts)
            assert standing.members == tuple(f"m{n}" for n in range(250))

    @in_loop
    async def test_those_that_stand_still_are_listed(self, rig: BackendRig) -> None:
        """Listed is what has not moved for so long, the oldest first, not more than asked for; what is done is not."""
        async with opened(rig) as backend:
            await backend.open_chords([chord(2, group="done"), chord(2, group="old")])
            await backend.count([part("m0", 0, group="done"), part("m1", 1, group="done")], HOLD)
            await backend.fire([Fire("done", part("m1").token)], HOLD)
            await rig.elapse(0.1)
            await backend.count([part("m0", 0, group="half")], HOLD)
            await rig.elapse(0.1)
            await backend.open_chords([chord(1, group="held")])
            await backend.count([part("m0", 0, group="held")], HOLD)
            listed = await backend.standing(0.0, 10)
            assert [each.group for each in listed] == ["old", "half", "held"]
            assert [each.size for each in listed] == [2, 0, 1]
            assert [each.held for each in listed] == ["", "", part("m0").token]
            assert listed[0].idle >= listed[1].idle >= listed[2].idle >= 0
            assert 0.15 < listed[0].idle < HOLD
            assert [each.group for each in await backend.standing(0.0, 2)] == ["old", "half"]
            assert [each.group for each in await backend.standing(listed[2].idle + HOLD, 10)] == []
            await rig.elapse(0.5)
            await backend.add_to_chord("old", ["m2:2"])
            await backend.hold(Fire("held", part("m0").token), HOLD)
            assert [each.group for each in await backend.standing(0.4, 10)] == ["half"]
            assert [each.group for each in await backend.standing(0.0, 1)] == ["half"]

    @in_loop
    async def test_a_chord_is_forgotten_in_time(self, rig: BackendRig) -> None:
        """A chord is forgotten so many seconds after its last movement; movements and listing count them anew."""
        async with opened(rig) as backend:
            await backend.open_chords([
                chord(2, group=group, structure=b"shape", expires=2) for group in ("still", "moving", "listed")
            ])  # fmt: skip
            await backend.open_chords([chord(2, group="ever", expires=None)])
            await rig.elapse(1.2)
            await backend.count([part("m0", 0, group="moving")], HOLD)
            listed = {each.group for each in await backend.standing(1.0, 10)}
            assert listed == {"still", "listed", "ever"}
            await backend.open_chords([chord(2, group="still", structure=b"shape", expires=1)])
            await rig.elapse(1.3)
            assert await backend.chord("still") is None
            assert await backend.fetch_group("still") is None or not rig.forgets
            assert (await standing_of(backend, "moving")).counted == ("m0:0",)
            for group in ("moving", "listed"):
                assert (await standing_of(backend, group)).structure == b"shape"
            assert {each.group for each in await backend.standing(0.0, 10)} == {"listed", "ever", "moving"}
            await backend.count([part("m1", 1, group="still")], HOLD)
            assert (await standing_of(backend, "still")).counted == ("m1:1",)

    def test_callers_open_and_add(self, rig: BackendRig) -> None:
        """A Reader opens chords and adds to them; the other side sees the same."""
        reader = rig.reader()
        reader.open_chords([chord(2, structure=b"shape"), chord(1, group="h")])
        reader.open_chords([])
        reader.add_to_chord("g", ["a:0"])
        reader.add_to_chord("g", ["a:0"])
        assert reader.fetch_group("g") == b"shape"
        reader.close()

        async def look() -> None:
            async with opened(rig) as backend:
                standing = await standing_of(backend)
                assert (standing.size, standing.body, standing.members) == (3, BODY, ("m0", "m1", "a:0"))
                assert (await standing_of(backend, "h")).size == 1

        asyncio.run(look())


def _success(name: str) -> Store:
    return Store(id=name, document=b'{"status": "SUCCESS"}', state="SUCCESS", expires=1000)


def member(receipt: Receipt | None, *parts: Part, settlement: Settlement | None = None) -> Completion:
    """A message that was run, and with it members of chords ended."""
    store = _success(parts[0].id)
    if settlement is None:
        return Completion(receipt, store=store, parts=parts)
    return Completion(receipt, settlement, store, parts=parts)


async def verdicts(consumer: Consumer, *completions: Completion) -> Sequence[Verdict]:
    """Carry out completions and claim nothing."""
    return (await consumer.cycle(completions, Demand(0))).verdicts


class ChordCycleContract:
    """What a worker may rely on where broker and results are one server."""

    @in_loop
    async def test_a_chord_in_cycles(self, rig: BrokerRig) -> None:
        """Opened with its members, counted as they end; who completes it stays in flight until the body is sent."""
        async with _store(rig) as backend, rig.consuming() as (broker, consumer):
            await broker.publish([envelope("start")])
            [start] = await claim(consumer, 1)
            opening = Completion(
                start.receipt, publish=(envelope("m0"), envelope("m1")), chords=(chord(2, structure=b"shape"),)
            )
            await settle(consumer, opening)
            standing = await standing_of(backend)
            assert (standing.size, standing.structure, standing.members) == (2, b"shape", ("m0", "m1"))
            one, two = await claim(consumer, 2)
            assert list(await verdicts(consumer, member(two.receipt, part("m1", 1)))) == [Verdict(True)]
            [verdict] = await verdicts(consumer, member(one.receipt, part("m0", 0)))
            assert (verdict.ok, verdict.complete) == (True, ("g",))
            assert set(await backend.fetch(["m0", "m1"])) == {"m0", "m1"}
            assert (await broker.count("q")).in_flight == 1
            standing = await standing_of(backend)
            assert (standing.held, standing.counted) == (part("m0").token, ("m0:0", "m1:1"))
            firing = Completion(one.receipt, publish=(envelope("body"),), fire=Fire("g", standing.held))
            assert list(await verdicts(consumer, firing)) == [Verdict(True)]
            assert (await standing_of(backend)).held == "done"
            assert (await broker.count("q")).in_flight == 0
            assert names(await claim(consumer, 1)) == ["body"]

    @in_loop
    async def test_complete_exactly_once_in_cycles(self, rig: BrokerRig) -> None:
        """Of the members that two workers end at the same time, one completes the chord."""
        async with _store(rig) as backend, rig.consuming() as (broker, one), rig.consuming() as (_, two):
            await backend.open_chords([chord(20)])
            await broker.publish([envelope(f"m{n}") for n in range(20)])
            first, second = await claim(one, 10), await claim(two, 10)
            told = await asyncio.gather(*[
                consumer.cycle([member(each.receipt, _part_of(each.blob)) for each in taken], Demand(0))
                for consumer, taken in ((one, first), (two, second))
            ])  # fmt: skip
            complete = [verdict.complete for turn in told for verdict in turn.verdicts]
            assert sorted(complete) == [()] * 19 + [("g",)]
            assert (await broker.count("q")).in_flight == 1

    @in_loop
    async def test_what_is_lost_counts_nothing(self, rig: BrokerRig) -> None:
        """A completion whose message was taken away neither opens nor counts nor fires."""
        async with _store(rig) as backend, rig.consuming() as (broker, late):
            await backend.open_chords([chord(1), chord(1, group="f")])
            await backend.count([part("x", 0, group="f")], HOLD)
            await broker.publish([envelope("a"), envelope("b")])
            one, two = await claim(late, 2)
            await late.leave()
            told = await verdicts(
                late,
                Completion(one.receipt, chords=(chord(1, group="h"),), parts=(part("a", 0),)),
                Completion(two.receipt, fire=Fire("f", part("x").token)),
            )
            assert [verdict.lost for verdict in told] == [True, True]
            assert (await standing_of(backend)).counted == ()
            assert await backend.chord("h") is None
            assert (await standing_of(backend, "f")).held == part("x").token

    @in_loop
    async def test_without_a_receipt_it_counts(self, rig: BrokerRig) -> None:
        """A member that was acknowledged early is counted; with the chord complete there is nothing to settle."""
        async with _store(rig) as backend, rig.consuming() as (broker, consumer):
            await backend.open_chords([chord(2)])
            told = await verdicts(consumer, member(None, part("m0", 0)), member(None, part("m1", 1)))
            assert [verdict.complete for verdict in told] == [(), ("g",)]
            firing = Completion(None, publish=(envelope("body"),), fire=Fire("g", part("m1").token))
            assert list(await verdicts(consumer, firing, firing)) == [Verdict(True), Verdict(True)]
            assert (await broker.count("q")).ready == 1

    @in_loop
    async def test_several_parts_at_once(self, rig: BrokerRig) -> None:
        """One completion may end several members, of one chord and of several; each chord that is complete is named."""
        async with _store(rig) as backend, rig.consuming() as (broker, consumer):
            await backend.open_chords([chord(2), chord(1, group="h"), chord(2, group="i")])
            await broker.publish([envelope("a")])
            [delivery] = await claim(consumer, 1)
            parts = (part("a", 0), part("a", 0, group="h"), part("a", 0, group="i"), part("a", 1))
            [verdict] = await verdicts(consumer, member(delivery.receipt, *parts))
            assert sorted(verdict.complete) == ["g", "h"]
            assert (await standing_of(backend, "i")).counted == ("a:0",)
            for group in verdict.complete:
                await settle(consumer, Completion(None, fire=Fire(group, part("a").token)))
            await settle(consumer, done(delivery.receipt))

    @in_loop
    async def test_a_second_run_of_who_completed_it(self, rig: BrokerRig) -> None:
        """Who dies between completing and firing leaves it to the next run of the message, and to nobody else's."""
        async with _store(rig) as backend, rig.consuming() as (broker, dying), rig.consuming() as (_, living):
            await backend.open_chords([chord(2)])
            await broker.publish([envelope("m0"), envelope("m1")])
            one, two = await claim(dying, 2)
            told = await verdicts(dying, member(one.receipt, part("m0", 0)), member(two.receipt, part("m1", 1)))
            assert [verdict.complete for verdict in told] == [(), ("g",)]
            await dying.leave()
            [again] = await claim(living, 1)
            assert name_of(again.blob) == "m1"
            told = await verdicts(living, member(None, part("m0", 0)), member(again.receipt, part("m1", 1)))
            assert [verdict.complete for verdict in told] == [(), ("g",)]
            await settle(living, Completion(again.receipt, fire=Fire("g", part("m1").token)))
            assert (await broker.count("q")).in_flight == 0

    @in_loop
    async def test_a_hold_of_a_cycle_ends(self, rig: BrokerRig) -> None:
        """What a cycle has completed is free again after half a lease, two seconds at least."""
        async with _store(rig) as backend, rig.consuming(lease=rig.lease) as (_, consumer):
            await backend.open_chords([chord(1)])
            await verdicts(consumer, member(None, part("m0", 0)))
            await rig.elapse(1.5)
            assert await backend.hold(Fire("g", "other"), HOLD) is False
            await rig.elapse(1.0)
            assert await backend.hold(Fire("g", "other"), HOLD) is True

    @in_loop
    async def test_a_fire_that_is_not_the_tokens(self, rig: BrokerRig) -> None:
        """Who comes too late has its message settled, and nothing else: no document, no envelope, no chord, no part."""
        async with _store(rig) as backend, rig.consuming() as (broker, consumer):
            await backend.open_chords([chord(1), chord(1, group="outer")])
            await backend.count([part("m0", 0)], HOLD)
            await broker.publish([envelope("a"), envelope("b"), envelope("c")])
            one, two, three = await claim(consumer, 3)
            for receipt, settlement, token in (
                (one.receipt, None, "other"), (two.receipt, Dead("late"), "other"), (three.receipt, RETURN, "other")
            ):
                late = member(receipt, part("m0", 0, group="outer"), settlement=settlement)
                [verdict] = await verdicts(consumer, Completion(
                    receipt, late.settlement, _success("body"), (envelope("body", "other"),), (chord(1, group="new"),),
                    late.parts, Fire("g", token),
                ))  # fmt: skip
                assert verdict == Verdict(True)
            assert await backend.fetch(["body"]) == {}
            assert await backend.chord("new") is None
            assert (await standing_of(backend, "outer")).counted == ()
            assert (await standing_of(backend)).held == part("m0").token
            counts = await broker.count("q")
            assert (counts.ready, counts.in_flight, counts.dead) == (1, 0, 1)
            assert (await broker.count("other")).ready == 0

    @in_loop
    async def test_a_fire_that_completes_another_chord(self, rig: BrokerRig) -> None:
        """A chord that ends in an error is itself a member that ends: the outer one is named, the inner one is done."""
        async with _store(rig) as backend, rig.consuming() as (broker, consumer):
            await backend.open_chords([chord(1), chord(1, group="outer")])
            await broker.publish([envelope("m0")])
            [delivery] = await claim(consumer, 1)
            await verdicts(consumer, member(delivery.receipt, part("m0", 0)))
            inner = Completion(
                delivery.receipt, store=_success("body"), parts=(part("body", 0, group="outer"),),
                fire=Fire("g", part("m0").token),
            )  # fmt: skip
            [verdict] = await verdicts(consumer, inner)
            assert (verdict.ok, verdict.complete) == (True, ("outer",))
            assert (await standing_of(backend)).held == "done"
            assert (await broker.count("q")).in_flight == 1
            await settle(consumer, Completion(delivery.receipt, fire=Fire("outer", part("body").token)))
            assert (await broker.count("q")).in_flight == 0

    @in_loop
    async def test_settlements_of_members(self, rig: BrokerRig) -> None:
        """Whatever becomes of its message, a member counts; only the message that completed the chord stays."""
        async with _store(rig) as backend, rig.consuming() as (broker, consumer):
            await backend.open_chords([chord(3)])
            await broker.publish([envelope(f"m{n}") for n in range(3)])
            one, two, three = await claim(consumer, 3)
            told = await verdicts(
                consumer,
                member(one.receipt, part("m0", 0), settlement=Dead("bad")),
                member(two.receipt, part("m1", 1)),
                member(three.receipt, part("m2", 2), settlement=Dead("worse")),
            )
            assert [verdict.complete for verdict in told] == [(), (), ("g",)]
            counts = await broker.count("q")
            assert (counts.in_flight, counts.dead) == (1, 1)
            await settle(consumer, Completion(three.receipt, Dead("worse"), fire=Fire("g", part("m2").token)))
            counts = await broker.count("q")
            assert (counts.in_flight, counts.dead) == (0, 2)

    @in_loop
    async def test_a_poisoned_completion_of_a_chord(self, rig: BrokerRig) -> None:
        """A completion that can't be carried out opens, counts and ends nothing; the next one does."""
        async with _store(rig) as backend, rig.consuming() as (broker, consumer):
            store, publish = await rig.poison(broker)
            await backend.open_chords([chord(1), chord(1, group="f")])
            await backend.count([part("x", 0, group="f")], HOLD)
            await broker.publish([envelope("a"), envelope("b")])
            one, two = await claim(consumer, 2)
            bad = Completion(
                one.receipt, store=store, publish=(_once(envelope("first", "other")), *publish),
                chords=(chord(1, group="h"),), parts=(part("a", 0),), fire=Fire("f", part("x").token),
            )  # fmt: skip
            worse, good = await verdicts(consumer, bad, member(two.receipt, part("b", 0, group="h")))
            assert (worse.ok, worse.lost, bool(worse.error), good.ok) == (False, False, True, True)
            assert (await standing_of(backend)).counted == ()
            assert (await standing_of(backend, "h")).size == 0
            assert (await standing_of(backend, "f")).held == part("x").token
            assert (await broker.count("other")).ready == 0
            [dead] = (await broker.browse(Place.DEAD, "q", 10)).items
            assert name_of(dead.blob) == "a"
            await broker.publish([_once(envelope("first", "other"))])
            assert (await broker.count("other")).ready == 1

    @in_loop
    async def test_once_is_once(self, rig: BrokerRig) -> None:
        """What is to be published once is dropped when it comes again, by whichever way, ready or scheduled, also after
        it was carried out."""
        async with rig.consuming() as (broker, consumer), rig.connected() as other:
            if not broker.capabilities.lease and not broker.capabilities.idempotent_publish:
                pytest.skip("the broker owns delivery and remembers no ids")
            now = (await consumer.cycle((), Demand(0))).now
            first, second, third = (_once(envelope(name)) for name in ("first", "second", "third"))
            far = _once(envelope("far", not_before=now + 1000))
            await broker.publish([first, envelope("plain"), far])
            await settle(consumer, done(None, None, None, second, envelope("too"), second))
            sender = rig.sender()
            sender.publish([third], 5.0)
            await other.publish([first, second, third, far])
            sender.publish([first, far], 5.0)
            sender.publish([second], 5.0)
            sender.close()
            await settle(consumer, done(None, None, None, first, third, far))
            taken = await claim(consumer, 5)
            assert sorted(names(taken)) == ["first", "plain", "second", "third", "too"]
            await settle(consumer, *(done(delivery.receipt) for delivery in taken))
            await other.publish([first, second, third])
            await settle(consumer, done(None, None, None, first, second, third, far))
            counts = await broker.count("q")
            assert (counts.ready, counts.scheduled, counts.in_flight) == (0, 1 if broker.capabilities.delay else 0, 0)


def _once(plain: Envelope) -> Envelope:
    return Envelope(
        plain.id, f"once-{plain.id}", plain.queue, plain.blob, plain.priority, plain.not_before,
        routing_key=plain.routing_key, once=True,
    )  # fmt: skip


def _part_of(blob: bytes) -> Part:
    name = name_of(blob)
    return part(name, int(name[1:]))


@asynccontextmanager
async def _store(rig: BrokerRig) -> AsyncIterator[ResultBackend]:
    backend = rig.backend()
    if backend is None:
        pytest.skip("no result backend on the broker's server")
    try:
        yield backend
    finally:
        await backend.close()
