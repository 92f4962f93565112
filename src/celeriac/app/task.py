"""Tasks: what `@app.task` makes of a function, and the class to derive one's own from."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from contextlib import suppress
from functools import cached_property
from typing import Any, ClassVar, Generic, NoReturn, ParamSpec, TypeVar, cast, overload

import msgspec

from celeriac import errors, telemetry
from celeriac.app import adding, bulk, canvas, publish, registry, replacing, retrying
from celeriac.app.attributes import CurrentApp, FromSetting, held
from celeriac.app.canvas import Signature, maybe_signature, signature
from celeriac.app.checking import Shape
from celeriac.app.handle import AsyncResult as Handle
from celeriac.app.handle import EagerResult
from celeriac.app.plan import Plan, make_plan
from celeriac.app.transaction import outlet
from celeriac.errors import Ignore, ImproperlyConfigured, OperationalError, Retry
from celeriac.model.outcome import TaskTraits
from celeriac.runtime.context import Context, current
from celeriac.wire.ids import new_id
from celeriac.wire.task import TaskMessage

P = ParamSpec("P")
R = TypeVar("R", covariant=True)
T = TypeVar("T")
Calls = Iterable[Sequence[Any] | Mapping[str, Any]]

HANDLERS = ("before_start", "on_success", "on_retry", "on_failure", "after_return", "__call__")
_before, _after, _sent = telemetry.before_task_publish, telemetry.after_task_publish, telemetry.task_sent


class Task(Generic[P, R]):
    """A task. `delay` and `apply_async` send it, calling it runs the function here.

    Derive from it for handlers and options of many tasks: `@app.task(base=MyTask)`. One instance serves all runs."""

    Strategy: ClassVar[str] = "celery.worker.strategy:default"
    Request: ClassVar[str] = "celery.worker.request:Request"
    MaxRetriesExceededError: ClassVar[type[Exception]] = errors.MaxRetriesExceededError
    OperationalError: ClassVar[type[Exception]] = OperationalError

    __name__: str
    app: Any = CurrentApp()
    name: str = cast(str, None)
    abstract: bool = True
    typing: bool | None = None
    """Check arguments when the task is called. None: as the app says."""
    max_retries: int | None = 3
    """None: for ever."""
    default_retry_delay: Any = FromSetting("task_default_retry_delay")
    """Seconds."""
    rate_limit: Any = FromSetting("task_default_rate_limit")
    ignore_result: Any = FromSetting("task_ignore_result")
    trail: bool = True
    """Record the tasks that a run sends as children of its result."""
    send_events: bool = True
    store_errors_even_if_ignored: Any = FromSetting("task_store_errors_even_if_ignored")
    store_eager_result: Any = FromSetting("task_store_eager_result")
    serializer: Any = FromSetting("task_serializer")
    compression: str | None = None
    queue: Any = None
    exchange: Any = None
    exchange_type: str | None = None
    routing_key: str | None = None
    delivery_mode: Any = None
    mandatory: bool | None = None
    immediate: bool | None = None
    priority: Any = FromSetting("task_default_priority")
    expires: Any = None
    time_limit: float | None = None
    soft_time_limit: float | None = None
    track_started: Any = FromSetting("task_track_started")
    acks_late: Any = FromSetting("task_acks_late")
    acks_on_failure_or_timeout: Any = FromSetting("task_acks_on_failure_or_timeout", last=True)
    acks_on_failure: Any = FromSetting(
        "task_acks_on_failure", "task_acks_on_failure_or_timeout", umbrella="acks_on_failure_or_timeout", last=True
    )
    acks_on_timeout: Any = FromSetting(
        "task_acks_on_timeout", "task_acks_on_failure_or_timeout", umbrella="acks_on_failure_or_timeout", last=True
    )
    reject_on_worker_lost: Any = FromSetting("task_reject_on_worker_lost")
    retry_on_worker_lost: Any = FromSetting("task_retry_on_worker_lost")
    throws: tuple[type[BaseException], ...] = ()
    """Errors that are expected: logged without a traceback."""
    resultrepr_maxsize: int = 1024
    autoretry_for: Sequence[type[BaseException]] = ()
    dont_autoretry_for: Sequence[type[BaseException]] = ()
    retry_kwargs: Mapping[str, Any] = {}
    retry_backoff: float | bool = False
    """True: a factor of 1 second; a number: that factor; doubled with each retry."""
    retry_backoff_max: float = 600
    retry_jitter: bool = True
    link: Any = None
    """Signatures that follow each run of this task, beside those of the call."""
    link_error: Any = None
    """Signatures that follow each failure of this task, beside those of the call."""

    _backend: Any = None
    _plan: Plan | None = None

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        for name in SETTINGS:  # None means: as the app says
            if name in cls.__dict__ and cls.__dict__[name] is None:
                delattr(cls, name)

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, value)
        if name in _WATCHED:
            self.forget_plans()

    def forget_plans(self) -> None:
        """Something that things were worked out from has changed."""
        for name in ("_plan", "_options", "overridden", "shape", "is_async"):
            self.__dict__.pop(name, None)

    # Running

    def run(self, *args: Any, **kwargs: Any) -> Any:
        """What the task does."""
        raise NotImplementedError("a task must define run()")

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """Run the function here, with a request of its own."""
        running = current.get()
        if (
            running is not None
            and running.instance is self
            and not running.called_directly
            and "__call__" in self.overridden
            and "entered" not in running.__dict__
        ):
            # a __call__ of one's own hands on to this one: the request of the worker stays
            running.__dict__["entered"] = True
            return self.run(*args, **kwargs)  # type: ignore[no-any-return]
        request = Context(instance=self, args=args, kwargs=kwargs, outer=running)
        token = current.set(request)
        try:
            value = self.run(*args, **kwargs)
        finally:
            current.reset(token)
        if isinstance(value, Coroutine):
            return _under(request, value)  # type: ignore[return-value]
        return value  # type: ignore[no-any-return]

    @property
    def request(self) -> Any:
        """The request of the run that is current (`Context`); one with defaults where none is."""
        request = current.get()
        while request is not None:
            if request.instance is self:
                return request
            request = request.__dict__.get("outer")
        return Context(instance=self)

    def push_request(self, *args: Any, **fields: Any) -> None:
        """Make a request with these fields the current one."""
        request = Context(*args, **fields)
        request.instance = self
        request.__dict__["outer"] = current.get()
        current.set(request)

    def pop_request(self) -> Any:
        """Take back the last `push_request`."""
        request = current.get()
        if request is not None:
            current.set(request.__dict__.get("outer"))
        return request

    # Handlers

    def before_start(self, task_id: str, args: Any, kwargs: Any, /) -> Any:
        """Called in the worker before the task runs."""

    def on_success(self, retval: Any, task_id: str, args: Any, kwargs: Any, /) -> Any:
        """Called in the worker when the task has returned."""

    def on_retry(self, exc: BaseException, task_id: str, args: Any, kwargs: Any, einfo: Any, /) -> Any:
        """Called in the worker when the task is to be run again."""

    def on_failure(self, exc: BaseException, task_id: str, args: Any, kwargs: Any, einfo: Any, /) -> Any:
        """Called in the worker when the task has failed."""

    def after_return(self, status: str, retval: Any, task_id: str, args: Any, kwargs: Any, einfo: Any, /) -> Any:
        """Called in the worker when the task has ended, however that was."""

    def on_replace(self, sig: Any) -> Any:
        """Called by `replace` with the signature that takes the place of this run. Sends it and raises Ignore."""
        request = self.request
        if request.is_eager:
            return sig.apply().get()
        if request.stamps and request.stamped_headers:
            sig = sig.clone()
            sig.stamp(**{key: value for key, value in request.stamps.items() if key in request.stamped_headers})
        old = _message_of(request, self)
        replacing.send(self.app, request, old, replacing.expansion(old, sig))
        raise Ignore(f"{self.name}[{request.id}] was replaced by {sig!r}")

    @cached_property
    def overridden(self) -> frozenset[str]:
        """The handlers that are really there."""
        cls, own = type(self), self.__dict__
        return frozenset(name for name in HANDLERS if name in own or getattr(cls, name) is not getattr(Task, name))

    @cached_property
    def is_async(self) -> bool:
        """`run` is a coroutine function."""
        import inspect

        return inspect.iscoroutinefunction(self.__dict__.get("_orig_run", self.run))

    @cached_property
    def shape(self) -> Shape:
        """What `run` takes."""
        return Shape(self.__dict__.get("_orig_run", self.run))

    # Sending

    @overload
    def delay(self: Task[P, Coroutine[Any, Any, T]], *args: P.args, **kwargs: P.kwargs) -> Handle[T]: ...

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
    def delay_many(self: Task[P, Coroutine[Any, Any, T]], calls: Calls) -> list[Handle[T]]: ...

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
    async def adelay_many(self: Task[P, Coroutine[Any, Any, T]], calls: Calls) -> list[Handle[T]]: ...

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
        return type(self).shadow_name is not Task.shadow_name

    @property
    def makes_results(self) -> bool:
        """Handles of its results are its own affair: it has a result store of its own, or overrides `AsyncResult`."""
        return self._backend is not None or type(self).AsyncResult is not Task.AsyncResult

    @property
    def checks_arguments(self) -> bool:
        """Whether a call is checked against the function's parameters."""
        return bool(self.app.strict_typing if self.typing is None else self.typing)

    @overload
    async def adelay(self: Task[P, Coroutine[Any, Any, T]], *args: P.args, **kwargs: P.kwargs) -> Handle[T]: ...

    @overload
    async def adelay(self, *args: P.args, **kwargs: P.kwargs) -> Handle[R]: ...

    async def adelay(self, *args: Any, **kwargs: Any) -> Any:
        """`delay` for coroutines: the loop runs on while the broker takes the message."""
        return await self.aapply_async(args, kwargs)

    @overload
    def apply_async(
        self: Task[P, Coroutine[Any, Any, T]],
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

    # Inside a run

    def retry(
        self,
        args: Sequence[Any] | None = None,
        kwargs: Mapping[str, Any] | None = None,
        exc: BaseException | None = None,
        throw: bool = True,
        eta: Any = None,
        countdown: float | None = None,
        max_retries: int | None = None,
        **options: Any,
    ) -> Retry:
        """Ask to be run again, after `countdown` seconds (`default_retry_delay`) or at `eta`; raises Retry. Write
        `raise self.retry(...)`, so that readers see that nothing follows.

        Raises `exc`, or MaxRetriesExceededError, when the task has been retried `max_retries` times. `args` and
        `kwargs` replace the arguments, `options` those of the message (queue, priority ...). With `throw=False` it is
        sent at once and the Retry is returned."""
        again = retrying.prepare(self, args, kwargs, exc, eta, countdown, max_retries, options)
        if throw:
            raise again
        request = self.request
        if not request.is_eager:
            from celeriac.canvas import advance

            message = _message_of(request, self)
            step, due = advance.retry(message, again.sig, now=time.time())
            envelopes = self.app.pack_follow_up(msgspec.structs.replace(message, **step.fields), step.options, due)
            self.app.publish(envelopes)
        return again

    def update_state(
        self, task_id: str | None = None, state: str | None = None, meta: Any = None, **more: Any
    ) -> None:
        """Store a state of one's own, with `meta` as its result. Nothing happens where there is no result backend or no
        task id (the function was called directly), and in eager mode unless `store_eager_result`."""
        store = self._state_of(task_id, state, meta, more)
        if store is not None:
            self.backend.reader.store([store])

    async def aupdate_state(
        self, task_id: str | None = None, state: str | None = None, meta: Any = None, **more: Any
    ) -> None:
        """`update_state` for coroutines."""
        store = self._state_of(task_id, state, meta, more)
        if store is not None:
            adapter = await self.app.wiring.backend_here()
            await adapter.store([store])

    def _state_of(self, task_id: str | None, state: str | None, meta: Any, more: dict[str, Any]) -> Any:
        request = self.request
        task_id = task_id or request.id
        if task_id is None or self.backend.is_disabled or (request.is_eager and not self.store_eager_result):
            return None
        return self.backend.document(task_id, meta, state or "", more.get("traceback"), request)

    def replace(self, sig: Any) -> NoReturn:
        """Let another call take the place of this run: same id, same links, same place in its chain. Raises Ignore."""
        if not isinstance(sig, Mapping):
            raise ImproperlyConfigured(f"a task can be replaced by a signature, not by {sig!r}")
        sig = maybe_signature(sig, self.app)
        if sig.options.get("chord") is not None:
            raise ImproperlyConfigured("a task can't be replaced by a signature that is a member of a chord already")
        value = self.on_replace(sig)
        from celeriac.app import eager

        raise eager.Replaced(value)

    def add_to_chord(self, sig: Any, lazy: bool = False) -> Any:
        """Add a call to the chord that this run is a member of: its body waits for it too. `lazy`: only prepare it;
        whoever gets it has to send it. Returns its result, or the signature. Raises ValueError outside a chord.

        A run that is repeated after a crash adds what it added before under the same ids, and the chord waits for each
        once; so it should add the same calls in the same order."""
        request = self.request
        if not request.chord:
            raise ValueError("the current task is not a member of a chord")
        sig = maybe_signature(sig, self.app)
        members = adding.freeze(self.app, request, _message_of(request, self), sig)
        self.backend.reader.add_to_chord(request.group, members)
        return sig if lazy else sig.delay()

    def add_trail(self, result: Any) -> Any:
        """Record a result as a child of the run that is current."""
        if self.trail:
            self.request.children.append(result)
        return result

    def send_event(self, type: str, retry: bool = True, retry_policy: Any = None, **fields: Any) -> None:
        """Send an event of one's own: type `task-<something>` and fields of any names."""
        request = self.request
        self.app.control.send_event(type, uuid=request.id, **fields)

    # Signatures

    @overload
    def s(self: Task[P, Coroutine[Any, Any, T]], *args: P.args, **kwargs: P.kwargs) -> Signature[T]: ...

    @overload
    def s(self, *args: P.args, **kwargs: P.kwargs) -> Signature[R]: ...

    @overload
    def s(self: Task[..., Coroutine[Any, Any, T]], *args: Any, **kwargs: Any) -> Signature[T]: ...

    @overload
    def s(self, *args: Any, **kwargs: Any) -> Signature[R]: ...

    def s(self, *args: Any, **kwargs: Any) -> Any:
        """A call with these arguments that is not made yet; more arguments may come in front later."""
        return self.signature(args, kwargs)

    @overload
    def si(self: Task[P, Coroutine[Any, Any, T]], *args: P.args, **kwargs: P.kwargs) -> Signature[T]: ...

    @overload
    def si(self, *args: P.args, **kwargs: P.kwargs) -> Signature[R]: ...

    def si(self, *args: Any, **kwargs: Any) -> Any:
        """As `s`, but it takes no more arguments: as a link it does not get the result."""
        return self.signature(args, kwargs, immutable=True)

    def signature(self, args: Iterable[Any] | None = None, *more: Any, **options: Any) -> Signature[Any]:
        """`Signature(self, args, kwargs, options, ...)`."""
        options.setdefault("app", self.app)
        return signature(self, args, *more, **options)

    subtask = signature

    def signature_from_request(
        self, request: Any = None, args: Any = None, kwargs: Any = None, queue: str | None = None, **more: Any
    ) -> Signature[Any]:
        """The call of a request once more: same id, links, limits and headers."""
        request = self.request if request is None else request
        options = {key: value for key, value in request.as_execution_options().items() if value is not None}
        info = request.delivery_info or {}
        if info.get("priority") is not None:
            options.setdefault("priority", info["priority"])
        if queue:
            options["queue"] = queue
        elif info.get("exchange"):
            options.update(exchange=info["exchange"], routing_key=info.get("routing_key"))
        elif info.get("routing_key"):
            options["queue"] = info["routing_key"]
        args = request.args if args is None else args
        kwargs = request.kwargs if kwargs is None else kwargs
        return self.signature(args, kwargs, {**options, **more})

    subtask_from_request = signature_from_request

    def chunks(self, it: Iterable[Any], n: int) -> canvas.chunks:
        """Calls with the arguments in each item of `it`, `n` of them in one message."""
        return canvas.chunks(self.s(), it, n, app=self.app)

    def map(self, it: Iterable[Any]) -> canvas.xmap:
        """Calls with each item of `it`, in one message: its result is the list of what they returned."""
        return canvas.xmap(self.s(), it, app=self.app)

    def starmap(self, it: Iterable[Any]) -> canvas.xstarmap:
        """Calls with the arguments in each item of `it`, in one message."""
        return canvas.xstarmap(self.s(), it, app=self.app)

    # The task as a part of its app

    @property
    def backend(self) -> Any:
        """The result store: the app's, unless the task was given its own."""
        return self.app.backend if self._backend is None else self._backend

    @backend.setter
    def backend(self, backend: Any) -> None:
        self._backend = backend
        self._plan = None

    def AsyncResult(self, task_id: str, **more: Any) -> Handle[Any]:
        """The handle of a result of this task."""
        result: Handle[Any] = self.app.AsyncResult(task_id, backend=self._backend, task_name=self.name, **more)
        return result

    @classmethod
    def bind(cls, app: Any) -> Any:
        """Make an app this class's own."""
        cls.app = app
        cls.on_bound(app)
        return app

    @classmethod
    def on_bound(cls, app: Any) -> None:
        """Called when an app has taken the class; override it."""

    def annotate(self) -> None:
        """Take over what `task_annotations` says of this task."""
        self.app.annotate(self)

    def add_around(self, attr: str, around: Callable[[Any], Any]) -> None:
        """Put a wrapper around a method; one that is there is replaced."""
        original = getattr(self, attr)
        original = getattr(original, "__around__", original)
        wrapped = around(original)
        if wrapped is not original:
            with suppress(AttributeError):
                wrapped.__around__ = original
        setattr(self, attr, wrapped)

    def traits(self) -> TaskTraits:
        """What a worker's parent has to know of the task, with the settings filled in."""
        conf = self.app.conf
        rate = self.rate_limit
        return TaskTraits(
            name=self.name,
            acks_late=bool(self.acks_late),
            acks_on_failure=bool(self.acks_on_failure),
            acks_on_timeout=bool(self.acks_on_timeout),
            reject_on_worker_lost=bool(self.reject_on_worker_lost),
            time_limit=_seconds(self.time_limit) or _seconds(conf["task_time_limit"]),
            soft_time_limit=_seconds(self.soft_time_limit) or _seconds(conf["task_soft_time_limit"]),
            rate_limit=None if not rate else str(rate),
            ignore_result=bool(self.ignore_result),
            track_started=bool(self.track_started),
            send_events=bool(self.send_events),
            is_async=self.is_async,
        )

    def freeze_settings(self) -> None:
        """Read the settings behind attributes once and for all: in a child they don't change, and runs ask for them."""
        found = {name: getattr(self, name) for name in SETTINGS if held(self, name) is None}
        self.__dict__.update(found)  # all at once: one of them stands for others

    def __repr__(self) -> str:
        if self.name is None:
            return f"<class {type(self).__name__} of {self.app}>"
        return f"<@task: {self.name} of {self.app.main} at {id(self.app):#x}>"

    def __reduce__(self) -> Any:
        module = type(self).__module__
        return _find_task, (self.name, module if module in sys.modules else None)

    def __copy__(self) -> Task[P, R]:
        return self

    def __deepcopy__(self, memo: Any) -> Task[P, R]:
        return self


_PLAIN = {name: Task.__dict__[name] for name in ("apply_async", "aapply_async")}
SETTINGS = tuple(name for name, value in vars(Task).items() if isinstance(value, FromSetting))
"""Attributes that fall back to a setting."""
_WATCHED = frozenset(
    {
        *HANDLERS, *SETTINGS, "compression", "queue", "exchange", "exchange_type", "routing_key", "delivery_mode",
        "expires", "time_limit", "soft_time_limit", "link", "link_error", "typing", "run", "trail", "app", "name",
    }
)  # fmt: skip
"""Attributes that what is worked out once depends on."""


async def _under(request: Context, coroutine: Coroutine[Any, Any, T]) -> T:
    """Await the coroutine of a task that was called directly, with its own request."""
    token = current.set(request)
    try:
        return await coroutine
    finally:
        current.reset(token)


def _arguments(args: Any, kwargs: Any) -> tuple[Any, Any]:
    if args is not None and not isinstance(args, list | tuple):
        raise TypeError(f"args must be a list or tuple, not {type(args).__name__}")
    if kwargs is not None and not isinstance(kwargs, Mapping):
        raise TypeError(f"kwargs must be a mapping, not {type(kwargs).__name__}")
    return args or (), kwargs or {}


def _linked(own: Any, given: Any) -> Any:
    return given if not own else [*publish.many(own), *publish.many(given)]


def _seconds(value: Any) -> float | None:
    return None if not value else float(value.total_seconds()) if hasattr(value, "total_seconds") else value


def _message_of(request: Any, task: Task[..., Any]) -> TaskMessage:
    """The message of a request; one that was pushed by hand has none and gets one of its fields."""
    message: TaskMessage | None = request._message
    if message is not None:
        return message
    info = request.delivery_info or {}
    return TaskMessage(
        request.id or new_id(), task.name, request.args or (), request.kwargs or {}, request.callbacks,
        request.errbacks, request.chain, request.chord, retries=request.retries or 0, root_id=request.root_id,
        parent_id=request.parent_id, group=request.group, group_index=request.group_index,
        exchange=info.get("exchange") or "", routing_key=info.get("routing_key") or "",
        priority=info.get("priority") or 0, stamps=request.stamps,
        stamped_headers=request.stamped_headers, reply_to=request.reply_to or "", origin=request.origin or "",
    )  # fmt: skip


def _find_task(name: str, module: str | None = None) -> Any:
    """The task of a name, where a pickled one is read."""
    if module:
        __import__(module)
    return registry.current().tasks[name]
