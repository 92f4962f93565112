"""The app's settings: where their values come from, in which order, and by which names.

An environment variable (four URLs) beats what was set through the app, that beats the source of configuration (a
module, object or dict), that beats defaults. The source is read at the first look and stays live: a value changed in
it later is seen.
"""

from __future__ import annotations

import os
import re
import threading
import types
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, MutableMapping
from datetime import timedelta
from typing import Any

from celeriac.errors import ImproperlyConfigured, UnknownSettingWarning
from celeriac.model.settings import (
    OLD_NAMES,
    SETTINGS,
    Setting,
    canonical,
    cast,
    defaults,
    find,
    known,
    nearest,
    seconds,
)

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
_MISSING: Any = object()
_FAMILIES = (
    "beat_", "broker_", "celery", "control_", "database_", "event_", "redis_", "result_", "security_", "task_",
    "worker_",
)  # fmt: skip
_NEIGHBOURS = ("redbeat_", "singleton_", "once", "email_", "haystack_", "progress_")
"""Keys of packages that keep their settings beside Celery's."""
_SECRET = re.compile(r"API|TOKEN|KEY|SECRET|PASS|PROFANITIES_LIST|SIGNATURE|DATABASE|BEAT_DBURI", re.IGNORECASE)
_HARMLESS = frozenset({"task_default_routing_key", "database_create_tables_at_setup", "database_short_lived_sessions"})
_PASSWORD = re.compile(r"(?<=://)([^\s/@:]*):[^\s/]*@")
_STARS = "********"


class Settings(MutableMapping[str, Any]):
    """`app.conf`: every setting as an attribute and as a key, by its new, old or capital name.

    Reading what is not set gives the default; a name that is no setting and was never set raises AttributeError or
    KeyError. Nothing is read from the source before the first look, writing does not need it.
    """

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
        state["_warned"] = set()
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
        return bool(self._loaded)

    # Celery's ways to look

    @property
    def changes(self) -> dict[str, Any]:
        """What was set through the app."""
        found: dict[str, Any] = self._changes
        return found

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
        return self._key(key) in self.without_defaults()

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
        if value is _MISSING:
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
        if not known(key) and key not in self._warned and _suspicious(key):
            self._warned.add(key)
            _warn_unknown([key], 3)
        self._changes[key] = value
        if key == "profile":
            defaults(value)  # raises for a wrong one
            self.__dict__["_defaults"] = None

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
        return isinstance(name, str) and self.get(name, _MISSING) is not _MISSING

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

    # Inside

    def _key(self, name: str) -> str:
        if name in SETTINGS:
            return name
        key = canonical(name)
        if key not in SETTINGS and self._namespace:
            prefix = _prefix(self._namespace)
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
            zone = self._source.raw("TIME_ZONE")
            return None if zone is _MISSING else zone
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
        place = f"{host or 'localhost'}{f':{port}' if port else ''}"
        path = quote(str(vhost), safe="") if vhost else ""
        return f"{parts['broker_transport'] or 'amqp'}://{login + '@' if login else ''}{place}/{path}"

    def _stored(self, key: str) -> Any:
        if not self._loaded:
            self._load()
        value = self._changes.get(key, _MISSING)
        if value is not _MISSING:
            return value
        if self._source is not None:
            value = self._source.get(key)
            if value is not _MISSING:
                return value
        return self._layer_defaults().get(key, _MISSING)

    def _layer_defaults(self) -> dict[str, Any]:
        layer: dict[str, Any] | None = self._defaults
        if layer is None:
            self.finalize()
            profile = self._changes.get("profile", _MISSING)
            if profile is _MISSING and self._source is not None:
                profile = self._source.get("profile")
            added = [values() if callable(values) else values for values in self._added]
            if profile is _MISSING:
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
            if value is not _MISSING:
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
                    state["_source"] = _Source(load_source(source), self._namespace)
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


