"""The app: settings, tasks, and what sends them."""

from __future__ import annotations

import os
import sys
import threading
import time
import warnings
from collections.abc import AsyncGenerator, Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime, tzinfo
from functools import cached_property
from typing import Any, Concatenate, Literal, ParamSpec, TypeVar, overload

from celeriac.app import annotating, publish, registry
from celeriac.app.canvas import Signature, signature
from celeriac.app.config import Settings, symbol
from celeriac.app.handle import AsyncResult as Handle
from celeriac.app.loading import Discovery, Loader, Packages, discover
from celeriac.app.registry import TaskRegistry
from celeriac.app.result_set import GroupResult as Group
from celeriac.app.result_set import ResultSet as Set
from celeriac.app.results import DISABLED, Results
from celeriac.app.retrying import add_autoretry
from celeriac.app.task import Task as AnyTask
from celeriac.app.task import make, trail
from celeriac.app.wiring import Wiring
from celeriac.errors import AlwaysEagerIgnored, DuplicateTaskNameWarning, ImproperlyConfigured
from celeriac.model import options as calls
from celeriac.model.message import Envelope
from celeriac.model.retry import pauses
from celeriac.model.routing import QueueDefaults, Queues, Router
from celeriac.model.version import __version__
from celeriac.ports import Broker, Reader, ResultBackend, Sender
from celeriac.runtime.context import current
from celeriac.telemetry import Signal
from celeriac.wire.ids import new_id
from celeriac.wire.record import Record
from celeriac.wire.task import TaskMessage

P = ParamSpec("P")
R = TypeVar("R")

UNSAID: Any = type("Unsaid", (), {"__repr__": lambda self: "UNSAID"})()
"""The default of options whose None means something: take back what the task says."""

MISSING_PARTS = {
    "connection": "kombu connections", "connection_for_read": "kombu connections",
    "connection_for_write": "kombu connections", "broker_connection": "kombu connections",
    "connection_or_acquire": "kombu connections", "default_connection": "kombu connections",
    "producer_or_acquire": "kombu producers", "default_producer": "kombu producers",
    "producer_pool": "kombu producers", "pool": "kombu connections", "events": "an event receiver",
    "steps": "bootsteps", "user_options": "bootsteps", "Beat": "a beat", "WorkController": "Celery's worker class",
    "Worker": "Celery's worker class",
}  # fmt: skip
"""Attributes of Celery's app that are not here, and what they give there."""
_CONNECTING = ("broker_", "result_backend", "redis_", "cache_backend", "database_url", "profile", "celery_peers")


class Stamp(dict[str, Any]):
    """What was worked out from the settings as they are; another change, another stamp."""

    __hash__ = object.__hash__  # type: ignore[assignment]
    __eq__ = object.__eq__


class _AppSettings(Settings):
    """Settings whose removals are told as well."""

    def __delitem__(self, name: str) -> None:
        super().__delitem__(name)
        for callback in self._observers:
            callback(**{self._key(name): None})

    def clear(self) -> None:
        """Take back all changes."""
        super().clear()
        for callback in self._observers:
            callback()


