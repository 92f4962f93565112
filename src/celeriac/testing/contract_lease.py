"""The laws of lease and fence. Part of the suite of `contract_consumer`."""

from __future__ import annotations

import asyncio
import time

import pytest

from celeriac.model.message import Dead, Demand
from celeriac.ports import Broker, Consumer, Place
from celeriac.testing.rigs import (
    PATIENCE,
    BrokerRig,
    claim,
    claim_nothing,
    done,
    envelope,
    in_loop,
    losses,
    name_of,
    names,
    settle,
    success,
)
from celeriac.wire.task import read_head


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


class LeaseContract:
    """What a worker may rely on when another one, or itself, is lost."""

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
            store = success("a") if backend is not None else None
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
