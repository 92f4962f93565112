"""From claimed messages to calls of the pool, and from what children report to completions."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any

import msgspec

from celeriac import telemetry
from celeriac.errors import CeleryError, InvalidTaskError
from celeriac.model.message import ACK, RETURN, Completion, Dead, Delay, Delivery, Park, Receipt, Return, Store
from celeriac.model.outcome import Catalogue, Report, TaskTraits
from celeriac.model.revoking import is_cancelled, marks
from celeriac.pools.frames import Ask
from celeriac.pools.handle import Call, Listener
from celeriac.pools.inprocess import InProcess
from celeriac.pools.memory import HUGE
from celeriac.pools.processes import Pool
from celeriac.wire import frame
from celeriac.wire.task import read_head
from celeriac.worker.admission import UNKNOWN_HEADER, End, Limits, Wait, decide
from celeriac.worker.config import WorkerConfig
from celeriac.worker.documents import READY_STATES, status
from celeriac.worker.joins import Joins
from celeriac.worker.limits import Buckets
from celeriac.worker.outbox import Complete, Held, Outbox, doubted, once

log = logging.getLogger("celeriac.worker")

HOLD_SECONDS = 0.05
"""Nothing is claimed for so long after messages of unknown tasks were offered to others,"""
HOLD_PAUSE = 0.5
"""and not again within so many seconds."""


class Dispatch:
    """The pool's listener and the session's source of demand. Everything here runs on the loop and never blocks."""

    def __init__(
        self,
        config: WorkerConfig,
        *,
        kick: Callable[[], None],
        ask: Callable[[Ask, Any], Any],
        broken: Callable[[str], None],
        event: Callable[..., None] | None,
    ) -> None:
        self.config = config
        self.outbox = Outbox()
        self.traits: dict[str, TaskTraits] = {}
        self.cancelled: frozenset[str] = frozenset()
        self.buckets = Buckets(enabled=config.rate_limits)
        self.known: dict[int, Held] = {}
        self.pool: Pool | InProcess = _pool(self, config)
        self.offering = False
        """The next cycle gives a message back for others to take, and must not claim it itself."""
        self._hold_until = 0.0
        self.huge = False
        """Something huge went through since memory was last given back."""
        self.processed: dict[str, int] = {}
        self.dead = 0
        self.together = True
        """Broker and result backend are one server."""
        self.doubtful: list[tuple[Held, bytes]] = []
        """Redelivered messages that may have been done: their results stand on another server. See `resume`."""
        self.suspects: set[Receipt] = set()
        """What was held when a lease ended: another worker may have it."""
        self.safe_until = 0.0
        """Monotonic time until which the lease surely holds; nothing new starts after it."""
        self._kick = kick
        self._ask = ask
        self._acking: dict[int, Call] = {}
        self._broken = broken
        self._event = event
        self._limits = Limits(
            config.soft_time_limit,
            config.time_limit,
            config.child_loss_cap,
            config.worker_loss_cap,
            config.unknown_patience,
        )
        self._tell_received = False
        self.joins = Joins(self.pool, self.outbox, config.result_expires)
        """Chords that messages of ours have completed."""

    # --- claimed

    def want(self, coming: int = 0) -> int:
        """How many messages the worker can use soon. `coming`: so many are claimed and not yet admitted."""
        now = time.monotonic()
        if now > self.safe_until or now < self._hold_until:
            return 0
        pool = self.pool
        if self.config.prefetch is not None:
            target = sum(c.seats for c in pool.children.values() if c.room()) * (1 + self.config.prefetch)
            return max(0, target - pool.held() - coming)
        return max(0, pool.hunger() - coming)

    def admit(self, deliveries: Iterable[Delivery], now: float) -> None:
        """Decide about claimed messages; hand to the pool what is to run."""
        info = log.isEnabledFor(logging.INFO)
        self._tell_received = bool(telemetry.task_received.receivers)
        cancelled, traits_of, submit = self.cancelled, self.traits, self.pool.submit
        plain_limits = self._limits.soft is None and self._limits.hard is None
        for delivery in deliveries:
            receipt, blob = delivery.receipt, delivery.blob
            if len(blob) > HUGE:
                self.huge = True
            try:
                head = read_head(blob)
            except CeleryError as error:
                self._bad(receipt, blob, str(error))
                continue
            traits = traits_of.get(head.task)
            held = Held(receipt, head, traits)
            if head.group is not None:
                held.blob = blob
            self.known[id(held)] = held
            if info:
                log.info("Task %s[%s] received", head.shadow or head.task, head.id)
            if self._event is not None:
                self._event("task-received", head)
            if self._tell_received:
                telemetry.task_received.send(self, request=head)
            if head.redelivered and (not self.together or head.group is not None):
                self.doubtful.append((held, blob))
                continue
            if (
                traits is not None
                and traits.acks_late
                and plain_limits
                and head.eta is None
                and head.expires is None
                and head.losses is None
                and head.timelimit is None
                and traits.time_limit is None
                and traits.soft_time_limit is None
                and traits.rate_limit is None
                and not (cancelled and is_cancelled(cancelled, head.id, head.stamped_headers, head.stamps))
            ):
                submit(Call(blob, head.task, held))
                continue
            self._decide(held, blob, now)

    def _decide(self, held: Held, blob: bytes, now: float) -> None:
        head, traits = held.head, held.traits
        unknown = _unknown(blob) if traits is None else (0.0, 0)
        decision = decide(head, traits, now, self.cancelled, self._limits, unknown)
        if isinstance(decision, Wait):
            changed = frame.with_headers(blob, **decision.headers) if decision.headers else None
            if decision.headers and unknown[1] == 0:
                log.warning(
                    "no task %r is registered here; the message %s goes round for %.0f s in all, for another worker or "
                    "a newer one",
                    head.task,
                    head.id,
                    self._limits.unknown_patience,
                )
            if decision.offer:
                self._offer()
                self._settle(held, Completion(held.receipt, Return(changed)))
            else:
                self._settle(held, Completion(held.receipt, Delay(decision.until, changed)))
            return
        if isinstance(decision, End):
            if decision.why in ("lost", "unregistered"):
                held.capped = decision.detail or f"no task {head.task!r} is registered"
            if decision.why == "unregistered" and telemetry.task_unknown.receivers:
                telemetry.task_unknown.send(self, message=blob, exc=KeyError(head.task), name=head.task, id=head.id)
            self.pool.submit(Call(blob, head.task, held, end=(decision.why, decision.detail)))
            return
        assert traits is not None
        if traits.rate_limit is not None and not self.buckets.take(head.task, traits.rate_limit):
            self._settle(held, Completion(held.receipt, Park(head.task)))
            return
        call = Call(blob, head.task, held, soft=decision.soft, hard=decision.hard, alone=decision.alone)
        if decision.early:
            held.acking = True
            self.outbox.add(Completion(held.receipt), held)
            self._acking[id(held)] = call
            return
        self.pool.submit(call)

    def resume(self, documents: Mapping[str, bytes], now: float) -> None:
        """Go on with the doubtful messages: a SUCCESS that stands stored is not run again, only what follows from it
        is published and its message settled. Nor is a member of a chord that has ended in another way: it may be that
        only the chord was left to be carried on with."""
        doubtful, self.doubtful = self.doubtful, []
        for held, blob in doubtful:
            document = documents.get(held.head.id)
            state = "" if document is None else status(document)
            ended = state == "SUCCESS" or (held.head.group is not None and state in READY_STATES)
            if document is not None and held.traits is not None and ended:
                self.pool.submit(Call(blob, held.head.task, held, replay=document))
            else:
                self._decide(held, blob, now)

    def _offer(self) -> None:
        """Leave others a moment to take what is given back: a Celery worker takes one message at a time."""
        self.offering = True
        now = time.monotonic()
        if now - self._hold_until > HOLD_PAUSE:
            self._hold_until = now + HOLD_SECONDS

    def _bad(self, receipt: Receipt, blob: bytes, reason: str) -> None:
        log.error("a message on queue %r can't be read and goes to the dead letters: %s", receipt.queue, reason)
        self.dead += 1
        if telemetry.task_rejected.receivers:
            telemetry.task_rejected.send(self, message=blob, exc=InvalidTaskError(reason))
        self.outbox.add(Completion(receipt, Dead(reason)), None)

    def _settle(self, held: Held, completion: Completion) -> None:
        held.finishing = True
        self.outbox.add(completion, held)

    # --- committed

    def committed(self, held: Held | None) -> None:
        """The completion of `held` was carried out."""
        if held is None:
            return
        if held.acking:
            held.acking = False
            held.receipt = None
            call = self._acking.pop(id(held), None)
            if call is not None:
                self.pool.submit(call)
            return
        self.known.pop(id(held), None)

    def completed(self, held: Held | None, completion: Completion, groups: Collection[str]) -> None:
        """The completion is carried out but for its settlement, and its parts completed chords that are ours now."""
        chords = [Complete(p.group, p.token, p.body, p.id) for p in completion.parts if p.group in groups]
        if held is not None and held.acking:
            held = None
        self.joins.complete(held, chords, completion.settlement)

    def refused(self, held: Held | None, certain: bool) -> None:
        """The in-flight entry of `held` was not ours any more. Not `certain`: we may have removed it ourselves,
        in a step whose answer was lost."""
        if held is None:
            return
        self.known.pop(id(held), None)
        self._acking.pop(id(held), None)
        if certain:
            telemetry.emit("fenced", id=held.head.id, task=held.head.task)
            log.warning(
                "the completion of %s[%s] was refused: its lease had ended and the message was given to another "
                "worker, whose result counts",
                held.head.task,
                held.head.id,
            )

    def failed(self, held: Held | None, error: str) -> None:
        """The broker could not carry out this completion; the message lies in the dead letters."""
        self.dead += 1
        if held is not None:
            self.known.pop(id(held), None)
            self._acking.pop(id(held), None)
            log.error(
                "the completion of %s[%s] failed; the message is in the dead letters: %s",
                held.head.task,
                held.head.id,
                error,
            )
            if held.blob and held.receipt is not None:
                # a chord may wait for it: let a child say that it has failed
                again = Held(None, held.head, held.traits)
                self.pool.submit(Call(held.blob, held.head.task, again, end=("rejected", error)))

    # --- the pool's listener

    def on_done(self, call: Call, document: bytes | None, runtime: float) -> None:
        """SUCCESS: store and acknowledge with the next cycle."""
        held: Held = call.owner
        head = held.head
        held.finishing = True
        store = None
        if document is not None:
            self.huge = self.huge or len(document) > HUGE
            store = Store(
                head.id, document, "SUCCESS", self.config.result_expires, head.redelivered or head.retries > 0,
                head.reply_to,
            )  # fmt: skip
        self.outbox.add(Completion(held.receipt, ACK, store), held)
        if self._event is not None:
            if not call.told:
                self._event("task-started", head)
            self._event("task-succeeded", head, result="", runtime=runtime)
        self.processed[head.task] = self.processed.get(head.task, 0) + 1

    def on_report(self, call: Call, report: Report) -> None:
        """Any other outcome: what it says is carried out with the next cycle."""
        held: Held = call.owner
        head = held.head
        if head.redelivered and not self.together and report.publish:
            report = msgspec.structs.replace(report, publish=doubted(report.publish))
        if call.end is not None and call.end[0] == "joined":
            self.joins.reported(
                held,
                report,
                None if report.store is None else self._expiring(report.store),
                [self._expiring(later) for later in report.more],
            )
            self._kick()
            return
        if report.state == "REJECTED" and isinstance(report.settlement, Return) and call.end is None:
            # the child does not know the task although the catalogue did: let admission see it as unknown
            self.traits.pop(head.task, None)
        settlement = report.settlement
        if call.end is not None and call.end[0] == "lost" and not held.capped:
            settlement = ACK
        elif held.capped and not isinstance(settlement, Dead):
            settlement = Dead(held.capped)
        if isinstance(settlement, Dead):
            self.dead += 1
            telemetry.emit("dead letter", id=head.id, task=head.task, reason=settlement.reason)
        held.finishing = True
        store = report.store
        if store is not None:
            store = msgspec.structs.replace(self._expiring(store), reply_to=head.reply_to)
        for later in report.more:  # before the message is settled: a crash in between repeats all of it
            self.outbox.add(Completion(None, ACK, self._expiring(later)), None)
        chords = self.joins.expiring(report.chords) if report.chords else ()
        # what completes a chord stays in flight
        publish = once(report.publish) if report.parts else report.publish
        self.outbox.add(Completion(held.receipt, settlement, store, publish, chords, report.parts), held)
        if self._event is not None:
            self._tell_ended(call, report)
        self.processed[head.task] = self.processed.get(head.task, 0) + 1

    def _expiring(self, store: Store) -> Store:
        """A document that says nothing of its expiry gets the setting's, and never overwrites a SUCCESS."""
        if store.expires is not None:
            return store
        failed = store.state == "FAILURE"
        expires = self.config.failure_expires if failed else self.config.result_expires
        return msgspec.structs.replace(store, expires=expires, guard=True)

    def _tell_ended(self, call: Call, report: Report) -> None:
        assert self._event is not None
        head = call.owner.head
        if call.end is None and not call.told:
            self._event("task-started", head)
        match report.state:
            case "SUCCESS":
                self._event("task-succeeded", head, result=report.result, runtime=report.runtime)
            case "FAILURE":
                self._event("task-failed", head, exception=report.result, traceback=report.traceback)
            case "RETRY":
                self._event("task-retried", head, exception=report.result, traceback=report.traceback)
            case "REVOKED":
                why = call.end[0] if call.end is not None else "terminated"
                self._event("task-revoked", head, terminated=why == "terminated", signum=None, expired=why == "expired")
            case "REJECTED":
                self._event("task-rejected", head, requeue=not isinstance(report.settlement, Dead))

    def on_lost(self, call: Call, reason: str) -> None:
        held: Held = call.owner
        if call.end is not None and call.end[0] == "joined":
            self.joins.lost(call, reason)
            return
        head, traits = held.head, held.traits
        child_losses, worker_losses = head.losses or (0, 0)
        log.error(
            "the pool child was lost (%s) while it ran %s[%s], loss %d of %d",
            reason,
            head.task,
            head.id,
            child_losses + 1,
            self._limits.child_losses,
        )
        if held.receipt is None or (traits is not None and not traits.reject_on_worker_lost):
            self.pool.submit(Call(call.blob, call.task, held, end=("lost", f"Worker exited prematurely: {reason}.")))
        elif child_losses + 1 >= self._limits.child_losses:
            held.capped = f"the child was lost {child_losses + 1} times while it ran this task, at last by {reason}"
            self.pool.submit(
                Call(
                    frame.with_losses(call.blob, child_losses + 1, worker_losses),
                    call.task,
                    held,
                    end=("lost", f"Worker exited prematurely: {reason}."),
                )
            )
        else:
            blob = frame.with_losses(call.blob, child_losses + 1, worker_losses)
            self._settle(held, Completion(held.receipt, Return(blob)))

    def on_surplus(self, calls: list[Call]) -> None:
        self.give_back(calls)

    def give_back(self, calls: list[Call]) -> None:
        """Unstarted calls go back to the broker, uncounted; those that were acknowledged early stay."""
        for call in reversed(calls):
            held: Held = call.owner
            if held.receipt is None or held.join is not None:
                self.pool.first(call)
            else:
                self._settle(held, Completion(held.receipt, RETURN))
        self._kick()

    def on_started(self, call: Call) -> None:
        """Tell monitors."""
        if self._event is not None and call.end is None:
            self._event("task-started", call.owner.head)

    def on_store(self, payload: bytes) -> None:
        store = self._expiring(_STORES.decode(payload))
        reply_to = next((held.head.reply_to for held in self.known.values() if held.head.id == store.id), "")
        store = msgspec.structs.replace(store, reply_to=reply_to)
        self.outbox.add(Completion(None, ACK, store), None)
        self._kick()

    def on_events(self, events: list[dict[str, Any]]) -> None:
        """Pass on what a task says to monitors."""
        if self._event is not None:
            self._event("raw", events)

    def on_catalogue(self, catalogue: Catalogue) -> None:
        """Learn the options of tasks."""
        for traits in catalogue.tasks:
            self.traits[traits.name] = traits
            if traits.rate_limit:
                self.buckets.know(traits.name, traits.rate_limit)

    def on_progress(self) -> None:
        self.feed()
        self._kick()

    def on_broken(self, text: str) -> None:
        self._broken(text)

    async def ask(self, op: Ask, args: Any) -> Any:
        return await self._ask(op, args)

    # --- towards the pool

    def feed(self) -> None:
        """Start what can start, as long as the lease surely holds."""
        if time.monotonic() < self.safe_until:
            self.pool.feed()

    def receipts(self) -> list[Receipt]:
        """Receipts of all that is claimed and not settled."""
        return [h.receipt for h in self.known.values() if h.receipt is not None]

    def running(self) -> list[Receipt]:
        """Receipts of what really runs now."""
        return [c.owner.receipt for c, _, _ in self.pool.running() if c.owner.receipt is not None]

    def revoke(self, ids: frozenset[str]) -> None:
        """The durable cancel list as it is now: end what waits here, terminate what is marked so."""
        new = ids - self.cancelled
        self.cancelled = ids
        if not new:
            return
        calls = self.pool.drain()
        for call in calls:
            head = call.owner.head
            if call.end is None and is_cancelled(new, head.id, head.stamped_headers, head.stamps):
                call.end = ("revoked", "")
            self.pool.submit(call)
        for name, signal_name in marks(new):
            self.terminate(name, signal_name)
        self.feed()

    def terminate(self, name: str, signal_name: str) -> int:
        """Signal the children that run this task, or tasks with this stamp (`model.revoking`)."""
        import signal

        number = getattr(signal, signal_name if signal_name.startswith("SIG") else f"SIG{signal_name}", signal.SIGTERM)
        meant = frozenset((name,))

        def is_meant(call: Call) -> bool:
            head = call.owner.head
            return is_cancelled(meant, head.id, head.stamped_headers, head.stamps)

        return self.pool.cancel(is_meant, "terminated", signal_name, int(number))


def _pool(listener: Listener, config: WorkerConfig) -> Pool | InProcess:
    if config.in_process:
        return InProcess(listener, loader=config.loader, spec=config.spec)
    many = config.pool in MANY_SEATS
    return Pool(
        listener,
        kind=config.pool,
        processes=1 if many else config.concurrency,
        seats=config.concurrency if many else 1,
        loader=config.loader,
        spec=config.spec,
        max_tasks=config.max_tasks_per_child,
        max_memory=config.max_memory_per_child,
        start_limit=config.start_limit,
    )


MANY_SEATS = frozenset({"threads", "asyncio", "gevent", "eventlet"})
_STORES = msgspec.msgpack.Decoder(Store)


class _UnknownOnly(msgspec.Struct):
    headers: dict[str, Any] = {}


def _unknown(blob: bytes) -> tuple[float, int]:
    """Read UNKNOWN_HEADER; what is not as we write it counts as not there."""
    try:
        value = msgspec.json.decode(blob, type=_UnknownOnly).headers[UNKNOWN_HEADER]
        return float(value[0]), int(value[1])
    except (msgspec.DecodeError, TypeError, ValueError, IndexError, KeyError, RecursionError):
        return 0.0, 0
