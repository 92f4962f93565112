"""The app: settings, tasks, and what sends them."""

from __future__ import annotations

import sys
import time
import warnings
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import AbstractContextManager
from datetime import datetime
from functools import cached_property
from typing import Any

import msgspec

from celeriac.app import publish, registry, transaction
from celeriac.app.canvas import Signature, signature
from celeriac.app.config import symbol
from celeriac.app.handle import AsyncResult as Handle
from celeriac.app.making import Making
from celeriac.app.registry import TaskRegistry
from celeriac.app.result_set import GroupResult as Group
from celeriac.app.result_set import ResultSet as Set
from celeriac.app.results import DISABLED, Results
from celeriac.canvas.expand import Opened
from celeriac.errors import AlwaysEagerIgnored, ImproperlyConfigured
from celeriac.model.message import Envelope
from celeriac.model.version import __version__
from celeriac.ports import Broker, Reader, Relay, ResultBackend, Sender
from celeriac.runtime import chord
from celeriac.wire.record import Record
from celeriac.wire.task import TaskMessage

UNSAID: Any = type("Unsaid", (), {"__repr__": lambda self: "UNSAID"})()
"""The default of options whose None means something: take back what the task says."""

MISSING_PARTS = {
    "connection": "kombu connections", "connection_for_read": "kombu connections",
    "connection_for_write": "kombu connections", "broker_connection": "kombu connections",
    "connection_or_acquire": "kombu connections", "default_connection": "kombu connections",
    "producer_or_acquire": "kombu producers", "default_producer": "kombu producers",
    "producer_pool": "kombu producers", "pool": "kombu connections", "events": "an event receiver",
    "amqp": "AMQP layer of kombu's (see app.queues and app.router)",
    "steps": "bootsteps", "user_options": "bootsteps", "Beat": "a beat", "WorkController": "Celery's worker class",
    "Worker": "Celery's worker class",
}  # fmt: skip
"""Attributes of Celery's app that are not here, and what they give there."""


class Celeriac(Making):
    """An app. Making one opens nothing and reads no configuration; that happens at the first use.

    Without a broker URL, messages and results lie in a SQLite file in the project."""

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
        first = {"broker_url": broker, "result_backend": backend, "include": include}
        given_settings = {key: value for key, value in first.items() if value is not None}
        super().__init__(
            main, tasks, task_cls, autofinalize, strict_typing, {**given_settings, **settings, **(changes or {})},
            namespace, config_source, config_source_silent,
        )  # fmt: skip
        self.home = _caller()
        """The module that made this app."""
        self.set_as_current = set_as_current
        self.fixups = fixups
        if control is not None:
            self.control_cls = control
        self.backend = Results(self)
        registry.add(self)
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

    def outgoing(self, name: str, args: Any, kwargs: Any, options: Mapping[str, Any]) -> publish.Outgoing:
        """What `send_task` sends for a task that this app does not know."""
        return publish.prepare(self, name, args, kwargs, {"ignore_result": None, **options})

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
                publish.trail(request, result)
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

    def follow_up(
        self, request: Any, message: TaskMessage, options: Mapping[str, Any], publish_id: str | None = None
    ) -> None:
        """Send a message in the same commit as the outcome of a run; at once where that is not possible."""
        envelopes = self.pack_follow_up(message, options, publish_id=publish_id)
        if self.wiring.in_child and request._message is not None:
            request.outbox = [*(request.outbox or ()), *envelopes]
        else:
            self.publish(envelopes)

    def open_chords(self, request: Any, chords: Sequence[Opened]) -> None:
        """Open chords in the same commit as the outcome of a run; at once where that is not possible."""
        opened = tuple(
            msgspec.structs.replace(each, expires=self.backend.expires())
            for each in chord.opened(chords, self.backend.serializer)
        )
        if self.wiring.in_child and request._message is not None:
            request.opened = [*(request.opened or ()), *opened]
        elif opened:
            self.backend.reader.open_chords(opened)

    # Adapters

    @property
    def sender(self) -> Sender:
        """The synchronous side of the broker; within `transaction` the caller's connection."""
        found: Sender = transaction.outlet(self) or self.wiring.sender
        return found

    def transaction(self, connection: Any) -> AbstractContextManager[None]:
        """Send within a transaction of the caller's: what is sent in the block exists if and only if that commits.

        `connection`: of psycopg, psycopg2, asyncpg, SQLAlchemy (a session or connection) or Django, to PostgreSQL. It
        neither begins nor ends a transaction. Where the broker is the same database, the messages become ready with
        the commit; otherwise they are left in the outbox there, and workers send them (setting `outbox_url`)."""
        return transaction.transaction(self, connection)

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

    def make_relay(self) -> Relay | None:
        """What sends from the outbox of `outbox_url`; None where there is none."""
        relay: Relay | None = self.wiring.make_relay()
        return relay

    async def result_backend(self) -> ResultBackend:
        """The asynchronous adapter of the loop that runs. Raises NotImplementedError where results are not kept."""
        adapter = await self.wiring.backend_here()
        if adapter is None:
            raise NotImplementedError(DISABLED)
        return adapter

    def use_parent(self, link: Any, oid: str | None = None) -> None:
        """This is a child of a worker: from now on everything goes through its parent. `oid`: names the parent, to
        which results come that are sent to a process."""
        self.wiring.use_parent(link)
        self._oid = oid
        self._restamp()

    async def awatch(self, backend: Results, ids: Sequence[str], timeout: float | None) -> AsyncGenerator[Record, None]:
        """The records of these ids as they are and as they change; ends after `timeout` seconds."""
        import asyncio

        end = None if timeout is None else time.monotonic() + timeout
        adapter = await self.result_backend()
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


Celery = Celeriac
App = Celeriac

registry.set_maker(lambda: Celeriac("default", set_as_current=False))
