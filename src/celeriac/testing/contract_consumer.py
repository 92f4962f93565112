"""The laws of a Consumer: claim, lease, fence, settle. Subclass the suite; see `celeriac.testing`."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from contextlib import suppress

import pytest

from celeriac.errors import OperationalError
from celeriac.model.message import REQUEUE, RETURN, Dead, Delay, Delivery, Demand, Park
from celeriac.ports import Broker, Consumer, Place
from celeriac.testing.contract_chord_cycles import ChordCycleContract
from celeriac.testing.contract_lease import LeaseContract
from celeriac.testing.contract_settling import SettlingContract
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
    message,
    name_of,
    names,
    settle,
)


class ConsumerContract(SettlingContract, LeaseContract, ChordCycleContract):
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
