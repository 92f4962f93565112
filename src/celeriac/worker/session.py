"""One connection's life: claim and settle in cycles, renew the lease, recover what the dead left. Ends with the first
broken connection; the worker then begins a new one under the same epoch, and nothing that was done is forgotten."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from typing import Any

import msgspec

from celeriac.errors import EncodeError, OperationalError, RefusedError
from celeriac.model.message import Completion, Dead, Demand, Return, Turn, Verdict
from celeriac.pools.memory import trim
from celeriac.ports import Broker, Consumer, ResultBackend
from celeriac.worker.dispatch import Dispatch
from celeriac.worker.documents import entry_of
from celeriac.worker.joins import Sweeper
from celeriac.worker.outbox import Held, once

log = logging.getLogger("celeriac.worker")

BATCH = 500
"""Completions in one cycle."""
MARGIN = 0.1
"""Part of a lease before its end in which nothing new is started."""


class Session:
    """Runs until the connection breaks (OperationalError) or the task is cancelled."""

    def __init__(
        self,
        dispatch: Dispatch,
        broker: Broker,
        backend: ResultBackend | None,
        *,
        together: bool,
        epoch: str,
        lease: float,
        queues: Sequence[str],
        kick: asyncio.Event,
        ready: Callable[[], None],
    ) -> None:
        self.dispatch = dispatch
        self.broker = broker
        self.backend = backend
        self.together = dispatch.together = together
        self.epoch = epoch
        self.lease = lease
        self.queues = queues
        self.kick = kick
        self.accepting = True
        self._ready = ready
        self._beat = asyncio.Event()
        self._cancel_version = -1
        self._next_due: float | None = None
        self._offset = 0.0
        self._store_offset = 0.0
        """The store's clock minus ours (monotonic)."""
        self._waiter: asyncio.Task[None] | None = None
        self.consumer: Consumer | None = None

    async def run(self) -> None:
        """Subscribe, take up what is ours, then work."""
        async with self.broker.subscribe(self.queues, epoch=self.epoch, lease=self.lease) as consumer:
            await self._renew(consumer)
            await consumer.adopt(self.dispatch.receipts())
            await self._read_cancelled()
            self.consumer = consumer
            self._ready()
            tasks = [
                asyncio.create_task(self._cycles(consumer)),
                asyncio.create_task(self._beats(consumer)),
                asyncio.create_task(self._recoveries(consumer)),
                *([asyncio.create_task(self._sweeps(self.backend))] if self.backend is not None else []),
            ]
            try:
                done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    task.result()
            finally:
                self.consumer = None
                for task in [*tasks, *([self._waiter] if self._waiter else [])]:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)

    # --- claim and settle

    async def _cycles(self, consumer: Consumer) -> None:
        outbox, dispatch, kick = self.dispatch.outbox, self.dispatch, self.kick
        drained = False
        came: Turn | None = None
        while True:
            if came is not None and not outbox:
                await self._admit(came)
                came = None
            want = dispatch.want(len(came.deliveries) if came is not None else 0) if self.accepting else 0
            if dispatch.joins.waiting and self.backend is not None:
                await dispatch.joins.fetch(self.backend)
            if not outbox and (not want or drained) and not consumer.ahead:
                await self._sleep(consumer, bool(want))
                drained = False
                continue
            kick.clear()
            if dispatch.offering:
                want, dispatch.offering = 0, False
            parked = dispatch.buckets.demand() if want else {}
            finished, held, uncertain = outbox.take(BATCH)
            asked = self._ask(consumer, finished, Demand(want, parked=parked))
            try:
                if came is None:
                    turn, verdicts = await asked
                else:
                    turn, verdicts = await self._meanwhile(asked, came)
            except BaseException:
                outbox.put_back(finished, held)
                raise
            self._verdicts(finished, held, verdicts, uncertain)
            if turn.now:
                self._offset = turn.now - time.time()
            if turn.cancelled != self._cancel_version:
                await self._read_cancelled()
            self._next_due = turn.next_due
            drained = want > 0 and len(turn.deliveries) < want and not turn.more
            came = turn if turn.deliveries else None
            if parked:
                if came is not None:
                    await self._admit(came)
                    came = None
                dispatch.buckets.claimed(parked)

    async def _ask(
        self, consumer: Consumer, finished: list[Completion], want: Demand
    ) -> tuple[Turn, Sequence[Verdict]]:
        """One cycle, with what belongs to it where broker and result backend are two servers."""
        if self.together:
            settle = [await self._fresh(c) if c.parts and c.chords else c for c in finished]
            turn = await consumer.cycle(settle, want)
            return turn, turn.verdicts
        if not finished:
            return await consumer.cycle(finished, want), ()
        settle, early, refused = await self._elsewhere(consumer, finished)
        turn = await consumer.cycle(settle, want)
        verdicts = turn.verdicts
        if early:
            rest = iter(verdicts)
            verdicts = [early[n] if n in early else next(rest) for n in range(len(finished))]
        if refused:
            verdicts = [refused.get(n, each) if each.ok else each for n, each in enumerate(verdicts)]
        return turn, verdicts

    async def _meanwhile(
        self, asked: Coroutine[Any, Any, tuple[Turn, Sequence[Verdict]]], came: Turn
    ) -> tuple[Turn, Sequence[Verdict]]:
        """Send what is finished first, and take up what came before while the server works on that."""
        under_way = asyncio.ensure_future(asked)
        try:
            await asyncio.sleep(0)
            await self._admit(came)
            return await under_way
        except BaseException:
            under_way.cancel()
            await asyncio.gather(under_way, return_exceptions=True)
            raise

    async def _admit(self, came: Turn) -> None:
        self.dispatch.admit(came.deliveries, came.now)
        if self.dispatch.doubtful:
            await self._resume(came.now)
        self.dispatch.feed()

    def _verdicts(
        self, finished: list[Completion], held: list[Held | None], verdicts: Sequence[Verdict], uncertain: int
    ) -> None:
        dispatch = self.dispatch
        known = dispatch.known
        for index, verdict in enumerate(verdicts):
            owner = held[index]
            if verdict.complete:
                dispatch.completed(owner, finished[index], verdict.complete)
            elif verdict.ok:
                if owner is not None and not owner.acking:
                    known.pop(id(owner), None)
                else:
                    dispatch.committed(owner)
            elif verdict.lost:
                # to give back what was taken away is nothing that anybody has to know
                dispatch.refused(owner, index >= uncertain and not isinstance(finished[index].settlement, Return))
            else:
                dispatch.failed(owner, verdict.error)

    async def _elsewhere(
        self, consumer: Consumer, finished: list[Completion]
    ) -> tuple[list[Completion], dict[int, Verdict], dict[int, Verdict]]:
        """Broker and result backend are two servers: open chords, publish, store, count, then settle. The fence stands
        in the broker, so what was held when a lease ended is looked up there first, and the store gets the end of the
        lease by its own clock: a worker that is stopped in between comes too late. Gives what is left to settle, and,
        by their numbers in `finished`, the verdicts of those that are not to be settled yet, and of those that can't be
        carried out, which go to the dead letters."""
        if time.monotonic() > self.dispatch.safe_until:
            await self._renew(consumer)
        mine = await self._still_ours(consumer, finished)
        backend = self.backend
        refused: dict[int, str] = {}
        if backend is not None:
            kept: list[Completion] = []

            async def hold(some: list[Completion]) -> None:
                for c in some:
                    if c.fire is None or await backend.hold(c.fire, self.lease / 2):
                        kept.append(c)

            if any(c.fire is not None for c in mine):
                for c in mine:
                    await _carry_out(hold, [c], refused)
                mine = kept  # what another one has carried out by now is only settled

            async def open_chords(some: list[Completion]) -> None:
                if chords := [chord for c in some if c.chords for chord in (await self._fresh(c)).chords]:
                    await backend.open_chords(chords)

            mine = await _carry_out(open_chords, mine, refused)

        async def publish(some: list[Completion]) -> None:
            if envelopes := [envelope for c in some for envelope in once(c.publish)]:
                await self.broker.publish(envelopes)

        mine = await _carry_out(publish, mine, refused)
        stores = [c.store for c in mine if c.store is not None]
        while stores and backend is not None:
            deadline = self._store_offset + self.dispatch.safe_until
            verdicts = await backend.store(stores, deadline)
            late = [store for store, verdict in zip(stores, verdicts, strict=True) if verdict.lost]
            for store, verdict in zip(stores, verdicts, strict=True):
                if verdict.error:
                    log.error("the result of %s could not be stored: %s", store.id, verdict.error)
            if late:
                await self._renew(consumer)
                mine = await self._still_ours(consumer, mine)
                late = [c.store for c in mine if c.store is not None and c.store in late]
            stores = late
        early = {} if backend is None else await self._count_elsewhere(backend, finished, mine, refused)
        settle = [
            Completion(c.receipt, Dead(refused[id(c)]) if id(c) in refused else c.settlement)
            for n, c in enumerate(finished)
            if n not in early
        ]
        given_up = {n: Verdict(False, error=refused[id(c)]) for n, c in enumerate(finished) if id(c) in refused}
        return settle, early, given_up

    async def _fresh(self, completion: Completion) -> Completion:
        """Without the chords that have ended: this is done again after a crash between it and the settlement, and their
        members have run since, and will not run again."""
        if self.backend is None:
            return completion
        standing = [await self.backend.chord(chord.group) for chord in completion.chords]
        chords = zip(completion.chords, standing, strict=True)
        left = tuple(chord for chord, found in chords if found is None or found.held != "done")
        return msgspec.structs.replace(completion, chords=left)

    async def _count_elsewhere(
        self, backend: ResultBackend, finished: list[Completion], mine: list[Completion], refused: dict[int, str]
    ) -> dict[int, Verdict]:
        complete: dict[int, tuple[str, ...]] = {}

        async def count(some: list[Completion]) -> None:
            if parts := [part for c in some for part in c.parts]:
                told = iter(await backend.count(parts, self.lease / 2))
                complete.update({id(c): tuple(part.group for part in c.parts if next(told)) for c in some})

        mine = await _carry_out(count, mine, refused)
        fires = [c.fire for c in mine if c.fire is not None]
        if fires:
            await backend.fire(fires, self.lease / 2)
        return {n: Verdict(True, complete=groups) for n, c in enumerate(finished) if (groups := complete.get(id(c)))}

    async def _still_ours(self, consumer: Consumer, finished: list[Completion]) -> list[Completion]:
        suspects = self.dispatch.suspects
        doubtful = [c.receipt for c in finished if c.receipt is not None and c.receipt in suspects] if suspects else []
        if not doubtful:
            return finished
        standing = await consumer.standing(doubtful)
        gone = frozenset(doubtful) - standing
        return [c for c in finished if c.receipt not in gone]

    async def _resume(self, now: float) -> None:
        documents: Mapping[str, bytes] = {}
        if self.backend is not None:
            documents = await self.backend.fetch([held.head.id for held, _ in self.dispatch.doubtful])
        self.dispatch.resume(documents, now)

    async def _sleep(self, consumer: Consumer, wanting: bool) -> None:
        """Until something is finished, room becomes free, a message may be there, or one is due."""
        kick = self.kick
        if kick.is_set():
            kick.clear()
            return
        timeout: float | None = None
        if wanting:
            if self._waiter is None or self._waiter.done():
                if self._waiter is not None:
                    self._waiter.result()
                self._waiter = asyncio.create_task(consumer.wait())
                self._waiter.add_done_callback(lambda _: kick.set())
            due = self._next_due
            if due is not None:
                timeout = max(0.0, due - (time.time() + self._offset))
            token = self.dispatch.buckets.next_token()
            if token is not None:
                timeout = token if timeout is None else min(timeout, token)
        elif self.accepting and self.dispatch.pool.hunger():
            timeout = 0.05  # the lease is not sure: the beat will kick
        if timeout is None:
            await kick.wait()
        else:
            with contextlib.suppress(asyncio.TimeoutError):
                async with asyncio.timeout(min(timeout, 3600.0)):
                    await kick.wait()
        kick.clear()
        if self._waiter is not None and self._waiter.done():
            waiter, self._waiter = self._waiter, None
            waiter.result()

    # --- lease

    async def _renew(self, consumer: Consumer) -> None:
        began = time.monotonic()
        held = await consumer.renew(self.dispatch.running())
        if not held and self.dispatch.safe_until:
            if self.broker.capabilities.lease:
                log.warning(
                    "the lease of this worker had ended (it was stopped or cut off for more than %g s); unstarted "
                    "messages are given back, results of messages that another worker has taken will be refused",
                    self.lease,
                )
            else:
                log.info("what this worker held went back to the broker; it goes on with what comes to it again")
            self.dispatch.suspects.update(self.dispatch.receipts())
            self.dispatch.give_back(self.dispatch.pool.drain())
        if not self.together and self.backend is not None:
            before = time.monotonic()
            self._store_offset = await self.backend.clock() - (before + time.monotonic()) / 2
        self.dispatch.safe_until = began + self.lease * (1 - MARGIN)
        self.dispatch.feed()
        self.kick.set()

    async def _beats(self, consumer: Consumer) -> None:
        interval = self.lease / 3
        while True:
            await asyncio.sleep(min(interval, max(0.05, self.dispatch.safe_until - time.monotonic())))
            await self._renew(consumer)
            await self._read_cancelled()
            if self.dispatch.huge and not self.dispatch.outbox:
                self.dispatch.huge = False
                trim()

    async def _read_cancelled(self) -> None:
        version, ids = await self.broker.cancelled()
        self._cancel_version = version
        if ids != self.dispatch.cancelled:
            self.dispatch.revoke(ids)

    async def _recoveries(self, consumer: Consumer) -> None:
        interval = max(0.5, min(2.0, self.lease / 3))
        while True:
            count = await consumer.recover()
            if count:
                log.warning("%d message(s) of lost workers were given back to their queues", count)
                self.kick.set()
            await asyncio.sleep(interval)

    async def _sweeps(self, backend: ResultBackend) -> None:
        config = self.dispatch.config

        def entry(task_id: str, document: bytes) -> bytes | None:
            return entry_of(task_id, document, config.result_serializer, config.result_compression)

        sweeper = Sweeper(self.dispatch.joins, backend, self.epoch, self.lease, entry)
        interval = max(1.0, self.lease / 3)
        while True:
            await asyncio.sleep(interval)
            try:
                await sweeper.sweep()
            except RefusedError as error:
                log.error("chords that stand still can't be looked after: %s", error)
                interval = 3600.0
            self.kick.set()


