"""Whether a call fits the function: wrong arguments are told where the call is made, not where it fails later."""

from __future__ import annotations

from collections.abc import Callable
from types import FunctionType, MethodType
from typing import Any

_VARARGS, _VARKEYWORDS = 0x04, 0x08


class Shape:
    """What a function takes. Making one costs nothing much; the check that is exact is made at its first use."""

    __slots__ = ("_bind", "_function", "names", "plain")

    def __init__(self, run: Callable[..., Any]) -> None:
        """`run`: a function, or a method whose `self` does not count."""
        bound = isinstance(run, MethodType)
        function = run.__func__ if isinstance(run, MethodType) else run
        self._function = (function, bound)
        self._bind: Callable[..., Any] | None = None
        self.names: tuple[str, ...] = ()
        """Names of the positional parameters, in order."""
        self.plain = -1
        """So many positional arguments fit without further look; -1: look closely."""
        code = getattr(function, "__code__", None)
        if isinstance(function, FunctionType) and code is not None:
            self.names = code.co_varnames[bound : code.co_argcount]
            if not (function.__defaults__ or code.co_kwonlyargcount or code.co_flags & (_VARARGS | _VARKEYWORDS)):
                self.plain = len(self.names)

    def check(self, args: Any, kwargs: Any) -> None:
        """Raise TypeError, worded as Python does, when the function can't be called so."""
        if len(args) == self.plain and not kwargs:
            return
        bind = self._bind
        if bind is None:
            bind = self._bind = _header(*self._function)
        bind(*args, **kwargs)


def _header(function: Any, bound: bool) -> Callable[..., Any]:
    """A function with the same parameters that does nothing, so that the interpreter itself does the checking."""
    code = getattr(function, "__code__", None)
    if not isinstance(function, FunctionType) or code is None:
        return _by_signature(function)
    names = code.co_varnames
    if not all(name.isidentifier() for name in names):  # made by a tool
        return _by_signature(function)
    count, only = code.co_argcount, code.co_kwonlyargcount
    required = count - len(function.__defaults__ or ())
    words = [name if index < required else f"{name}=0" for index, name in enumerate(names[:count])]
    if bound:
        words = words[1:]
    barrier = code.co_posonlyargcount - bound
    if barrier > 0:
        words.insert(barrier, "/")
    rest = count + only
    if code.co_flags & _VARARGS:
        words.append(f"*{names[rest]}")
        rest += 1
    elif only:
        words.append("*")
    keywords = function.__kwdefaults__ or {}
    words += [f"{name}=0" if name in keywords else name for name in names[count : count + only]]
    if code.co_flags & _VARKEYWORDS:
        words.append(f"**{names[rest]}")
    name = function.__name__ if function.__name__.isidentifier() else "task"
    space: dict[str, Any] = {}
    try:
        exec(f"def {name}({', '.join(words)}): pass", {}, space)
    except SyntaxError:  # a keyword for a name, which no source could have
        return _by_signature(function)
    header: Callable[..., Any] = space[name]
    return header


def _by_signature(function: Any) -> Callable[..., Any]:
    import inspect

    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # a builtin that does not say
        return lambda *args, **kwargs: None
    return lambda *args, **kwargs: signature.bind(*args, **kwargs)
