"""The memory broker keeps the contract, and is safe for threads."""

from __future__ import annotations

import asyncio
import threading
import time
from contextlib import suppress

import pytest

from celeriac.backends.memory import MemoryBackend
from celeriac.brokers.memory import MemoryBroker, MemorySender, MemoryServer
from celeriac.brokers.topics import hears
from celeriac.model.message import Dead, Demand
from celeriac.ports import Place
from celeriac.testing.contract_broker import BrokerContract, BusContract, SenderContract
from celeriac.testing.contract_consumer import ConsumerContract
from celeriac.testing.rigs import BrokerRig, done, envelope, in_loop, name_of, names


class MemoryRig(BrokerRig):
    """A server whose clock jumps instead of going."""

    def __init__(self) -> None:
        self.ahead = 0.0
        self.server = MemoryServer("test", lambda: time.time() + self.ahead)

    def broker(self) -> MemoryBroker:
        return MemoryBroker(self.server)

    def sender(self) -> MemorySender:
        return MemorySender(self.server)

    def backend(self) -> MemoryBackend:
        return MemoryBackend(self.server)

    def bus(self, broker: object) -> MemoryBroker:
        assert isinstance(broker, MemoryBroker)
        return broker

    async def elapse(self, seconds: float) -> None:
        self.ahead += seconds


class _Rigged:
    @pytest.fixture
    def rig(self) -> MemoryRig:
        return MemoryRig()


class TestMemoryBroker(_Rigged, BrokerContract):
    pass


class TestMemorySender(_Rigged, SenderContract):
    pass


class TestMemoryBus(_Rigged, BusContract):
    pass


class TestMemoryConsumer(_Rigged, ConsumerContract):
    @in_loop
    async def test_due_messages_end_the_wait(self, rig: BrokerRig) -> None:
        """A wait ends when the next scheduled message is due."""
        async with rig.consuming() as (broker, consumer):
            now = (await consumer.cycle((), Demand(0))).now
            await broker.publish([envelope("a", not_before=now + 0.1)])
            await consumer.cycle((), Demand(1))
            before = time.monotonic()
            await consumer.wait()
            assert time.monotonic() - before < 0.6


@pytest.mark.parametrize(("limit", "kept"), [(2, ["3", "4"]), (0, ["0", "1", "2", "3", "4"])])
def test_the_limit_of_dead_letters(limit: int, kept: list[str]) -> None:
    """Beyond it the oldest go; 0 is none."""

    async def story() -> None:
        broker = MemoryBroker(MemoryServer("limit"), {"dead_letter_limit": limit})
        async with broker.subscribe(["q"], epoch="a", lease=30.0) as consumer:
            await broker.publish([envelope(f"{n}") for n in range(5)])
            turn = await consumer.cycle((), Demand(5))
            await consumer.cycle([done(delivery.receipt, Dead("bad")) for delivery in turn.deliveries], Demand(0))
            items = (await broker.browse(Place.DEAD, "q", 10)).items
            assert [name_of(item.blob) for item in items] == kept

    asyncio.run(story())


def test_loops_in_threads_share_a_server() -> None:
    """Consumers on loops of several threads and producers in others: each message is done once."""
    rig = MemoryRig()
    taken: list[str] = []

    async def work() -> None:
        async with rig.consuming() as (_, consumer):
            receipts: list[object] = []
            while len(taken) < 400:
                turn = await consumer.cycle([done(receipt) for receipt in receipts], Demand(5))  # type: ignore[arg-type]
                assert all(verdict.ok for verdict in turn.verdicts)
                receipts = [delivery.receipt for delivery in turn.deliveries]
                taken.extend(names(turn.deliveries))
                if not receipts:
                    with suppress(asyncio.TimeoutError):
                        await asyncio.wait_for(consumer.wait(), 0.05)

    def produce(number: int) -> None:
        for n in range(200):
            rig.sender().publish([envelope(f"{number}.{n}")], 1.0)

    workers = [threading.Thread(target=lambda: asyncio.run(work())) for _ in range(3)]
    producers = [threading.Thread(target=produce, args=(number,)) for number in range(2)]
    for thread in [*workers, *producers]:
        thread.start()
    for thread in [*workers, *producers]:
        thread.join(30)
    assert sorted(taken) == sorted(f"{number}.{n}" for number in range(2) for n in range(200))


@pytest.mark.parametrize(
    ("pattern", "routing_key", "heard"),
    [
        ("", "a.b", True), ("#", "", True), ("#", "a.b", True), ("a.#", "a", True), ("a.#", "a.b.c", True),
        ("a.#", "ab", False), ("*.b", "a.b", True), ("*.b", "a.a.b", False), ("#.b", "a.a.b", True),
        ("a.*", "a", False), ("a.#.z", "a.z", True), ("a.#.z", "a.b.c.z", True), ("a.b", "a.b", True),
        ("worker.*", "worker.heartbeat", True), ("a+", "aa", False),
    ],
)
def test_topic_patterns(pattern: str, routing_key: str, heard: bool) -> None:
    """`*` is one word and `#` any number of words, as AMQP says."""
    assert hears(pattern, routing_key) is heard
