"""Running a task where it is called: `apply`, and every call with `task_always_eager`.

As in a worker: a request of its own, signals, handlers, links, retries (at once, without their delay). Not as in a
worker: no time limits, no routing, no acknowledgement, and the result is not passed through a serializer.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Coroutine, Mapping
from contextvars import copy_context
from time import perf_counter
from typing import Any

from celeriac import telemetry
from celeriac.app.canvas import maybe_signature
from celeriac.app.eager_result import EagerResult
from celeriac.app.publish import many, worker_request
from celeriac.errors import Ignore, Reject, Retry
from celeriac.model import states
from celeriac.model.options import check_limits
from celeriac.runtime.context import Context, current
from celeriac.runtime.einfo import ExceptionInfo
from celeriac.runtime.errback import takes_failure
from celeriac.wire import codec
from celeriac.wire.ids import new_id

__all__ = ["Replaced", "Run", "check_limits", "round_trip"]

Settle = Callable[[Coroutine[Any, Any, Any]], Awaitable[Any]]


class Replaced(Ignore):
    """Raised by `Task.replace` in eager mode, where the other call has run already: its value is the task's."""

    def __init__(self, value: Any) -> None:
        self.value = value
        super().__init__(value)


def round_trip(app: Any, args: Any, kwargs: Any, serializer: str) -> tuple[Any, Any]:
    """Arguments as a worker would see them. Raises EncodeError for what can't be sent."""
    content_type, content_encoding, data = codec.encode((args, kwargs), serializer)
    decoded: Any = codec.decode(data, content_type, content_encoding, frozenset({content_type}))
    return decoded[0], decoded[1]


