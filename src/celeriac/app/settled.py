"""What an app knows by its settings: queues, routes, zone, who it is. Worked out once, as long as it holds."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime, tzinfo
from typing import Any

from celeriac.app import registry
from celeriac.app.config import Settings, symbol
from celeriac.app.wiring import Wiring
from celeriac.errors import ImproperlyConfigured
from celeriac.model import options as calls
from celeriac.model.queues import worker_direct
from celeriac.model.retry import pauses
from celeriac.model.routing import QueueDefaults, Queues, Router
from celeriac.telemetry import Signal
from celeriac.wire.ids import new_id

_CONNECTING = ("broker_", "result_backend", "redis_", "cache_backend", "database_url", "profile", "celery_peers")
"""What the settings by which adapters are made begin with."""


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


class Settled:
    """An app's settings, and everything that is worked out from them: once, until they change."""

    main: str | None
    namespace: str | None

    def __init__(self, settings: Mapping[str, Any], namespace: str | None, config_source: Any, silent: bool) -> None:
        """`settings` beat the source of configuration, which is read at the first look; `silent`: or passed over."""
        self.namespace = namespace
        self.on_configure = Signal(name="app.on_configure")
        self.on_after_configure = Signal(["source"], name="app.on_after_configure")
        self.on_after_fork = Signal(name="app.on_after_fork")
        self.stamp = Stamp()
        """Replaced by another one whenever what was worked out from the settings may not hold any more."""
        self._lock = threading.RLock()
        self._local = threading.local()
        self._oid: str | None = None
        self._node = ""
        self.conf: Settings = _AppSettings(
            settings,
            namespace=namespace,
            before_load=lambda: self.on_configure.send(self),
            after_load=self._configured,
        )
        self.conf.bind_to(self._setting_changed)
        if config_source is not None:
            self.conf.read_from(config_source, silent=silent)
        self.wiring = Wiring(self.conf, self._bindings, lambda: self.queues, lambda: self.oid)
        _watch_forks()

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
        self.wiring.after_fork()
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

    # Queues and options

    @property
    def queues(self) -> Queues:
        """The queues that the app knows (`task_queues`)."""
        found: Queues = self.per_settings("queues", self._queues)
        return found

    def _queues(self) -> Queues:
        conf = self.conf
        queues = Queues(conf["task_queues"], QueueDefaults.from_settings(conf))
        if self._node:
            queues.add(worker_direct(self._node))
        return queues

    def direct_queue(self, hostname: str) -> str:
        """Make the queue of the worker of this node name known; its name."""
        self._node = hostname
        self._restamp()
        return worker_direct(hostname).name

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
        """Names this app in this thread; the `reply_to` of its messages. Where results are sent to the process, the
        same in all threads."""
        if self.per_settings("answers", lambda: self.wiring.answers_to_process):
            return self.oid
        try:
            oid: str = self._local.oid
        except AttributeError:
            oid = self._local.oid = new_id()
        return oid


_forks_watched = False


def _watch_forks() -> None:
    global _forks_watched
    if not _forks_watched and hasattr(os, "register_at_fork"):
        _forks_watched = True
        os.register_at_fork(after_in_child=_forked)


def _forked() -> None:
    registry.after_fork()
    for app in registry.apps():
        app.after_fork()


def _hostname() -> str:
    import socket

    return socket.gethostname()
