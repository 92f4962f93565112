"""The state of a broker and a result store inside one process, shared by its threads and event loops.

One lock guards everything; nothing is done under it that can block. Time comes from an injectable clock.
"""

from __future__ import annotations

import heapq
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from celeriac.drivers.memory_chords import MemoryChords
from celeriac.drivers.publish_ids import KNOWN_SECONDS, ONCE_SECONDS, can_come_again
from celeriac.model.message import DONE, LOST, Envelope, Store, Verdict

_SWEEP_EVERY = 1000


@dataclass(slots=True, eq=False)
class Entry:
    """One message in the server, wherever it lies."""

    id: int
    queue: str
    priority: int
    publish_id: str
    blob: bytes
    since: float
    """When it became ready, by the server's clock."""


@dataclass(slots=True, eq=False)
class Queue:
    """What one queue holds."""

    ready: dict[int, deque[Entry]] = field(default_factory=dict)
    """Priority -> messages, the next one first."""
    scheduled: list[tuple[float, int, Entry]] = field(default_factory=list)
    """A heap of (due, id, message)."""
    parked: dict[str, deque[Entry]] = field(default_factory=dict)
    dead: dict[int, tuple[str, Entry]] = field(default_factory=dict)
    wakers: set[Callable[[], None]] = field(default_factory=set)

    def urgent(self) -> int | None:
        """The most urgent priority that has something ready."""
        return min(self.ready, default=None)

    def push(self, entry: Entry, head: bool = False) -> None:
        """Make an entry ready."""
        line = self.ready.get(entry.priority)
        if line is None:
            line = self.ready[entry.priority] = deque()
        if head:
            line.appendleft(entry)
        else:
            line.append(entry)

    def pop(self, priority: int) -> Entry:
        """Take the next ready entry of a priority."""
        line = self.ready[priority]
        entry = line.popleft()
        if not line:
            del self.ready[priority]
        return entry

    def in_order(self) -> Iterable[Entry]:
        """All ready entries, the next one first."""
        for priority in sorted(self.ready):
            yield from self.ready[priority]


Pushed = Callable[[str, bytes], None]