async def lasting(session_of: Callable[[], Session], stopping: asyncio.Event, where: str) -> None:
    """Sessions one after the other, with growing pauses, until `stopping` is set and the current one was cancelled."""
    pause = 0.0
    lost = False
    while not stopping.is_set():
        session = session_of()
        began = time.monotonic()
        try:
            await session.run()
        except OperationalError as error:
            if time.monotonic() - began > 5:
                pause, lost = 0.0, False  # it stood meanwhile: this is another loss
            if not lost or pause >= 2.0:
                log.warning("the connection to %s was lost: %s; connecting again", where, error)
            lost = True
            pause = min(2.0, pause * 2 or 0.05)
            with contextlib.suppress(asyncio.TimeoutError):
                async with asyncio.timeout(pause):
                    await stopping.wait()


async def _carry_out(
    do: Callable[[list[Completion]], Awaitable[None]], mine: list[Completion], refused: dict[int, str]
) -> list[Completion]:
    """Do something for all; where one of them can't be carried out, for each alone. Gives those for which it is done,
    and puts the reason for the others into `refused`, by their `id`."""
    if not mine:
        return mine
    try:
        await do(mine)
        return mine
    except (RefusedError, EncodeError, UnicodeError) as error:
        if len(mine) == 1:
            refused[id(mine[0])] = str(error)
            return []
    return [c for each in mine for c in await _carry_out(do, [each], refused)]
