"""A worker's claim on some queues of the server in this process."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Collection, Sequence

from celeriac.brokers.dead_letters import DEAD_LETTER_LIMIT
from celeriac.brokers.lease import LeaseWatch
from celeriac.brokers.losses import after_lost_worker
from celeriac.drivers.alarm import Alarm
from celeriac.drivers.chords import hold_seconds
from celeriac.drivers.memory import Entry, MemoryServer, Queue, check_envelope, check_store
from celeriac.drivers.memory_chords import check_chord, check_part
from celeriac.drivers.owned_thread import call
from celeriac.model.message import (
    DONE,
    LOST,
    Ack,
    Completion,
    Dead,
    Delay,
    Delivery,
    Demand,
    Park,
    Part,
    Receipt,
    Requeue,
    Return,
    Settlement,
    Turn,
    Verdict,
)


class MemoryConsumer:
    """A worker's claim on some queues of a MemoryServer."""

    ahead = False

    def __init__(
        self, server: MemoryServer, queues: Sequence[str], epoch: str, lease: float, dead_limit: int = DEAD_LETTER_LIMIT
    ) -> None:
        self._server = server
        self._dead_limit = dead_limit
        self._queues = list(queues)
        self._epoch = epoch
        self._lease = lease
        self._hold = hold_seconds(lease)
        self._turn = 0
        self._loop = asyncio.get_running_loop()
        self._pushed = Alarm()
        self._due: float | None = None
        self._watch = LeaseWatch(lease, server.clock())
        with server.lock:
            server.leases[epoch] = server.clock() + lease
            self._listen(self._queues)

    def _listen(self, queues: Sequence[str]) -> None:
        for name in queues:
            self._server.queue(name).wakers.add(self._wake)

    def _unlisten(self) -> None:
        for name in self._queues:
            self._server.queue(name).wakers.discard(self._wake)

    def _wake(self) -> None:
        if not self._pushed.is_set():
            call(self._loop, self._pushed.set)

    async def cycle(self, finished: Sequence[Completion], want: Demand) -> Turn:
        """Settle what is finished and claim what is wanted."""
        self._pushed.clear()
        server = self._server
        with server.lock:
            now = server.clock()
            if server.leases.get(self._epoch, 0.0) <= now:
                # Whoever claims lives. Without a lease nobody would ever give back what is claimed here.
                server.leases[self._epoch] = now + self._lease
            verdicts = self._finish(finished)
            queues = [server.queue(name) for name in self._queues]
            for queue in queues:
                server.promote(queue, now)
            deliveries, more = self._claim(queues, want)
            due = [queue.scheduled[0][0] for queue in queues if queue.scheduled]
            self._due = min(due, default=None)
            return Turn(deliveries, verdicts, self._due, now, server.cancel_version, more)

    def _finish(self, finished: Sequence[Completion]) -> list[Verdict]:
        held = self._server.in_flight.setdefault(self._epoch, {})
        returned: list[tuple[int, Entry]] = []
        verdicts = []
        for completion in finished:
            tag, entry = 0, None
            if completion.receipt is not None:
                tag = int(completion.receipt.tag)
                entry = held.pop(tag, None)
                if entry is None:
                    verdicts.append(LOST)
                    continue
            try:
                if completion.store is not None:
                    check_store(completion.store)
                for envelope in completion.publish:
                    check_envelope(envelope)
                for chord in completion.chords:
                    check_chord(chord)
                for part in completion.parts:
                    check_part(part)
            except (UnicodeError, TypeError) as error:
                if entry is not None:
                    self._server.bury(entry, str(error), self._dead_limit)
                verdicts.append(Verdict(False, error=str(error)))
                continue
            complete: tuple[str, ...] = ()
            if completion.fire is None or self._server.chords.fire([completion.fire], self._hold)[0]:
                if completion.store is not None:
                    self._server.put(completion.store)
                if completion.chords:
                    self._server.chords.open(completion.chords)
                if completion.publish:
                    self._server.publish(completion.publish)
                if completion.parts:
                    complete = self._count(completion.parts)
            if complete:
                if entry is not None:
                    held[tag] = entry
                verdicts.append(Verdict(True, complete=complete))
                continue
            if entry is not None:
                if isinstance(completion.settlement, Return):
                    entry.blob = entry.blob if completion.settlement.blob is None else completion.settlement.blob
                    returned.append((tag, entry))
                else:
                    self._settle(entry, completion.settlement)
            verdicts.append(DONE)
        self._return(returned)
        return verdicts

    def _count(self, parts: Sequence[Part]) -> tuple[str, ...]:
        held = self._server.chords.count(parts, self._hold)
        return tuple(dict.fromkeys(part.group for part, mine in zip(parts, held, strict=True) if mine))

    def _return(self, returned: list[tuple[int, Entry]]) -> None:
        for _, entry in sorted(returned, key=lambda pair: pair[0], reverse=True):
            self._server.ready(entry, head=True)

    def _settle(self, entry: Entry, settlement: Settlement) -> None:
        server = self._server
        match settlement:
            case Ack() | Return():
                server.end(entry)
            case Requeue(blob=blob):
                entry.blob = entry.blob if blob is None else blob
                server.ready(entry)
            case Delay(until=until, blob=blob):
                entry.blob = entry.blob if blob is None else blob
                server.schedule(entry, until)
            case Park(key=key):
                server.queue(entry.queue).parked.setdefault(key, deque()).append(entry)
            case Dead(reason=reason):
                server.bury(entry, reason, self._dead_limit)

    def _claim(self, queues: list[Queue], want: Demand) -> tuple[list[Delivery], bool]:
        server = self._server
        held = server.in_flight[self._epoch]
        deliveries: list[Delivery] = []
        size = 0

        def take(entry: Entry) -> None:
            nonlocal size
            tag = server.number()
            held[tag] = entry
            deliveries.append(Delivery(Receipt(entry.queue, str(tag)), entry.blob))
            size += len(entry.blob)

        for key, count in want.parked.items():
            for queue in queues:
                line = queue.parked.get(key)
                while line and count > 0 and size < want.size:
                    take(line.popleft())
                    count -= 1
                if line is not None and not line:
                    del queue.parked[key]
        # More urgent first; among equals one queue after the other, so that a long queue starves no other.
        first = self._turn % len(queues) if queues else 0
        self._turn += 1
        turns = queues[first:] + queues[:first]
        count = want.count
        while count > 0 and size < want.size:
            urgent = [(priority, queue) for queue in turns if (priority := queue.urgent()) is not None]
            if not urgent:
                break
            best = min(priority for priority, _ in urgent)
            for priority, queue in urgent:
                if priority == best and count > 0 and size < want.size:
                    take(queue.pop(best))
                    count -= 1
        return deliveries, bool(want.count) and any(queue.ready for queue in queues)

    async def wait(self) -> None:
        """Return after a push to one of the queues, when a scheduled message may be due, or after a second."""
        patience = 1.0
        if self._due is not None:
            patience = min(patience, max(self._due - self._server.clock(), 0.001))
        await self._pushed.wait(patience)

    async def renew(self, running: Sequence[Receipt]) -> bool:
        """Prolong the lease and mark what runs. False: another worker had taken what we held."""
        server = self._server
        with server.lock:
            self._watch.renewed(server.clock())
            stood = self._epoch in server.leases
            server.leases[self._epoch] = server.clock() + self._lease
            server.running[self._epoch] = frozenset(int(receipt.tag) for receipt in running)
            return stood

    async def recover(self) -> int:
        """Give back the messages of workers whose lease has ended. Returns how many."""
        server = self._server
        with server.lock:
            now = server.clock()
            if not self._watch.may_recover(now):
                return 0
            recovered = 0
            for epoch in [epoch for epoch, until in server.leases.items() if until <= now and epoch != self._epoch]:
                del server.leases[epoch]
                ran = server.running.pop(epoch, frozenset())
                held = server.in_flight.pop(epoch, {})
                for tag, entry in held.items():
                    entry.blob = after_lost_worker(entry.blob, tag in ran)
                self._return(list(held.items()))
                recovered += len(held)
            return recovered

    async def adopt(self, known: Collection[Receipt]) -> int:
        """Return to the heads what is in flight under this epoch but not in `known`. Returns how many."""
        tags = {int(receipt.tag) for receipt in known}
        with self._server.lock:
            held = self._server.in_flight.get(self._epoch, {})
            stray = [(tag, held.pop(tag)) for tag in [tag for tag in held if tag not in tags]]
            self._return(stray)
            return len(stray)

    async def standing(self, receipts: Collection[Receipt]) -> frozenset[Receipt]:
        """Those of `receipts` that are in flight under this epoch."""
        with self._server.lock:
            held = self._server.in_flight.get(self._epoch, {})
            return frozenset(receipt for receipt in receipts if int(receipt.tag) in held)

    async def change(self, queues: Sequence[str]) -> None:
        """Consume other queues from now on."""
        with self._server.lock:
            self._unlisten()
            self._queues = list(queues)
            self._listen(self._queues)
        self._pushed.set()

    async def leave(self) -> None:
        """Return what is in flight and end the lease."""
        server = self._server
        with server.lock:
            self._return(list(server.in_flight.pop(self._epoch, {}).items()))
            server.leases.pop(self._epoch, None)
            server.running.pop(self._epoch, None)

    async def close(self) -> None:
        """Hear of no push any more. The lease stays as it is."""
        with self._server.lock:
            self._unlisten()
