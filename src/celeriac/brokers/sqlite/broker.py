"""The asynchronous side of the SQLite file: publishing, looking, broadcasts."""

from __future__ import annotations

import asyncio
import os
import sqlite3
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import TypeVar

from celeriac.brokers.dead_letters import limit_of
from celeriac.brokers.sqlite import places
from celeriac.brokers.sqlite.consumer import SqliteConsumer
from celeriac.brokers.sqlite.sender import publish_all
from celeriac.brokers.topics import hears
from celeriac.drivers.doorbell import Bells
from celeriac.drivers.listener import Listener
from celeriac.drivers.owned_thread import call, deliver
from celeriac.drivers.sqlite import Database, locate
from celeriac.drivers.sqlite_thread import DatabaseThread
from celeriac.model.message import Counts, Envelope, Page
from celeriac.ports import Capabilities, Place, ResultBackend

T = TypeVar("T")
_NOTICE_SECONDS = 60.0
"""How long a broadcast is kept for listeners that are slow to look."""

class SqliteBroker:
    """Broker and Bus on an SQLite file."""

    capabilities = Capabilities(
        delay=True, lease=True, priority=True, fanout=True, durable=True, idempotent_publish=True, peers=False
    )

    def __init__(self, url: str, options: Mapping[str, object], clock: Callable[[], float] = time.time) -> None:
        self.location = locate(url, options)
        self._clock = clock
        self._database = DatabaseThread(self.location)
        self._bells = Bells(self.location.path)
        self._dead_limit = limit_of(options)
        self._publishes: deque[tuple[Sequence[Envelope], asyncio.Future[None]]] = deque()
        self._flushing = False

    def describe(self) -> str:
        """The file's absolute path."""
        return self.location.path

    async def publish(self, envelopes: Sequence[Envelope]) -> None:
        """Hand over envelopes. On return they are committed. Raises OperationalError, or EncodeError for an envelope
        that no database can keep."""
        if not envelopes:
            return
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[None] = loop.create_future()
        self._publishes.append((envelopes, answer))
        if not self._flushing:
            self._flushing = True
            self._database.submit(lambda database: self._flush(database, loop))
        await answer

    def _flush(self, database: Database, loop: asyncio.AbstractEventLoop) -> None:
        """In the thread: commit all publishes that wait, together."""
        self._flushing = False  # who comes from here on asks for the next flush
        batch = []
        while self._publishes:
            batch.append(self._publishes.popleft())
        outcomes = publish_all(database, [envelopes for envelopes, _ in batch], self._clock())
        self._bells.ring("w")

        def tell() -> None:
            for (_, answer), failure in zip(batch, outcomes, strict=True):
                deliver(answer, None, failure)

        call(loop, tell)

    @asynccontextmanager
    async def subscribe(self, queues: Sequence[str], *, epoch: str, lease: float) -> AsyncIterator[SqliteConsumer]:
        """A Consumer of these queues, with a lease in the name of `epoch`."""
        consumer = SqliteConsumer(
            self._database, self._bells, queues, epoch, lease, self._clock, self._dead_limit
        )
        try:
            await consumer.open()
            yield consumer
        finally:
            await consumer.close()

    async def same_server(self, backend: ResultBackend) -> bool:
        """True for a SqliteBackend of the same file."""
        location = getattr(backend, "location", None)
        path = getattr(location, "path", None)
        return isinstance(path, str) and os.path.realpath(path) == os.path.realpath(self.location.path)

    async def _read(self, work: Callable[[sqlite3.Connection], T]) -> T:
        return await self._database.run(lambda database: database.read(work))

    async def _write(self, work: Callable[[sqlite3.Connection], T]) -> T:
        return await self._database.run(lambda database: database.write(work))

    async def browse(self, where: Place, queue: str, limit: int, cursor: str = "") -> Page:
        """A page of what lies there, in order."""
        return await self._read(lambda connection: places.browse(connection, where, queue, limit, cursor))

    async def remove(self, where: Place, queue: str, ids: Sequence[str]) -> int:
        """Delete entries by `Item.id`. Returns how many there were."""
        return await self._write(lambda connection: places.remove(connection, where, queue, ids))

    async def restore(self, where: Place, queue: str, ids: Sequence[str]) -> int:
        """Put scheduled, parked or dead entries to the tail of the ready list; dead ones with their loss counters set
        back. Returns how many."""
        now = self._clock()
        restored = await self._write(lambda connection: places.restore(connection, where, queue, ids, now))
        self._bells.ring("w")
        return restored

    async def cancel(self, ids: Sequence[str], ttl: float) -> None:
        """Store ids as cancelled for `ttl` seconds."""
        until = self._clock() + ttl
        await self._write(lambda connection: places.cancel(connection, ids, until))

    async def cancelled(self) -> tuple[int, frozenset[str]]:
        """The version and all ids of the cancel list."""
        now = self._clock()
        return await self._read(lambda connection: places.cancelled(connection, now))

    async def queues(self) -> Sequence[str]:
        """Names of all queues that were ever published to or consumed, without those for answers."""
        return await self._read(places.queues)

    async def count(self, queue: str) -> Counts:
        """How much of a queue lies where."""
        now = self._clock()
        return await self._read(lambda connection: places.count(connection, queue, now))

    async def purge(self, queue: str) -> int:
        """Delete what is ready. Returns how many."""
        return await self._write(lambda connection: places.purge(connection, queue))

    async def release(self, queue: str) -> int:
        """Move what is scheduled, parked, or in flight at dead workers to the ready list. Returns how many."""
        now = self._clock()
        released = await self._write(lambda connection: places.release(connection, queue, now))
        self._bells.ring("w")
        return released

    async def close(self) -> None:
        """Close the connection. The next use opens it again."""
        await self._database.close()
        self._bells.close()

    # Bus

    async def broadcast(self, exchange: str, routing_key: str, payload: bytes) -> None:
        """Tell everyone who listens now."""
        expires = int((self._clock() + _NOTICE_SECONDS) * 1e6)
        await self._write(
            lambda connection: connection.execute(
                "INSERT INTO celeriac_notices (exchange, routing_key, payload, expires) VALUES (?, ?, ?, ?)",
                (exchange, routing_key, payload, expires),
            ).rowcount
        )
        self._bells.ring("n")

    @asynccontextmanager
    async def listen(self, exchange: str, pattern: str) -> AsyncIterator[AsyncIterator[bytes]]:
        """The payloads of broadcasts from now on."""
        listener = Listener(self._bells, "n")
        try:
            start = await self._read(
                lambda connection: connection.execute(
                    "SELECT coalesce(max(seq), 0) FROM sqlite_sequence WHERE name = 'celeriac_notices'"
                ).fetchone()[0]
            )
            yield self._heard(listener, exchange, pattern, start)
        finally:
            listener.close()

    async def _heard(self, listener: Listener, exchange: str, pattern: str, last: int) -> AsyncIterator[bytes]:
        version = (-1, -1)
        while True:
            listener.clear()
            changed = await self._database.run(lambda database: database.version())
            if changed != version:
                version = changed
                for number, told, routing_key, payload in await self._notices(last):
                    last = number
                    if told == exchange and hears(pattern, routing_key):
                        yield payload
            await listener.wait(listener.look)

    async def _notices(self, last: int) -> list[tuple[int, str, str, bytes]]:
        return await self._read(
            lambda connection: connection.execute(
                "SELECT id, exchange, routing_key, payload FROM celeriac_notices WHERE id > ? ORDER BY id", (last,)
            ).fetchall()
        )

    async def reply(self, queue: str, payload: bytes) -> None:
        """Put an answer into a queue."""
        name = os.urandom(8).hex()
        # The 4 marks it as a random id: a reply is sent once.
        await self.publish([Envelope(name, f"reply-{name[:8]}4{name[8:]}", queue, payload)])
