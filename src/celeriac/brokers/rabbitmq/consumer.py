"""A worker's claim on some queues: what comes, and the cycle of settling and claiming."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Collection, Sequence

from celeriac.brokers.rabbitmq.claims import Claims
from celeriac.brokers.rabbitmq.core import Core
from celeriac.brokers.rabbitmq.drafts import postponed
from celeriac.brokers.rabbitmq.held import Held
from celeriac.brokers.rabbitmq.lease import Lease
from celeriac.brokers.rabbitmq.messages import Message, delivered
from celeriac.brokers.rabbitmq.notes import Notes
from celeriac.brokers.rabbitmq.settling import Settling
from celeriac.brokers.rabbitmq.supply import MOST, Supply
from celeriac.brokers.rabbitmq.topology import BOUNCES
from celeriac.drivers.alarm import Alarm
from celeriac.drivers.amqp import frames
from celeriac.drivers.amqp.machine import Event
from celeriac.errors import OperationalError
from celeriac.model.message import Completion, Delivery, Demand, Receipt, Turn, Verdict

LONGEST_WAIT = 30.0
ADOPTING = 1.0
"""Seconds in which what we still run has to come back to us after a connection was lost."""


class RabbitmqConsumer:
    """See `ports.Consumer`. Made by RabbitmqBroker.subscribe."""

    ahead = False

    def __init__(self, core: Core, notes: Notes, claims: Claims, queues: Sequence[str]) -> None:
        self.core = core
        self.claims = claims
        self.epoch = claims.epoch
        self.lease = Lease(core, claims)
        self._notes = notes
        self._held = Held(self.lease)
        self._supply = Supply(self.lease, self._held, queues, self._take)
        self._kept = not claims.open
        """Nothing that an earlier connection held is in doubt."""
        self._expected: dict[tuple[str, str, str], str] = {}
        """What we still run, and hope to get again: identity -> receipt."""
        self._early: list[Message] = []
        self._bell = Alarm()
        self._adopted = asyncio.Event()

    async def start(self) -> None:
        """Connect and declare the queues."""
        await self.lease.open(self._hear, self._ended, lambda _: self._bell.set())
        await self.lease.declare(self.queues)
        await self._notes.tell_queues([name for name in self.queues if not name.endswith(".pidbox")])

    @property
    def queues(self) -> list[str]:
        """Those that are consumed now."""
        return self._supply.queues

    # What comes

    def _hear(self, event: Event) -> None:
        arguments = event.arguments
        name = arguments[1 : 1 + arguments[0]].decode()
        queue = self._supply.consumers.get(name)
        own = queue is None
        if queue is None:
            queue = self._held.consumers.get(name)
        if queue is None:  # it was on its way when we told the server to stop
            at = 1 + arguments[0]
            tag = int.from_bytes(arguments[at : at + 8], "big")
            self.lease.channel.write(frames.nack(event.channel, tag))
            return
        message = delivered(event, queue)
        message.held = own
        self._take(message)
        self._bell.set()

    def _take(self, message: Message) -> None:
        """A message has come, by whatever way."""
        self.lease.take(message)
        if message.again and self._expected:
            receipt = self._expected.pop(message.identity, None)
            if receipt is not None and receipt in self.claims.open:
                self.claims.open[receipt] = message
                if not self._expected:
                    self._adopted.set()
                return
        if message.held:
            self._held.take(message)
        elif message.due and message.due > time.time():
            if not self._early:
                self.lease.spawn(self._postpone())
            self._early.append(message)
        elif message.count >= BOUNCES:
            self._held.begin([message])
        else:
            self._supply.add(message)

    def _ended(self, name: str) -> None:
        """The server has ended a consumer: its queue is gone, or its node."""
        queue = self._supply.consumers.pop(name, None) or self._held.consumers.pop(name, None)
        if queue is not None:
            text = f"{self.core.describe()}: the queue {queue!r} was deleted, or its node is down"
            self.lease.fail(OperationalError(text))

    async def _postpone(self) -> None:
        """Send on what came before its time."""
        await asyncio.sleep(0)
        early, self._early = self._early, []
        now = time.time()
        topology = self.core.topology
        await self.lease.replace(
            early, [postponed(message, message.queue, message.due, now, topology) for message in early]
        )

    # Cycle

    async def cycle(self, finished: Sequence[Completion], want: Demand) -> Turn:
        """See ports.Consumer."""
        supply = self._supply
        async with supply.busy:
            verdicts: Sequence[Verdict] = ()
            if finished:
                verdicts = await self._settle(finished)
            deliveries: list[Delivery] = []
            if want.count or want.parked:
                claim = self.claims.claim
                deliveries = [Delivery(claim(message), message.blob()) for message in await supply.claim(want)]
            else:
                self.lease.channel  # noqa: B018  raises when it is broken
            more = bool(want.count) and supply.more()
            if not deliveries:
                await asyncio.sleep(0)  # whoever calls in a circle leaves a turn to what is under way
            return Turn(deliveries, list(verdicts), None, time.time(), self._notes.version, more)

    async def _settle(self, finished: Sequence[Completion]) -> list[Verdict]:
        lease = self.lease
        lease.channel  # noqa: B018  raises when it is broken
        settling = Settling(self.core, self.claims, lease.generation, time.time())
        verdicts, acks, returns = await settling.carry_out(finished)
        if settling.parked:
            await self._notes.tell_keys(settling.parked)
        if acks:
            lease.acknowledge(acks)
        if returns:
            self._supply.give_back(returns)
        return verdicts

    async def wait(self) -> None:
        """See ports.Consumer."""
        self.lease.channel  # noqa: B018  raises when it is broken
        if self._supply.waiting():
            return
        held_up = self._held.coming()
        if not self._supply.consumers and not held_up:
            await asyncio.sleep(0.02)
            return
        self._bell.clear()
        await self._bell.wait(1.0 if held_up else LONGEST_WAIT)
        self.lease.channel  # noqa: B018

    # The lease is the channel

    async def renew(self, running: Sequence[Receipt]) -> bool:
        """See ports.Consumer. False after a connection was lost that held something. Hands over what runs so long that
        the server might take it away."""
        self.lease.channel  # noqa: B018  raises when it is broken
        kept, self._kept = self._kept, True
        timeout = self.core.topology.consumer_timeout
        if timeout:
            old = time.monotonic() - timeout / 2 + min(10.0, timeout / 6)
            late = [(tag, message) for tag, message in self.claims.open.items() if message.since < old]
            for tag, message in late:
                if self.lease.holds(message):
                    await self._held.hand_over(tag, message)
        return kept

    async def recover(self) -> int:
        """See ports.Consumer. The server gives back what lost workers held."""
        return 0

    async def adopt(self, known: Collection[Receipt]) -> int:
        """See ports.Consumer. What an earlier connection held has gone back to its queues; what we still run is taken
        again, if it comes to us within a moment."""
        tags = {receipt.tag for receipt in known}
        claims = self.claims.open
        for tag in [tag for tag in claims if tag not in tags]:
            del claims[tag]
        lost = {tag: message for tag, message in claims.items() if not self.lease.holds(message)}
        if not lost:
            return 0
        self._expected = {message.identity: tag for tag, message in lost.items()}
        self._adopted.clear()
        async with self._supply.busy:
            for queue in dict.fromkeys(message.queue for message in lost.values() if message.held):
                await self._held.consume(queue)
            await self._supply.consume(min(MOST, len(lost) + 1))
        try:
            async with asyncio.timeout(ADOPTING):
                await self._adopted.wait()
        except TimeoutError:
            pass
        return 0

    async def standing(self, receipts: Collection[Receipt]) -> frozenset[Receipt]:
        """See ports.Consumer."""
        found = self.claims.open
        return frozenset(
            receipt
            for receipt in receipts
            if (message := found.get(receipt.tag)) is not None and self.lease.holds(message)
        )

    async def change(self, queues: Sequence[str]) -> None:
        """See ports.Consumer."""
        async with self._supply.busy:
            await self._supply.pause()
            self._supply.queues = list(dict.fromkeys(queues))
            await self.lease.declare(self.queues)
            await self._notes.tell_queues(self.queues)

    async def leave(self) -> None:
        """See ports.Consumer."""
        async with self._supply.busy:
            await self._held.give_back()
            returns = [message.tag for message in self.claims.open.values() if self.lease.holds(message)]
            self.claims.open.clear()
            await self._supply.pause(returns)

    async def recall(self) -> None:
        """Give back what is pushed and not claimed: somebody is going to count it."""
        if not self.lease.broken:
            await self._supply.stop()

    async def close(self) -> None:
        """See ports.Consumer."""
        if self.lease.closed:
            return
        self._supply.close()
        await self.lease.close()
        self._bell.set()
