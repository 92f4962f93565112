"""How a task is sent, or run here and now."""

from __future__ import annotations

import time
from collections.abc import Coroutine, Iterable, Mapping, Sequence
from typing import Any, Generic, ParamSpec, TypeVar, overload

from celeriac import telemetry
from celeriac.app import bulk, publish
from celeriac.app.eager_result import EagerResult
from celeriac.app.handle import AsyncResult as Handle
from celeriac.app.plan import Plan, make_plan
from celeriac.app.task_options import TaskOptions
from celeriac.app.transaction import outlet
from celeriac.errors import OperationalError
from celeriac.runtime.context import current

P = ParamSpec("P")
R = TypeVar("R", covariant=True)
T = TypeVar("T")
Calls = Iterable[Sequence[Any] | Mapping[str, Any]]

_before, _after, _sent = telemetry.before_task_publish, telemetry.after_task_publish, telemetry.task_sent


class Sending(TaskOptions, Generic[P, R]):
    """The part of `Task` that callers use."""

    @overload
    def delay(self: Sending[P, Coroutine[Any, Any, T]], *args: P.args, **kwargs: P.kwargs) -> Handle[T]: ...

    @overload
    def delay(self, *args: P.args, **kwargs: P.kwargs) -> Handle[R]: ...

    def delay(self, *args: Any, **kwargs: Any) -> Any:
        """Send the task with these arguments. Returns when the broker has it safe; raises OperationalError when that
        takes longer than `task_publish_timeout`, TypeError for arguments that the function does not take."""
        plan = self.direct()
        if plan is None:
            return self.apply_async(args, kwargs)
        arity = plan.arity
        if arity is not None and (len(args) != arity or kwargs):
            self.shape.check(args, kwargs)
        request = current.get()
        if request is not None:
            request = publish.worker_request()
        envelope = bulk.envelope(plan, request, args, kwargs)
        began = time.monotonic()
        try:
            plan.sender.publish((envelope,), plan.timeout)
        except OperationalError as error:
            publish.again(plan.sender, (envelope,), began + plan.timeout, self.app.publish_pauses(), error)
        return bulk.handle(self, plan, request, envelope.id)

    def direct(self) -> Plan | None:
        """How messages are sent that depend on nothing but ids, arguments and the canvas; None: anything may have a
        say."""
        app = self.app
        plan = self._plan
        if plan is None or plan.stamp is not app.stamp:
            plan = self._plan = make_plan(self)
        if (
            plan.pack is None
            or _before.receivers
            or _after.receivers
            or _sent.receivers
            or app.conf["task_always_eager"]
            or outlet(app) is not None
            or getattr(self.apply_async, "__func__", None) is not _PLAIN["apply_async"]
            or getattr(app.send_task, "__func__", None) is not plan.send_task
        ):
            return None
        return plan

    def is_sent_plainly(self, method: str) -> bool:
        """Neither `method` (`apply_async`, `aapply_async`) is overridden nor the app's `send_task`."""
        app = self.app
        return (
            getattr(getattr(self, method), "__func__", None) is _PLAIN[method]
            and getattr(app.send_task, "__func__", None) is app.plain_send_task.__func__
        )

    def outgoing(self, args: Any, kwargs: Any, options: Mapping[str, Any]) -> publish.Outgoing:
        """What `apply_async` sends: everything that is to be known before anything is sent."""
        given = dict(options)
        link, link_error = given.pop("link", None), given.pop("link_error", None)
        task_id, shadow = given.pop("task_id", None), given.pop("shadow", None)
        ready = self._ready(args, kwargs, task_id, link, link_error, shadow, given)
        return publish.prepare(self.app, self.name, ready.pop("args"), ready.pop("kwargs"), ready, self)

    @overload
    def delay_many(self: Sending[P, Coroutine[Any, Any, T]], calls: Calls) -> list[Handle[T]]: ...

    @overload
    def delay_many(self, calls: Calls) -> list[Handle[R]]: ...

    def delay_many(self, calls: Calls) -> list[Any]:
        """Send the task once for each of `calls`: a tuple or list of positional arguments, or a dict of named ones.
        Many times faster than a `delay` for each: a thousand go to the broker together. Returns when it has all.

        Raises OperationalError when it could not take them in time: each thousand before those is sent, and of these
        some may be. Raises TypeError for arguments that the function does not take; those before may be sent."""
        plan = self.direct()
        if plan is None:
            return [self.apply_async(*bulk.arguments(call)) for call in calls]
        return bulk.send(self, plan, calls)

    @overload
    async def adelay_many(self: Sending[P, Coroutine[Any, Any, T]], calls: Calls) -> list[Handle[T]]: ...

    @overload
    async def adelay_many(self, calls: Calls) -> list[Handle[R]]: ...

    async def adelay_many(self, calls: Calls) -> list[Any]:
        """`delay_many` for coroutines."""
        plan = self.direct()
        if plan is None:
            return [await self.aapply_async(*bulk.arguments(call)) for call in calls]
        return await bulk.asend(self, plan, calls)

    @property
    def computes_shadow(self) -> bool:
        """`shadow_name` is overridden."""
        return type(self).shadow_name is not Sending.shadow_name

    @property
    def makes_results(self) -> bool:
        """Handles of its results are its own affair: it has a result store of its own, or overrides `AsyncResult`."""
        return self._backend is not None or type(self).AsyncResult is not TaskOptions.AsyncResult

    @property
    def checks_arguments(self) -> bool:
        """Whether a call is checked against the function's parameters."""
        return bool(self.app.strict_typing if self.typing is None else self.typing)

    @overload
    async def adelay(self: Sending[P, Coroutine[Any, Any, T]], *args: P.args, **kwargs: P.kwargs) -> Handle[T]: ...

    @overload
    async def adelay(self, *args: P.args, **kwargs: P.kwargs) -> Handle[R]: ...

    async def adelay(self, *args: Any, **kwargs: Any) -> Any:
        """`delay` for coroutines: the loop runs on while the broker takes the message."""
        return await self.aapply_async(args, kwargs)

    @overload
    def apply_async(
        self: Sending[P, Coroutine[Any, Any, T]],
        args: Iterable[Any] | None = None,
        kwargs: Mapping[str, Any] | None = None,
        task_id: str | None = None,
        producer: Any = None,
        link: Any = None,
        link_error: Any = None,
        shadow: str | None = None,
        **options: Any,
    ) -> Handle[T]: ...

    @overload
    def apply_async(
        self,
        args: Iterable[Any] | None = None,
        kwargs: Mapping[str, Any] | None = None,
        task_id: str | None = None,
        producer: Any = None,
        link: Any = None,
        link_error: Any = None,
        shadow: str | None = None,
        **options: Any,
    ) -> Handle[R]: ...

    def apply_async(
        self,
        args: Iterable[Any] | None = None,
        kwargs: Mapping[str, Any] | None = None,
        task_id: str | None = None,
        producer: Any = None,
        link: Any = None,
        link_error: Any = None,
        shadow: str | None = None,
        **options: Any,
    ) -> Any:
        """Send the task.

        Options: `countdown` (seconds) or `eta` (datetime or ISO text), `expires` (seconds, datetime or ISO text),
        `queue`, `exchange`, `routing_key`, `priority`, `serializer`, `compression`, `delivery_mode`, `headers`,
        `time_limit`, `soft_time_limit`, `ignore_result`, `retry`, `retry_policy`, `timeout` (seconds that sending may
        take in all), `reply_to`, `root_id`, `parent_id`, `group_id`, `group_index`, `chord`, `chain`, `shadow`,
        `argsrepr`, `kwargsrepr`, `origin`, `add_to_parent`, `route_name`, `router`, `result_cls`, `stamped_headers`
        with one key for each stamp, `replaced_task_nesting`, `retries`. Any other one becomes a property of the
        message. A `connection` or `producer` is accepted and not needed.

        `link` and `link_error` are signatures, or lists of them. Returns and raises as `delay` does."""
        ready = self._ready(args, kwargs, task_id, link, link_error, shadow, options)
        if not isinstance(ready, dict):
            return ready.run()
        return self.app.send_task(self.name, producer=producer, **ready)

    async def aapply_async(
        self,
        args: Iterable[Any] | None = None,
        kwargs: Mapping[str, Any] | None = None,
        task_id: str | None = None,
        producer: Any = None,
        link: Any = None,
        link_error: Any = None,
        shadow: str | None = None,
        **options: Any,
    ) -> Any:
        """`apply_async` for coroutines."""
        ready = self._ready(args, kwargs, task_id, link, link_error, shadow, options)
        if not isinstance(ready, dict):
            return await ready.arun()
        return await self.app.asend_task(self.name, producer=producer, **ready)

    def _ready(
        self, args: Any, kwargs: Any, task_id: Any, link: Any, link_error: Any, shadow: Any, options: dict[str, Any]
    ) -> Any:
        """What `send_task` is given, as a dict; in eager mode the run itself."""
        app = self.app
        app.prepare_task(self)
        given_args, given_kwargs = _arguments(args, kwargs)
        if self.checks_arguments:
            self.shape.check(given_args, given_kwargs)
        link = _linked(self.link, link)
        link_error = _linked(self.link_error, link_error)
        if app.conf["task_always_eager"]:
            from celeriac.app import eager

            hard, soft = (options.get(key, getattr(self, key)) for key in ("time_limit", "soft_time_limit"))
            eager.check_limits(hard, soft)
            serializer = options.get("serializer") or self.serializer
            given_args, given_kwargs = eager.round_trip(app, given_args, given_kwargs, serializer)
            return eager.Run(self, given_args, given_kwargs, link, link_error, task_id, options=options)
        shadow = shadow or self.shadow_name(given_args, given_kwargs, options)
        return {
            **options,
            "args": given_args, "kwargs": given_kwargs, "task_id": task_id, "link": link, "link_error": link_error,
            "shadow": shadow, "task_type": self, "result_cls": options.get("result_cls") or self.AsyncResult,
        }  # fmt: skip

    def shadow_name(self, args: Any, kwargs: Any, options: Mapping[str, Any]) -> str | None:
        """Another name for logs and events; override it to compute one."""
        return None

    def apply(
        self,
        args: Iterable[Any] | None = None,
        kwargs: Mapping[str, Any] | None = None,
        link: Any = None,
        link_error: Any = None,
        task_id: str | None = None,
        retries: int | None = None,
        throw: bool | None = None,
        logfile: str | None = None,
        loglevel: int | None = None,
        headers: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> EagerResult[Any]:
        """Run the task here and now, retries included, as a worker would. `throw`: raise what it raises; None: as
        `task_eager_propagates` says."""
        from celeriac.app import eager

        self.app.prepare_task(self)
        given_args, given_kwargs = _arguments(args, kwargs)
        return eager.Run(
            self, given_args, given_kwargs, link, link_error, task_id, retries=retries or 0, throw=throw,
            options={**options, "headers": headers, "logfile": logfile, "loglevel": loglevel},
        ).run()  # fmt: skip


_PLAIN = {name: Sending.__dict__[name] for name in ("apply_async", "aapply_async")}


def _arguments(args: Any, kwargs: Any) -> tuple[Any, Any]:
    if args is not None and not isinstance(args, list | tuple):
        raise TypeError(f"args must be a list or tuple, not {type(args).__name__}")
    if kwargs is not None and not isinstance(kwargs, Mapping):
        raise TypeError(f"kwargs must be a mapping, not {type(kwargs).__name__}")
    return args or (), kwargs or {}


def _linked(own: Any, given: Any) -> Any:
    return given if not own else [*publish.many(own), *publish.many(given)]
