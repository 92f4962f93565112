"""The app's settings: where their values come from, in which order, and by which names.

An environment variable (four URLs) beats what was set through the app, that beats the source of configuration (a
module, object or dict), that beats defaults. The source is read at the first look and stays live: a value changed in
it later is seen.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, MutableMapping
from datetime import timedelta
from typing import Any

from celeriac.app.sources import (
    DJANGO_ZONE,
    MISSING,
    Source,
    load_source,
    looks_like_a_setting,
    prefix_of,
    symbol,
    warn_unknown,
)
from celeriac.errors import ImproperlyConfigured
from celeriac.model.settings import (
    SETTINGS,
    Setting,
    canonical,
    cast_setting,
    censor,
    defaults,
    find,
    known,
    nearest,
    parse_words,
    seconds,
)

__all__ = ["CONFIG_MODULE", "ENVIRONMENT", "Settings", "cast_setting", "censor", "load_source", "parse_words", "symbol"]

ENVIRONMENT = {
    "broker_url": "CELERY_BROKER_URL",
    "broker_read_url": "CELERY_BROKER_READ_URL",
    "broker_write_url": "CELERY_BROKER_WRITE_URL",
    "result_backend": "CELERY_RESULT_BACKEND",
}
"""Settings that an environment variable overrides."""
CONFIG_MODULE = "CELERY_CONFIG_MODULE"
"""Names the module to read where the app was given no source."""

_FALLBACK = {
    "broker_read_url": "broker_url",
    "broker_write_url": "broker_url",
    "task_default_exchange": "task_default_queue",
    "task_default_routing_key": "task_default_queue",
}
_COMPUTED = frozenset({*ENVIRONMENT, *_FALLBACK, "timezone"})


class Settings(MutableMapping[str, Any]):
    """`app.conf`: every setting as an attribute and as a key, by its new, old or capital name.

    Reading what is not set gives the default; a name that is no setting and was never set raises AttributeError or
    KeyError. Nothing is read from the source before the first look, writing does not need it.
    """

    # Own attributes are kept in __dict__ by hand: assigning one would be a setting.
    _changes: dict[str, Any]
    _namespace: str | None
    _hooks: tuple[Callable[[], object] | None, Callable[[], object] | None]
    _environ: Mapping[str, str]
    _pending: tuple[Any, bool] | None
    _source: Source | None
    _loaded: bool
    _lock: threading.RLock
    _added: list[Mapping[str, Any] | Callable[[], Mapping[str, Any]]]
    _own: dict[str, Any]
    _defaults: dict[str, Any] | None
    _seen: set[str]
    _observers: list[Callable[..., object]]

    def __init__(
        self,
        changes: Mapping[str, Any] | None = None,
        *,
        namespace: str | None = None,
        before_load: Callable[[], object] | None = None,
        after_load: Callable[[], object] | None = None,
        environ: Mapping[str, str] = os.environ,
    ) -> None:
        """`changes` beat the source. `before_load` and `after_load` are called around the first look (the app's
        signals on_configure and on_after_configure)."""
        state = self.__dict__
        state["_changes"] = {}
        state["_namespace"] = namespace
        state["_hooks"] = (before_load, after_load)
        state["_environ"] = environ
        state["_pending"] = None
        state["_source"] = None
        state["_loaded"] = False
        state["_lock"] = threading.RLock()
        state["_added"] = []
        state["_own"] = {}
        state["_defaults"] = None
        state["_seen"] = set()
        state["_observers"] = []
        if changes:
            self.update(changes)

    # Where values come from

    def read_from(
        self, source: Any, *, namespace: str | None = None, silent: bool = False, force: bool = False
    ) -> bool:
        """Take another source: a module's name, `module:attr`, `package.module.Class`, an object or a dict. It is
        read at the next look, or now with `force`. `silent`: a source that can't be imported is passed over; the
        answer is False then."""
        with self._lock:
            state = self.__dict__
            if namespace is not None:
                state["_namespace"] = namespace
            state["_pending"] = (source, silent)
            state["_source"] = None
            state["_defaults"] = None
            again = self._loaded
            state["_loaded"] = False
            return self._load() if force or again else True

    def read_from_variable(self, name: str, *, silent: bool = False, force: bool = False) -> bool:
        """Take the source that the environment variable `name` names. Raises ImproperlyConfigured when it is not set;
        with `silent` the answer is False."""
        module = self._environ.get(name)
        if not module:
            if silent:
                return False
            raise ImproperlyConfigured(
                f"the environment variable {name} is not set: let it name the module of the configuration, "
                f'for example {name}="proj.celeryconfig"'
            )
        return self.read_from(module, silent=silent, force=force)

    def read_words(self, words: Iterable[str], namespace: str = "celery") -> None:
        """Set what `key=value` words of a command line say (see `parse_words`)."""
        self.update(parse_words(words, namespace))

    def add_defaults(self, values: Mapping[str, Any] | Callable[[], Mapping[str, Any]]) -> None:
        """Add defaults that beat the built-in ones; those added last come first. A function is called at the first
        look."""
        self._added.insert(0, values)
        self.__dict__["_defaults"] = None

    def finalize(self) -> Settings:
        """Read the source now."""
        if not self._loaded:
            self._load()
        return self

    @property
    def configured(self) -> bool:
        """The source has been read."""
        return self._loaded

    # Celery's ways to look

    @property
    def changes(self) -> dict[str, Any]:
        """What was set through the app."""
        return self._changes

    @property
    def maps(self) -> list[Mapping[str, Any]]:
        """The layers, strongest first: changes, source, defaults."""
        self.finalize()
        return [self._changes, dict(self._from_source()), dict(self._layer_defaults())]

    @property
    def deprecated_settings(self) -> set[str]:
        """Old names in the source."""
        self.finalize()
        return set(self._source.old) if self._source is not None else set()

    def maybe_warn_deprecated_settings(self) -> bool:
        """True when the source uses old names. They keep working, so there is no warning."""
        return bool(self.deprecated_settings)

    def without_defaults(self) -> dict[str, Any]:
        """What is set: by the environment, through the app, or in the source."""
        self.finalize()
        values = dict(self._from_source())
        values.update(self._changes)
        for key, variable in ENVIRONMENT.items():
            if self._environ.get(variable):
                values[key] = self._environ[variable]
        return values

    def value_set_for(self, key: str) -> bool:
        """True when `key` is set, be it to its default."""
        return self.origin(key) not in ("default", "")

    def origin(self, key: str) -> str:
        """Where the value of a key comes from: `environment`, `app`, `source` or `default`; empty for no setting."""
        key = self._key(key)
        if key in ENVIRONMENT and self._environ.get(ENVIRONMENT[key]):
            return "environment"
        if key in self._changes:
            return "app"
        self.finalize()
        if self._source is not None and self._source.get(key) is not MISSING:
            return "source"
        return "default" if key in self._layer_defaults() else ""

    def table(self, with_defaults: bool = False, censored: bool = True) -> dict[str, Any]:
        """Keys and values; passwords are masked when `censored`."""
        values = {key: self[key] for key in self} if with_defaults else self.without_defaults()
        return {key: censor(key, value) for key, value in values.items()} if censored else values

    def humanize(self, with_defaults: bool = False, censored: bool = True) -> str:
        """The table as lines to read."""
        return "\n".join(f"{key}: {value!r}" for key, value in sorted(self.table(with_defaults, censored).items()))

    def find_option(self, name: str, namespace: str = "") -> Setting:
        """The setting that a short name means (see `model.settings.find`)."""
        return find(name, namespace)

    def find_value_for_key(self, name: str, namespace: str = "celery") -> Any:
        """The value of the setting that a short name means."""
        return self[find(name, namespace).key]

    def get_by_parts(self, *parts: str) -> Any:
        """The value of the key whose parts these are; empty ones are left out."""
        return self["_".join(part for part in parts if part)]

    def seconds(self, key: str) -> float | None:
        """A duration in seconds, be it set as a number or a timedelta."""
        value: float | timedelta | None = self[key]
        return seconds(value)

    # Mapping

    def __getitem__(self, name: str) -> Any:
        key = self._key(name)
        value = self._computed(key) if key in _COMPUTED else self._stored(key)
        if value is MISSING:
            raise KeyError(name)
        return value

    def __getattr__(self, name: str) -> Any:
        # Only called for what is no attribute of the class. Dunder names are asked for by copy and pickle.
        if name.startswith("_"):
            raise AttributeError(name)
        try:
            return self[name]
        except KeyError:
            close = nearest(name)
            hint = f": did you mean {close}?" if close else ""
            raise AttributeError(f"there is no setting {name!r}{hint}") from None

    def __setitem__(self, name: str, value: Any) -> None:
        key = self._key(name)
        if not known(key) and key not in self._seen:
            self._seen.add(key)
            if looks_like_a_setting(key):
                warn_unknown([key])
        if key == "profile":
            defaults(value)  # raises for a wrong one
            self.__dict__["_defaults"] = None
        self._changes[key] = value
        for callback in self._observers:
            callback(**{key: value})

    def __setattr__(self, name: str, value: Any) -> None:
        self[name] = value

    def __delitem__(self, name: str) -> None:
        """Take back a change."""
        del self._changes[self._key(name)]
        self.__dict__["_defaults"] = None

    def __delattr__(self, name: str) -> None:
        try:
            del self[name]
        except KeyError:
            raise AttributeError(name) from None

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and self.get(name, MISSING) is not MISSING

    def __iter__(self) -> Iterator[str]:
        self.finalize()
        return iter({**self._layer_defaults(), **dict(self._from_source()), **self._changes})

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def __repr__(self) -> str:
        return f"<Settings: {self.table()!r}>"

    def clear(self) -> None:
        """Take back all changes."""
        self._changes.clear()
        self.__dict__["_defaults"] = None

    def bind_to(self, callback: Callable[..., object]) -> None:
        """Call this with each change from now on, as a keyword."""
        self._observers.append(callback)

    def swap_with(self, other: Settings) -> None:
        """Take over what the other one holds."""
        other.finalize()
        self.__dict__.update(other.__dict__)

    # Inside

    def _key(self, name: str) -> str:
        if name in SETTINGS:
            return name
        if not isinstance(name, str):
            raise KeyError(name)
        key = canonical(name)
        if key not in SETTINGS and self._namespace:
            prefix = prefix_of(self._namespace)
            if name.startswith(prefix) and known(name[len(prefix) :].lower()):
                return name[len(prefix) :].lower()
        return key

    def _computed(self, key: str) -> Any:
        variable = ENVIRONMENT.get(key)
        if variable is not None:
            text = self._environ.get(variable)
            if text:
                return text
        value = self._stored(key)
        if value:
            return value
        if key in _FALLBACK:
            return self[_FALLBACK[key]]
        if key == "broker_url":
            return self._broker_from_parts()
        if key == "timezone" and self._source is not None:
            zone = self._source.raw(DJANGO_ZONE)
            return None if zone is MISSING else zone
        return value

    def _broker_from_parts(self) -> str | None:
        host: str | None = self._stored("broker_host")
        names = ("broker_transport", "broker_user", "broker_password", "broker_port", "broker_vhost")
        if host and "://" in host:
            return host
        parts = {name: self._stored(name) for name in names}
        if not host and not any(parts.values()):
            return None
        from urllib.parse import quote

        user, password, port, vhost = (parts[name] for name in names[1:])
        login = f"{quote(str(user or ''), safe='')}{':' + quote(str(password), safe='') if password else ''}"
        if not (host or login or port or vhost):
            return f"{parts['broker_transport']}://"
        place = f"{host or 'localhost'}{f':{port}' if port else ''}"
        path = quote(str(vhost), safe="") if vhost else ""
        return f"{parts['broker_transport'] or 'amqp'}://{login + '@' if login else ''}{place}/{path}"

    def _stored(self, key: str) -> Any:
        if not self._loaded:
            self._load()
        value = self._changes.get(key, MISSING)
        if value is not MISSING:
            return value
        if self._source is not None:
            value = self._source.get(key)
            if value is not MISSING:
                return value
        return self._layer_defaults().get(key, MISSING)

    def _layer_defaults(self) -> dict[str, Any]:
        layer = self._defaults
        if layer is None:
            self.finalize()
            profile = self._changes.get("profile", MISSING)
            if profile is MISSING and self._source is not None:
                profile = self._source.get("profile")
            added = [values if isinstance(values, Mapping) else values() for values in self._added]
            if profile is MISSING:
                profile = next((values["profile"] for values in added if "profile" in values), "safe")
            layer = {}
            for key, value in defaults(profile).items():
                if type(value) is dict:
                    # A default dict may be changed in place (`conf.beat_schedule["x"] = ...`): this app's alone, and
                    # what was put in stays when the layers are built again.
                    value = self._own.setdefault(key, value.copy())
                layer[key] = value
            layer["profile"] = profile
            for values in reversed(added):
                layer.update((self._key(key), value) for key, value in values.items())
            self.__dict__["_defaults"] = layer
        return layer

    def _from_source(self) -> Iterator[tuple[str, Any]]:
        if self._source is None:
            return
        for key in self._source.held():
            value = self._source.get(key)
            if value is not MISSING:
                yield key, value

    def _load(self) -> bool:
        with self._lock:
            if self._loaded:
                return True
            state = self.__dict__
            before, after = self._hooks
            if before is not None:
                state["_hooks"] = (None, after)  # it may set things, and be asked again after an error
                before()
            source, silent = self._pending or (self._environ.get(CONFIG_MODULE) or None, False)
            found = True
            if source is not None:
                try:
                    state["_source"] = Source(load_source(source), self._namespace, source)
                except ImportError:
                    if not silent:
                        raise
                    found = False
            state["_loaded"] = True
            state["_defaults"] = None
            self._layer_defaults()  # a wrong profile is told now
        if after is not None:
            after()
        return found
