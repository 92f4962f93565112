"""The asynchronous side of RabbitMQ as a broker: publish, operate, broadcast. Claiming is in `consumer`."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any, Protocol, runtime_checkable

from celeriac.brokers.rabbitmq.claims import Claims
from celeriac.brokers.rabbitmq.consumer import RabbitmqConsumer
from celeriac.brokers.rabbitmq.core import Core, on
from celeriac.brokers.rabbitmq.drafts import Draft
from celeriac.brokers.rabbitmq.messages import delivered, encode
from celeriac.brokers.rabbitmq.notes import Note, Notes
from celeriac.brokers.rabbitmq.places import Places
from celeriac.brokers.rabbitmq.topology import REPLIES
from celeriac.drivers.amqp import frames
from celeriac.drivers.amqp.frames import M
from celeriac.drivers.amqp.machine import Event
from celeriac.errors import CeleryError, OperationalError
from celeriac.model.message import Counts, Envelope, Page
from celeriac.ports import Capabilities, Consumer, Place, ResultBackend
from celeriac.wire.ids import new_id


@runtime_checkable
class _Sends(Protocol):
    """A result backend that sends results to whoever asked, over its broker."""

    sends_results: bool


class RabbitmqBroker:
    """Broker and Bus on one virtual host of RabbitMQ. Connects on first use."""

    capabilities = Capabilities(
        delay=True, lease=False, priority=True, fanout=True, durable=True, idempotent_publish=False, peers=True
    )

    def __init__(self, url: str, options: Mapping[str, Any] | None = None) -> None:
        """Raises ImproperlyConfigured for a URL or an option that can't be used."""
        self._core = core = Core(url, options)
        self._notes = Notes(core)
        self._places = Places(core, self._notes)
        self._claims: dict[str, Claims] = {}
        self._consumers: set[RabbitmqConsumer] = set()

    def describe(self) -> str:
        """The URL without its password."""
        return self._core.describe()

    async def publish(self, envelopes: Sequence[Envelope]) -> None:
        """Hand over envelopes. On return the broker has confirmed all of them; after an error some may be there."""
        if envelopes:
            await self._core.publish(envelopes)

    @asynccontextmanager
    async def subscribe(self, queues: Sequence[str], *, epoch: str, lease: float) -> AsyncIterator[Consumer]:
        """A Consumer with a connection of its own. The channel takes the lease's place: `lease` means nothing."""
        claims = self._claims.get(epoch)
        if claims is None:
            claims = self._claims[epoch] = Claims(epoch)
        consumer = RabbitmqConsumer(self._core, self._notes, claims, queues)
        self._consumers.add(consumer)
        try:
            await consumer.start()
            yield consumer
        finally:
            self._consumers.discard(consumer)
            await consumer.close()
            if not claims.open:
                self._claims.pop(epoch, None)

    async def same_server(self, backend: ResultBackend) -> bool:
        """True for results that are sent as messages."""
        await self._core.link.connection()
        return isinstance(backend, _Sends) and backend.sends_results

    # Operating

    async def _recall(self) -> None:
        for consumer in list(self._consumers):
            await consumer.recall()

    async def browse(self, where: Place, queue: str, limit: int, cursor: str = "") -> Page:
        """A page of what lies there. Marks what it looks at as redelivered. What is in flight is not to be seen."""
        await self._recall()
        return await self._places.browse(where, queue, limit, cursor)

    async def remove(self, where: Place, queue: str, ids: Sequence[str]) -> int:
        """Delete entries by `Item.id`; equal messages have equal ids. Returns how many there were."""
        await self._recall()
        return await self._places.take(where, queue, ids, again=False)

    async def restore(self, where: Place, queue: str, ids: Sequence[str]) -> int:
        """Put entries back to the tail of the queue. A dead letter begins anew. Returns how many."""
        if where in (Place.READY, Place.IN_FLIGHT):
            return 0
        return await self._places.take(where, queue, ids, again=True)

    async def cancel(self, ids: Sequence[str], ttl: float) -> None:
        """Store task ids as cancelled for `ttl` seconds."""
        if ids:
            await self._notes.write(Note(cancel=tuple(ids), until=time.time() + ttl))

    async def cancelled(self) -> tuple[int, frozenset[str]]:
        """The version and all ids of the cancel list."""
        await self._notes.read()
        return self._notes.version, self._notes.cancelled()

    async def queues(self) -> Sequence[str]:
        """Names of the queues that the app describes, and of those that a worker of ours has consumed."""
        await self._notes.read()
        return sorted({*self._notes.queues, *self._core.topology.known()})

    async def count(self, queue: str) -> Counts:
        """How much of a queue lies where. RabbitMQ's protocol does not tell what is in flight at others; of more than
        2,000 scheduled messages it is not known which queue they are for, and all are counted."""
        await self._recall()
        counts = await self._places.count(queue)
        held = sum(message.queue == queue for consumer in self._consumers for message in consumer.claims.open.values())
        return Counts(counts.ready, counts.scheduled, held, counts.parked, counts.dead)

    async def purge(self, queue: str) -> int:
        """Delete what is ready. Returns how many."""
        await self._recall()
        return await self._places.purge(queue)

    async def release(self, queue: str) -> int:
        """Move what is scheduled and parked to the tail of the queue. Returns how many."""
        return await self._places.release(queue)

    async def close(self) -> None:
        """Close the control connection. Consumers close by themselves."""
        await self._core.close()

    # Bus

    async def broadcast(self, exchange: str, routing_key: str, payload: bytes) -> None:
        """Publish to all who listen now."""
        await self._tell(exchange, routing_key, payload)

    async def reply(self, queue: str, payload: bytes) -> None:
        """Send an answer to the queue `<id>.reply.<...>.pidbox`, if it is there."""
        oid, _, rest = queue.partition(".reply.")
        await self._tell(f"reply.{rest}" if rest else "", oid if rest else queue, payload)

    async def _tell(self, exchange: str, routing_key: str, payload: bytes) -> None:
        await self._core.declare([("bus", exchange)] if exchange else [])
        header, body = encode(payload)
        [fault] = await self._core.send([Draft(exchange, routing_key, header, body, ("nothing", ""), mandatory=False)])
        if fault:
            raise OperationalError(f"{self.describe()}: {fault}")

    @asynccontextmanager
    async def listen(self, exchange: str, pattern: str) -> AsyncIterator[AsyncIterator[bytes]]:
        """Hear what is broadcast from now on, by an exclusive queue. The iterator raises OperationalError when the
        connection breaks."""
        heard: asyncio.Queue[bytes | CeleryError] = asyncio.Queue()
        channel = await (await self._core.link.connection()).channel()

        def hear(event: Event) -> None:
            heard.put_nowait(delivered(event, "").blob())

        channel.on_deliver = hear
        channel.on_closed = heard.put_nowait
        queue = f"celeriac.{new_id()}.{exchange}"[:255]
        topic = not exchange.endswith(REPLIES)
        declared = frames.queue_declare(queue, durable=False, exclusive=True, auto_delete=True)
        try:
            await on(
                channel,
                [
                    self._core.topology.bus(exchange),
                    (M.QUEUE_DECLARE, declared, M.QUEUE_DECLARE_OK, f"the queue {queue!r}"),
                    (
                        M.QUEUE_BIND,
                        frames.bind(queue, exchange, (pattern or "#") if topic else ""),
                        M.QUEUE_BIND_OK,
                        "",
                    ),
                    (M.CONSUME, frames.consume(queue, "listen", no_ack=True, exclusive=True), M.CONSUME_OK, ""),
                ],
            )
            yield _heard(heard)
        finally:
            await channel.close()


async def _heard(queue: asyncio.Queue[bytes | CeleryError]) -> AsyncIterator[bytes]:
    while True:
        item = await queue.get()
        if isinstance(item, CeleryError):
            raise item
        yield item
