"""Exceptions as data: `{"exc_type", "exc_message", "exc_module"}`, and back.

Nothing is imported to rebuild one, and nothing but exception classes is ever called: who can write to the result
backend must not be able to run code.
"""

from __future__ import annotations

import pickle
import sys
import traceback
from collections.abc import Mapping
from functools import lru_cache
from types import ModuleType
from typing import Any

from celeriac import errors
from celeriac.errors import DecodeError, SecurityError
from celeriac.wire import codec, values

_OURS: dict[tuple[str, str], type[BaseException]] = {
    (module, cls.__name__): cls for cls, module in errors.FOREIGN_MODULES.items()
}
"""Our class for Celery's (module, name)."""


def describe(exc: BaseException, serializer: str = "json") -> dict[str, Any]:
    """The three-key map of an exception. Arguments that `serializer` can't hold are replaced by their repr. Never
    raises on account of the exception."""
    cls = type(exc)
    module = errors.FOREIGN_MODULES.get(cls, cls.__module__)
    return {
        "exc_type": cls.__qualname__,
        "exc_message": [_holdable(arg, serializer) for arg in _args(exc)],
        "exc_module": module if isinstance(module, str) else None,
    }


def _args(exc: BaseException) -> tuple[Any, ...]:
    try:
        return tuple(exc.args)
    except Exception:  # a class may have made a property of it
        return ()


def _holdable(arg: Any, serializer: str) -> Any:
    kind = type(arg)
    if kind is str or arg is None or kind is bool or kind is float:
        return arg
    try:
        if serializer == "json":
            values.dumps(arg)
        else:
            codec.encode(arg, serializer)
        return arg
    except errors.EncodeError:
        return plain_repr(arg)


def plain_repr(value: Any) -> str:
    """repr(value), or a stand-in where that raises."""
    try:
        return repr(value)
    except Exception as exc:
        return f"<Unrepresentable {type(value)!r}: {exc!r}>"


def rebuild(data: Any, modules: Mapping[str, ModuleType] | None = None) -> BaseException:
    """The exception that `describe` (ours or Celery's) made the map of; an exception is given back as it is.

    The class is looked up in `modules`, by default those imported already. Celery's names give our classes; a class
    that is not found is made up, as a subclass of Exception. A class that refuses its arguments gives
    `Exception("<class>(args)")`. Raises SecurityError when the name belongs to something that is no exception class,
    DecodeError for what is no such map.
    """
    if isinstance(data, BaseException):
        return data
    if not isinstance(data, Mapping):
        raise DecodeError(f"a stored exception must be a map, not {type(data).__name__}")
    name, module, message = data.get("exc_type"), data.get("exc_module"), data.get("exc_message", "")
    if not isinstance(name, str) or not (module is None or isinstance(module, str)):
        raise DecodeError("a stored exception must have the text exc_type, and exc_module must be text if it has one")
    found = _find(name, module, sys.modules if modules is None else modules)
    if not (isinstance(found, type) and issubclass(found, BaseException)):
        full = name if module is None else f"{module}.{name}"
        raise SecurityError(f"Expected an exception class, got {full} with payload {plain_repr(message)[:1024]}")
    try:
        result: BaseException = found(*message) if isinstance(message, list | tuple) else found(message)
        if isinstance(result, BaseException):
            return result
    except Exception:
        pass
    return Exception(f"{found}({plain_repr(message)})")


def _find(name: str, module: str | None, modules: Mapping[str, ModuleType]) -> Any:
    """The object of that name. Only dictionaries are looked into: getattr could call a lazy module's importer."""
    if module is None:
        return _made_up(name, "celeriac.errors")
    ours = _OURS.get((module, name))
    if ours is not None:
        return ours
    home = modules.get(module)
    if not isinstance(home, ModuleType):
        return _made_up(name, module)
    first, *rest = name.split(".")
    found = object.__getattribute__(home, "__dict__").get(first, _MISSING)
    for part in rest:
        found = _in_class(found, part)
    return _made_up(name, module) if found is _MISSING else found


_MISSING = object()


def _in_class(owner: Any, name: str) -> Any:
    if isinstance(owner, type):
        for cls in type.__dict__["__mro__"].__get__(owner):
            space = type.__dict__["__dict__"].__get__(cls)
            if name in space:
                return space[name]
    return _MISSING


@lru_cache(256)
def _made_up(name: str, module: str) -> type[Exception]:
    """A class in place of one that isn't there; the same for the same names, so that they compare as one class does."""
    safe = name.replace("\0", "").encode("utf-8", "replace").decode() or "Exception"
    return type(safe, (Exception,), {"__module__": module})


def traceback_text(exc: BaseException, skip: int = 0) -> str:
    """The traceback as Python prints it, causes included, without its first `skip` frames (those of the runtime)."""
    trace = exc.__traceback__
    for _ in range(skip):
        if trace is None or trace.tb_next is None:
            break
        trace = trace.tb_next
    try:
        return "".join(traceback.format_exception(type(exc), exc, trace))
    except Exception as failed:
        return f"{type(exc).__name__}: its traceback can't be shown: {plain_repr(failed)}\n"


def picklable(exc: BaseException) -> BaseException:
    """The exception itself where pickle can carry it, otherwise its nearest base class that pickle can carry with the
    same arguments, otherwise an Exception with its repr."""
    if _survives(exc):
        return exc
    for cls in type(exc).__mro__:
        if cls in (Exception, BaseException, object):
            break
        try:
            near = cls(*_args(exc))
        except Exception:
            continue
        if isinstance(near, BaseException) and _survives(near):
            return near
    return Exception(plain_repr(exc))


def _survives(exc: BaseException) -> bool:
    try:
        pickle.loads(pickle.dumps(exc))
    except Exception:
        return False
    return True