class _Source:
    """A source of configuration, looked into at each question."""

    def __init__(self, source: Any, namespace: str | None) -> None:
        """Raises ImproperlyConfigured when old and new names are mixed; warns of unknown ones, once."""
        self._source = source
        self._is_mapping = isinstance(source, Mapping) or (hasattr(source, "keys") and hasattr(source, "__getitem__"))
        self._prefix = _prefix(namespace) if namespace else ""
        names = self._names()
        new = {name for name in names if name in SETTINGS}
        self.old = {name for name in names if name in OLD_NAMES}
        if not namespace:
            _refuse_mix(new, self.old)
        self._old_first = len(self.old) > len(new)
        self._cache: dict[str, tuple[str, ...]] = {}
        unknown = [name for name in names if self._is_unknown(name)]
        if unknown:
            _warn_unknown(unknown, 8, self._prefix)

    def raw(self, name: str) -> Any:
        """The value by its name in the source, or _MISSING."""
        if self._is_mapping:
            try:
                return self._source[name]
            except KeyError:
                return _MISSING
        return getattr(self._source, name, _MISSING)

    def get(self, key: str) -> Any:
        """The value of a key by whichever name the source has for it, or _MISSING."""
        for name in self._cache.get(key) or self._spellings(key):
            value = self.raw(name)
            if value is not _MISSING:
                return value
        return _MISSING

    def held(self) -> Iterator[str]:
        """Keys that the source has; of a dict the unknown ones too."""
        for name in self._names():
            if self._prefix and name.startswith(self._prefix):
                yield name[len(self._prefix) :].lower()
            elif name in SETTINGS or (self._is_mapping and not self._prefix and name not in OLD_NAMES):
                yield name
            elif name in OLD_NAMES:
                yield OLD_NAMES[name]

    def _spellings(self, key: str) -> tuple[str, ...]:
        old = SETTINGS[key].old if key in SETTINGS else ""
        names: tuple[str, ...] = (key, old) if not self._old_first else (old, key)
        if self._prefix:
            short = key if self._prefix.islower() else key.upper()
            names = (self._prefix + short, *names)
        found = tuple(name for name in names if name)
        self._cache[key] = found
        return found

    def _names(self) -> list[str]:
        names = self._source.keys() if self._is_mapping else dir(self._source)
        return [name for name in names if isinstance(name, str) and not name.startswith("_")]

    def _is_unknown(self, name: str) -> bool:
        if self._prefix:
            short = name[len(self._prefix) :].lower()
            return name.startswith(self._prefix) and not (
                known(short) or name in OLD_NAMES or short.startswith(_NEIGHBOURS)
            )
        if name in OLD_NAMES or known(name):
            return False
        if not self._is_mapping:
            # A module holds what it imports, and a Django settings module holds everything.
            if not name.islower() and not name.startswith(("CELERY", "BROKER_")):
                return False
            if isinstance(self.raw(name), type | types.ModuleType | types.FunctionType | types.BuiltinFunctionType):
                return False
        return _suspicious(name)


def load_source(source: Any) -> Any:
    """The object that holds the configuration. A text is imported: a module, `module:attr`, or `package.module.Class`.
    Raises ImportError, and ImproperlyConfigured for the name of a file."""
    if not isinstance(source, str):
        return source
    return symbol(source)


def symbol(text: str) -> Any:
    """What `module`, `module:attr.attr` or `package.module.Name` names. The current folder is looked into as well.
    Raises ImportError; ImproperlyConfigured for the name of a file."""
    from importlib import import_module

    module, colon, attr = text.partition(":")
    parts = attr.split(".") if attr else []
    while True:
        try:
            found = _import_here(import_module, module)
            break
        except ModuleNotFoundError as exc:
            # Only a missing last part may be an attribute; what the module itself fails to import is its own error.
            if colon or not exc.name or not f"{module}.".startswith(f"{exc.name}.") or "." not in module:
                raise
            module, _, last = module.rpartition(".")
            parts.insert(0, last)
    for part in parts:
        try:
            found = getattr(found, part)
        except AttributeError:
            if part == "py" and not colon:
                raise ImproperlyConfigured(f"{text!r} is the name of a file: leave out .py") from None
            raise ModuleNotFoundError(f"module {module!r} has no attribute {'.'.join(parts)!r}", name=text) from None
    return found


