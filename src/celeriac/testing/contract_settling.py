"""The laws of settling what was claimed. Part of the suite of `contract_consumer`."""

from __future__ import annotations

import pytest

from celeriac.model.message import REQUEUE, RETURN, Dead, Delay, Demand, Park, Requeue, Return, Store
from celeriac.ports import Place
from celeriac.testing.rigs import (
    BrokerRig,
    claim,
    claim_nothing,
    done,
    envelope,
    in_loop,
    losses,
    message,
    name_of,
    names,
    settle,
    success,
)


class SettlingContract:
    """What a worker may rely on when it says what has become of a message."""

    @in_loop
    async def test_acknowledged_is_gone(self, rig: BrokerRig) -> None:
        """An acknowledged message is nowhere any more."""
        async with rig.consuming() as (broker, consumer):
            await broker.publish([envelope("a")])
            [delivery] = await claim(consumer, 1)
            await settle(consumer, done(delivery.receipt))
            counts = await broker.count("q")
            assert (counts.ready, counts.in_flight, counts.dead) == (0, 0, 0)

    @in_loop
    async def test_settling_twice_is_lost(self, rig: BrokerRig) -> None:
        """The second completion of one receipt does nothing and says so, in the same cycle and in a later one."""
        async with rig.consuming() as (broker, consumer):
            await broker.publish([envelope("a"), envelope("b")])
            one, two = await claim(consumer, 2)
            turn = await consumer.cycle(
                [done(one.receipt), done(one.receipt, None, None, envelope("x", "other")), done(two.receipt)], Demand(0)
            )
            assert [(verdict.ok, verdict.lost) for verdict in turn.verdicts] == [
                (True, False), (False, True), (True, False)
            ]
            turn = await consumer.cycle([done(one.receipt, REQUEUE, None, envelope("y", "other"))], Demand(0))
            assert [verdict.lost for verdict in turn.verdicts] == [True]
            assert (await broker.count("q")).ready == 0
            assert (await broker.count("other")).ready == 0

    @in_loop
    async def test_returned_goes_to_the_head_in_order(self, rig: BrokerRig) -> None:
        """Returned messages are the next to be served, in the order of their claim, and count as no loss."""
        async with rig.consuming() as (broker, consumer):
            await broker.publish([envelope(name) for name in "abcd"])
            one, two, three = await claim(consumer, 3)
            await settle(consumer, done(one.receipt, RETURN), done(three.receipt), done(two.receipt, RETURN))
            again = await claim(consumer, 3)
            if not rig.keeps_order:
                again.sort(key=lambda delivery: name_of(delivery.blob))
            assert names(again) == ["a", "b", "d"]
            assert [losses(delivery.blob) for delivery in again] == [(0, 0)] * 3

    @in_loop
    async def test_requeued_goes_to_the_tail(self, rig: BrokerRig) -> None:
        """A requeued message is served after those that wait already."""
        async with rig.consuming() as (broker, consumer):
            await broker.publish([envelope(name) for name in "abc"])
            [delivery] = await claim(consumer, 1)
            await settle(consumer, done(delivery.receipt, REQUEUE))
            assert names(await claim(consumer, 3)) == ["b", "c", "a"]

    @in_loop
    async def test_settlements_keep_the_priority(self, rig: BrokerRig) -> None:
        """A message that comes back, by whatever way, comes back with its priority."""
        async with rig.consuming() as (broker, consumer):
            if not broker.capabilities.priority:
                pytest.skip("the broker has no priorities")
            late, early = (9, 0) if rig.lower_first else (0, 9)
            ways = ("return", "requeue", "park", "delay", "dead")
            await broker.publish([envelope(way, priority=late) for way in ways])
            taken = {name_of(delivery.blob): delivery.receipt for delivery in await claim(consumer, 5)}
            now = (await consumer.cycle((), Demand(0))).now
            finished = [
                done(taken["return"], RETURN), done(taken["requeue"], REQUEUE), done(taken["park"], Park("k")),
                done(taken["dead"], Dead("d")),
            ]
            if broker.capabilities.delay:
                finished.append(done(taken["delay"], Delay(now + 0.05)))
            else:
                finished.append(done(taken["delay"], REQUEUE))
            await settle(consumer, *finished)
            await broker.publish([envelope("early", priority=early)])
            for place in (Place.DEAD, Place.PARKED):
                [item] = (await broker.browse(place, "q", 10)).items
                await broker.restore(place, "q", [item.id])
            await rig.elapse(0.1)
            assert names(await claim(consumer, 6))[0] == "early"

    @in_loop
    async def test_a_settlement_may_replace_the_message(self, rig: BrokerRig) -> None:
        """Return, requeue and delay with a blob put that one in the place of the old."""
        async with rig.consuming() as (broker, consumer):
            await broker.publish([envelope(name) for name in "abc"])
            one, two, three = await claim(consumer, 3)
            now = (await consumer.cycle((), Demand(0))).now
            await settle(
                consumer, done(one.receipt, Return(message("A"))), done(two.receipt, Requeue(b"\xff\x00")),
                done(three.receipt, Delay(now, message("C"))),
            )
            again = [rig.kept(delivery.blob) for delivery in await claim(consumer, 3)]
            assert sorted(again) == sorted(map(rig.kept, [message("A"), b"\xff\x00", message("C")]))

    @in_loop
    async def test_delayed_comes_in_time(self, rig: BrokerRig) -> None:
        """No delayed message comes before its time by the broker's clock; all come after; the next due time is told."""
        async with rig.consuming() as (broker, consumer):
            if not broker.capabilities.delay:
                pytest.skip("the broker has no schedule")
            await broker.publish([envelope(str(n)) for n in range(4)])
            taken = await claim(consumer, 4)
            start = (await consumer.cycle((), Demand(0))).now
            due = {str(n): start + 0.4 + 0.2 * (3 - n) for n in range(4)}
            turn = await consumer.cycle(
                [done(delivery.receipt, Delay(due[name_of(delivery.blob)])) for delivery in taken], Demand(0)
            )
            assert all(verdict.ok for verdict in turn.verdicts)
            turn = await consumer.cycle((), Demand(0))
            if broker.capabilities.lease:
                assert turn.next_due == pytest.approx(start + 0.4, abs=0.01)
            assert (await broker.count("q")).scheduled == 4
            came: list[str] = []
            for _ in range(100):
                turn = await consumer.cycle((), Demand(10))
                for name in names(turn.deliveries):
                    assert turn.now >= due[name] - 0.001
                    came.append(name)
                if len(came) == 4:
                    break
                await rig.elapse(0.05)
            assert came == ["3", "2", "1", "0"]
            turn = await consumer.cycle((), Demand(0))
            assert turn.next_due is None

    @in_loop
    async def test_due_messages_do_not_wait_behind_the_backlog(self, rig: BrokerRig) -> None:
        """Messages whose time has come go before the others of their priority, in the order of their times."""
        async with rig.consuming() as (broker, consumer):
            if not broker.capabilities.delay:
                pytest.skip("the broker has no schedule")
            if not broker.capabilities.lease:
                pytest.skip("the broker puts what is due behind what waits")
            now = (await consumer.cycle((), Demand(0))).now
            await broker.publish([envelope(f"due{n}", not_before=now + 0.1 + n / 100) for n in (2, 0, 1)])
            await broker.publish([envelope("b"), envelope("c")])
            await rig.elapse(0.3)
            assert names(await claim(consumer, 5)) == ["due0", "due1", "due2", "b", "c"]

    @in_loop
    async def test_parked_are_claimed_by_their_key(self, rig: BrokerRig) -> None:
        """Parked messages stand in order in the list of their key; only a demand for the key takes them."""
        async with rig.consuming() as (broker, consumer):
            await broker.publish([envelope(name) for name in "abcdef"])
            taken = await claim(consumer, 5)
            keys = ["k", "k", "other", "k", "k"]
            await settle(
                consumer, *(done(delivery.receipt, Park(key)) for delivery, key in zip(taken, keys, strict=True))
            )
            counts = await broker.count("q")
            assert (counts.ready, counts.parked) == (1, 5)
            items = (await broker.browse(Place.PARKED, "q", 10)).items
            assert sorted((item.key, name_of(item.blob)) for item in items) == [
                ("k", "a"), ("k", "b"), ("k", "d"), ("k", "e"), ("other", "c")
            ]
            turn = await consumer.cycle((), Demand(1, parked={"k": 2, "nobody": 3}))
            assert names(turn.deliveries) == ["a", "b", "f"]
            await claim_nothing(consumer)
            [third] = (await consumer.cycle((), Demand(0, parked={"k": 1}))).deliveries
            assert name_of(third.blob) == "d"
            await settle(consumer, done(third.receipt))
            [fifth] = [item for item in items if name_of(item.blob) == "e"]
            assert await broker.restore(Place.PARKED, "q", [fifth.id]) == 1
            assert names(await claim(consumer, 1)) == ["e"]
            [third_key] = [item for item in items if name_of(item.blob) == "c"]
            assert await broker.remove(Place.PARKED, "q", [third_key.id]) == 1
            assert (await broker.count("q")).parked == 0

    @in_loop
    async def test_one_cycle_stores_publishes_and_settles(self, rig: BrokerRig) -> None:
        """A completion's document, follow-ups and settlement are carried out together."""
        async with rig.results() as backend, rig.consuming() as (broker, consumer):
            await broker.publish([envelope("a")])
            [delivery] = await claim(consumer, 1)
            await settle(
                consumer,
                done(delivery.receipt, None, success("a", b"\x00doc"), envelope("next"), envelope("far", "other")),
            )
            assert await backend.fetch(["a"]) == {"a": b"\x00doc"}
            assert (await broker.count("q")).in_flight == 0
            assert (await broker.count("other")).ready == 1
            assert names(await claim(consumer, 1)) == ["next"]

    @in_loop
    async def test_early_acknowledged_needs_no_receipt(self, rig: BrokerRig) -> None:
        """A completion without a receipt (acknowledged early) has no fence: it is carried out."""
        async with rig.results() as backend, rig.consuming() as (broker, consumer):
            await settle(consumer, done(None, None, success("early"), envelope("next")))
            assert set(await backend.fetch(["early"])) == {"early"}
            assert (await broker.count("q")).ready == 1

    @in_loop
    async def test_guarded_store_in_a_cycle(self, rig: BrokerRig) -> None:
        """A guarded document never takes the place of a stored SUCCESS; the delivery is settled all the same."""
        async with rig.results() as backend, rig.consuming() as (broker, consumer):
            await backend.store([success("a", b'{"status": "SUCCESS", "result": 1}')])
            await broker.publish([envelope("a"), envelope("b")])
            one, two = await claim(consumer, 2)
            failure = b'{"status": "FAILURE"}'
            await consumer.cycle(
                [
                    done(one.receipt, None, Store("a", failure, "FAILURE", 1000, guard=True)),
                    done(two.receipt, None, Store("b", failure, "FAILURE", 1000, guard=True)),
                ],
                Demand(0),
            )
            assert await backend.fetch(["a", "b"]) == {"a": b'{"status": "SUCCESS", "result": 1}', "b": failure}
            assert (await broker.count("q")).in_flight == 0

    @in_loop
    async def test_one_poisoned_completion_among_good_ones(self, rig: BrokerRig) -> None:
        """A completion that can't be carried out fails alone: nothing of it is done and its message is dead."""
        async with rig.consuming() as (broker, consumer):
            store, publish = await rig.poison(broker)
            await broker.publish([envelope(name) for name in "abc"])
            one, two, three = await claim(consumer, 3)
            turn = await consumer.cycle(
                [
                    done(one.receipt, None, None, envelope("from one", "other")),
                    done(two.receipt, None, store, envelope("from two", "other"), *publish),
                    done(three.receipt, REQUEUE),
                ],
                Demand(0),
            )
            good, bad, also_good = turn.verdicts
            assert (good.ok, bad.ok, also_good.ok) == (True, False, True)
            assert bad.error
            assert not bad.lost
            items = (await broker.browse(Place.READY, "other", 10)).items
            assert [name_of(item.blob) for item in items] == ["from one"]
            [dead] = (await broker.browse(Place.DEAD, "q", 10)).items
            assert (name_of(dead.blob), bool(dead.reason)) == ("b", True)
            assert names(await claim(consumer, 1)) == ["c"]
