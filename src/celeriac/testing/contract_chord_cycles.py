"""The laws of chords in the cycles of a worker. Part of the suite of `contract_consumer`."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from celeriac.model.message import RETURN, Completion, Dead, Demand, Envelope, Fire, Part, Receipt, Settlement, Verdict
from celeriac.ports import Consumer, Place
from celeriac.testing.contract_chords import HOLD, chord, part, standing_of
from celeriac.testing.rigs import BrokerRig, claim, done, envelope, in_loop, name_of, names, settle, success


def member(receipt: Receipt | None, *parts: Part, settlement: Settlement | None = None) -> Completion:
    """A message that was run, and with it members of chords ended."""
    store = success(parts[0].id)
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
        async with rig.results() as backend, rig.consuming() as (broker, consumer):
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
        async with rig.results() as backend, rig.consuming() as (broker, one), rig.consuming() as (_, two):
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
        async with rig.results() as backend, rig.consuming() as (broker, late):
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
        async with rig.results() as backend, rig.consuming() as (broker, consumer):
            await backend.open_chords([chord(2)])
            told = await verdicts(consumer, member(None, part("m0", 0)), member(None, part("m1", 1)))
            assert [verdict.complete for verdict in told] == [(), ("g",)]
            firing = Completion(None, publish=(envelope("body"),), fire=Fire("g", part("m1").token))
            assert list(await verdicts(consumer, firing, firing)) == [Verdict(True), Verdict(True)]
            assert (await broker.count("q")).ready == 1

    @in_loop
    async def test_several_parts_at_once(self, rig: BrokerRig) -> None:
        """One completion may end several members, of one chord and of several; each chord that is complete is named."""
        async with rig.results() as backend, rig.consuming() as (broker, consumer):
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
        async with rig.results() as backend, rig.consuming() as (broker, dying), rig.consuming() as (_, living):
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
        async with rig.results() as backend, rig.consuming(lease=rig.lease) as (_, consumer):
            await backend.open_chords([chord(1)])
            await verdicts(consumer, member(None, part("m0", 0)))
            await rig.elapse(1.5)
            assert await backend.hold(Fire("g", "other"), HOLD) is False
            await rig.elapse(1.0)
            assert await backend.hold(Fire("g", "other"), HOLD) is True

    @in_loop
    async def test_a_fire_that_is_not_the_tokens(self, rig: BrokerRig) -> None:
        """Who comes too late has its message settled, and nothing else: no document, no envelope, no chord, no part."""
        async with rig.results() as backend, rig.consuming() as (broker, consumer):
            await backend.open_chords([chord(1), chord(1, group="outer")])
            await backend.count([part("m0", 0)], HOLD)
            await broker.publish([envelope("a"), envelope("b"), envelope("c")])
            one, two, three = await claim(consumer, 3)
            for receipt, settlement, token in (
                (one.receipt, None, "other"), (two.receipt, Dead("late"), "other"), (three.receipt, RETURN, "other")
            ):
                late = member(receipt, part("m0", 0, group="outer"), settlement=settlement)
                [verdict] = await verdicts(consumer, Completion(
                    receipt, late.settlement, success("body"), (envelope("body", "other"),), (chord(1, group="new"),),
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
        async with rig.results() as backend, rig.consuming() as (broker, consumer):
            await backend.open_chords([chord(1), chord(1, group="outer")])
            await broker.publish([envelope("m0")])
            [delivery] = await claim(consumer, 1)
            await verdicts(consumer, member(delivery.receipt, part("m0", 0)))
            inner = Completion(
                delivery.receipt, store=success("body"), parts=(part("body", 0, group="outer"),),
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
        async with rig.results() as backend, rig.consuming() as (broker, consumer):
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
        async with rig.results() as backend, rig.consuming() as (broker, consumer):
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
