"""What a configuration is read from: a module, an object or a mapping, under new, old or prefixed names."""

from __future__ import annotations

import os
import sys
import types
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from celeriac.errors import ImproperlyConfigured, UnknownSettingWarning
from celeriac.model.settings import OLD_NAMES, SETTINGS, known, nearest

MISSING: Any = object()
"""No value."""
DJANGO_ZONE = "TIME_ZONE"

_FAMILIES = (
    "beat_", "broker_", "celery", "control_", "database_", "event_", "redis_", "result_", "security_", "task_",
    "worker_",
)  # fmt: skip
_NEIGHBOURS = ("redbeat_", "singleton_", "once", "email_", "haystack_", "progress_")
"""Keys of packages that keep their settings beside Celery's."""


class Source:
    """A source of configuration, looked into at each question."""

    def __init__(self, source: Any, namespace: str | None, title: Any) -> None:
        """Raises ImproperlyConfigured when old and new names are mixed; warns of unknown ones, once."""
        self._source = source
        self._is_mapping = isinstance(source, Mapping) or (hasattr(source, "keys") and hasattr(source, "__getitem__"))
        self._prefix = prefix_of(namespace) if namespace else ""
        names = self._names()
        new = {name for name in names if name in SETTINGS}
        self.old = {name for name in names if name in OLD_NAMES}
        if not namespace:
            _refuse_mix(new, self.old, _title(title))
        self._old_first = len(self.old) > len(new)
        self._cache: dict[str, tuple[str, ...]] = {}
        unknown = [name for name in names if self._is_unknown(name)]
        if unknown:
            warn_unknown(unknown, self._prefix, _title(title))

    def raw(self, name: str) -> Any:
        """The value by its name in the source, or MISSING."""
        if self._is_mapping:
            try:
                return self._source[name]
            except KeyError:
                return MISSING
        return getattr(self._source, name, MISSING)

    def get(self, key: str) -> Any:
        """The value of a key by whichever name the source has for it, or MISSING."""
        for name in self._cache.get(key) or self._spellings(key):
            value = self.raw(name)
            if value is not MISSING:
                return value
        return MISSING

    def held(self) -> Iterator[str]:
        """Keys that the source has; of a dict the unknown ones too."""
        for name in self._names():
            short = name[len(self._prefix) :].lower()
            if self._prefix and name.startswith(self._prefix) and (known(short) or name not in OLD_NAMES):
                yield short
            elif name in SETTINGS or (self._is_mapping and not self._prefix and name not in OLD_NAMES):
                yield name
            elif name in OLD_NAMES:
                yield OLD_NAMES[name]

    def _spellings(self, key: str) -> tuple[str, ...]:
        old = SETTINGS[key].old if key in SETTINGS else ""
        names: tuple[str, ...] = (key, old) if not self._old_first else (old, key)
        if self._prefix:
            names = (self._prefixed(key), *names)
        found = tuple(name for name in names if name)
        self._cache[key] = found
        return found

    def _prefixed(self, key: str) -> str:
        return self._prefix + (key if self._prefix.islower() else key.upper())

    def _names(self) -> list[str]:
        names = self._source.keys() if self._is_mapping else dir(self._source)
        return [name for name in names if isinstance(name, str) and not name.startswith("_")]

    def _is_unknown(self, name: str) -> bool:
        if self._prefix:
            short = name[len(self._prefix) :].lower()
            return name.startswith(self._prefix) and not (
                (known(short) and name == self._prefixed(short)) or name in OLD_NAMES or short.startswith(_NEIGHBOURS)
            )
        if name in OLD_NAMES or known(name) or name == DJANGO_ZONE:
            return False
        if not self._is_mapping:
            # A module holds what it imports, and a Django settings module holds everything.
            if not name.islower() and not name.startswith(("CELERY", "BROKER_")):
                return False
            if isinstance(self.raw(name), type | types.ModuleType | types.FunctionType | types.BuiltinFunctionType):
                return False
        return looks_like_a_setting(name)


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


def prefix_of(namespace: str) -> str:
    """The prefix that a namespace gives to names of settings."""
    return namespace if namespace.endswith("_") else f"{namespace}_"


def looks_like_a_setting(name: str) -> bool:
    """An unknown name that looks like a setting: of a family of settings, or nearly one."""
    lower = name.lower()
    if lower.startswith(_NEIGHBOURS):
        return False
    return lower.startswith(_FAMILIES) or nearest(name) is not None


def _refuse_mix(new: set[str], old: set[str], title: str) -> None:
    only_new = {name for name in new if SETTINGS[name].old and SETTINGS[name].old not in old}
    only_old = {name for name in old if OLD_NAMES[name] not in new}
    if not only_new or not only_old:
        return
    if len(new) >= len(old):
        style, renames = "new", {name: OLD_NAMES[name] for name in sorted(only_old)}
    else:
        style, renames = "old", {name: SETTINGS[name].old for name in sorted(only_new)}
    lines = "\n".join(f"    {wrong} -> {right}" for wrong, right in renames.items())
    raise ImproperlyConfigured(f"{title} mixes old and new names of settings; rename to the {style} ones:\n{lines}")


def warn_unknown(names: list[str], prefix: str = "", title: str = "") -> None:
    """Warn once of names that no setting has, with the nearest one that has."""
    texts = []
    for name in sorted(names):
        close = nearest(name[len(prefix) :] if prefix and name.startswith(prefix) else name)
        if close and prefix:
            close = prefix + (close if prefix.islower() else close.upper())
        texts.append(f"{name} (did you mean {close}?)" if close else name)
    what = "there is no setting" if len(texts) == 1 else "there are no settings"
    place = f"{title}: " if title else ""
    warnings.warn(f"{place}{what} {', '.join(texts)}", UnknownSettingWarning, stacklevel=_depth())


def _title(source: Any) -> str:
    if isinstance(source, str):
        return f"the configuration {source!r}"
    name = getattr(source, "__name__", None)
    return f"the configuration {name!r}" if isinstance(name, str) else "the configuration"


def _depth() -> int:
    """How far up the first caller outside of celeriac is, counted from who asks."""
    frame, depth = sys._getframe(1), 1
    while frame.f_back is not None and frame.f_globals.get("__name__", "").startswith(("celeriac.", "collections.abc")):
        frame, depth = frame.f_back, depth + 1
    return depth
