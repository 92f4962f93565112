"""Runs one message: bytes in, a report out. The hot path of a child.

A pool calls `run` (on a thread) or `open` and then `acall` (on a loop). Nothing raises out of here on account of a
message, a task, a handler or a listener.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Coroutine, Mapping
from contextvars import copy_context
from time import perf_counter
from typing import Any

from celeriac import telemetry
from celeriac.errors import CeleryError
from celeriac.model.message import RETURN, Dead, Store
from celeriac.model.outcome import Report
from celeriac.runtime.context import Sent, current
from celeriac.runtime.einfo import ExceptionInfo, describe
from celeriac.runtime.finish import PLAIN, Finish, Ran
from celeriac.runtime.job import Job, Pack, Plan, RunnableTask, RunSettings, Unknown
from celeriac.runtime.limits import Drive, exception_of
from celeriac.runtime.lines import Lines, log
from celeriac.wire import record, values
from celeriac.wire.repr import safe_repr
from celeriac.wire.task import TaskMessage, unpack

__all__ = ["Pack", "Ran", "RunSettings", "RunnableTask", "Runner"]

SLOW = 0.001
_prerun, _postrun, _success = telemetry.task_prerun, telemetry.task_postrun, telemetry.task_success
_set_current = current.set


class Runner:
    """Runs messages of the tasks it knows, one at a time; `twin` makes one for another thread."""

    def __init__(
        self, tasks: Mapping[str, RunnableTask], settings: RunSettings, pack: Pack, lines: Lines | None = None
    ) -> None:
        """`tasks` may grow later. `pack` makes envelopes of the messages that follow."""
        self.settings = settings
        self.lines = lines or Lines()
        self.armed = 0
        """The call whose user code may be interrupted by an exception in this thread; 0: none."""
        self.on_started: Callable[[Store], None] = _nobody
        """Told of each STARTED document (track_started)."""
        self.before_slow: Callable[[], None] = _nothing
        """Called before a task whose last runs took more than a millisecond, or that has not run yet."""
        self._tasks = tasks
        self._pack = pack
        self._plans: dict[str, Plan] = {}
        self._finish = Finish(self._plan, settings, pack, self.lines)
        self._date_text = self._finish.documents.date_text
        self._loop: Any = None
        self._aio: Any = None
        self.drive: Drive | None = None
        """The coroutine call that is armed, if it is one."""
        self._accept = settings.accept
        self._hostname = settings.hostname
        self._plain = (
            settings.result_serializer == "json"
            and settings.result_compression is None
            and not settings.result_extended
            and not settings.tells_results
            and settings.timezone is None
        )
        self._stores = settings.stores_results

    def twin(self) -> Runner:
        """A runner of the same tasks for another thread."""
        other = Runner(self._tasks, self.settings, self._pack, self.lines)
        other._plans = self._plans
        other.on_started = self.on_started
        other.before_slow = self.before_slow
        return other

    def begin(self) -> None:
        """This process runs tasks from now on; logging is set up."""
        self.lines.detect()

    def flush_lines(self) -> None:
        """Write log lines that were kept back."""
        self.lines.flush()

    def close(self) -> None:
        """Close the event loop that coroutine tasks ran in, if there was one."""
        if self._loop is not None:
            self._loop.close()
            self._loop = None

    # --- one call, on a thread

    def run(self, seq: int, blob: bytes) -> Ran:
        """Run a message to its end."""
        try:
            message = unpack(blob, self._accept)
        except CeleryError as error:
            return self._unreadable(seq, blob, error)
        plan = self._plans.get(message.task) or self._plan(message.task)
        if plan is None:
            return Report(seq, "REJECTED", RETURN, result=f"no task {message.task!r} is registered in this process")
        if plan.is_async or not self._goes_straight(plan, message):
            return self.call(self._job(seq, message, plan))
        if plan.pace > SLOW:
            self.before_slow()
        context = Sent(message, plan.task, self._hostname)
        scope = copy_context()
        scope.run(_set_current, context)
        started = perf_counter()
        try:
            try:
                self.armed = seq
                value = scope.run(plan.call, *message.args, **message.kwargs)
            finally:
                # first of all: an exception meant for the task must not hit what follows
                self.armed = 0
        except BaseException as error:
            job = Job(seq, message, plan, context, scope)
            job.runtime = perf_counter() - started
            plan.pace += 0.2 * (job.runtime - plan.pace)
            failed: Report = scope.run(self._failed, job, error)
            return failed
        runtime = perf_counter() - started
        plan.pace += 0.2 * (runtime - plan.pace)
        if type(value) not in PLAIN or context._children or context.outbox:
            job = Job(seq, message, plan, context, scope)
            job.runtime = runtime
            if isinstance(value, Coroutine):
                return self._call_coroutine(job, value)
            return scope.run(self._succeeded, job, value)
        ran = self._straight(message, plan, value, runtime)
        if ran is None:
            job = Job(seq, message, plan, context, scope)
            job.runtime = runtime
            return scope.run(self._succeeded, job, value)
        return ran

    def _goes_straight(self, plan: Plan, message: TaskMessage) -> bool:
        """Nothing but the function has to be called: no handler, no listener, no follower, the plainest document."""
        return not (
            not plan.plain
            or message.callbacks
            or message.chain
            or message.chord is not None
            or _prerun.receivers
            or _postrun.receivers
            or _success.receivers
            or not self._plain
        )

    def _straight(self, message: TaskMessage, plan: Plan, value: Any, runtime: float) -> Ran | None:
        """How a run ended that goes straight. None: the value can't be written."""
        given = message.ignore_result
        document = None
        if self._stores and not (plan.task.ignore_result if given is None else given):
            try:
                text = values.dumps(value)
            except Exception:
                return None
            document = record.success(message.id, text, self._date_text(), "[]", message.parent_id, message.group)
        lines = self.lines
        if lines.wanted():
            lines.succeeded(message.shadow or message.task, message.id, runtime, safe_repr(value, plan.shown))
        return document, runtime

    def open(self, seq: int, blob: bytes) -> Job | Report:
        """Read a message; a Report says that there is nothing to call."""
        try:
            message = unpack(blob, self._accept)
        except CeleryError as error:
            return self._unreadable(seq, blob, error)
        plan = self._plans.get(message.task) or self._plan(message.task)
        if plan is None:
            return Report(seq, "REJECTED", RETURN, result=f"no task {message.task!r} is registered in this process")
        return self._job(seq, message, plan)

    def call(self, job: Job) -> Ran:
        """Run an opened message on this thread; a coroutine task in an event loop that is kept for the next one."""
        try:
            if job.plan.is_async:
                return self._call_coroutine(job, None)
            ran: Ran | Coroutine[Any, Any, Any] = job.scope.run(self._call, job)
            if isinstance(ran, Coroutine):
                return self._call_coroutine(job, ran)
            if self._finish.late:
                self._run_late()
            return ran
        except BaseException as error:
            return self._broken(job, error)

    def _call(self, job: Job) -> Ran | Coroutine[Any, Any, Any]:
        """In the scope of the job. A coroutine is what a plain function returned, to be awaited outside."""
        self.before_slow()
        self._before(job)
        plan, message = job.plan, job.message
        job.started = perf_counter()
        try:
            try:
                self.armed = job.seq
                if plan.before_start:
                    plan.task.before_start(message.id, message.args, message.kwargs)  # type: ignore[attr-defined]
                value = plan.call(*message.args, **message.kwargs)
            finally:
                self.armed = 0
        except BaseException as error:
            job.runtime = perf_counter() - job.started
            return self._failed(job, error)
        job.runtime = perf_counter() - job.started
        if isinstance(value, Coroutine):
            return value
        return self._finish.succeeded(job, value)

    def _before(self, job: Job) -> None:
        _set_current(job.context)
        task, message = job.plan.task, job.message
        if _prerun.receivers:
            _prerun.send(task, task_id=message.id, task=task, args=message.args, kwargs=message.kwargs)
        if task.track_started:
            store = self._finish.documents.started(job)
            if store is not None:
                self.on_started(store)

    def _succeeded(self, job: Job, value: Any) -> Ran:
        try:
            ran = self._finish.succeeded(job, value)
        except BaseException as error:
            return self._broken(job, error)
        if self._finish.late:
            self._run_late()
        return ran

    def _failed(self, job: Job, error: BaseException) -> Report:
        try:
            report = self._finish.failed(job, error)
        except BaseException as worse:
            return self._broken(job, worse)
        if self._finish.late:
            self._run_late()
        return report

    def exception_of(self, how: str) -> BaseException:
        """What a CANCEL frame throws: for `soft`, `hard`, `terminate`."""
        return exception_of(how)

    # --- coroutines on a thread

    def _call_coroutine(self, job: Job, coroutine: Any) -> Ran:
        """`coroutine`: what a plain function returned; None: the task's own is made."""
        if self._loop is None:
            import asyncio

            self._loop = asyncio.Runner()
        try:
            ran: Ran = self._loop.run(self.acall(job, coroutine))
            return ran
        except BaseException as error:
            self._drop_loop()
            return self._broken(job, error)
        finally:
            self.armed = 0
            self.drive = None

    def _drop_loop(self) -> None:
        """An exception went through the loop itself: nobody knows what it is still good for."""
        loop, self._loop = self._loop, None
        with contextlib.suppress(BaseException):
            loop.close()

    def interrupt(self, seq: int, error: BaseException) -> bool:
        """Throw into call `seq` if it waits in this runner's event loop. False: it runs on the thread itself, so the
        exception is to be raised there. From any thread, and from a signal handler."""
        drive = self.drive
        if drive is None or drive.stepping or self.armed != seq:
            return False
        drive.interrupt_threadsafe(error)
        return True

    def _run_late(self) -> None:
        late, self._finish.late = self._finish.late, []
        if self._loop is None:
            import asyncio

            self._loop = asyncio.Runner()
        for coroutine in late:
            try:
                self._loop.run(coroutine)
            except BaseException:
                log.exception("a handler's coroutine raised")

    # --- one call, on a loop

    async def arun(self, seq: int, blob: bytes) -> Ran:
        """Run a message of a coroutine task on the running loop."""
        job = self.open(seq, blob)
        return job if isinstance(job, Report) else await self.acall(job)

    async def acall(self, job: Job, coroutine: Any = None) -> Ran:
        """Run an opened message on the running loop. Several may run at once; `job.drive` takes interruptions."""
        scope, plan, message = job.scope, job.plan, job.message
        aio = self._aio or self._import_asyncio()
        straight = coroutine is None and self._goes_straight(plan, message)
        try:
            if straight:
                scope.run(_set_current, job.context)
                coroutine = scope.run(plan.call, *message.args, **message.kwargs)
                if not isinstance(coroutine, Coroutine):
                    coroutine = _given(coroutine)
            elif coroutine is None:
                scope.run(self._before, job)
                coroutine = self._coroutine(job)
        except BaseException as error:
            # arguments that don't fit, or what a wrapper of the coroutine function did
            return await self._ended_early(job, error, straight)
        try:
            started = job.started = job.started or perf_counter()
            job.drive = self.drive = drive = Drive(coroutine, scope)
            drive.attach(aio.get_running_loop(), aio.current_task())
            try:
                try:
                    self.armed = job.seq
                    value = await drive
                finally:
                    self.armed = 0
                    job.drive = None
                    if drive.detach():
                        with contextlib.suppress(aio.CancelledError):
                            await aio.sleep(0)
            except BaseException as error:
                job.runtime = perf_counter() - started
                with contextlib.suppress(BaseException):
                    drive.close()
                ran: Ran = scope.run(self._finish.failed, job, error)
            else:
                job.runtime = perf_counter() - started
                context = job.context
                if straight and type(value) in PLAIN and not context._children and not context.outbox:
                    pair = self._straight(message, plan, value, job.runtime)
                    if pair is not None:
                        return pair
                ran = scope.run(self._finish.succeeded, job, value)
        except BaseException as error:
            ran = self._broken(job, error)
        if self._finish.late:
            await self._await_late()
        return ran

    def _import_asyncio(self) -> Any:
        import asyncio

        self._aio = asyncio
        return asyncio

    async def _ended_early(self, job: Job, error: BaseException, straight: bool) -> Ran:
        if not straight:
            return self._broken(job, error)
        try:
            ran: Ran = job.scope.run(self._finish.failed, job, error)
        except BaseException as worse:
            return self._broken(job, worse)
        await self._await_late()
        return ran

    async def _await_late(self) -> None:
        late, self._finish.late = self._finish.late, []
        for coroutine in late:
            try:
                await coroutine
            except Exception:
                log.exception("a handler's coroutine raised")

    async def _coroutine(self, job: Job) -> Any:
        plan, message = job.plan, job.message
        if plan.before_start:
            answer = plan.task.before_start(message.id, message.args, message.kwargs)  # type: ignore[attr-defined]
            if isinstance(answer, Coroutine):
                await answer
        value = plan.call(*message.args, **message.kwargs)
        return await value if isinstance(value, Coroutine) else value

    # --- what is not run

    def end(self, seq: int, blob: bytes, why: str, detail: Any) -> Report:
        """End a message without running it: document, handlers, error links. `why` and `detail` as in an END frame."""
        try:
            if why == "joined" and not blob:
                message = TaskMessage(detail[4], "celery.chord", [], {}, group=detail[3])
            else:
                message = unpack(blob, self._accept)
        except CeleryError as error:
            return self._unreadable(seq, blob, error)
        job = self._job(seq, message, self._plan(message.task) or Plan(Unknown(message.task)))
        try:
            report = job.scope.run(self._ended, job, why, detail)
        except BaseException as error:
            return self._broken(job, error)
        if self._finish.late:
            self._run_late()
        return report

    def _ended(self, job: Job, why: str, detail: Any) -> Report:
        _set_current(job.context)
        if why == "joined":
            body, entries, structure, group = detail[:4]
            return self._finish.joined(job, values.loads(body), entries, structure, group)
        plan = None if isinstance(job.plan.task, Unknown) else job.plan
        return self._finish.ended(job.seq, job.message, plan, why, detail, job)

    def replay(self, seq: int, blob: bytes, document: bytes) -> Report:
        """It has ended, the document stands stored: only say what follows from it."""
        try:
            message = unpack(blob, self._accept)
            found = record.read(document, self.settings.result_serializer)
        except CeleryError as error:
            return self._unreadable(seq, blob, error)
        job = self._job(seq, message, self._plan(message.task) or Plan(Unknown(message.task)))
        try:
            report: Report = job.scope.run(self._replayed, job, found.status, found.result)
            return report
        except Exception as error:
            log.exception("what follows from %s[%s] can't be sent", message.task, message.id)
            return Report(seq, found.status, Dead(f"what follows from it can't be sent: {describe(error)}"))

    def _replayed(self, job: Job, state: str, value: Any) -> Report:
        _set_current(job.context)
        return self._finish.replayed(job, state, value)

    def _unreadable(self, seq: int, blob: bytes, error: CeleryError) -> Report:
        reason = f"{type(error).__name__}: {describe(error) if not error.args else error.args[0]}"
        log.error("a message can't be read and goes to the dead letters: %s", reason)
        if telemetry.task_rejected.receivers:
            telemetry.task_rejected.send(None, message=blob, exc=error)
        return Report(seq, "REJECTED", Dead(reason), result=reason)

    # --- parts

    def _job(self, seq: int, message: TaskMessage, plan: Plan) -> Job:
        return Job(seq, message, plan, Sent(message, plan.task, self._hostname), copy_context())

    def _plan(self, name: str) -> Plan | None:
        plan = self._plans.get(name)
        if plan is None:
            task = self._tasks.get(name)
            if task is None:
                return None
            plan = self._plans[name] = Plan(task)
        return plan

    def _broken(self, job: Job, error: BaseException) -> Report:
        """An error of the engine's own, or of something that is not the task: say so, and let the task fail."""
        self.armed = 0
        message, task = job.message, job.plan.task
        einfo = ExceptionInfo(error, internal=True)
        log.critical("Task %s[%s] INTERNAL ERROR: %s\n%s", message.task, message.id, describe(error), einfo.traceback)
        try:
            if telemetry.task_internal_error.receivers:
                telemetry.task_internal_error.send(
                    task,
                    task_id=message.id,
                    args=message.args,
                    kwargs=message.kwargs,
                    request=job.context,
                    exception=error,
                    traceback=error.__traceback__,
                    einfo=einfo,
                )
        except BaseException:
            log.critical("a receiver of task_internal_error raised", exc_info=True)
        return self._finish.broken(job, error, einfo.traceback)


async def _given(value: Any) -> Any:
    """A coroutine task whose wrapper gave the value itself."""
    return value


def _nothing() -> None:
    pass


def _nobody(store: Store) -> None:
    pass
