"""Chords that are complete: what follows from one is worked out by a pool child and committed before the message of the
member that completed it is settled. Whoever dies in between leaves that message to be delivered again."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Protocol

from celeriac.errors import RefusedError
from celeriac.model.message import ACK, Chord, Completion, Dead, Fire, Part, Settlement, Standing, Store
from celeriac.model.outcome import Report
from celeriac.pools.handle import Call
from celeriac.ports import ResultBackend
from celeriac.wire.task import Head
from celeriac.worker.outbox import Complete, Held, Join, Outbox

log = logging.getLogger("celeriac.worker")

TRIES = 3
"""How often a child may be lost while it joins a chord. Then it is left to the sweeper of another worker."""

FEWEST, MOST = 100, 10_000
"""How many chords are looked at in one sweep."""


class Pool(Protocol):
    """What joining needs of a pool."""

    def feed(self) -> None:
        """Hand what waits to children that have room."""
        ...

    def first(self, call: Call) -> None:
        """Take a call before all others."""
        ...


class Joins:
    """Complete chords on their way to what follows. Everything here runs on the loop."""

    def __init__(self, pool: Pool, outbox: Outbox, result_expires: float | None) -> None:
        self._pool = pool
        self._outbox = outbox
        self._expires = result_expires
        self.waiting: list[Held] = []
        """Their members' results are still to be fetched."""

    def complete(self, held: Held | None, chords: Iterable[Complete], settlement: Settlement) -> None:
        """These chords are ours now; `held` is to be settled when what follows from all of them is committed."""
        join = Join([*chords], settlement)
        if held is None:  # no message: it was acknowledged early, or a sweeper found the chord
            held = Held(None, Head(join.chords[0].member, "celery.chord"), None)
        held.join = join
        self.waiting.append(held)

    async def fetch(self, backend: ResultBackend) -> None:
        """Get the members' results of those that wait, and hand the chords to children. Raises OperationalError."""
        while self.waiting:
            held = self.waiting.pop(0)
            join = held.join
            assert join is not None
            chord = join.chords[0]
            try:
                standing = await backend.chord(chord.group)
            except RefusedError as error:
                log.error("chord %s can't be carried on with: %s", chord.group, error)
                join.settlement = Dead(str(error))
                self._finish(held, None)
                continue
            except BaseException:
                self.waiting.insert(0, held)
                raise
            if standing is None or standing.held != chord.token:
                self._finish(held, None)  # another one has carried it out
            else:
                detail = [
                    chord.body or standing.body, standing.entries, standing.structure, chord.group, chord.member
                ]  # fmt: skip
                self._pool.first(Call(held.blob, held.head.task, held, end=("joined", detail)))
        self._pool.feed()

    def reported(self, held: Held, report: Report, store: Store | None, more: Sequence[Store]) -> None:
        """A child has said what follows. `store` and `more` are its documents, with their expiry."""
        for later in more:
            self._outbox.add(Completion(None, ACK, later), None)
        self._finish(held, report, store)

    def _finish(self, held: Held, report: Report | None, store: Store | None = None) -> None:
        join = held.join
        assert join is not None
        chord = join.chords.pop(0)
        last = not join.chords
        if not last:
            self.waiting.append(held)
        receipt, settlement = (held.receipt, join.settlement) if last else (None, ACK)
        owner = held if last else None
        if report is not None:
            completion = Completion(
                receipt, settlement, store, report.publish, self.expiring(report.chords), report.parts,
                Fire(chord.group, chord.token),
            )  # fmt: skip
            self._outbox.add(completion, owner)
        elif receipt is not None:
            self._outbox.add(Completion(receipt, settlement), owner)

    def lost(self, call: Call, reason: str) -> None:
        """The child died over it."""
        held: Held = call.owner
        join = held.join
        assert join is not None
        join.losses += 1
        log.error("the pool child was lost (%s) while it joined chord %s", reason, join.chords[0].group)
        if join.losses < TRIES:
            self._pool.first(call)
        else:
            self._finish(held, None)

    def expiring(self, chords: tuple[Chord, ...]) -> tuple[Chord, ...]:
        """The same chords, kept as long as results are."""
        return tuple(
            Chord(c.group, c.size, c.body, c.members, c.structure, self._expires) if c.expires is None else c
            for c in chords
        )


class Sweeper:
    """Repairs chords that stand still: complete ones whose joining died with a worker, and members that have ended
    without having been counted, as when a Celery worker dies between the two. Says what it repaired."""

    def __init__(
        self,
        joins: Joins,
        backend: ResultBackend,
        epoch: str,
        lease: float,
        entry_of: Callable[[str, bytes], bytes | None],
    ) -> None:
        self._joins = joins
        self._backend = backend
        self._entry_of = entry_of
        self._token = f"celeriac:sweep:{epoch}"
        self._hold = max(2.0, lease / 2)
        self._limit = FEWEST
        self._next: dict[str, tuple[float, float]] = {}
        """Group -> monotonic time of the next close look, and the pause after it."""
        self._refused: set[str] = set()
        """Groups that the store will not have touched."""

    async def sweep(self) -> None:
        """Look once. Raises OperationalError."""
        seen = set()
        found = await self._backend.standing(self._hold, self._limit)
        # those that stand still because their members take long must not hide the others
        self._limit = min(MOST, self._limit * 2) if len(found) >= self._limit else FEWEST
        for standing in found:
            seen.add(standing.group)
            if standing.group in self._refused:
                continue
            try:
                if standing.size and len(standing.counted) >= standing.size:
                    await self._take(standing)
                elif self._due(standing.group):
                    await self._count(standing)
            except RefusedError as error:
                log.error("chord %s can't be carried on with: %s", standing.group, error)
                self._refused.add(standing.group)
        self._next = {group: when for group, when in self._next.items() if group in seen}

    def _due(self, group: str) -> bool:
        now = time.monotonic()
        due, pause = self._next.get(group, (now, self._hold))
        if now < due:
            return False
        self._next[group] = (now + pause, min(60.0, pause * 2))
        return True

    async def _take(self, standing: Standing) -> None:
        if standing.held or not await self._backend.hold(Fire(standing.group, self._token), self._hold):
            return
        log.warning("chord %s was complete, but what follows was not sent; it is now", standing.group)
        self._joins.complete(None, [Complete(standing.group, self._token, standing.body, standing.group)], ACK)
        await self._joins.fetch(self._backend)

    async def _count(self, standing: Standing) -> None:
        counted = frozenset(standing.counted)
        missing = [member for member in standing.members if member not in counted][:1000]
        indexes = {task_id: index for task_id, _, index in (member.rpartition(":") for member in missing)}
        documents = await self._backend.fetch([*indexes]) if indexes else {}
        parts = []
        for task_id, document in documents.items():
            entry = self._entry_of(task_id, document)
            if entry is not None:
                index = int(indexes[task_id]) if indexes[task_id].isdigit() else None
                parts.append(Part(standing.group, task_id, index, entry, standing.body))
        if not parts:
            return
        log.warning("%d member(s) of chord %s had ended without being counted", len(parts), standing.group)
        complete = await self._backend.count(parts, self._hold)
        for part, done in zip(parts, complete, strict=True):
            if done:
                self._joins.complete(None, [Complete(part.group, part.token, part.body, part.id)], ACK)
        await self._joins.fetch(self._backend)
