"""The laws of chords: what a result store keeps of them. Part of the suite of `contract_backend`; what a cycle does
with them stands in `contract_chord_cycles`."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from celeriac.model.message import Chord, Fire, Part, Standing
from celeriac.ports import ResultBackend
from celeriac.testing.rigs import BackendRig, in_loop

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
