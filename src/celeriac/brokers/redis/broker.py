"""The asynchronous side of Redis as a broker: publish, operate, broadcast. Claiming is in `consumer`."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any, Protocol, runtime_checkable

from celeriac.brokers.redis import places, scripts
from celeriac.brokers.redis.consumer import RedisConsumer
from celeriac.brokers.redis.control import Control
from celeriac.brokers.redis.layout import too_new, weight
from celeriac.drivers.redis.protocol import Words
from celeriac.drivers.redis.site import Site
from celeriac.errors import CeleryError, EncodeError, OperationalError
from celeriac.model.message import Counts, Envelope, Page
from celeriac.ports import Capabilities, Consumer, Place, ResultBackend

log = logging.getLogger("celeriac.redis")

WRITE_BYTES = 1 << 20
"""About how much is sent before the answers are awaited: renewals on the same connection go between."""


@runtime_checkable
class _OnRedis(Protocol):
    """A result backend that can say where on which Redis server it stores."""

    async def site(self) -> Site: ...


class RedisBroker:
    """Broker and Bus on one database of a Redis or Valkey server. Connects on first use."""

    capabilities = Capabilities(
        delay=True, lease=True, priority=True, fanout=True, durable=True, idempotent_publish=False, peers=True
    )

    def __init__(self, url: str, options: Mapping[str, Any] | None = None) -> None:
        """Raises ImproperlyConfigured for a URL or an option that can't be used, and when hiredis is missing."""
        self._control = control = Control(url, options, self._pushed, self._fail_listeners)
        self.link = control.link
        """The control connection: everything but the cycles."""
        self.layout = control.layout
        self._listeners: dict[bytes, list[asyncio.Queue[bytes | CeleryError]]] = {}

    def describe(self) -> str:
        """The URL without its password."""
        return self._control.describe()

    async def close(self) -> None:
        """Close the control connection. Consumers close by themselves."""
        self.link.close()
        self._fail_listeners(OperationalError(f"{self.describe()}: closed"))

    # Publishing

    async def publish(self, envelopes: Sequence[Envelope]) -> None:
        """Hand over envelopes. On return the server has all of them; after an error some may be there."""
        if not envelopes:
            return
        connection = await self.link.connection()
        await self._control.declare({envelope.queue for envelope in envelopes})
        pushes, schedules, onces = self.layout.pushes(envelopes)
        try:
            batch: list[Words] = []
            size = 0
            for words in pushes:
                batch.append(words)
                size += weight(words)
                if size >= WRITE_BYTES:
                    await connection.many(batch)
                    batch, size = [], 0
            await connection.many(batch)
            for script, calls in ((scripts.SCHEDULE, schedules), (scripts.ONCE, onces)):
                for arguments in calls:
                    known = await connection.run(script, (), *arguments)
                    if known < 0:
                        raise too_new(self.describe(), -known)
        except UnicodeEncodeError as error:
            raise EncodeError(f"a queue name can't be written in UTF-8: {error}") from error

    # Consuming

    @asynccontextmanager
    async def subscribe(self, queues: Sequence[str], *, epoch: str, lease: float) -> AsyncIterator[Consumer]:
        """A Consumer with connections of its own for the cycles; the lease begins here."""
        consumer = RedisConsumer(self._control, queues, epoch, lease)
        try:
            await consumer.start()
            yield consumer
        finally:
            await consumer.close()

    async def same_server(self, backend: ResultBackend) -> bool:
        """True when the backend stores on this server process, in any database; from then on completions' results go
        where it stores them."""
        if not isinstance(backend, _OnRedis):
            return False
        await self.link.connection()
        site = await backend.site()
        if not self._control.run_id or site.run_id != self._control.run_id:
            return False
        own = self._control.server.db
        there = "" if site.db == own else site.db
        try:
            await self.link.run(scripts.PROBE, (), there, own, site.task, site.prefix)
        except OperationalError as error:
            log.warning("results are stored apart from the broker's work: %s", error)
            return False
        self._control.stores_at = site
        return True

    # Operating

    async def browse(self, where: Place, queue: str, limit: int, cursor: str = "") -> Page:
        """A page of what lies there, the one to be served first first."""
        return await places.browse(self.link, self.layout, where, queue, limit, cursor)

    async def remove(self, where: Place, queue: str, ids: Sequence[str]) -> int:
        """Delete entries by `Item.id`. Returns how many there were."""
        return await places.remove(self.link, self.layout, where, queue, ids)

    async def restore(self, where: Place, queue: str, ids: Sequence[str]) -> int:
        """Put entries back to the ready list: scheduled and dead ones to the tail, parked ones to the head. A dead
        letter begins anew: its loss counters are set back. Returns how many."""
        return await places.restore(self.link, self.layout, where, queue, ids)

    async def cancel(self, ids: Sequence[str], ttl: float) -> None:
        """Store task ids as cancelled for `ttl` seconds."""
        if ids:
            await self.link.run(scripts.CANCEL, (), self.layout.prefix, ttl, *ids)

    async def cancelled(self) -> tuple[int, frozenset[str]]:
        """The version and all ids of the durable cancel list."""
        version, ids = await self.link.run(scripts.CANCELLED, (), self.layout.prefix)
        return int(version), frozenset(task_id.decode() for task_id in ids)

    async def queues(self) -> Sequence[str]:
        """Names of all queues that were ever published to or consumed, by us or by Celery. Reads the names of all
        keys."""
        return await places.queues(self.link, self.layout)

    async def count(self, queue: str) -> Counts:
        """How much of a queue lies where."""
        return await places.count(self.link, self.layout, queue)

    async def purge(self, queue: str) -> int:
        """Delete what is ready. Returns how many."""
        return await places.purge(self.link, self.layout, queue)

    async def release(self, queue: str) -> int:
        """Move everything private back into kombu's lists: parked messages and what dead workers hold to the heads, the
        schedule (with its eta headers) to the tails. Returns how many."""
        return await places.release(self.link, self.layout, queue)

    # Bus

    async def broadcast(self, exchange: str, routing_key: str, payload: bytes) -> None:
        """Publish to all who listen now."""
        await self.link.call("PUBLISH", self.layout.channel(exchange, routing_key), payload)

    @asynccontextmanager
    async def listen(self, exchange: str, pattern: str) -> AsyncIterator[AsyncIterator[bytes]]:
        """Hear what is broadcast from now on. The iterator raises OperationalError when the connection breaks."""
        topic = self.layout.channel_pattern(exchange, pattern).encode()
        heard: asyncio.Queue[bytes | CeleryError] = asyncio.Queue()
        connection = await self.link.connection()
        listeners = self._listeners.setdefault(topic, [])
        listeners.append(heard)
        try:
            connection.tell(("PSUBSCRIBE", topic))
            await connection.call("PING")  # answered after the subscription stands
            yield _heard(heard)
        finally:
            listeners.remove(heard)
            if not listeners:
                self._listeners.pop(topic, None)
                if not connection.broken:
                    connection.tell(("PUNSUBSCRIBE", topic))

    async def reply(self, queue: str, payload: bytes) -> None:
        """Put a reply into a queue, which is gone after `reply_expires` seconds."""
        key = self.layout.ready(queue, 0)
        expires = int(self.layout.reply_expires * 1000)
        await self.link.many([("LPUSH", key, payload), ("PEXPIRE", key, expires)])

    def _pushed(self, push: list[Any]) -> None:
        if push[0] == b"pmessage":
            for heard in self._listeners.get(push[1], ()):
                heard.put_nowait(push[3])

    def _fail_listeners(self, error: CeleryError) -> None:
        for listeners in self._listeners.values():
            for heard in listeners:
                heard.put_nowait(error)


async def _heard(queue: asyncio.Queue[bytes | CeleryError]) -> AsyncIterator[bytes]:
    while True:
        item = await queue.get()
        if isinstance(item, CeleryError):
            raise item
        yield item
