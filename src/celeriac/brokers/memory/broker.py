"""The server in this process, seen by whoever publishes, looks or broadcasts."""

from __future__ import annotations

import asyncio
import heapq
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any, TypeVar

from celeriac.brokers.dead_letters import limit_of
from celeriac.brokers.losses import begin_anew
from celeriac.brokers.memory.consumer import MemoryConsumer
from celeriac.brokers.topics import hears
from celeriac.drivers.memory import Entry, MemoryServer, Queue
from celeriac.drivers.owned_thread import call
from celeriac.model.message import Counts, Envelope, Item, Page
from celeriac.ports import Capabilities, Place, ResultBackend

_K = TypeVar("_K")
_HEARD_LIMIT = 10_000
"""A listener that does not listen keeps so many broadcasts; older ones are dropped, as a fanout may."""


class MemoryBroker:
    """Broker and Bus on a MemoryServer."""

    capabilities = Capabilities(
        delay=True, lease=True, priority=True, fanout=True, durable=False, idempotent_publish=True, peers=False
    )

    def __init__(self, server: MemoryServer, options: Mapping[str, Any] | None = None) -> None:
        """Raises ImproperlyConfigured for an option that can't be used."""
        self.server = server
        self._dead_limit = limit_of(options or {})

    def describe(self) -> str:
        """`memory://name`."""
        return f"memory://{self.server.name}"

    async def publish(self, envelopes: Sequence[Envelope]) -> None:
        """Hand over envelopes. On return the server has all of them."""
        self.server.publish(envelopes)

    @asynccontextmanager
    async def subscribe(self, queues: Sequence[str], *, epoch: str, lease: float) -> AsyncIterator[MemoryConsumer]:
        """A Consumer of these queues, with a lease in the name of `epoch`."""
        consumer = MemoryConsumer(self.server, queues, epoch, lease, self._dead_limit)
        try:
            yield consumer
        finally:
            await consumer.close()

    async def same_server(self, backend: ResultBackend) -> bool:
        """True for a MemoryBackend of the same MemoryServer."""
        return getattr(backend, "server", None) is self.server

    async def browse(self, where: Place, queue: str, limit: int, cursor: str = "") -> Page:
        """A page of what lies there. The cursor is a position, so entries that leave meanwhile may shift it."""
        with self.server.lock:
            items = self._items(where, queue)
        start = int(cursor or 0)
        more = len(items) > start + limit
        return Page(items[start : start + limit], str(start + limit) if more else "")

    def _items(self, where: Place, name: str) -> list[Item]:
        server = self.server
        queue = server.queues.get(name) or Queue()
        match where:
            case Place.READY:
                return [Item(str(entry.id), entry.blob) for entry in queue.in_order()]
            case Place.SCHEDULED:
                return [Item(str(entry.id), entry.blob, due=due) for due, _, entry in sorted(queue.scheduled)]
            case Place.PARKED:
                return [
                    Item(str(entry.id), entry.blob, key=key) for key, line in queue.parked.items() for entry in line
                ]
            case Place.DEAD:
                return [Item(str(entry.id), entry.blob, reason=reason) for reason, entry in queue.dead.values()]
            case Place.IN_FLIGHT:
                return [
                    Item(f"{epoch}/{tag}", entry.blob, owner=epoch)
                    for epoch, held in server.in_flight.items()
                    for tag, entry in held.items()
                    if entry.queue == name
                ]

    async def remove(self, where: Place, queue: str, ids: Sequence[str]) -> int:
        """Delete entries by `Item.id`. Returns how many there were."""
        with self.server.lock:
            taken = self._take(where, queue, ids)
            for entry in taken:
                self.server.end(entry)
            return len(taken)

    async def restore(self, where: Place, queue: str, ids: Sequence[str]) -> int:
        """Put scheduled, parked or dead entries to the tail of the ready list; dead ones with their loss counters set
        back. Returns how many."""
        with self.server.lock:
            taken = self._take(where, queue, ids) if where not in (Place.READY, Place.IN_FLIGHT) else []
            for entry in taken:
                if where is Place.DEAD:
                    entry.blob = begin_anew(entry.blob)
                self.server.ready(entry)
            return len(taken)

    def _take(self, where: Place, name: str, ids: Sequence[str]) -> list[Entry]:
        server = self.server
        queue = server.queues.get(name) or Queue()
        wanted = set(ids)
        taken: list[Entry] = []

        def keep(entry: Entry) -> bool:
            if str(entry.id) not in wanted:
                return True
            taken.append(entry)
            return False

        match where:
            case Place.READY:
                queue.ready = _filtered(queue.ready, keep)
            case Place.PARKED:
                queue.parked = _filtered(queue.parked, keep)
            case Place.SCHEDULED:
                queue.scheduled = [timed for timed in queue.scheduled if keep(timed[2])]
                heapq.heapify(queue.scheduled)
            case Place.DEAD:
                queue.dead = {number: dead for number, dead in queue.dead.items() if keep(dead[1])}
            case Place.IN_FLIGHT:
                for epoch, held in server.in_flight.items():
                    mine = [tag for tag, entry in held.items() if entry.queue == name]
                    taken += [held.pop(tag) for tag in mine if f"{epoch}/{tag}" in wanted]
        return taken

    async def cancel(self, ids: Sequence[str], ttl: float) -> None:
        """Store task ids as cancelled for `ttl` seconds."""
        server = self.server
        with server.lock:
            until = server.clock() + ttl
            server.cancelled.update(dict.fromkeys(ids, until))
            server.cancel_version += 1

    async def cancelled(self) -> tuple[int, frozenset[str]]:
        """The version and all ids of the cancel list."""
        server = self.server
        with server.lock:
            now = server.clock()
            server.cancelled = {name: until for name, until in server.cancelled.items() if until > now}
            return server.cancel_version, frozenset(server.cancelled)

    async def queues(self) -> Sequence[str]:
        """Names of all queues ever used, without those for answers."""
        with self.server.lock:
            return sorted(name for name in self.server.queues if not name.endswith(".reply.celery.pidbox"))

    async def count(self, queue: str) -> Counts:
        """How much of a queue lies where."""
        server = self.server
        with server.lock:
            held = server.queues.get(queue) or Queue()
            return Counts(
                ready=sum(map(len, held.ready.values())),
                scheduled=len(held.scheduled),
                in_flight=sum(entry.queue == queue for epoch in server.in_flight.values() for entry in epoch.values()),
                parked=sum(map(len, held.parked.values())),
                dead=len(held.dead),
                oldest=max((server.clock() - entry.since for entry in held.in_order()), default=None),
            )

    async def purge(self, queue: str) -> int:
        """Delete what is ready. Returns how many."""
        server = self.server
        with server.lock:
            held = server.queues.get(queue) or Queue()
            entries = list(held.in_order())
            held.ready.clear()
            for entry in entries:
                server.end(entry)
            return len(entries)

    async def release(self, queue: str) -> int:
        """Move what is scheduled, parked, or in flight at dead workers to the ready list. Returns how many."""
        server = self.server
        with server.lock:
            now = server.clock()
            held = server.queues.get(queue) or Queue()
            back: list[Entry] = []
            for epoch in [epoch for epoch in server.in_flight if server.leases.get(epoch, 0) <= now]:
                mine = server.in_flight[epoch]
                back += [mine.pop(tag) for tag in sorted(mine) if mine[tag].queue == queue]
            back += [entry for _, line in sorted(held.parked.items()) for entry in line]
            back += [entry for _, _, entry in sorted(held.scheduled)]
            held.parked.clear()
            held.scheduled.clear()
            for entry in back:
                server.ready(entry)
            return len(back)

    async def close(self) -> None:
        """Nothing to close: the server lives as long as someone holds it."""

    # Bus

    async def broadcast(self, exchange: str, routing_key: str, payload: bytes) -> None:
        """Tell everyone who listens now."""
        with self.server.lock:
            for tell in tuple(self.server.listeners):
                tell(exchange, routing_key, payload)

    @asynccontextmanager
    async def listen(self, exchange: str, pattern: str) -> AsyncIterator[AsyncIterator[bytes]]:
        """The payloads of broadcasts from now on."""
        loop = asyncio.get_running_loop()
        heard: deque[bytes] = deque(maxlen=_HEARD_LIMIT)
        arrived = asyncio.Event()

        def tell(told: str, routing_key: str, payload: bytes) -> None:
            if told == exchange and hears(pattern, routing_key):
                heard.append(payload)
                call(loop, arrived.set)

        async def payloads() -> AsyncIterator[bytes]:
            while True:
                while heard:
                    yield heard.popleft()
                arrived.clear()
                if not heard:
                    await arrived.wait()

        with self.server.lock:
            self.server.listeners.add(tell)
        try:
            yield payloads()
        finally:
            with self.server.lock:
                self.server.listeners.discard(tell)

    async def reply(self, queue: str, payload: bytes) -> None:
        """Put an answer into a queue."""
        number = self.server.number()
        self.server.publish([Envelope(f"reply-{number}", f"reply-{number}", queue, payload)])


def _filtered(lines: dict[_K, deque[Entry]], keep: Callable[[Entry], bool]) -> dict[_K, deque[Entry]]:
    kept = {key: deque(entry for entry in line if keep(entry)) for key, line in lines.items()}
    return {key: line for key, line in kept.items() if line}
