"""The channel by which a consumer has its messages. RabbitMQ owns the delivery: the channel is the lease, and what it
holds goes back to its queues when it closes."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

from celeriac.brokers.rabbitmq.claims import Claims
from celeriac.brokers.rabbitmq.core import Core, on
from celeriac.brokers.rabbitmq.drafts import Draft
from celeriac.brokers.rabbitmq.messages import Message
from celeriac.drivers.amqp import frames
from celeriac.drivers.amqp.aio import Link
from celeriac.drivers.amqp.channel import Channel
from celeriac.drivers.amqp.machine import Event
from celeriac.errors import CeleryError, OperationalError

log = logging.getLogger("celeriac.rabbitmq")


class Lease:
    """One connection with the channel of the claims, for one consumer."""

    def __init__(self, core: Core, claims: Claims) -> None:
        self.core = core
        self.claims = claims
        self.generation = claims.begin()
        self.link = Link(core.servers, core.told_blocked)
        self.outstanding: dict[int, None] = {}
        """Delivery tags of all that the channel holds, in order."""
        self.closed = False
        self._channel: Channel | None = None
        self._jobs: set[asyncio.Task[None]] = set()

    async def open(
        self,
        on_deliver: Callable[[Event], object],
        on_cancelled: Callable[[str], None],
        on_closed: Callable[[CeleryError], None],
    ) -> None:
        """Connect. Raises OperationalError or ImproperlyConfigured."""
        channel = self._channel = await (await self.link.connection()).channel()
        channel.on_deliver, channel.on_cancelled, channel.on_closed = on_deliver, on_cancelled, on_closed

    async def declare(self, queues: Sequence[str]) -> None:
        """Declare queues, by this connection: an exclusive one belongs to it. On another channel, for a refusal closes
        that. Raises OperationalError or ImproperlyConfigured."""
        connection = await self.link.connection()
        topology, version = self.core.topology, connection.session.version
        questions = [question for name in queues for question in topology.declaration(name, version)]
        questions += topology.celery_delays(queues, version)
        channel = await connection.channel()
        try:
            await on(channel, list(dict.fromkeys(questions)))
        finally:
            await channel.close()

    @property
    def channel(self) -> Channel:
        """The channel of the claims. Raises OperationalError when it is broken."""
        channel = self._channel
        if channel is None or self.closed:
            raise OperationalError(f"{self.core.describe()}: the consumer is closed")
        if channel.broken:
            raise channel.error()
        return channel

    @property
    def broken(self) -> bool:
        """There is no channel to ask."""
        return self.closed or self._channel is None or self._channel.broken

    def fail(self, error: CeleryError) -> None:
        """Give the channel up; what it holds goes back to its queues."""
        if self._channel is not None:
            self._channel.fail(error)

    def take(self, message: Message) -> None:
        """A message has come over the channel."""
        message.generation, message.since = self.generation, time.monotonic()
        self.outstanding[message.tag] = None

    def holds(self, message: Message) -> bool:
        """It came over this channel and not over an earlier one."""
        return message.generation == self.generation

    def acknowledge(self, tags: set[int]) -> None:
        """Settle deliveries, as many as possible at once. Raises OperationalError."""
        outstanding, channel = self.outstanding, self.channel
        number = channel.number
        whole = 0
        for tag in list(outstanding) if len(tags) > 8 else ():
            if tag not in tags:
                break
            whole = tag
            del outstanding[tag]
            tags.discard(tag)
        data = frames.ack(number, whole, multiple=True) if whole else b""
        for tag in tags:
            outstanding.pop(tag, None)
        channel.write(data + b"".join([frames.ack(number, tag) for tag in sorted(tags)]))

    async def replace(self, messages: Sequence[Message], drafts: Sequence[Draft]) -> None:
        """Acknowledge messages whose copies are safe, and give the others back."""
        faults = await self.core.send(drafts, self.claims.epoch)
        channel = self.channel
        for message, fault in zip(messages, faults, strict=True):
            if self.holds(message):
                self.outstanding.pop(message.tag, None)
                frames_of = frames.nack if fault else frames.ack
                channel.write(frames_of(channel.number, message.tag))
            if fault:
                log.error("%s: %s", self.core.describe(), fault)

    def spawn(self, job: Coroutine[Any, Any, None]) -> None:
        """Do something beside; if it fails the lease is given up."""
        task = asyncio.get_running_loop().create_task(self._carefully(job))
        self._jobs.add(task)
        task.add_done_callback(self._jobs.discard)

    async def _carefully(self, job: Coroutine[Any, Any, None]) -> None:
        try:
            await job
        except CeleryError as error:
            self.fail(error)

    async def close(self) -> None:
        """End what is done beside, and the connection."""
        self.closed = True
        jobs = list(self._jobs)
        for job in jobs:
            job.cancel()
        await asyncio.gather(*jobs, return_exceptions=True)
        await self.link.close()
