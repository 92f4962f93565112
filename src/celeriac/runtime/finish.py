"""From how a run ended to the report of it: document, follow-ups, settlement; on the way handlers, signals, log lines.

Nothing raises here, whatever exceptions and handlers of users do.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import Any

import msgspec

from celeriac import telemetry
from celeriac.canvas import advance
from celeriac.canvas.expand import Name
from celeriac.errors import (
    ChordError,
    Ignore,
    NotRegistered,
    Reject,
    Retry,
    TaskRevokedError,
    TimeLimitExceeded,
    WorkerLostError,
)
from celeriac.model.message import ACK, Chord, Dead, Delay, Envelope, Part, Requeue, Settlement, Store
from celeriac.model.outcome import Report
from celeriac.runtime import chord
from celeriac.runtime.documents import Documents, stored_form
from celeriac.runtime.einfo import ExceptionInfo, describe
from celeriac.runtime.errback import takes_failure
from celeriac.runtime.job import Job, Pack, Plan, RunSettings
from celeriac.runtime.limits import HardLimit, TerminatedByOperator
from celeriac.runtime.lines import Lines, log
from celeriac.wire import failure
from celeriac.wire.repr import safe_repr
from celeriac.wire.task import TaskMessage, follow_up_id, run_name

Ran = Report | tuple[bytes | None, float]
"""How a run ended. The pair `(document or None, seconds)` is the plain case: SUCCESS, acknowledge, nothing to send."""
PLAIN = frozenset({type(None), bool, int, float, str, list, dict, tuple, bytes})


class Finish:
    """Makes reports. One for each process; holds nothing of a single run."""

    def __init__(self, plans: Callable[[str], Plan | None], settings: RunSettings, pack: Pack, lines: Lines) -> None:
        self.settings = settings
        self._plans = plans
        self._pack = pack
        self._lines = lines
        self.documents = Documents(settings)
        self.late: list[Coroutine[Any, Any, Any]] = []
        """Coroutines that handlers and error links gave back; whoever called awaits them."""

    # --- success

    def succeeded(self, job: Job, value: Any) -> Ran:
        """The function returned."""
        message, task = job.message, job.plan.task
        if type(value) not in PLAIN:
            value = stored_form(value)
        try:
            publish, document, chords, parts = self._outcome_of(job, value)
        except Exception as error:  # what can't be stored or sent makes the task a failure
            return self.failed(job, error)
        task_id, args, kwargs = message.id, message.args, message.kwargs
        overridden = task.overridden
        if "on_success" in overridden:
            self._handler(job, "on_success", value, task_id, args, kwargs)
        if telemetry.task_success.receivers:
            telemetry.task_success.send(task, result=value, runtime=job.runtime)
        wanted = self._lines.wanted()
        shown = ""
        if wanted or self.settings.tells_results:
            shown = safe_repr(value, job.plan.shown)
            if wanted:
                self._lines.succeeded(job.shown_name, task_id, job.runtime, shown)
        if "after_return" in overridden:
            self._handler(job, "after_return", "SUCCESS", value, task_id, args, kwargs, None)
        self._postrun(job, value, "SUCCESS")
        if not publish and not parts and not self.settings.tells_results:
            return document, job.runtime
        store = None if document is None else Store(task_id, document, "SUCCESS")
        return Report(job.seq, "SUCCESS", ACK, store, publish, job.runtime, shown, chords=chords, parts=parts)

    def _outcome_of(
        self, job: Job, value: Any
    ) -> tuple[tuple[Envelope, ...], bytes | None, tuple[Chord, ...], tuple[Part, ...]]:
        message, context = job.message, job.context
        publish, chords, followers = self._following(message, value)
        if context.outbox:
            publish = (*publish, *context.outbox)
            chords = (*chords, *(context.opened or ()))
        if not self.settings.stores_results:
            return publish, None, (), ()
        parts = chord.part_of(self.documents, message, "SUCCESS", value) if message.chord is not None else ()
        if job.ignores_result:
            return publish, None, chords, parts
        children = context._children
        if followers:
            children = [*(children or ()), *followers]
        return publish, self.documents.success(message, value, children), chords, parts

    def _following(self, message: TaskMessage, value: Any) -> tuple[tuple[Envelope, ...], tuple[Chord, ...], list[Any]]:
        """Messages, the chords that they open, and result tuples."""
        if not message.callbacks and not message.chain:
            return (), (), []
        follow = advance.after_success(message, value, now=time.time(), name=_namer(message), **self._how(message))
        chords = chord.opened(follow.chords, self.settings.result_serializer)
        return self._envelopes(follow, _namer(message)), chords, follow.children

    def _how(self, message: TaskMessage) -> dict[str, Any]:
        settings = self.settings
        return {
            "priority": message.priority if settings.inherit_parent_priority else None,
            "errors_in_header": settings.errors_in_header,
        }

    # --- a chord that this message completed

    def joined(
        self, job: Job, body: Mapping[str, Any], entries: Sequence[bytes], structure: bytes, group: str
    ) -> Report:
        """What follows from a complete chord: its body, or the failure of that. `body` is its signature, `entries` are
        its members' as they are kept, `structure` is the saved group or empty. Whoever completed the chord `group`, or
        carries it on in that one's place, gives the same names."""
        message, settings = job.message, self.settings

        def name(edge: str, index: int) -> str:
            return follow_up_id(group, 0, edge, index)

        try:
            results = chord.results_of(entries, structure, settings.result_serializer, settings.accept_results)
            follow = advance.after_chord(message, body, results, now=time.time(), name=name, **self._how(message))
            publish = self._envelopes(follow, name)
            chords = chord.opened(follow.chords, settings.result_serializer)
        except ChordError as error:
            return self._body_failed(job, body, error)
        except Exception as error:
            wrapped = ChordError(f"Callback error: {error!r}")
            wrapped.__cause__ = error
            return self._body_failed(job, body, wrapped)
        return Report(job.seq, "SUCCESS", ACK, None, publish, chords=chords)

    def _body_failed(self, job: Job, body: Mapping[str, Any], error: ChordError) -> Report:
        message = job.message
        log.error("Chord %r raised: %r", message.group, error)
        cause: Any = error
        if body.get("subtask_type") == "group" and isinstance(error.__cause__, Exception):
            cause = error.__cause__
        try:
            firsts = advance.first_errors(body)
        except Exception:
            firsts = []
        publish: list[Envelope] = []
        for task_id, links in firsts:
            name = body.get("task") if isinstance(body.get("task"), str) else ""
            failed = TaskMessage(
                task_id, str(name), [], {}, errbacks=links, root_id=message.root_id, parent_id=message.id,
                reply_to=message.reply_to,
            )  # fmt: skip
            publish += self._error_links(job.of(failed, self.settings.hostname), cause, None)
        unrun = advance.fails_with([body])
        stores = self.documents.unrun(unrun, "FAILURE", cause, None) if self.settings.stores_results else ()
        main = stores[-1] if stores else None
        parts = chord.parts_of(self.documents, unrun, "FAILURE", cause)
        return Report(
            job.seq, "FAILURE", ACK, main, tuple(publish), result=describe(error), more=stores[:-1], parts=parts
        )

    def replayed(self, job: Job, state: str, value: Any) -> Report:
        """What follows from the document that stands stored. Of a failure its error links were sent before that was
        stored; only the chord may have been left. Raises what planning and packing raise."""
        message = job.message
        if state != "SUCCESS":
            error = failure.rebuild(value)
            parts = self._ended_parts(message, state, error)
            return Report(job.seq, state, self._of_failure(job.plan, error), parts=parts)
        publish, chords, _ = self._following(message, value)
        parts = chord.part_of(self.documents, message, "SUCCESS", value)
        return Report(
            job.seq, "SUCCESS", ACK, None, (*publish, *(job.context.outbox or ())), chords=chords, parts=parts
        )

    # --- everything else

    def failed(self, job: Job, error: BaseException) -> Report:
        """The function raised, or what it returned can't be stored or sent."""
        if isinstance(error, Retry):
            return self._retried(job, error)
        if isinstance(error, Reject):
            return self._rejected(job, error)
        if isinstance(error, Ignore):
            return self._ignored(job, error)
        if _holds(error, TerminatedByOperator):
            report = self.ended(job.seq, job.message, job.plan, "terminated", "", job)
            self._postrun(job, error, "REVOKED")
            return report
        if _holds(error, HardLimit):
            error = TimeLimitExceeded(self._limit_of(job))
        elif not isinstance(error, Exception):
            error = _as_lost(error)
        assert isinstance(error, Exception)
        report = self._failure(job.seq, job.message, job.plan, error, job)
        self._postrun(job, error, "FAILURE")
        return report

    def _failure(
        self, seq: int, message: TaskMessage, plan: Plan | None, error: Exception, job: Job, *, log_it: bool = True
    ) -> Report:
        einfo = ExceptionInfo(error, skip=_own_frames(error))
        trace = einfo.traceback if error.__traceback__ is not None else ""
        task = plan.task if plan is not None else None
        store, more = self.documents.failure(job, task, "FAILURE", error, trace or None)
        parts = self._ended_parts(message, "FAILURE", error)
        job.context.outbox = None  # what was to go out with a success does not
        publish = self._error_links(job, error, trace or None)
        if plan is not None and task is not None:
            args, kwargs = message.args, message.kwargs
            if "on_failure" in task.overridden:
                self._handler(job, "on_failure", error, message.id, args, kwargs, einfo)
            if telemetry.task_failure.receivers:
                telemetry.task_failure.send(
                    task,
                    task_id=message.id,
                    exception=error,
                    args=args,
                    kwargs=kwargs,
                    traceback=error.__traceback__,
                    einfo=einfo,
                )
        if log_it:
            expected = task is not None and bool(task.throws) and isinstance(error, _classes(task.throws))
            self._say_failure(job, error, einfo, expected)
        if task is not None and "after_return" in task.overridden:
            self._handler(job, "after_return", "FAILURE", error, message.id, message.args, message.kwargs, einfo)
        settlement, shown = self._of_failure(plan, error), self._shown(error, plan)
        return Report(seq, "FAILURE", settlement, store, publish, job.runtime, shown, trace, more, parts=parts)

    def _of_failure(self, plan: Plan | None, error: BaseException) -> Settlement:
        if plan is None or not plan.task.acks_late or plan.task.acks_on_failure:
            return ACK
        return Dead(f"the task failed and acks_on_failure is off: {self._shown(error, plan)}")

    def _ended_parts(self, message: TaskMessage, state: str, error: BaseException) -> tuple[Part, ...]:
        """Members of chords that end with a message: itself, and steps of its chain."""
        if not self.settings.stores_results or (message.chord is None and not message.chain):
            return ()
        later = advance.fails_with([*reversed(message.chain or ())])
        own = chord.part_of(self.documents, message, state, error)
        return (*own, *chord.parts_of(self.documents, later, state, error))

    def _retried(self, job: Job, error: Retry) -> Report:
        message, task = job.message, job.plan.task
        settlement: Settlement = ACK
        publish: tuple[Envelope, ...] = ()
        if error.sig is not None:
            try:
                settlement, publish = self._again(message, error.sig, task.acks_late)
            except Exception as refused:  # a retry that can't be sent is a failure
                return self.failed(job, refused)
        einfo = ExceptionInfo(error, skip=_own_frames(error))
        store, _ = self.documents.failure(job, task, "RETRY", error.exc, einfo.traceback)
        if "on_retry" in task.overridden:
            self._handler(job, "on_retry", error.exc, message.id, message.args, message.kwargs, einfo)
        if telemetry.task_retry.receivers:
            telemetry.task_retry.send(task, request=job.context, reason=error, einfo=einfo)
        if log.isEnabledFor(logging.INFO):
            context = {"id": message.id, "name": job.shown_name, "exc": _text(error)}
            log.info("Task %(name)s[%(id)s] retry: %(exc)s", context, extra={"data": context})
        self._postrun(job, error, "RETRY")
        shown = self._shown(error.exc if error.exc is not None else error, job.plan)
        publish = (*publish, *(job.context.outbox or ()))
        return Report(job.seq, "RETRY", settlement, store, publish, job.runtime, shown, einfo.traceback)

    def _again(self, message: TaskMessage, signature: Any, late: bool) -> tuple[Settlement, tuple[Envelope, ...]]:
        now = time.time()
        step, due = advance.retry(message, signature, now=now)
        again = msgspec.structs.replace(message, **step.fields)
        publish_id = _namer(message)("publish retry", 0)
        envelope = self._pack(again, step.options, publish_id, due)
        if not late or not advance.stays(message, step):
            return ACK, (envelope,)
        if due is None or due <= now:
            return Requeue(envelope.blob), ()
        return Delay(due, envelope.blob), ()

    def _rejected(self, job: Job, error: Reject) -> Report:
        message, task = job.message, job.plan.task
        shown = describe(error)
        context = {"id": message.id, "name": job.shown_name, "exc": shown}
        log.warning("Task %(name)s[%(id)s] %(exc)s", context, extra={"data": context})
        self._postrun(job, error, "REJECTED")
        if error.requeue:
            return Report(job.seq, "REJECTED", Requeue() if task.acks_late else ACK, runtime=job.runtime, result=shown)
        store, more = self.documents.failure(job, task, "FAILURE", error, None)
        settlement: Settlement = Dead(f"rejected by the task: {_text(error.reason)}") if task.acks_late else ACK
        parts = self._ended_parts(message, "FAILURE", error)
        return Report(job.seq, "REJECTED", settlement, store, (), job.runtime, shown, more=more, parts=parts)

    def _ignored(self, job: Job, error: Ignore) -> Report:
        context = {"id": job.message.id, "name": job.shown_name, "description": "ignored"}
        log.info("Task %(name)s[%(id)s] %(description)s", context, extra={"data": context})
        self._postrun(job, error, "IGNORED")
        publish, shown = tuple(job.context.outbox or ()), describe(error)
        if job.context.replaced:
            chords = tuple(job.context.opened or ())
            return Report(job.seq, "IGNORED", ACK, None, publish, job.runtime, shown, chords=chords)
        # nobody will end what waits for this task, so it ends here
        parts = self._ended_parts(job.message, "FAILURE", error)
        more = self.documents.later(job.message, "FAILURE", error, None) if self.settings.stores_results else ()
        return Report(job.seq, "IGNORED", ACK, None, publish, job.runtime, shown, more=more, parts=parts)

    # --- what the parent ended

    def ended(self, seq: int, message: TaskMessage, plan: Plan | None, why: str, detail: str, job: Job) -> Report:
        """A message that was not run, or whose run was ended from outside. `why` and `detail` as in an END frame."""
        task = plan.task if plan is not None else None
        if why in ("revoked", "terminated", "expired"):
            error: Exception = TaskRevokedError(why)
            store, more = self.documents.failure(job, task, "REVOKED", error, None)
            if telemetry.task_revoked.receivers:
                telemetry.task_revoked.send(
                    task,
                    request=job.context,
                    terminated=why == "terminated",
                    signum=detail or None,
                    expired=why == "expired",
                )
            parts = self._ended_parts(message, "REVOKED", error)
            return Report(seq, "REVOKED", ACK, store, (), job.runtime, describe(error), more=more, parts=parts)
        if why == "rejected":
            error = Reject(detail, False)
            store, more = self.documents.failure(job, task, "FAILURE", error, None)
            parts = self._ended_parts(message, "FAILURE", error)
            return Report(seq, "REJECTED", Dead(detail), store, (), 0.0, describe(error), more=more, parts=parts)
        if why == "timeout":
            report = self._failure(seq, message, plan, TimeLimitExceeded(_number(detail)), job)
            late = task is None or task.acks_late
            acks = task is None or task.acks_on_timeout
            return msgspec.structs.replace(report, settlement=ACK if acks or not late else Requeue())
        error = NotRegistered(message.task) if why == "unregistered" else WorkerLostError(detail)
        report = self._failure(seq, message, plan, error, job)
        return msgspec.structs.replace(report, settlement=Dead(detail or f"no task {message.task!r} is registered"))

    def broken(self, job: Job, error: BaseException, trace: str) -> Report:
        """An error that is not the task's own: FAILURE, without handlers, which may be what is broken."""
        store = None
        if self.documents.wants_errors(job.message, job.plan.task):
            shown = error if isinstance(error, Exception) else WorkerLostError(f"the engine met {describe(error)}")
            document = self.documents.by_all_means(job.message.id, "FAILURE", shown, traceback=trace)
            store = Store(job.message.id, document, "FAILURE")
        shown = error if isinstance(error, Exception) else WorkerLostError(f"the engine met {describe(error)}")
        parts = self._ended_parts(job.message, "FAILURE", shown)
        return Report(job.seq, "FAILURE", ACK, store, (), job.runtime, describe(error), trace, parts=parts)

    # --- parts

    def _envelopes(self, follow: advance.Follow, name: Name) -> tuple[Envelope, ...]:
        return tuple(
            self._pack(TaskMessage(**step.fields), step.options, name(f"publish {step.edge}", step.index))
            for step in follow.steps
        )

    def _error_links(self, job: Job, error: BaseException, trace: str | None) -> tuple[Envelope, ...]:
        """Call error links that take the failure itself; give back the messages of the others."""
        message = job.message
        publish: list[Envelope] = []
        for index, signature in enumerate(message.errbacks or ()):
            name = signature.get("task") if isinstance(signature, Mapping) else None
            plan = self._plans(name) if isinstance(name, str) else None
            try:
                if plan is not None and takes_failure(plan.task, signature):
                    self._call_error_link(plan, signature, job, error, trace)
                else:
                    follow = advance.error_link(message, signature, index, now=time.time(), name=_namer(message))
                    publish += self._envelopes(follow, _namer(message))
            except BaseException:
                log.exception("Errback %r raised an exception", name)
        return (*publish, *(job.context.outbox or ()))

    def _call_error_link(
        self, plan: Plan, signature: Mapping[str, Any], job: Job, error: BaseException, trace: str | None
    ) -> None:
        args = list(signature.get("args") or ())
        if not signature.get("immutable"):
            args = [job.context, error, trace, *args]
        task: Any = plan.task
        answer = (task if callable(task) else plan.call)(*args, **(signature.get("kwargs") or {}))
        if isinstance(answer, Coroutine):
            self.late.append(answer)

    def _handler(self, job: Job, name: str, *args: Any) -> None:
        """Call an overridden handler of the task. What it raises is logged: the outcome is known by then."""
        try:
            answer = getattr(job.plan.task, name)(*args)
        except BaseException as error:
            log.exception("Task %s[%s] %s handler raised: %s", job.shown_name, job.message.id, name, describe(error))
            return
        if isinstance(answer, Coroutine):
            self.late.append(answer)

    def _postrun(self, job: Job, value: Any, state: str) -> None:
        if telemetry.task_postrun.receivers:
            message = job.message
            telemetry.task_postrun.send(
                job.plan.task,
                task_id=message.id,
                task=job.plan.task,
                args=message.args,
                kwargs=message.kwargs,
                retval=value,
                state=state,
            )

    def _say_failure(self, job: Job, error: Exception, einfo: ExceptionInfo, expected: bool) -> None:
        level = logging.INFO if expected else logging.ERROR
        if not log.isEnabledFor(level):
            return
        message = job.message
        context = {
            "hostname": self.settings.hostname,
            "id": message.id,
            "name": job.shown_name,
            "exc": describe(error),
            "traceback": einfo.traceback,
            "args": message.argsrepr or safe_repr(message.args),
            "kwargs": message.kwargsrepr or safe_repr(message.kwargs),
            "description": "raised expected" if expected else "raised unexpected",
            "internal": False,
        }
        trace = error.__traceback__
        for _ in range(_own_frames(error)):
            trace = trace.tb_next if trace is not None and trace.tb_next is not None else trace
        exc_info = None if expected or trace is None else (type(error), error, trace)
        log.log(
            level, "Task %(name)s[%(id)s] %(description)s: %(exc)s", context, exc_info=exc_info, extra={"data": context}
        )

    def _shown(self, error: Any, plan: Plan | None) -> str:
        text = describe(error)
        limit = plan.shown if plan is not None else 1024
        return text if len(text) <= limit else text[: max(0, limit - 3)] + "..."

    def _limit_of(self, job: Job) -> Any:
        """The hard limit that the parent enforced: the message's, else the task's, else the worker's."""
        limits = job.message.timelimit or (None, None)
        limit = limits[0] or getattr(job.plan.task, "time_limit", None) or self.settings.time_limit
        return int(limit) if isinstance(limit, float) and limit.is_integer() else limit


