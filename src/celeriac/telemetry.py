"""The one place where things are told: Celery's signals by name, and `emit` for what the engine says of itself.

Nobody listening costs a truth test: `signal.receivers` is an empty tuple then, and hot code asks nothing more.
A receiver that raises is logged and never harms who told it.
"""

from __future__ import annotations

import logging
import threading
import weakref
from collections.abc import Callable, Iterable
from typing import Any, TypeVar, overload

log = logging.getLogger("celeriac.signals")

F = TypeVar("F", bound=Callable[..., Any])
Handler = Callable[[str, dict[str, Any]], object]


class _Receiver:
    """One connected function and what it wants to hear."""

    __slots__ = ("key", "ref", "sender", "wants_all")

    def __init__(self, key: tuple[Any, Any], ref: Callable[[], Callable[..., Any] | None], sender: Any) -> None:
        self.key = key
        self.ref = ref
        self.sender = sender
        self.wants_all = sender is None


class Signal:
    """A named occasion to which functions are connected. Receivers get `signal`, `sender` and the named arguments, and
    must accept `**kwargs`."""

    __slots__ = ("__weakref__", "_lock", "name", "providing_args", "receivers", "use_caching")

    def __init__(self, providing_args: Iterable[str] | None = None, use_caching: bool = False, name: str = "") -> None:
        self.name = name
        self.providing_args = frozenset(providing_args or ())
        self.use_caching = use_caching
        self.receivers: tuple[_Receiver, ...] = ()
        """Empty when nobody listens."""
        self._lock = threading.RLock()

    def __repr__(self) -> str:
        return f"<Signal: {self.name} providing_args={sorted(self.providing_args)!r}>"

    @overload
    def connect(
        self, fun: F, sender: Any = None, weak: bool = True, dispatch_uid: Any = None, retry: bool = False
    ) -> F: ...

    @overload
    def connect(
        self, *, sender: Any = None, weak: bool = True, dispatch_uid: Any = None, retry: bool = False
    ) -> Callable[[F], F]: ...

    def connect(
        self, fun: Any = None, sender: Any = None, weak: bool = True, dispatch_uid: Any = None, retry: bool = False
    ) -> Any:
        """Connect a function; also a decorator, with or without arguments.

        `weak` keeps only a weak reference. A second connection with the same `dispatch_uid` (or of the same function)
        and sender is ignored. `retry` is accepted for Celery's sake: an error is only logged."""
        if fun is None:
            return lambda given: self.connect(given, sender=sender, weak=weak, dispatch_uid=dispatch_uid)
        if not callable(fun):
            raise TypeError(f"a signal receiver must be callable, not {fun!r}")
        key = (_key(fun) if dispatch_uid is None else dispatch_uid, _key(sender))
        ref: Callable[[], Callable[..., Any] | None] = (lambda: fun) if not weak else self._weak(fun, key)
        with self._lock:
            if any(r.key == key and r.ref() is not None for r in self.receivers):
                return fun
            others = tuple(r for r in self.receivers if r.key != key)
            self.receivers = (*others, _Receiver(key, ref, sender))
        return fun

    def disconnect(
        self, receiver: Any = None, sender: Any = None, weak: bool | None = None, dispatch_uid: Any = None
    ) -> bool:
        """Take a connection back. Returns whether there was one."""
        key = (_key(receiver) if dispatch_uid is None else dispatch_uid, _key(sender))
        return self._drop(key)

    def send(self, sender: Any, **named: Any) -> list[tuple[Callable[..., Any], Any]]:
        """Call the receivers, in the order of connection; return `(receiver, response or exception)` of each."""
        if not self.receivers:
            return []
        responses: list[tuple[Callable[..., Any], Any]] = []
        for receiver in self.receivers:
            if not (receiver.wants_all or _matches(receiver.sender, sender)):
                continue
            function = receiver.ref()
            if function is None:
                continue
            try:
                response = function(signal=self, sender=sender, **named)
            except Exception as error:  # a listener's error is not the teller's
                log.exception("the receiver %s of signal %s raised", _name_of(function), self.name)
                response = error
            responses.append((function, response))
        return responses

    send_robust = send

    def has_listeners(self, sender: Any = None) -> bool:
        """Whether a function would hear of this sender (None: of any)."""
        return any(
            r.ref() is not None and (sender is None or r.wants_all or _matches(r.sender, sender))
            for r in self.receivers
        )

    def _weak(self, fun: Any, key: tuple[Any, Any]) -> Callable[[], Callable[..., Any] | None]:
        own = weakref.ref(self)

        def gone(_: Any) -> None:
            signal = own()
            if signal is not None:
                signal._drop(key, only_dead=True)

        try:
            if hasattr(fun, "__self__") and hasattr(fun, "__func__"):
                return weakref.WeakMethod(fun, gone)
            return weakref.ref(fun, gone)
        except TypeError:
            # a builtin or an object without weak references: keep it
            return lambda: fun

    def _drop(self, key: tuple[Any, Any], only_dead: bool = False) -> bool:
        with self._lock:
            kept = tuple(r for r in self.receivers if r.key != key or (only_dead and r.ref() is not None))
            dropped = len(kept) != len(self.receivers)
            self.receivers = kept
        return dropped


