"""Queues of a consumer's own, one for each queue that it consumes: copies of messages that it runs for long, or that
somebody had before, lie there and come to it. A worker that is lost over one leaves a trace, and a quorum queue counts
anew."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from typing import Any

from celeriac.brokers.rabbitmq.core import on
from celeriac.brokers.rabbitmq.drafts import Draft, to_queue
from celeriac.brokers.rabbitmq.lease import Lease
from celeriac.brokers.rabbitmq.messages import AGAIN, COPY, FROM, Message
from celeriac.brokers.rabbitmq.topology import HELD_TTL, held
from celeriac.drivers.amqp import frames
from celeriac.drivers.amqp.frames import M
from celeriac.wire import frame
from celeriac.wire.ids import new_id

log = logging.getLogger("celeriac.rabbitmq")


class Held:
    """Of one consumer."""

    def __init__(self, lease: Lease) -> None:
        self._lease = lease
        self.first: deque[Message] = deque()
        """What has come from our own queues; served before all else."""
        self.consumers: dict[str, str] = {}
        """Consumer tag -> the queue that is consumed."""
        self._awaited: dict[str, asyncio.Future[Message]] = {}
        self._coming = 0
        """Messages on their way into our queue; what stands behind them waits, to keep the order."""
        self._until = 0.0

    def take(self, message: Message) -> None:
        """A message has come from one of these queues."""
        waiting = self._awaited.pop(str(message.private.get(COPY)), None)
        if waiting is not None and not waiting.done():
            waiting.set_result(message)
        else:
            self.first.append(message)
            self._coming = max(0, self._coming - 1)

    def coming(self) -> bool:
        """Something that comes before all else is on its way to us."""
        if self._coming and time.monotonic() > self._until:
            self._coming = 0  # it has gone another way
        return self._coming > 0

    def begin(self, messages: list[Message]) -> None:
        """Put messages that were delivered before there, from where they come to us again."""
        self._coming += len(messages)
        self._until = time.monotonic() + HELD_TTL
        self._lease.spawn(self._put(messages))

    async def _put(self, messages: list[Message]) -> None:
        for queue in dict.fromkeys(message.queue for message in messages):
            await self.consume(queue)
        await self._lease.replace(messages, [self._copy(message) for message in messages])

    def _copy(self, message: Message, name: str = "") -> Draft:
        losses: tuple[int, int] | None = None
        if message.worker_lost:
            child, worker = frame.read_losses(message.headers.get(frame.LOSSES)) or (0, 0)
            losses = child, worker + 1
            message.headers["redelivered"] = True
        private: dict[str, Any] = {FROM: message.came_from, AGAIN: True}
        if name:
            private[COPY] = name
        target = held(message.queue, self._lease.claims.epoch)
        return Draft("", target, *message.copy(private, losses), ("held", message.queue))

    async def consume(self, queue: str) -> None:
        """Have what lies in the queue of this one come to us."""
        if queue in self.consumers.values():
            return
        lease = self._lease
        await lease.core.declare([("held", queue)], lease.claims.epoch)
        name = f"held{len(self.consumers)}"
        self.consumers[name] = queue
        arguments = frames.consume(held(queue, lease.claims.epoch), name)
        await on(
            lease.channel,
            [(M.QOS, frames.qos(0), M.QOS_OK, ""), (M.CONSUME, arguments, M.CONSUME_OK, f"the queue {queue!r}")],
        )

    async def hand_over(self, tag: str, message: Message) -> None:
        """Replace the delivery of a running message by that of a confirmed copy in our own queue."""
        lease = self._lease
        channel, claims = lease.channel, lease.claims.open
        await self.consume(message.queue)
        name = new_id()
        waiting = self._awaited[name] = asyncio.get_running_loop().create_future()
        try:
            [fault] = await lease.core.send([self._copy(message, name)], lease.claims.epoch)
            if fault:
                log.error("%s: a running message could not be handed over: %s", lease.core.describe(), fault)
                return
            async with asyncio.timeout(HELD_TTL):
                copy = await waiting
        except TimeoutError:
            log.error("%s: the copy of a running message did not come", lease.core.describe())
            return
        finally:
            self._awaited.pop(name, None)
        done = message
        if claims.get(tag) is message:
            claims[tag] = copy
        else:  # it was settled meanwhile
            done = copy
        lease.outstanding.pop(done.tag, None)
        channel.write(frames.ack(channel.number, done.tag))

    async def give_back(self) -> None:
        """What we have of it goes back to the queues it is of, as copies."""
        lease = self._lease
        claims = lease.claims.open
        mine = [tag for tag, message in claims.items() if message.held and lease.holds(message)]
        messages = [*(claims.pop(tag) for tag in mine), *self.first]
        self.first.clear()
        if messages:
            await lease.replace(
                messages, [to_queue(message.queue, *message.copy(message.marks())) for message in messages]
            )