class Run:
    """One eager call."""

    def __init__(
        self,
        task: Any,
        args: Any,
        kwargs: Any,
        link: Any = None,
        link_error: Any = None,
        task_id: str | None = None,
        *,
        retries: int = 0,
        throw: bool | None = None,
        options: Mapping[str, Any] | None = None,
    ) -> None:
        self.task = task
        self.args = args
        self.kwargs = kwargs
        self.options = dict(options or {})
        self.id = task_id or new_id()
        self.retries = retries
        self.link = many(link)
        self.link_error = many(link_error)
        conf = task.app.conf
        self.throws = conf["task_eager_propagates"] if throw is None else throw
        self.stores = bool(task.store_eager_result) and not self.ignores_result

    @property
    def ignores_result(self) -> bool:
        """The call's word counts more than the task's."""
        given = self.options.get("ignore_result")
        return bool(self.task.ignore_result if given is None else given)

    def run(self) -> EagerResult[Any]:
        """Run it; a coroutine in an event loop of its own."""

        async def settle(coroutine: Coroutine[Any, Any, Any]) -> Any:
            return _finish(coroutine)

        steps = self._run(settle)
        try:
            steps.send(None)  # with this `settle` nothing in it ever waits
        except StopIteration as end:
            result: EagerResult[Any] = end.value
            return result
        raise RuntimeError("an eager run waited for something")

    async def arun(self) -> EagerResult[Any]:
        """Run it; a coroutine in the loop that runs."""

        async def settle(coroutine: Coroutine[Any, Any, Any]) -> Any:
            return await coroutine

        return await self._run(settle)

    async def _run(self, settle: Settle) -> EagerResult[Any]:
        while True:
            outcome = await self._once(settle)
            if outcome is not None:
                return outcome

    async def _once(self, settle: Settle) -> EagerResult[Any] | None:
        """One run. None: it asked to be run again."""
        task = self.task
        request = self._request()
        token = current.set(request)
        try:
            telemetry.task_prerun.send(task, task_id=self.id, task=task, args=self.args, kwargs=self.kwargs)
            began = perf_counter()
            try:
                await self._settled(settle, task.before_start(self.id, self.args, self.kwargs))
                call = task if "__call__" in task.overridden else task.run
                value = call(*self.args, **self.kwargs)
                if isinstance(value, Coroutine):
                    value = await settle(value)
            except Replaced as replaced:
                value = replaced.value
            except Retry as again:
                if isinstance(again.sig, Mapping):
                    await self._retried(settle, request, again)
                    return None
                return await self._ended(settle, request, states.RETRY, again.exc or again, again)
            except Reject as error:
                return await self._ended(settle, request, states.REJECTED, error)
            except Ignore as error:
                return await self._ended(settle, request, states.IGNORED, error)
            except Exception as error:
                return await self._failed(settle, request, error)
            return await self._succeeded(settle, request, value, perf_counter() - began)
        finally:
            current.reset(token)

    def _request(self) -> Context:
        options, task = self.options, self.task
        parent = worker_request()
        hard, soft = options.get("time_limit"), options.get("soft_time_limit")
        stamped = options.get("stamped_headers")
        host = self.task.app.origin.partition("@")[2]
        request = Context(
            id=self.id, task=task.name, args=self.args, kwargs=self.kwargs, retries=self.retries, is_eager=True,
            called_directly=False, instance=task, outer=current.get(), hostname=host,
            callbacks=self.link or None, errbacks=self.link_error or None, headers=options.get("headers"),
            ignore_result=self.ignores_result, correlation_id=self.id, reply_to=options.get("reply_to"),
            root_id=options.get("root_id") or (parent and (parent.root_id or parent.id)) or self.id,
            parent_id=options.get("parent_id") or (parent and parent.id) or None,
            group=options.get("group_id"), group_index=options.get("group_index"), chord=options.get("chord"),
            loglevel=options.get("loglevel") or 0, logfile=options.get("logfile"), shadow=options.get("shadow"),
            timelimit=(hard, soft),
            delivery_info={
                "is_eager": True, "exchange": options.get("exchange"), "routing_key": options.get("routing_key"),
                "priority": options.get("priority"), "redelivered": False,
            },
        )  # fmt: skip
        if stamped:
            names = [stamped] if isinstance(stamped, str) else list(stamped)
            request.stamped_headers = names
            request.stamps = {name: options.get(name) for name in names}
        return request

    async def _settled(self, settle: Settle, answer: Any) -> None:
        """A handler may be a coroutine function."""
        if isinstance(answer, Coroutine):
            await settle(answer)

    async def _succeeded(self, settle: Settle, request: Context, value: Any, runtime: float) -> EagerResult[Any]:
        task = self.task
        for link in self.link:
            maybe_signature(link, task.app).apply_async((value,))
        self._store(value, states.SUCCESS, None, request)
        await self._settled(settle, task.on_success(value, self.id, self.args, self.kwargs))
        telemetry.task_success.send(task, result=value, runtime=runtime)
        await self._after(settle, states.SUCCESS, value, None)
        return EagerResult(self.id, value, states.SUCCESS, name=task.name)

    async def _failed(self, settle: Settle, request: Context, error: Exception) -> EagerResult[Any]:
        task = self.task
        einfo = ExceptionInfo(error, skip=1)
        self._store(error, states.FAILURE, einfo.traceback, request)
        await self._settled(settle, task.on_failure(error, self.id, self.args, self.kwargs, einfo))
        telemetry.task_failure.send(
            task, task_id=self.id, exception=error, args=self.args, kwargs=self.kwargs, traceback=error.__traceback__,
            einfo=einfo,
        )  # fmt: skip
        for link in self.link_error:
            await self._error_link(settle, request, link, error, einfo)
        await self._after(settle, states.FAILURE, error, einfo)
        if self.throws:
            raise error
        return EagerResult(self.id, error, states.FAILURE, einfo.traceback, task.name)

    async def _error_link(self, settle: Settle, request: Context, link: Any, error: Exception, einfo: Any) -> None:
        signature = maybe_signature(link, self.task.app)
        known = signature.app.tasks.get(signature.task)
        if known is not None and takes_failure(known, signature):
            args = (request, error, einfo.traceback) if not signature.immutable else ()
            await self._settled(settle, signature(*args))
        else:
            signature.apply_async((self.id,))

    async def _retried(self, settle: Settle, request: Context, again: Retry) -> None:
        task = self.task
        reason = again.exc or again
        einfo = ExceptionInfo(again, skip=1)
        await self._settled(settle, task.on_retry(reason, self.id, self.args, self.kwargs, einfo))
        telemetry.task_retry.send(task, request=request, reason=again, einfo=einfo)
        await self._after(settle, states.RETRY, again, einfo)
        signature = again.sig
        self.args = signature.get("args", self.args)
        self.kwargs = signature.get("kwargs", self.kwargs)
        self.retries += 1

    async def _ended(
        self, settle: Settle, request: Context, state: str, value: Any, error: BaseException | None = None
    ) -> EagerResult[Any]:
        await self._after(settle, state, value, None)
        if self.throws and state != states.IGNORED:
            raise error or value
        return EagerResult(self.id, value, state, name=self.task.name)

    async def _after(self, settle: Settle, state: str, value: Any, einfo: Any) -> None:
        task = self.task
        await self._settled(settle, task.after_return(state, value, self.id, self.args, self.kwargs, einfo))
        telemetry.task_postrun.send(
            task, task_id=self.id, task=task, args=self.args, kwargs=self.kwargs, retval=value, state=state
        )

    def _store(self, value: Any, state: str, traceback: str | None, request: Context) -> None:
        if self.stores and not self.task.backend.is_disabled:
            self.task.backend.store_result(self.id, value, state, traceback, request)


def _finish(coroutine: Coroutine[Any, Any, Any]) -> Any:
    """Run a coroutine to its end here; in a thread of its own where a loop runs already."""
    import asyncio

    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(coroutine)
    import threading

    outcome: list[Any] = []
    scope = copy_context()

    def serve() -> None:
        try:
            outcome.append((True, scope.run(asyncio.run, coroutine)))
        except BaseException as error:
            outcome.append((False, error))

    thread = threading.Thread(target=serve, name="celeriac-eager")
    thread.start()
    thread.join()
    good, value = outcome[0]
    if not good:
        raise value
    return value