def _key(value: Any) -> Any:
    """What tells functions and senders apart, without keeping them alive."""
    if value is None or isinstance(value, str | int | float):
        return value
    if hasattr(value, "__self__") and hasattr(value, "__func__"):
        return (id(value.__self__), id(value.__func__))
    return id(value)


def _matches(wanted: Any, sender: Any) -> bool:
    if wanted is sender:
        return True
    # a lazy stand-in (the proxy that a task decorator returns) is as good as what it stands for
    resolve = getattr(wanted, "_get_current_object", None)
    if resolve is not None and resolve() is sender:
        return True
    try:
        return bool(wanted == sender)
    except Exception:  # a hostile __eq__ matches nothing
        return False


def _name_of(function: Any) -> str:
    return getattr(function, "__qualname__", None) or type(function).__qualname__


def _signal(name: str, *providing_args: str) -> Signal:
    return Signal(providing_args, name=name)


before_task_publish = _signal(
    "before_task_publish", "body", "exchange", "routing_key", "headers", "properties", "declare", "retry_policy"
)
"""Producer, before a message is sent; headers and properties may be changed. Sender: the task's name."""
after_task_publish = _signal("after_task_publish", "body", "headers", "exchange", "routing_key")
"""Producer, when the message is safe. Sender: the task's name."""
task_sent = _signal("task_sent", "task_id", "task", "args", "kwargs", "eta", "taskset")
"""Deprecated by Celery."""
task_received = _signal("task_received", "request")
"""Worker's main process."""
task_prerun = _signal("task_prerun", "task_id", "task", "args", "kwargs")
"""In the child, before the task. Sender: the task."""
task_postrun = _signal("task_postrun", "task_id", "task", "args", "kwargs", "retval", "state")
"""In the child, after the task, always. Sender: the task."""
task_success = _signal("task_success", "result", "runtime")
task_retry = _signal("task_retry", "request", "reason", "einfo")
task_failure = _signal("task_failure", "task_id", "exception", "args", "kwargs", "traceback", "einfo")
task_internal_error = _signal(
    "task_internal_error", "task_id", "args", "kwargs", "request", "exception", "traceback", "einfo"
)
task_revoked = _signal("task_revoked", "request", "terminated", "signum", "expired")
task_unknown = _signal("task_unknown", "message", "exc", "name", "id")
task_rejected = _signal("task_rejected", "message", "exc")
import_modules = _signal("import_modules")
celeryd_init = _signal("celeryd_init", "instance", "conf", "options")
celeryd_after_setup = _signal("celeryd_after_setup", "instance", "conf")
worker_init = _signal("worker_init")
worker_ready = _signal("worker_ready")
worker_shutting_down = _signal("worker_shutting_down", "sig", "how", "exitcode")
worker_shutdown = _signal("worker_shutdown")
worker_before_create_process = _signal("worker_before_create_process")
worker_process_init = _signal("worker_process_init")
worker_process_shutdown = _signal("worker_process_shutdown", "pid", "exitcode")
heartbeat_sent = _signal("heartbeat_sent")
setup_logging = _signal("setup_logging", "loglevel", "logfile", "format", "colorize")
after_setup_logger = _signal("after_setup_logger", "logger", "loglevel", "logfile", "format", "colorize")
after_setup_task_logger = _signal("after_setup_task_logger", "logger", "loglevel", "logfile", "format", "colorize")
beat_init = _signal("beat_init")
beat_embedded_init = _signal("beat_embedded_init")
eventlet_pool_started = _signal("eventlet_pool_started")
eventlet_pool_preshutdown = _signal("eventlet_pool_preshutdown")
eventlet_pool_postshutdown = _signal("eventlet_pool_postshutdown")
eventlet_pool_apply = _signal("eventlet_pool_apply", "target", "args", "kwargs")
user_preload_options = _signal("user_preload_options", "app", "options")

SIGNALS: dict[str, Signal] = {name: value for name, value in list(globals().items()) if isinstance(value, Signal)}
"""All of Celery's signals by name."""


_handlers: tuple[Handler, ...] = ()
_handlers_lock = threading.Lock()


def attach(handler: Handler) -> Callable[[], None]:
    """Call `handler(kind, fields)` for everything that `emit` tells. Returns the function that detaches it."""
    global _handlers
    with _handlers_lock:
        _handlers = (*_handlers, handler)

    def detach() -> None:
        global _handlers
        with _handlers_lock:
            _handlers = tuple(h for h in _handlers if h is not handler)

    return detach


def emit(kind: str, **fields: Any) -> None:
    """Tell something: a lost connection, a dead letter, a fenced completion, a recovery. Never raises."""
    for handler in _handlers:
        try:
            handler(kind, fields)
        except Exception:  # a listener's error is not the teller's
            log.exception("the handler %s of %r raised", _name_of(handler), kind)
