"""The asynchronous side: publishing, operating, remote control and events."""

from __future__ import annotations

import asyncio
import os
import time
from collections import deque
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager

from celeriac.brokers.dead_letters import limit_of
from celeriac.brokers.postgres import places
from celeriac.brokers.postgres.consumer import PostgresConsumer
from celeriac.brokers.topics import hears
from celeriac.drivers.alarm import Alarm
from celeriac.drivers.postgres import calls
from celeriac.drivers.postgres.arrays import Int8s
from celeriac.drivers.postgres.failures import is_about_values, reason_of
from celeriac.drivers.postgres.line import Line
from celeriac.drivers.postgres.lines import Holder, Lines
from celeriac.drivers.postgres.site import Site, parse
from celeriac.errors import CeleryError, EncodeError
from celeriac.model.message import Counts, Envelope, Page
from celeriac.ports import Capabilities, Place, ResultBackend

_NOTICE = "celeriac_notices"
_NOTICES = """
SELECT id, exchange, routing_key, payload FROM celeriac_notices WHERE id > $1::bigint AND NOT id = ANY ($2) ORDER BY id
"""
_TELL = f"""
WITH told AS (
    INSERT INTO celeriac_notices (exchange, routing_key, payload, at)
    SELECT $1::text, $2::text, $3::bytea, celeriac_1_now() WHERE EXISTS (
        SELECT 1 FROM celeriac_waiting WHERE kind = 'n' AND until > celeriac_1_now() AND $1::text = ANY (queues)
    ) RETURNING 1
) SELECT pg_notify('{_NOTICE}', left($1::text, 1000)) FROM told
"""
_OVERLAP = 1000
"""Numbers of notices are given before they are committed: one may come after its followers, but not after so many."""
_LOOK_SECONDS = 15.0
"""How often who listens looks by itself where notifications come through."""
_BATCH = 4000
"""Envelopes in one statement."""


