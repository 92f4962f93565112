"""The laws of a Consumer: claim, lease, fence, settle. Subclass the suite; see `celeriac.testing`."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress

import pytest

from celeriac.errors import OperationalError
from celeriac.model.message import (
    REQUEUE,
    RETURN,
    Dead,
    Delay,
    Delivery,
    Demand,
    Park,
    Requeue,
    Return,
    Store,
)
from celeriac.ports import Broker, Consumer, Place, ResultBackend
from celeriac.testing.contract_chords import ChordCycleContract
from celeriac.testing.rigs import (
    PATIENCE,
    BrokerRig,
    big_message,
    claim,
    claim_nothing,
    done,
    envelope,
    eventually,
    in_loop,
    losses,
    message,
    name_of,
    names,
    settle,
)
from celeriac.wire.task import read_head


def _success(name: str, document: bytes = b'{"status": "SUCCESS"}', guard: bool = False) -> Store:
    return Store(id=name, document=document, state="SUCCESS", expires=1000, guard=guard)


@asynccontextmanager
async def _backend(rig: BrokerRig) -> AsyncIterator[ResultBackend]:
    backend = rig.backend()
    if backend is None:
        pytest.skip("no result backend on the broker's server")
    try:
        yield backend
    finally:
        await backend.close()


def _needs_lease(broker: Broker) -> None:
    if not broker.capabilities.lease:
        pytest.skip("the broker owns delivery")


async def _recover(consumer: Consumer, want: int) -> None:
    """Recover until `want` messages have come back, renewing meanwhile."""
    recovered = 0
    deadline = time.monotonic() + PATIENCE
    while recovered < want:
        await consumer.renew(())
        recovered += await consumer.recover()
        assert time.monotonic() < deadline, f"{recovered} of {want} messages of the dead came back"
        if recovered < want:
            await asyncio.sleep(0.05)
    assert recovered == want


class ConsumerContract(ChordCycleContract):
    """What a worker may rely on, whatever the broker."""

    @pytest.fixture
    def rig(self) -> Iterator[BrokerRig]:
        """A fresh rig. To be overridden."""
        raise NotImplementedError

    # Claiming

    @in_loop
    async def test_first_in_first_out(self, rig: BrokerRig) -> None:
        """Messages of one priority come in the order in which they were published."""
        async with rig.consuming() as (broker, consumer):
            await broker.publish([envelope(str(n)) for n in range(5)])
            await broker.publish([envelope(str(n)) for n in range(5, 8)])
            assert names(await claim(consumer, 8)) == [str(n) for n in range(8)]

    @in_loop
    async def test_priority(self, rig: BrokerRig) -> None:
        """More urgent messages come first; equals come in order."""
        async with rig.consuming() as (broker, consumer):
            if not broker.capabilities.priority:
                pytest.skip("the broker has no priorities")
            await broker.publish([envelope(f"{n}{twin}", priority=n) for n in (3, 9, 0, 6) for twin in "ab"])
            order = (0, 3, 6, 9) if rig.lower_first else (9, 6, 3, 0)
            assert names(await claim(consumer, 8)) == [f"{n}{twin}" for n in order for twin in "ab"]

    @in_loop
    async def test_demand_bounds_the_number(self, rig: BrokerRig) -> None:
        """A cycle brings at most what was asked for, and says whether there was more."""
        async with rig.consuming() as (broker, consumer):
            await broker.publish([envelope(str(n)) for n in range(5)])
            taken = await claim(consumer, 2)
            assert len(taken) == 2
            turn = await consumer.cycle((), Demand(0))
            assert list(turn.deliveries) == []
            turn = await consumer.cycle((), Demand(2))
            if len(turn.deliveries) == 2:
                assert turn.more
            taken += turn.deliveries
            taken += await claim(consumer, 5 - len(taken))
            turn = await consumer.cycle((), Demand(10))
            assert (list(turn.deliveries), turn.more) == ([], False)

    @in_loop
    async def test_demand_bounds_the_bytes(self, rig: BrokerRig) -> None:
        """Claiming stops once the bound of bytes is passed; the message that passes it comes, so none is ever stuck."""
        async with rig.consuming() as (broker, consumer):
            await broker.publish([envelope(str(n), blob=message(str(n), pad="x" * 100_000)) for n in range(5)])
            assert names(await claim(consumer, 1, Demand(10, size=1))) == ["0"]
            turn = await consumer.cycle((), Demand(10, size=150_000))
            assert names(turn.deliveries) == ["1", "2"]

    @in_loop
    async def test_an_empty_queue_answers_at_once(self, rig: BrokerRig) -> None:
        """A cycle never waits for messages."""
        async with rig.consuming() as (_, consumer):
            before = time.monotonic()
            for _ in range(3):
                assert not (await consumer.cycle((), Demand(10))).deliveries
            assert time.monotonic() - before < 2

    @in_loop
    async def test_every_queue_is_served(self, rig: BrokerRig) -> None:
        """A long queue does not keep a short one waiting."""
        async with rig.consuming("long", "short") as (broker, consumer):
            await broker.publish([envelope(f"l{n}", "long") for n in range(40)])
            await broker.publish([envelope("s0", "short"), envelope("s1", "short")])
            taken = [name for _ in range(5) for name in names(await claim(consumer, 2))]
            assert {"s0", "s1"} <= set(taken)

    @in_loop
    async def test_other_queues_are_left_alone(self, rig: BrokerRig) -> None:
        """A consumer takes from its queues only; a receipt names the queue of its message."""
        async with rig.consuming("mine") as (broker, consumer):
            await broker.publish([envelope("a", "yours"), envelope("b", "mine")])
            [delivery] = await claim(consumer, 1)
            assert (name_of(delivery.blob), delivery.receipt.queue) == ("b", "mine")
            await claim_nothing(consumer)

    @in_loop
    async def test_equal_messages_have_receipts_of_their_own(self, rig: BrokerRig) -> None:
        """A receipt is made by the claim: equal bytes get different receipts, and each is settled alone."""
        blob = message("twin")
        async with rig.consuming() as (broker, consumer):
            await broker.publish([envelope("x", blob=blob), envelope("y", blob=blob)])
            one, two = await claim(consumer, 2)
            assert one.receipt != two.receipt
            await settle(consumer, done(one.receipt))
            await settle(consumer, done(two.receipt))

    @in_loop
    async def test_bad_bytes_pass_through(self, rig: BrokerRig) -> None:
        """A broker moves blobs and looks into none: any bytes come out as they went in, through every settlement."""
        blobs = [b"\x00\xff\xfe", b"not json", b"{", b"[]", bytes(range(256))]
        async with rig.consuming() as (broker, consumer):
            await broker.publish([envelope(str(n), blob=blob) for n, blob in enumerate(blobs)])
            taken = await claim(consumer, 5)
            assert [rig.kept(delivery.blob) for delivery in taken] == [rig.kept(blob) for blob in blobs]
            now = (await consumer.cycle((), Demand(0))).now
            receipts = [delivery.receipt for delivery in taken]
            await settle(
                consumer, done(receipts[0], RETURN), done(receipts[1], REQUEUE), done(receipts[2], Park("k")),
                done(receipts[3], Dead("bad")), done(receipts[4], Delay(now + 0.05)),
            )
            [item] = (await broker.browse(Place.DEAD, "q", 10)).items
            await broker.restore(Place.DEAD, "q", [item.id])
            await rig.elapse(0.1)
            again = await claim(consumer, 5, Demand(5, parked={"k": 1}))
            assert sorted(rig.kept(delivery.blob) for delivery in again) == sorted(rig.kept(blob) for blob in blobs)

    @in_loop
    async def test_big_messages(self, rig: BrokerRig) -> None:
        """A message of several megabytes comes through whole."""
        blob = big_message("big", 5_000_000)
        async with rig.consuming() as (broker, consumer):
            await broker.publish([envelope("big", blob=blob), envelope("small")])
            big, small = await claim(consumer, 2)
            assert rig.kept(big.blob) == rig.kept(blob)
            await settle(consumer, done(big.receipt), done(small.receipt))

    @in_loop
    async def test_each_message_goes_to_one_consumer(self, rig: BrokerRig) -> None:
        """Two workers that claim at the same time share the messages; none comes twice, none is left."""
        async with rig.consuming() as (broker, one), rig.consuming() as (_, two):
            await broker.publish([envelope(str(n)) for n in range(300)])
            taken: list[str] = []

            async def work(consumer: Consumer) -> None:
                finished: list[Delivery] = []
                while True:
                    turn = await consumer.cycle([done(delivery.receipt) for delivery in finished], Demand(7))
                    assert all(verdict.ok for verdict in turn.verdicts)
                    finished = list(turn.deliveries)
                    taken.extend(names(finished))
                    if len(taken) >= 300 and not finished:
                        return
                    if not finished:
                        with suppress(asyncio.TimeoutError):
                            await asyncio.wait_for(consumer.wait(), 0.1)

            await asyncio.gather(work(one), work(two))
            assert sorted(taken, key=int) == [str(n) for n in range(300)]
            counts = await broker.count("q")
            assert (counts.ready, counts.in_flight) == (0, 0)

    # Settling

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
        async with _backend(rig) as backend, rig.consuming() as (broker, consumer):
            await broker.publish([envelope("a")])
            [delivery] = await claim(consumer, 1)
            await settle(
                consumer,
                done(delivery.receipt, None, _success("a", b"\x00doc"), envelope("next"), envelope("far", "other")),
            )
            assert await backend.fetch(["a"]) == {"a": b"\x00doc"}
            assert (await broker.count("q")).in_flight == 0
            assert (await broker.count("other")).ready == 1
            assert names(await claim(consumer, 1)) == ["next"]

    @in_loop
    async def test_early_acknowledged_needs_no_receipt(self, rig: BrokerRig) -> None:
        """A completion without a receipt (acknowledged early) has no fence: it is carried out."""
        async with _backend(rig) as backend, rig.consuming() as (broker, consumer):
            await settle(consumer, done(None, None, _success("early"), envelope("next")))
            assert set(await backend.fetch(["early"])) == {"early"}
            assert (await broker.count("q")).ready == 1

    @in_loop
    async def test_guarded_store_in_a_cycle(self, rig: BrokerRig) -> None:
        """A guarded document never takes the place of a stored SUCCESS; the delivery is settled all the same."""
        async with _backend(rig) as backend, rig.consuming() as (broker, consumer):
            await backend.store([_success("a", b'{"status": "SUCCESS", "result": 1}')])
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

    # Lease and fence

    @in_loop
    async def test_a_lost_workers_messages_come_back(self, rig: BrokerRig) -> None:
        """When a lease has ended, another worker gives the messages back to the heads of their queues, in order."""
        async with (
            rig.consuming(lease=rig.lease) as (broker, dying),
            rig.consuming(lease=rig.lease) as (_, living),
        ):
            _needs_lease(broker)
            await broker.publish([envelope(name) for name in "abcd"])
            await claim(dying, 2)
            assert names(await claim(living, 1)) == ["c"]
            assert await living.recover() == 0
            await rig.outlive(living)
            await _recover(living, 2)
            assert names(await claim(living, 3)) == ["a", "b", "d"]
            await living.renew(())
            assert await living.recover() == 0

    @in_loop
    async def test_only_what_ran_counts_a_loss(self, rig: BrokerRig) -> None:
        """A lost worker counts in messages marked as running, in no other. All come back marked as redelivered, for
        they may have been done already; unreadable ones as they are."""
        bad = b"\x00 not a message"
        async with (
            rig.consuming(lease=rig.lease) as (broker, dying),
            rig.consuming(lease=rig.lease) as (_, living),
        ):
            _needs_lease(broker)
            await broker.publish([envelope("ran"), envelope("bad", blob=bad), envelope("waited")])
            taken = await claim(dying, 3)
            await dying.renew([delivery.receipt for delivery in taken[:2]])
            await rig.outlive(living)
            await _recover(living, 3)
            again = await claim(living, 3)
            assert again[1].blob == bad
            assert [name_of(again[0].blob), name_of(again[2].blob)] == ["ran", "waited"]
            assert [losses(again[n].blob) for n in (0, 2)] == [(0, 1), (0, 0)]
            assert [read_head(again[n].blob).redelivered for n in (0, 2)] == [True, True]

    @in_loop
    async def test_losses_add_up(self, rig: BrokerRig) -> None:
        """Each lost worker adds one."""
        async with rig.consuming(lease=rig.lease) as (broker, living):
            _needs_lease(broker)
            await broker.publish([envelope("a")])
            for lost in (1, 2):
                async with rig.consuming(lease=rig.lease) as (_, dying):
                    [delivery] = await claim(dying, 1)
                    await dying.renew([delivery.receipt])
                await rig.outlive(living)
                await _recover(living, 1)
                [item] = (await broker.browse(Place.READY, "q", 10)).items
                assert losses(item.blob) == (0, lost)

    @in_loop
    async def test_only_the_last_mark_counts(self, rig: BrokerRig) -> None:
        """What a later renewal does not name runs no more, and counts no loss."""
        async with (
            rig.consuming(lease=rig.lease) as (broker, dying),
            rig.consuming(lease=rig.lease) as (_, living),
        ):
            _needs_lease(broker)
            await broker.publish([envelope("a"), envelope("b")])
            one, two = await claim(dying, 2)
            await dying.renew([one.receipt])
            await dying.renew([two.receipt])
            await rig.outlive(living)
            await _recover(living, 2)
            assert [losses(delivery.blob) for delivery in await claim(living, 2)] == [(0, 0), (0, 1)]

    @in_loop
    async def test_a_late_completion_is_lost(self, rig: BrokerRig) -> None:
        """A completion whose message was taken away is refused: no document, no follow-up, no settlement."""
        backend = rig.backend()
        async with (
            rig.consuming(lease=rig.lease) as (broker, late),
            rig.consuming(lease=rig.lease) as (_, living),
        ):
            _needs_lease(broker)
            await broker.publish([envelope("a"), envelope("b")])
            one, two = await claim(late, 2)
            await rig.outlive(living)
            await _recover(living, 2)
            assert await late.renew([]) is False
            store = _success("a") if backend is not None else None
            turn = await late.cycle(
                [done(one.receipt, None, store, envelope("next", "other")), done(two.receipt, Dead("late"))], Demand(0)
            )
            assert [(verdict.ok, verdict.lost) for verdict in turn.verdicts] == [(False, True)] * 2
            counts = await broker.count("q")
            assert (counts.ready, counts.in_flight, counts.dead) == (2, 0, 0)
            assert (await broker.count("other")).ready == 0
            if backend is not None:
                assert await backend.fetch(["a"]) == {}
                await backend.close()

    @in_loop
    async def test_a_late_completion_does_not_touch_the_new_holder(self, rig: BrokerRig) -> None:
        """While another worker holds the message, the late completion of the first does not settle it."""
        async with (
            rig.consuming(lease=rig.lease) as (broker, late),
            rig.consuming(lease=rig.lease) as (_, living),
        ):
            _needs_lease(broker)
            await broker.publish([envelope("a")])
            [old] = await claim(late, 1)
            await rig.outlive(living)
            await _recover(living, 1)
            [new] = await claim(living, 1)
            turn = await late.cycle([done(old.receipt)], Demand(0))
            assert turn.verdicts[0].lost
            assert (await broker.count("q")).in_flight == 1
            await living.renew(())
            await settle(living, done(new.receipt))

    @in_loop
    async def test_a_cut_off_worker_goes_on(self, rig: BrokerRig) -> None:
        """A worker whose lease ended while nobody took its entries renews and completes them as if nothing had been."""
        async with rig.consuming(lease=rig.lease) as (broker, consumer):
            _needs_lease(broker)
            await broker.publish([envelope("a"), envelope("b")])
            [one] = await claim(consumer, 1)
            await rig.outlive()
            await consumer.renew([one.receipt])
            await settle(consumer, done(one.receipt))
            assert names(await claim(consumer, 1)) == ["b"]
            assert await consumer.renew(()) is True

    @in_loop
    async def test_who_claims_has_a_lease(self, rig: BrokerRig) -> None:
        """A worker that lost its lease and claims again has one again: what it claims is given back when it dies."""
        async with (
            rig.consuming(lease=rig.lease) as (broker, late),
            rig.consuming(lease=rig.lease) as (_, living),
        ):
            _needs_lease(broker)
            await broker.publish([envelope("a")])
            await claim(late, 1)
            await rig.outlive(living)
            await _recover(living, 1)
            await claim(late, 1)
            await rig.outlive(living)
            await _recover(living, 1)
            assert names(await claim(living, 1)) == ["a"]

    @in_loop
    async def test_renewing_keeps_the_messages(self, rig: BrokerRig) -> None:
        """As long as a worker renews, nobody takes its messages, however long a task runs."""
        async with (
            rig.consuming(lease=rig.lease) as (broker, busy),
            rig.consuming(lease=rig.lease) as (_, other),
        ):
            _needs_lease(broker)
            await broker.publish([envelope("a")])
            [delivery] = await claim(busy, 1)
            for _ in range(3):
                await rig.outlive(busy, other)
                assert await busy.renew([delivery.receipt]) is True
                assert await other.recover() == 0
            await settle(busy, done(delivery.receipt))

    @in_loop
    async def test_a_new_consumer_of_the_same_epoch_keeps_the_receipts(self, rig: BrokerRig) -> None:
        """A new Consumer of the same epoch renews and settles what the first one claimed; its receipts are new ones."""
        epoch = rig.epoch()
        async with rig.consuming(epoch=epoch) as (broker, first):
            _needs_lease(broker)
            await broker.publish([envelope("a"), envelope("b"), envelope("c")])
            one, two = await claim(first, 2)
        async with rig.consuming(epoch=epoch) as (broker, second):
            assert await second.renew([one.receipt]) is True
            [three] = await claim(second, 1)
            assert len({one.receipt, two.receipt, three.receipt}) == 3
            await settle(second, done(one.receipt))
            await settle(second, done(three.receipt), done(two.receipt))
            counts = await broker.count("q")
            assert (counts.ready, counts.in_flight) == (0, 0)

    @in_loop
    async def test_claims_whose_answer_was_lost_are_returned(self, rig: BrokerRig) -> None:
        """A new Consumer of an epoch returns to the heads what the epoch holds unknown to it, uncounted, in order."""
        epoch = rig.epoch()
        async with rig.consuming(epoch=epoch) as (broker, first):
            _needs_lease(broker)
            await broker.publish([envelope(name) for name in "abcde"])
            taken = await claim(first, 4)
            await first.renew([delivery.receipt for delivery in taken])
        async with rig.consuming(epoch=epoch) as (broker, second), rig.consuming() as (_, other):
            await second.renew([taken[1].receipt])
            assert await second.adopt([taken[1].receipt]) == 3
            assert await second.adopt({taken[1].receipt}) == 0
            assert await other.adopt([]) == 0
            asked = [delivery.receipt for delivery in taken]
            assert await second.standing(asked) == {taken[1].receipt}
            assert await second.standing([]) == frozenset()
            again = await claim(second, 4)
            assert names(again) == ["a", "c", "d", "e"]
            assert [losses(delivery.blob) for delivery in again] == [(0, 0)] * 4
            await settle(second, *(done(delivery.receipt) for delivery in [taken[1], *again]))
            counts = await broker.count("q")
            assert (counts.ready, counts.in_flight) == (0, 0)

    @in_loop
    async def test_two_recover_at_once(self, rig: BrokerRig) -> None:
        """Workers that recover at the same time give each message back once."""
        async with (
            rig.consuming(lease=rig.lease) as (broker, dying),
            rig.consuming(lease=rig.lease) as (_, one),
            rig.consuming(lease=rig.lease) as (_, two),
        ):
            _needs_lease(broker)
            await broker.publish([envelope(str(n)) for n in range(250)])
            await claim(dying, 250)
            await rig.outlive(one, two)
            recovered = 0
            deadline = time.monotonic() + PATIENCE
            while recovered < 250 and time.monotonic() < deadline:
                await asyncio.gather(one.renew(()), two.renew(()))
                recovered += sum(await asyncio.gather(one.recover(), two.recover()))
            assert recovered == 250
            assert names(await claim(one, 250)) == [str(n) for n in range(250)]

    @in_loop
    async def test_leaving_returns_what_is_in_flight(self, rig: BrokerRig) -> None:
        """A worker that leaves gives its messages back to the heads of their queues, in order, uncounted, at once."""
        async with rig.consuming() as (broker, leaving), rig.consuming() as (_, staying):
            await broker.publish([envelope(name) for name in "abcd"])
            taken = await claim(leaving, 3)
            await leaving.renew([taken[0].receipt])
            await settle(leaving, done(taken[1].receipt))
            await leaving.leave()
            again = await claim(staying, 3)
            if not rig.keeps_order:
                again.sort(key=lambda delivery: name_of(delivery.blob))
            assert names(again) == ["a", "c", "d"]
            assert [losses(delivery.blob) for delivery in again] == [(0, 0)] * 3
            assert [rig.kept(delivery.blob) for delivery in again[:2]] == [
                rig.kept(taken[0].blob), rig.kept(taken[2].blob)
            ]

    @in_loop
    async def test_closing_leaves_the_lease_alone(self, rig: BrokerRig) -> None:
        """Closing a consumer gives nothing back: the entries stand until the lease ends."""
        async with rig.consuming() as (broker, closing), rig.consuming() as (_, other):
            _needs_lease(broker)
            await broker.publish([envelope("a")])
            await claim(closing, 1)
            await closing.close()
            await closing.close()
            assert await other.recover() == 0
            await claim_nothing(other)
            assert (await broker.count("q")).in_flight == 1

    @in_loop
    async def test_changing_queues_keeps_open_receipts(self, rig: BrokerRig) -> None:
        """After a change of queues only the new ones are claimed from; what was claimed before can be settled."""
        async with rig.consuming("old") as (broker, consumer):
            await broker.publish([envelope("a", "old"), envelope("b", "old"), envelope("c", "new")])
            [one] = await claim(consumer, 1)
            await consumer.change(["new"])
            [three] = await claim(consumer, 1)
            assert name_of(three.blob) == "c"
            await claim_nothing(consumer)
            await settle(consumer, done(one.receipt), done(three.receipt))
            await consumer.change(["new", "old"])
            assert names(await claim(consumer, 1)) == ["b"]

    # Waiting

    @in_loop
    async def test_waiting_takes_nothing(self, rig: BrokerRig) -> None:
        """To wait takes no message, also when it is cancelled at the moment of a push."""
        async with rig.consuming() as (broker, consumer):
            for n in range(20):
                waiting = asyncio.ensure_future(consumer.wait())
                await asyncio.sleep(0)
                await broker.publish([envelope(str(n))])
                if n % 2:
                    await asyncio.sleep(0.001)
                waiting.cancel()
                with suppress(asyncio.CancelledError):
                    await waiting
                assert (await broker.count("q")).ready == n + 1
            assert names(await claim(consumer, 20)) == [str(n) for n in range(20)]

    @in_loop
    async def test_who_waits_can_be_cancelled(self, rig: BrokerRig) -> None:
        """A cancellation ends whoever waits in a circle, also when it comes together with a push."""
        async with rig.consuming() as (broker, consumer):

            async def circle() -> None:
                while True:
                    await consumer.wait()
                    await consumer.cycle((), Demand(0))

            for n in range(20):
                waiting = asyncio.ensure_future(circle())
                await asyncio.sleep(0.002)
                publishing = asyncio.ensure_future(broker.publish([envelope(str(n))]))
                for _ in range(n % 5):
                    await asyncio.sleep(0)
                await asyncio.sleep(n / 10_000)
                waiting.cancel()
                ended, _ = await asyncio.wait([waiting], timeout=PATIENCE)
                assert ended, "the cancellation was swallowed"
                await publishing

    @in_loop
    async def test_no_push_is_missed(self, rig: BrokerRig) -> None:
        """A push after a cycle that found nothing ends the wait, whether it comes before or after the wait begins."""
        async with rig.consuming() as (_, consumer), rig.connected() as other:
            for n in range(20):
                assert not (await consumer.cycle((), Demand(1))).deliveries
                if n % 2:
                    await other.publish([envelope(str(n))])
                    await asyncio.wait_for(consumer.wait(), PATIENCE)
                else:
                    waiting = asyncio.ensure_future(consumer.wait())
                    await asyncio.sleep(0.005)
                    await other.publish([envelope(str(n))])
                    await asyncio.wait_for(waiting, PATIENCE)
                [delivery] = await claim(consumer, 1)
                await settle(consumer, done(delivery.receipt))

    @in_loop
    async def test_a_push_wakes_quickly(self, rig: BrokerRig) -> None:
        """In the middle a waiting consumer has a pushed message within a quarter of a second."""
        async with rig.consuming() as (_, consumer), rig.connected() as other:
            delays = []
            for n in range(9):
                waiting = asyncio.ensure_future(claim(consumer, 1))
                await asyncio.sleep(0.02)
                before = time.monotonic()
                await other.publish([envelope(str(n))])
                [delivery] = await asyncio.wait_for(waiting, PATIENCE)
                delays.append(time.monotonic() - before)
                await settle(consumer, done(delivery.receipt))
            assert sorted(delays)[4] < 0.25

    @in_loop
    async def test_what_comes_back_wakes_too(self, rig: BrokerRig) -> None:
        """A message that another worker gives back ends the wait."""
        async with rig.consuming() as (broker, one), rig.consuming() as (_, two):
            await broker.publish([envelope("a")])
            [delivery] = await claim(one, 1)
            waiting = asyncio.ensure_future(claim(two, 1))
            await asyncio.sleep(0.02)
            await settle(one, done(delivery.receipt, RETURN))
            assert names(await asyncio.wait_for(waiting, PATIENCE)) == ["a"]

    # Faults

    @in_loop
    async def test_a_broken_connection(self, rig: BrokerRig) -> None:
        """A broken connection raises OperationalError or mends itself; a new Consumer of the epoch goes on."""
        epoch = rig.epoch()
        async with rig.consuming(epoch=epoch) as (broker, first):
            await broker.publish([envelope("a"), envelope("b")])
            [one] = await claim(first, 1)
            await rig.cut(first)
            settled = False
            try:
                turn = await asyncio.wait_for(first.cycle([done(one.receipt)], Demand(0)), PATIENCE)
                settled = turn.verdicts[0].ok
            except OperationalError:
                pass
        async with rig.consuming(epoch=epoch) as (broker, second):
            await second.renew(())
            if not settled and broker.capabilities.lease:
                turn = await second.cycle([done(one.receipt)], Demand(0))
                assert turn.verdicts[0].ok or turn.verdicts[0].lost
                await eventually(lambda: _in_flight(broker, 0), "the entry was not settled")
                assert names(await claim(second, 1)) == ["b"]
            else:
                assert {"b"} <= set(names(await claim(second, 1 if settled else 2)))


async def _in_flight(broker: Broker, want: int) -> bool:
    return (await broker.count("q")).in_flight == want
