"""What handlers and signals are given of an exception."""

from __future__ import annotations

from types import TracebackType
from typing import Any

from celeriac.wire.failure import plain_repr, traceback_text


class ExceptionInfo:
    """An exception and the text of its traceback, as handlers know it from billiard. `str()` is the traceback."""

    __slots__ = ("exception", "internal", "tb", "traceback", "type")

    def __init__(self, exception: BaseException, internal: bool = False, skip: int = 0) -> None:
        """`skip`: how many frames of the runtime stand before the user's."""
        self.type: type[BaseException] = type(exception)
        self.exception = exception
        self.tb: TracebackType | None = exception.__traceback__
        self.traceback: str = _text(exception, skip)
        self.internal = internal

    @property
    def exc_info(self) -> tuple[type[BaseException], BaseException, TracebackType | None]:
        """As `sys.exc_info()` would say it."""
        return self.type, self.exception, self.tb

    def __str__(self) -> str:
        return self.traceback

    def __repr__(self) -> str:
        return f"<ExceptionInfo: {describe(self.exception)}>"


def _text(exception: BaseException, skip: int) -> str:
    try:
        return traceback_text(exception, skip)
    except Exception:  # an exception that is hostile to the last: its class has to do
        return f"{type(exception).__name__}: its traceback can't be shown\n"


def describe(value: Any) -> str:
    """repr(value), whatever it does."""
    try:
        return plain_repr(value)
    except Exception:
        return f"<{type(value).__name__}>"
