"""Tasks: what `@app.task` makes of a function, and the class to derive one's own from. What a task is stands in
`task_options`, how it is sent in `task_sending`."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from contextlib import suppress
from functools import cached_property
from typing import Any, ClassVar, NoReturn, ParamSpec, TypeVar, overload

import msgspec

from celeriac import errors
from celeriac.app import adding, canvas, registry, replacing, retrying
from celeriac.app.canvas import Signature, maybe_signature, signature
from celeriac.app.task_options import HANDLERS
from celeriac.app.task_sending import Sending
from celeriac.errors import Ignore, ImproperlyConfigured, OperationalError, Retry
from celeriac.runtime.context import Context, current
from celeriac.wire.ids import new_id
from celeriac.wire.task import TaskMessage

P = ParamSpec("P")
R = TypeVar("R", covariant=True)
T = TypeVar("T")


class Task(Sending[P, R]):
    """A task. `delay` and `apply_async` send it, calling it runs the function here.

    Derive from it for handlers and options of many tasks: `@app.task(base=MyTask)`. One instance serves all runs."""

    Strategy: ClassVar[str] = "celery.worker.strategy:default"
    Request: ClassVar[str] = "celery.worker.request:Request"
    MaxRetriesExceededError: ClassVar[type[Exception]] = errors.MaxRetriesExceededError
    OperationalError: ClassVar[type[Exception]] = OperationalError

    # Running

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


async def _under(request: Context, coroutine: Coroutine[Any, Any, T]) -> T:
    """Await the coroutine of a task that was called directly, with its own request."""
    token = current.set(request)
    try:
        return await coroutine
    finally:
        current.reset(token)


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