class Celeriac:
    """An app. Making one opens nothing and reads no configuration; that happens at the first use.

    Without a broker URL, messages and results lie in a SQLite file in the project."""

    task_cls: Any = AnyTask
    registry_cls: type[TaskRegistry] = TaskRegistry
    control_cls: Any = "celeriac.app.control:Control"

    def __init__(
        self,
        main: str | None = None,
        loader: Any = None,
        backend: str | None = None,
        amqp: Any = None,
        events: Any = None,
        log: Any = None,
        control: Any = None,
        set_as_current: bool = True,
        tasks: TaskRegistry | Mapping[str, Any] | None = None,
        broker: str | Sequence[str] | None = None,
        include: Sequence[str] | None = None,
        changes: Mapping[str, Any] | None = None,
        config_source: Any = None,
        fixups: Any = None,
        task_cls: Any = None,
        autofinalize: bool = True,
        namespace: str | None = None,
        strict_typing: bool = True,
        config_source_silent: bool = False,
        **settings: Any,
    ) -> None:
        """`main` names tasks of the script that runs as `__main__`. `broker`, `backend`, `include` and other keywords
        are settings; they beat the configuration. `changes` beat those. `loader` and `fixups` have no effect."""
        for name, given in (("amqp", amqp), ("events", events), ("log", log)):
            if given is not None:
                raise ImproperlyConfigured(f"the app's {name} can't be replaced: leave {name}= out")
        self.main = main
        self.home = _caller()
        """The module that made this app."""
        self.set_as_current = set_as_current
        self.autofinalize = autofinalize
        self.namespace = namespace
        self.strict_typing = strict_typing
        self.fixups = fixups
        self.finalized = False
        self.on_configure = Signal(name="app.on_configure")
        self.on_after_configure = Signal(["source"], name="app.on_after_configure")
        self.on_after_finalize = Signal(name="app.on_after_finalize")
        self.on_after_fork = Signal(name="app.on_after_fork")
        self.stamp = Stamp()
        """Replaced by another one whenever what was worked out from the settings may not hold any more."""
        self._lock = threading.RLock()
        self._local = threading.local()
        self._oid: str | None = None
        first = {"broker_url": broker, "result_backend": backend, "include": include}
        given_settings = {key: value for key, value in first.items() if value is not None}
        self.conf: Settings = _AppSettings(
            {**given_settings, **settings, **(changes or {})},
            namespace=namespace,
            before_load=lambda: self.on_configure.send(self),
            after_load=self._configured,
        )
        self.conf.bind_to(self._setting_changed)
        if config_source is not None:
            self.conf.read_from(config_source, silent=config_source_silent)
        self.wiring = Wiring(self.conf, self._bindings)
        self.loader = Loader(self)
        if control is not None:
            self.control_cls = control
        self.backend = Results(self)
        if task_cls is not None:
            self.task_cls = symbol(task_cls) if isinstance(task_cls, str) else task_cls
        self._tasks = tasks if isinstance(tasks, TaskRegistry) else self.registry_cls(tasks or {})
        registry.add(self)
        _watch_forks()
        if set_as_current:
            self.set_current()
        self.on_init()

    def on_init(self) -> None:
        """Called at the end of making an app; override it."""

    # Which app

    def set_current(self) -> None:
        """Make this the app of the thread (and of threads that have none)."""
        registry.set_current(self)

    def set_default(self) -> None:
        """Make this the app of every thread that has none of its own."""
        registry.set_default(self)

    def close(self) -> None:
        """Close what is open; the app is no longer among the process's apps."""
        self.wiring.forget()
        if "control" in self.__dict__:
            self.control.close()
        registry.discard(self)

    async def aclose(self) -> None:
        """Close what is open for the running loop, and all that `close` closes."""
        await self.wiring.aclose()
        self.close()

    def __enter__(self) -> Celeriac:
        return self

    def __exit__(self, *exc: Any) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<Celeriac {self.main or '__main__'} at {id(self):#x}>"

    def __reduce__(self) -> Any:
        spec = self.spec
        if not spec:
            raise TypeError(f"{self!r} can't be pickled: it is no attribute of the module that made it")
        return symbol, (spec,)

    @property
    def spec(self) -> str:
        """`module:attribute` by which another process finds this app; empty when it is no attribute of its module."""
        for name, value in list(vars(sys.modules.get(self.home)).items()) if self.home in sys.modules else ():
            if value is self:
                return f"{self.home}:{name}"
        return ""

    def __getattr__(self, name: str) -> Any:
        what = MISSING_PARTS.get(name)
        if what:
            raise AttributeError(f"app.{name}: celeriac has no {what}; see the differences from Celery")
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    # Settings

    def config_from_object(
        self, obj: Any, silent: bool = False, force: bool = False, namespace: str | None = None
    ) -> bool:
        """Take the configuration of a module (or its name), `module:attr`, object or dict; read at the first use, or
        now with `force`. `namespace="CELERY"`: every key begins with `CELERY_`."""
        if namespace:
            self.namespace = namespace
        done = self.conf.read_from(obj, namespace=namespace, silent=silent, force=force)
        self._restamp()
        return done

    def config_from_envvar(self, variable_name: str, silent: bool = False, force: bool = False) -> bool:
        """Take the configuration of the module that an environment variable names. Raises ImproperlyConfigured when it
        is not set."""
        done = self.conf.read_from_variable(variable_name, silent=silent, force=force)
        self._restamp()
        return done

    def config_from_cmdline(self, argv: Iterable[str], namespace: str = "celery") -> None:
        """Set what `key=value` words say."""
        self.conf.read_words(argv, namespace)

    def add_defaults(self, fun: Mapping[str, Any] | Callable[[], Mapping[str, Any]]) -> None:
        """Add defaults that beat the built-in ones."""
        self.conf.add_defaults(fun)
        self._restamp()

    @property
    def configured(self) -> bool:
        """The configuration has been read."""
        return self.conf.configured

    def either(self, default_key: str, *values: Any) -> Any:
        """The first value that is not None, else the setting."""
        return next((value for value in values if value is not None), self.conf.get(default_key))

    def _configured(self) -> None:
        self._restamp()
        self.on_after_configure.send(self, source=self.conf)

    def _setting_changed(self, **changed: Any) -> None:
        self._restamp()
        if not changed or any(key.startswith(_CONNECTING) for key in changed):
            self.wiring.forget()

    def _restamp(self) -> None:
        self.stamp = Stamp()

    def after_fork(self) -> None:
        """Called in a forked child: ids of this process are not the child's."""
        self._lock = threading.RLock()
        self._local = threading.local()
        self._oid = None
        self._restamp()
        self.on_after_fork.send(self)

    def per_settings(self, key: str, make: Callable[[], Any]) -> Any:
        """What `make` works out from the settings; once, as long as they stay."""
        stamp = self.stamp
        try:
            return stamp[key]
        except KeyError:
            value = stamp[key] = make()
            return value

    @property
    def timezone(self) -> tzinfo:
        """The zone that dates are written in: `timezone`, else UTC (local time with `enable_utc` off)."""
        zone: tzinfo = self.per_settings("timezone", self._timezone)
        return zone

    def _timezone(self) -> tzinfo:
        zone = self.conf["timezone"]
        if isinstance(zone, tzinfo):
            return zone
        if not zone:
            return UTC if self.conf["enable_utc"] else datetime.now().astimezone().tzinfo or UTC
        if str(zone).upper() == "UTC":
            return UTC
        from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

        try:
            return ZoneInfo(zone)
        except (ZoneInfoNotFoundError, ValueError):
            raise ImproperlyConfigured(f"timezone: no zone is named {zone!r}; use a name as Europe/Paris") from None

    def uses_utc_timezone(self) -> bool:
        """Dates are written in UTC."""
        return self.timezone is UTC

    def now(self) -> datetime:
        """The time now, aware, in the app's zone."""
        return datetime.now(self.timezone)

    # Tasks

    @overload
    def task(self, fun: Callable[P, R], /) -> AnyTask[P, R]: ...

    @overload
    def task(
        self, *, bind: Literal[True], **opts: Any
    ) -> Callable[[Callable[Concatenate[Any, P], R]], AnyTask[P, R]]: ...

    @overload
    def task(self, *, bind: Literal[False] = False, **opts: Any) -> Callable[[Callable[P, R]], AnyTask[P, R]]: ...

    def task(self, *args: Any, **opts: Any) -> Any:
        """Make a task of a function; a decorator, with or without options.

        Options: `name` (else module and function), `bind` (the function gets the task as its first argument), `base` (a
        task class), `shared` (every other app of the process gets the task as well), and every attribute of `Task`.
        Under a name that is taken, the first task stays, with a warning."""
        if len(args) > 1:
            raise TypeError(f"@app.task takes one function, not {len(args)} arguments")
        if not args:
            return lambda fun: self._make_task(fun, **opts)
        if not callable(args[0]):
            raise TypeError("@app.task takes a function, and options by name: @app.task(name='...')")
        return self._make_task(args[0], **opts)

    def _make_task(self, fun: Callable[..., Any], shared: bool = True, lazy: bool = True, **opts: Any) -> Any:
        accept = opts.pop("filter", None)
        if accept is not None:
            fun = accept(fun)
        task = self.task_from_fun(fun, **opts)
        if shared:
            registry.on_finalize(lambda app: app.task_from_fun(fun, warn=False, **opts))
        return task

    def task_from_fun(
        self,
        fun: Callable[..., Any],
        name: str | None = None,
        base: Any = None,
        bind: bool = False,
        warn: bool = True,
        **opts: Any,
    ) -> Any:
        """The task of a function under its name; the one that is there already, if there is one."""
        if opts.get("pydantic"):
            raise NotImplementedError("pydantic=True is not part of this version of celeriac")
        for key in ("pydantic", "pydantic_strict", "pydantic_context", "pydantic_dump_kwargs"):
            opts.pop(key, None)
        if isinstance(fun, AnyTask):
            raise TypeError(f"{fun.name} is a task already: decorate the function once")
        name = name or self.gen_task_name(getattr(fun, "__name__", type(fun).__name__), fun.__module__)
        with self._lock:
            known = self._tasks.get(name)
            if known is None:
                task = make(self, fun, base or self.Task, name, bind, opts)
                self._tasks[name] = task
                if self.finalized:
                    self.annotate(task)
                return task
        if warn and _function_of(known) is not fun and not _same_source(known, fun):
            warnings.warn(
                f"the task name {name!r} is taken by {_function_of(known)!r}, which stays; give {fun!r} another name",
                DuplicateTaskNameWarning,
                stacklevel=4,
            )
        return known

    def register_task(self, task: Any, **options: Any) -> Any:
        """Register a task class or an instance of one; it takes the place of what has its name."""
        made = task() if isinstance(task, type) else task
        cls = type(made)
        if not made.name:
            made.name = self.gen_task_name(cls.__name__, cls.__module__)
        made.app = self
        for key, value in options.items():
            setattr(made, key, value)
        add_autoretry(made)
        with self._lock:
            self._tasks[made.name] = made
        if self.finalized:
            self.annotate(made)
        made.on_bound(self)
        return made

    def gen_task_name(self, name: str, module: str | None) -> str:
        """`module.name`; of the script that runs as `__main__`, the app's name takes the module's place."""
        if module is None or module == "__main__":
            module = self.main or "__main__"
        return f"{module}.{name}"

    @property
    def tasks(self) -> TaskRegistry:
        """The tasks by name. Finalizes the app."""
        self.finalize(auto=True)
        return self._tasks

    def known_task(self, name: str) -> Any:
        """The task of a name, or None. Does not finalize the app."""
        return self._tasks.get(name)

    def finalize(self, auto: bool = False) -> None:
        """Take in what other apps share, and what `task_annotations` says. Raises RuntimeError where `autofinalize` is
        off and nobody has called this."""
        if self.finalized:
            return
        with self._lock:
            if self.finalized:
                return
            if auto and not self.autofinalize:
                raise RuntimeError("the app is not finalized: call app.finalize() first (autofinalize is off)")
            self.finalized = True
            for take_in in registry.finalizers():
                take_in(self)
            for task in list(self._tasks.values()):
                self.annotate(task)
        self.on_after_finalize.send(self)

    def annotate(self, task: Any) -> None:
        """Take over what `task_annotations` says of a task; once."""
        annotating.annotate(self, task)

    def prepare_task(self, task: Any) -> None:
        """Before a task is first sent: what `task_annotations` says of it counts."""
        if not self.finalized and self.autofinalize:
            self.finalize(auto=True)
        if "_annotated" not in task.__dict__:
            self.annotate(task)

    @cached_property
    def Task(self) -> type[AnyTask[..., Any]]:
        """The class that tasks of this app derive from."""
        return type("Task", (self.task_cls,), {"app": self, "abstract": True, "__module__": self.task_cls.__module__})

    def create_task_cls(self) -> type[Any]:
        """`app.Task`."""
        return self.Task

    def autodiscover_tasks(
        self, packages: Packages = None, related_name: str | None = "tasks", force: bool = False
    ) -> None:
        """Import the module `related_name` of these packages when a worker starts, or now with `force`. Without
        packages: of Django's installed apps."""
        discovery = Discovery(packages, related_name)
        if force:
            discover(discovery)
        else:
            self.loader.discoveries.append(discovery)

    @property
    def current_task(self) -> Any:
        """The task that runs here now, or None."""
        request = current.get()
        return None if request is None else request.instance

    @property
    def current_worker_task(self) -> Any:
        """The task that a worker runs here; one that it calls as a function does not count."""
        request = publish.worker_request()
        return None if request is None else request.instance

    # Queues and options

    @property
    def queues(self) -> Queues:
        """The queues that the app knows (`task_queues`)."""
        conf = self.conf
        found: Queues = self.per_settings(
            "queues", lambda: Queues(conf["task_queues"], QueueDefaults.from_settings(conf))
        )
        return found

    @property
    def router(self) -> Router:
        """Finds the queue of a call (`task_routes`)."""
        router: Router = self.per_settings(
            "router", lambda: Router(self.conf["task_routes"], self.queues, symbol)
        )
        return router

    def _bindings(self) -> dict[str, list[tuple[str, str, str]]]:
        """Queue -> [(exchange, routing key, pattern)]; also of the queue to which Celery's workers send answers."""
        exchange = f"reply.{self.conf['control_exchange']}.pidbox"
        return {**self.queues.bindings(), f"{self.oid}.{exchange}": [(exchange, self.oid, "")]}

    def select_queues(self, queues: Iterable[str] | str | None = None) -> None:
        """Consume these queues alone."""
        self.queues.select(queues)

    def queue_names(self) -> list[str]:
        """The names of the queues that a worker of this app consumes when it is not told otherwise."""
        conf = self.conf
        selected = self.queues.consume_from
        if selected is not self.queues:
            return list(selected)
        return list(Queues(conf["task_queues"], QueueDefaults.from_settings(conf)))

    def task_options(self, task: Any) -> Mapping[str, Any]:
        """What a task says of its calls, the settings behind it included."""
        held = task.__dict__.get("_options")
        if held is None or held[0] is not self.stamp:
            found = {key: getattr(task, key, None) for key in calls.TASK_OPTIONS}
            held = task.__dict__["_options"] = (
                self.stamp, {key: value for key, value in found.items() if value is not None}
            )  # fmt: skip
        options: Mapping[str, Any] = held[1]
        return options

    def call_defaults(self) -> Mapping[str, Any]:
        """What the settings say of every call."""
        defaults: Mapping[str, Any] = self.per_settings("call defaults", self._call_defaults)
        return defaults

    def _call_defaults(self) -> dict[str, Any]:
        conf = self.conf
        found = {
            "serializer": conf["task_serializer"], "compression": conf["task_compression"],
            "priority": conf["task_default_priority"],
        }  # fmt: skip
        return {key: value for key, value in found.items() if value is not None}

    @property
    def schedules_directly(self) -> bool:
        """What is due later is put into the broker's schedule by who sends it: Celery is not on the other side."""
        directly: bool = self.per_settings(
            "schedules directly", lambda: not (self.wiring.has_peers and self.conf["celery_peers"])
        )
        return directly

    def publish_pauses(self) -> Iterable[float]:
        """Seconds before each further try of sending."""
        conf = self.conf
        return pauses(conf["task_publish_retry_policy"]) if conf["task_publish_retry"] else iter(())

    @property
    def origin(self) -> str:
        """`gen<pid>@<host>`: who sends."""
        origin: str = self.per_settings("origin", lambda: f"gen{os.getpid()}@{_hostname()}")
        return origin

    @property
    def oid(self) -> str:
        """Names this app in this process."""
        if self._oid is None:
            self._oid = new_id()
        return self._oid

    @property
    def thread_oid(self) -> str:
        """Names this app in this thread; the `reply_to` of its messages."""
        try:
            oid: str = self._local.oid
        except AttributeError:
            oid = self._local.oid = new_id()
        return oid

    # Sending

    def send_task(
        self,
        name: str,
        args: Sequence[Any] | None = None,
        kwargs: Mapping[str, Any] | None = None,
        countdown: float | None = None,
        eta: datetime | str | None = None,
        task_id: str | None = None,
        producer: Any = None,
        connection: Any = None,
        router: Any = None,
        result_cls: Any = None,
        expires: Any = UNSAID,
        publisher: Any = None,
        link: Any = None,
        link_error: Any = None,
        add_to_parent: bool = True,
        time_limit: float | None = UNSAID,
        soft_time_limit: float | None = UNSAID,
        task_type: Any = None,
        **options: Any,
    ) -> Handle[Any]:
        """Send a task by its name; it need not be known here. Options are those of `Task.apply_async`; where the task
        is known, its own count as well."""
        outgoing = self._outgoing(
            name, args, kwargs, task_type,
            {"countdown": countdown, "eta": eta, "task_id": task_id, "router": router, "link": link,
             "link_error": link_error},
            {"expires": expires, "time_limit": time_limit, "soft_time_limit": soft_time_limit}, options,
        )  # fmt: skip
        publish.send(self, outgoing)
        result: Handle[Any] = self._result(outgoing, result_cls, add_to_parent)
        return result

    plain_send_task = send_task
    """As it is here, to tell whether somebody has replaced it."""

    async def asend_task(
        self,
        name: str,
        args: Sequence[Any] | None = None,
        kwargs: Mapping[str, Any] | None = None,
        countdown: float | None = None,
        eta: datetime | str | None = None,
        task_id: str | None = None,
        producer: Any = None,
        connection: Any = None,
        router: Any = None,
        result_cls: Any = None,
        expires: Any = UNSAID,
        publisher: Any = None,
        link: Any = None,
        link_error: Any = None,
        add_to_parent: bool = True,
        time_limit: float | None = UNSAID,
        soft_time_limit: float | None = UNSAID,
        task_type: Any = None,
        **options: Any,
    ) -> Handle[Any]:
        """`send_task` for coroutines."""
        outgoing = self._outgoing(
            name, args, kwargs, task_type,
            {"countdown": countdown, "eta": eta, "task_id": task_id, "router": router, "link": link,
             "link_error": link_error},
            {"expires": expires, "time_limit": time_limit, "soft_time_limit": soft_time_limit}, options,
        )  # fmt: skip
        await publish.asend(self, outgoing)
        result: Handle[Any] = self._result(outgoing, result_cls, add_to_parent)
        return result

    def _outgoing(
        self,
        name: str,
        args: Any,
        kwargs: Any,
        task: Any,
        plain: dict[str, Any],
        said: dict[str, Any],
        options: dict[str, Any],
    ) -> publish.Outgoing:
        if self.conf["task_always_eager"]:
            warnings.warn("task_always_eager has no effect on send_task", AlwaysEagerIgnored, stacklevel=3)
        given = {key: value for key, value in plain.items() if value is not None}
        given.update((key, value) for key, value in said.items() if value is not UNSAID)
        if task is None:
            task = self._tasks.get(name)
            options.setdefault("ignore_result", None)  # as in Celery: where it runs, the task's own word counts
            for key in ("link", "link_error"):
                own = getattr(task, key, None)
                if own:
                    given[key] = [*publish.many(own), *publish.many(given.get(key))]
        return publish.prepare(self, name, args, kwargs, {**options, **given}, task)

    def _result(self, outgoing: publish.Outgoing, result_cls: Any, add_to_parent: bool) -> Any:
        message = outgoing.message
        result = (result_cls or self.AsyncResult)(message.id)
        if message.ignore_result:
            result.ignored = True
        if add_to_parent:
            request = publish.worker_request()
            if request is not None:
                trail(request, result)
        return result

    def publish(self, envelopes: Sequence[Envelope]) -> None:
        """Hand over envelopes within `task_publish_timeout`. Raises OperationalError."""
        publish.publish(self.sender, envelopes, self.conf["task_publish_timeout"], self.publish_pauses())

    def pack_follow_up(
        self, message: TaskMessage, options: Mapping[str, Any], due: float | None = None, publish_id: str | None = None
    ) -> tuple[Envelope, ...]:
        """The envelopes of a message that follows from a run: a link, the next step of a chain, a retry. Raises
        EncodeError and QueueNotFound."""
        return publish.pack_follow_up(self, message, options, due, publish_id)

    def follow_up(self, request: Any, message: TaskMessage, options: Mapping[str, Any]) -> None:
        """Send a message in the same commit as the outcome of a run; at once where that is not possible."""
        envelopes = self.pack_follow_up(message, options)
        if self.wiring.in_child and request._message is not None:
            request.outbox = [*(request.outbox or ()), *envelopes]
        else:
            self.publish(envelopes)

    # Adapters

    @property
    def sender(self) -> Sender:
        """The synchronous side of the broker."""
        return self.wiring.sender

    @property
    def reader(self) -> Reader | None:
        """The synchronous side of the result backend; None where results are not kept."""
        return self.wiring.reader

    def broker(self) -> Broker:
        """A new asynchronous adapter of the broker, for the loop that runs. Whoever takes it closes it."""
        return self.wiring.make_broker()

    def make_backend(self) -> ResultBackend | None:
        """A new asynchronous adapter of the result backend, or None. Whoever takes it closes it. Also
        `app.backend()`."""
        return self.wiring.make_backend()

    def use_parent(self, link: Any) -> None:
        """This is a child of a worker: from now on everything goes through its parent."""
        self.wiring.use_parent(link)
        self._restamp()

    async def awatch(
        self, backend: Results, ids: Sequence[str], timeout: float | None
    ) -> AsyncGenerator[Record, None]:
        """The records of these ids as they are and as they change; ends after `timeout` seconds."""
        import asyncio

        end = None if timeout is None else time.monotonic() + timeout
        adapter = await self.wiring.backend_here()
        if adapter is None:
            raise NotImplementedError(DISABLED)
        async with adapter.watch(ids) as changes:
            while True:
                left = None if end is None else max(0.0, end - time.monotonic())
                try:
                    async with asyncio.timeout(left):
                        task_id, document = await anext(changes)
                except (TimeoutError, StopAsyncIteration):
                    return
                yield backend.read(task_id, document)

    @cached_property
    def control(self) -> Any:
        """Tells workers something and asks them; see `celeriac.app.control.Control`."""
        made = self.control_cls
        return (symbol(made) if isinstance(made, str) else made)(self)

    # Results and signatures

    @cached_property
    def AsyncResult(self) -> type[Handle[Any]]:
        """AsyncResult of this app."""
        cls: type[Handle[Any]] = self._own(Handle, __slots__=())
        return cls

    @cached_property
    def ResultSet(self) -> type[Set]:
        """ResultSet of this app."""
        cls: type[Set] = self._own(Set)
        return cls

    @cached_property
    def GroupResult(self) -> type[Group]:
        """GroupResult of this app."""
        cls: type[Group] = self._own(Group)
        return cls

    def _own(self, cls: Any, **space: Any) -> Any:
        return type(cls.__name__, (cls,), {"bound_app": self, "__module__": cls.__module__, **space})

    def signature(self, *args: Any, **kwargs: Any) -> Signature[Any]:
        """A signature whose app this is."""
        kwargs["app"] = self
        return signature(*args, **kwargs)

    def add_periodic_task(
        self,
        schedule: Any,
        sig: Any,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
        name: str | None = None,
        **opts: Any,
    ) -> str:
        """Add an entry to `beat_schedule`, for the beat that reads this app's settings. Returns its key."""
        call = sig if isinstance(sig, Signature) else self.signature(sig, args, kwargs)
        key = name or repr(call)
        self.conf["beat_schedule"][key] = {
            "task": call.task, "schedule": schedule, "args": tuple(call.args), "kwargs": dict(call.kwargs),
            "options": {**call.options, **opts},
        }  # fmt: skip
        return key

    def setup_security(self, *args: Any, **kwargs: Any) -> None:
        """Not in this version."""
        raise ImproperlyConfigured("message signing (the auth serializer) is not part of this version of celeriac")

    # The command

    def start(self, argv: Sequence[str] | None = None) -> int:
        """Carry out a command line of `celeriac` for this app; return the exit code."""
        from importlib import import_module

        words = list(sys.argv[1:] if argv is None else argv)
        if self.spec and not any(word in ("-A", "--app") or word.startswith("--app=") for word in words):
            words = ["-A", self.spec, *words]
        code: int = import_module("celeriac.cli.main").run(words)
        return code

    def worker_main(self, argv: Sequence[str] | None = None) -> int:
        """Run a worker, as `celeriac worker` does. `argv` must hold the word `worker`; raises ValueError otherwise."""
        words = list(sys.argv[1:] if argv is None else argv)
        if "worker" not in words:
            raise ValueError("the word 'worker' must be in argv: app.worker_main(['worker', '--concurrency=2'])")
        return self.start(words)

    def bugreport(self) -> str:
        """What a report of a fault should say of this installation."""
        import platform

        backend = self.backend.as_uri()
        return "\n".join(
            [
                f"software -> celeriac:{__version__} py:{platform.python_version()}",
                f"platform -> system:{platform.system()} arch:{platform.machine()} kernel:{platform.release()}",
                f"settings -> broker:{self.broker().describe()} results:{backend}",
                "",
                self.conf.humanize(),
            ]
        )


def _caller() -> str:
    """The name of the module that makes an app: the first frame outside of this class and those derived from it."""
    frame = sys._getframe(2)
    made = frame.f_locals.get("self")
    while frame.f_back is not None and isinstance(made, Celeriac) and frame.f_code.co_name == "__init__":
        frame = frame.f_back
        made = frame.f_locals.get("self")
    return str(frame.f_globals.get("__name__", ""))


_forks_watched = False


def _watch_forks() -> None:
    global _forks_watched
    if not _forks_watched and hasattr(os, "register_at_fork"):
        _forks_watched = True
        os.register_at_fork(after_in_child=_forked)


def _forked() -> None:
    for app in registry.apps():
        app.after_fork()


def _hostname() -> str:
    import socket

    return socket.gethostname()


def _function_of(task: Any) -> Any:
    return type(task).__dict__.get("__wrapped__", task)


def _same_source(task: Any, fun: Any) -> bool:
    """The module of the function was imported a second time."""
    known = _function_of(task)
    known = getattr(known, "__func__", known)
    return known is fun or _place(known) == _place(fun)


def _place(fun: Any) -> tuple[Any, ...]:
    code = getattr(fun, "__code__", None)
    line = getattr(code, "co_firstlineno", id(fun))
    return getattr(fun, "__module__", None), getattr(fun, "__qualname__", None), line


Celery = Celeriac
App = Celeriac

registry.set_maker(lambda: Celeriac("default", set_as_current=False))