def _import_here(import_module: Callable[[str], Any], module: str) -> Any:
    import sys

    try:
        return import_module(module)
    except ModuleNotFoundError as exc:
        here = os.getcwd()
        if exc.name != module.partition(".")[0] or here in sys.path:
            raise
        sys.path.insert(0, here)
        try:
            return import_module(module)
        finally:
            if here in sys.path:
                sys.path.remove(here)


def parse_words(words: Iterable[str], namespace: str = "celery") -> dict[str, Any]:
    """The settings that `key=value` words say. `worker.concurrency=4` is worker_concurrency; a leading `.` or `_`
    stands for `namespace`; `(type)value` casts to a type, else to the setting's own. Raises ImproperlyConfigured."""
    found: dict[str, Any] = {}
    for word in words:
        name, equals, text = word.partition("=")
        if not equals:
            raise ImproperlyConfigured(f"{word!r} is no setting: write key=value")
        name = name.strip()
        if name[:1] in (".", "_"):
            name = f"{namespace}_{name[1:]}"
        key = canonical(name.replace(".", "_"))
        found[key] = cast_setting(key, text)
    return found


def cast_setting(key: str, text: str) -> Any:
    """The value that a text means for a setting: its own type, or the one that `(type)` in front of it names. Raises
    ImproperlyConfigured."""
    marked = re.match(r"\((\w+)\)", text)
    try:
        if marked:
            return cast(marked.group(1), text[marked.end() :])
        if key in SETTINGS:
            return cast(SETTINGS[key].kind, text)
    except (TypeError, ValueError) as exc:
        raise ImproperlyConfigured(f"{key}={text}: {exc}") from None
    if not known(key):
        close = nearest(key)
        hint = f"did you mean {close}?" if close else f"write {key}=(type)value for a setting of your own"
        raise ImproperlyConfigured(f"there is no setting {key!r}: {hint}")
    return text


def censor(key: str, value: Any) -> Any:
    """A value as it may be shown: secrets are stars, passwords in URLs too, also inside lists and dicts."""
    if _SECRET.search(key) and key not in _HARMLESS and value not in (None, "", b""):
        return _STARS
    if isinstance(value, str):
        return _PASSWORD.sub(rf"\1:{_STARS}@", value)
    if isinstance(value, Mapping):
        return {name: censor(str(name), inner) for name, inner in value.items()}
    if type(value) in (list, tuple):
        return type(value)(censor("", inner) for inner in value)
    return value


def _prefix(namespace: str) -> str:
    return namespace if namespace.endswith("_") else f"{namespace}_"


def _suspicious(name: str) -> bool:
    """An unknown name that looks like a setting: of a family of settings, or nearly one."""
    lower = name.lower()
    if lower.startswith(_NEIGHBOURS):
        return False
    return lower.startswith(_FAMILIES) or nearest(name) is not None


def _refuse_mix(new: set[str], old: set[str]) -> None:
    only_new = {name for name in new if SETTINGS[name].old and SETTINGS[name].old not in old}
    only_old = {name for name in old if OLD_NAMES[name] not in new}
    if not only_new or not only_old:
        return
    if len(new) >= len(old):
        style, renames = "new", {name: OLD_NAMES[name] for name in sorted(only_old)}
    else:
        style, renames = "old", {name: SETTINGS[name].old for name in sorted(only_new)}
    lines = "\n".join(f"    {wrong} -> {right}" for wrong, right in renames.items())
    raise ImproperlyConfigured(
        f"the configuration mixes old and new names of settings; rename these to the {style} form:\n{lines}"
    )


def _warn_unknown(names: list[str], depth: int, prefix: str = "") -> None:
    texts = []
    for name in sorted(names):
        close = nearest(name[len(prefix) :] if name.startswith(prefix) else name)
        right = prefix + (close.upper() if prefix.isupper() else close) if close and prefix else close
        texts.append(f"{name} (did you mean {right}?)" if right else name)
    what = "no setting of this name" if len(texts) == 1 else "no settings of these names"
    warnings.warn(f"{what}: {', '.join(texts)}", UnknownSettingWarning, stacklevel=depth)