class MemoryServer:
    """A broker and a result store in memory. Safe for threads; gone with the process."""

    def __init__(self, name: str = "", clock: Callable[[], float] = time.time) -> None:
        self.name = name
        self.clock = clock
        self.lock = threading.RLock()
        self.queues: dict[str, Queue] = {}
        self.in_flight: dict[str, dict[int, Entry]] = {}
        """Worker epoch -> receipt number -> message."""
        self.leases: dict[str, float] = {}
        self.running: dict[str, frozenset[int]] = {}
        self.cancelled: dict[str, float] = {}
        self.cancel_version = 0
        self.listeners: set[Callable[[str, str, bytes], None]] = set()
        """Called with exchange, routing key and payload of each broadcast."""
        self.chords = MemoryChords(self.lock, lambda: self.clock(), self._group_until)
        self._published: dict[str, float] = {}
        self._once: dict[str, float] = {}
        """Publish ids that are dropped until a time, whatever became of the message."""
        self._results: dict[str, tuple[bytes, str, float]] = {}
        self._groups: dict[str, tuple[bytes, float]] = {}
        self._watches: dict[str, set[Pushed]] = {}
        self._last = 0
        self._stored = 0

    def number(self) -> int:
        """A number that was never given before."""
        self._last += 1
        return self._last

    def queue(self, name: str) -> Queue:
        """The queue of a name, made on first use."""
        queue = self.queues.get(name)
        if queue is None:
            queue = self.queues[name] = Queue()
        return queue

    # Messages

    def publish(self, envelopes: Sequence[Envelope]) -> None:
        """Take envelopes in, all or none."""
        with self.lock:
            for envelope in envelopes:
                check_envelope(envelope)
            now = self.clock()
            for envelope in envelopes:
                if envelope.publish_id in self._published:
                    continue
                if envelope.once:
                    if self._once.get(envelope.publish_id, 0.0) > now:
                        continue
                    self._once[envelope.publish_id] = now + ONCE_SECONDS
                self._published[envelope.publish_id] = math.inf
                entry = Entry(
                    self.number(), envelope.queue, envelope.priority, envelope.publish_id, envelope.blob, now
                )
                if envelope.not_before is None:
                    self.ready(entry)
                else:
                    self.schedule(entry, envelope.not_before)

    def ready(self, entry: Entry, head: bool = False) -> None:
        """Make an entry ready at the tail or the head of its queue, and wake who waits for it."""
        entry.since = self.clock()
        queue = self.queue(entry.queue)
        queue.push(entry, head)
        for wake in queue.wakers:
            wake()

    def schedule(self, entry: Entry, due: float) -> None:
        """Put an entry into the schedule."""
        heapq.heappush(self.queue(entry.queue).scheduled, (due, entry.id, entry))

    def promote(self, queue: Queue, now: float) -> None:
        """Put what is due to the head of its queue, the first due one first."""
        due: list[Entry] = []
        while queue.scheduled and queue.scheduled[0][0] <= now:
            due.append(heapq.heappop(queue.scheduled)[2])
        for entry in reversed(due):
            self.ready(entry, head=True)

    def bury(self, entry: Entry, reason: str, limit: int) -> None:
        """Put an entry among the dead letters of its queue. Beyond the limit (0: none) the oldest go."""
        dead = self.queue(entry.queue).dead
        dead[entry.id] = (reason, entry)
        while 0 < limit < len(dead):
            _, oldest = dead.pop(next(iter(dead)))
            self.end(oldest)

    def end(self, entry: Entry) -> None:
        """An entry is done with: keep only what recognises a second publish of it."""
        if can_come_again(entry.publish_id):
            self._published[entry.publish_id] = self.clock() + KNOWN_SECONDS
        else:
            self._published.pop(entry.publish_id, None)

    # Results

    def store(self, stores: Sequence[Store], deadline: float | None = None) -> list[Verdict]:
        """Store documents, each by itself."""
        with self.lock:
            if deadline is not None and self.clock() > deadline:
                return [LOST] * len(stores)
            return [self._store(store) for store in stores]

    def _store(self, store: Store) -> Verdict:
        try:
            check_store(store)
        except (UnicodeError, TypeError) as error:
            return Verdict(False, error=str(error))
        self.put(store)
        return DONE

    def put(self, store: Store) -> None:
        """Store one checked document and tell who watches it. The lock is held by the caller."""
        now = self.clock()
        if store.guard:
            standing = self._results.get(store.id)
            if standing is not None and standing[1] == "SUCCESS" and standing[2] > now:
                return
        expires = math.inf if store.expires is None else now + store.expires
        self._results[store.id] = (store.document, store.state, expires)
        for push in tuple(self._watches.get(store.id, ())):
            push(store.id, store.document)
        self._stored += 1
        if self._stored % _SWEEP_EVERY == 0:
            self._sweep(now)

    def _sweep(self, now: float) -> None:
        for name in [name for name, (_, _, expires) in self._results.items() if expires <= now]:
            del self._results[name]
        for name in [name for name, (_, expires) in self._groups.items() if expires <= now]:
            del self._groups[name]
        for known in (self._published, self._once):
            for name in [name for name, until in known.items() if until <= now]:
                del known[name]
        self.chords.sweep(now)

    def fetch(self, ids: Iterable[str]) -> Mapping[str, bytes]:
        """Documents that stand."""
        with self.lock:
            now = self.clock()
            found = ((name, self._results.get(name)) for name in ids)
            return {name: result[0] for name, result in found if result is not None and result[2] > now}

    def forget(self, ids: Iterable[str]) -> None:
        """Delete documents."""
        with self.lock:
            for name in ids:
                self._results.pop(name, None)

    def watch(self, ids: Sequence[str], push: Pushed) -> Mapping[str, bytes]:
        """Have `push` called at each change of these documents, from now on. Returns them as they are now."""
        with self.lock:
            for name in ids:
                self._watches.setdefault(name, set()).add(push)
            return self.fetch(ids)

    def unwatch(self, ids: Sequence[str], push: Pushed) -> None:
        """End a watch."""
        with self.lock:
            for name in ids:
                watches = self._watches.get(name)
                if watches is not None:
                    watches.discard(push)
                    if not watches:
                        del self._watches[name]

    def save_group(self, group_id: str, document: bytes, expires: float | None) -> None:
        """Keep a group's document."""
        with self.lock:
            self._groups[group_id] = (document, math.inf if expires is None else self.clock() + expires)

    def fetch_group(self, group_id: str) -> bytes | None:
        """A group's document, if it stands."""
        with self.lock:
            group = self._groups.get(group_id)
            return group[0] if group is not None and group[1] > self.clock() else None

    def _group_until(self, group_id: str, document: bytes | None, until: float) -> bytes:
        """For chords: save a group's document, or have that which stands stay until a time. Gives what stands."""
        document = self.fetch_group(group_id) if document is None else document
        if document is not None:
            self._groups[group_id] = (document, until)
        return document or b""

    def forget_group(self, group_id: str) -> None:
        """Delete a group's document."""
        with self.lock:
            self._groups.pop(group_id, None)


def check_envelope(envelope: Envelope) -> None:
    """Raise UnicodeError or TypeError for what no server could keep, so that tests fail here as they would there."""
    for text in (envelope.id, envelope.queue, envelope.publish_id):
        text.encode()
    memoryview(envelope.blob)


def check_store(store: Store) -> None:
    """As `check_envelope`, for a document."""
    store.id.encode()
    memoryview(store.document)