class PostgresBroker:
    """Broker and Bus on a database."""

    capabilities = Capabilities(
        delay=True, lease=True, priority=True, fanout=True, durable=True, idempotent_publish=True, peers=False
    )

    def __init__(self, url: str, options: Mapping[str, object]) -> None:
        self.site: Site = parse(url, options)
        self._holder = Holder(self.site)
        self._dead_limit = limit_of(options)
        self._publishes: deque[tuple[Sequence[Envelope], asyncio.Future[None]]] = deque()
        self._flushing: asyncio.Task[None] | None = None

    @property
    def _lines(self) -> Lines:
        return self._holder.lines()

    @property
    def _side(self) -> Line:
        return self._holder.lines().side

    def describe(self) -> str:
        """The URL without its password."""
        return self.site.shown

    async def publish(self, envelopes: Sequence[Envelope]) -> None:
        """Hand over envelopes. On return they are committed. Raises OperationalError, or EncodeError for an envelope
        that no database can keep."""
        if not envelopes:
            return
        answer: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._publishes.append((envelopes, answer))
        if self._flushing is None:
            self._flushing = asyncio.ensure_future(self._flush())
        await answer

    async def _flush(self) -> None:
        """Commit what waits, together; then what has come meanwhile."""
        try:
            while self._publishes:
                batch = [self._publishes.popleft()]
                size = len(batch[0][0])
                while self._publishes and size + len(self._publishes[0][0]) <= _BATCH:
                    batch.append(self._publishes.popleft())
                    size += len(batch[-1][0])
                await self._commit(batch)
        finally:
            self._flushing = None

    async def _commit(self, batch: Sequence[tuple[Sequence[Envelope], asyncio.Future[None]]]) -> None:
        try:
            await self._side.run(*calls.publish([each for envelopes, _ in batch for each in envelopes]))
        except CeleryError as error:
            for _, answer in batch:
                _fail(answer, type(error)(*error.args))
        except Exception as error:
            if is_about_values(error) and len(batch) > 1:
                for each in batch:
                    await self._commit([each])
                return
            fault = EncodeError(f"a message can't be stored: {reason_of(error)}") if is_about_values(error) else error
            for _, answer in batch:
                _fail(answer, fault)
        except BaseException:
            for _, answer in batch:
                answer.cancel()
            raise
        else:
            for _, answer in batch:
                if not answer.done():
                    answer.set_result(None)

    @asynccontextmanager
    async def subscribe(self, queues: Sequence[str], *, epoch: str, lease: float) -> AsyncIterator[PostgresConsumer]:
        """A Consumer of these queues, with a lease in the name of `epoch`."""
        consumer = PostgresConsumer(self._lines, queues, epoch, lease, self._dead_limit)
        try:
            await consumer.open()
            yield consumer
        finally:
            await consumer.close()

    async def same_server(self, backend: ResultBackend) -> bool:
        """True for a PostgresBackend of the same database and schema."""
        identity = getattr(backend, "identity", None)
        if identity is None or not isinstance(getattr(backend, "site", None), Site):
            return False
        return bool(await identity() == (await self._side.run(calls.IDENTITY))[0])

    async def browse(self, where: Place, queue: str, limit: int, cursor: str = "") -> Page:
        """A page of what lies there, in order."""
        return await places.browse(self._side, where, queue, limit, cursor)

    async def remove(self, where: Place, queue: str, ids: Sequence[str]) -> int:
        """Delete entries by `Item.id`. Returns how many there were."""
        return await places.remove(self._side, where, queue, ids)

    async def restore(self, where: Place, queue: str, ids: Sequence[str]) -> int:
        """Put scheduled, parked or dead entries to the tail of the ready list; dead ones with their loss counters set
        back. Returns how many."""
        return await places.restore(self._side, where, queue, ids)

    async def cancel(self, ids: Sequence[str], ttl: float) -> None:
        """Store ids as cancelled for `ttl` seconds."""
        await places.cancel(self._side, ids, ttl)

    async def cancelled(self) -> tuple[int, frozenset[str]]:
        """The version and all ids of the durable cancel list."""
        return await places.cancelled(self._side)

    async def queues(self) -> Sequence[str]:
        """Names of all queues that were ever published to or consumed, without those for answers."""
        return await places.queues(self._side)

    async def count(self, queue: str) -> Counts:
        """How much of a queue lies where."""
        return await places.count(self._side, queue)

    async def purge(self, queue: str) -> int:
        """Delete what is ready. Returns how many."""
        return await places.purge(self._side, queue)

    async def release(self, queue: str) -> int:
        """Move what is scheduled, parked, or in flight at dead workers to the ready list. Returns how many."""
        return await places.release(self._side, queue)

    async def close(self) -> None:
        """Close the connections. The next use opens them again."""
        await self._holder.close()

    # Bus

    async def broadcast(self, exchange: str, routing_key: str, payload: bytes) -> None:
        """Tell everyone who listens now. Where nobody does, nothing is written."""
        await self._side.run(_TELL, (exchange, routing_key, payload))

    @asynccontextmanager
    async def listen(self, exchange: str, pattern: str) -> AsyncIterator[AsyncIterator[bytes]]:
        """The payloads of broadcasts from now on."""
        lines, ear = self._lines, _Ear(exchange)
        try:
            await lines.hear(ear.hear, (_NOTICE,))
            await lines.side.run(*calls.wait(ear.name, "n", [exchange]))
            [(last, known)] = await lines.side.run(
                f"""SELECT coalesce(max(id), 0), coalesce(array_agg(id), '{{}}') FROM celeriac_notices
                    WHERE id >= (SELECT max(id) FROM celeriac_notices) - {_OVERLAP}"""
            )
            yield self._heard(lines, ear, pattern, last, set(known))
        finally:
            lines.ears.discard(ear.hear)

    async def _heard(
        self, lines: Lines, ear: _Ear, pattern: str, last: int, known: set[int]
    ) -> AsyncIterator[bytes]:
        said = time.monotonic()
        while True:
            ear.rung.clear()
            if ear.lost or time.monotonic() > said + calls.WAIT_SECONDS / 2:
                ear.lost, said = False, time.monotonic()
                await lines.side.run(*calls.wait(ear.name, "n", [ear.exchange]))
            rows = await lines.side.run(_NOTICES, (last - _OVERLAP, Int8s(sorted(known))))
            for number, told, routing_key, payload in rows:
                last = max(last, number)
                known.add(number)
                if told == ear.exchange and hears(pattern, routing_key):
                    yield payload
            known = {number for number in known if number > last - _OVERLAP}
            await ear.rung.wait(_LOOK_SECONDS if lines.ear.listens else 0.1)

    async def reply(self, queue: str, payload: bytes) -> None:
        """Put an answer into a queue."""
        name = os.urandom(8).hex()
        # The 4 marks it as a random id: a reply is sent once.
        await self.publish([Envelope(name, f"reply-{name[:8]}4{name[8:]}", queue, payload)])


class _Ear:
    """Who listens to an exchange."""

    def __init__(self, exchange: str) -> None:
        self.exchange = exchange
        self.name = f"n{os.urandom(8).hex()}"
        self.rung = Alarm()
        self.lost = False
        """The connection was lost: after a crash of the server nobody knows that we listen."""
        self._told = exchange[:1000]

    def hear(self, channel: str, payload: str) -> None:
        """A notification, or the loss of the connection."""
        if not channel:
            self.lost = True
        if not channel or (channel == _NOTICE and payload == self._told):
            self.rung.set()


def _fail(answer: asyncio.Future[None], error: BaseException) -> None:
    if not answer.done():
        answer.set_exception(error)