def _holds(error: BaseException, kind: type[BaseException]) -> bool:
    """Whether it is one of that kind, or a task group has wrapped one."""
    if isinstance(error, BaseExceptionGroup):
        return any(_holds(inner, kind) for inner in error.exceptions)
    return isinstance(error, kind)


def _as_lost(error: BaseException) -> WorkerLostError:
    """SystemExit, KeyboardInterrupt, a cancellation: stored as they are, they would end whoever reads the result."""
    return WorkerLostError(f"the task raised {describe(error)}").with_traceback(error.__traceback__)


def _classes(throws: Any) -> tuple[type[BaseException], ...]:
    """`throws` as users write it: a class, a tuple or a list."""
    return (throws,) if isinstance(throws, type) else tuple(throws)


def _namer(message: TaskMessage) -> Name:
    return lambda edge, index: follow_up_id(run_name(message), message.retries, edge, index)


def _number(text: str) -> Any:
    try:
        number = float(text)
    except ValueError:
        return text
    return int(number) if number.is_integer() else number


def _text(value: Any) -> str:
    try:
        return str(value)
    except Exception:
        return describe(value)


def _own_frames(error: BaseException) -> int:
    """How many frames of the runtime stand before the user's code."""
    count = 0
    trace = error.__traceback__
    while trace is not None and str(trace.tb_frame.f_globals.get("__name__")).startswith(OWN):
        count += 1
        trace = trace.tb_next
    return count if trace is not None else 0


OWN = ("celeriac.runtime.", "celeriac.pools.", "asyncio.")
