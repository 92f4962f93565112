"""Limits from the point of view of the code that runs: how an exception gets into it, and what it then means.

A thread is interrupted only while `Runner.armed` names the call that is meant; a coroutine gets the exception thrown
where it waits.
"""

from __future__ import annotations

from collections.abc import Coroutine, Generator
from contextvars import Context as Scope
from typing import Any

from celeriac.errors import SoftTimeLimitExceeded


class HardLimit(BaseException):
    """Thrown into a call whose hard limit has passed, in children that run several. User code can't catch it by
    `except Exception`; the outcome is FAILURE with TimeLimitExceeded."""


class TerminatedByOperator(BaseException):
    """Thrown into a call that an operator terminates, in children that run several. The outcome is REVOKED."""


def exception_of(how: str) -> BaseException:
    """What a CANCEL frame (`soft`, `hard` or `terminate`) throws."""
    if how == "soft":
        return SoftTimeLimitExceeded()
    return HardLimit() if how == "hard" else TerminatedByOperator()


class Drive(Coroutine[Any, Any, Any]):
    """Runs a coroutine step by step in its own contextvars scope, inside whatever asyncio task awaits it, and can throw
    any exception into it where it waits. Spares an asyncio task for each call."""

    __slots__ = ("_coroutine", "_loop", "_scope", "_task", "_thrown", "stepping")

    def __init__(self, coroutine: Coroutine[Any, Any, Any], scope: Scope) -> None:
        self._coroutine = coroutine
        self._scope = scope
        self._thrown: BaseException | None = None
        self._task: Any = None
        self._loop: Any = None
        self.stepping = False
        """User code of this coroutine runs right now, in the loop's thread."""

    def attach(self, loop: Any, task: Any) -> None:
        """Say which asyncio task awaits this."""
        self._loop = loop
        self._task = task

    def interrupt(self, error: BaseException) -> None:
        """Throw `error` into the coroutine at its next step. On the loop's thread only."""
        if self._task is not None and self._thrown is None:
            self._thrown = error
            self._task.cancel()

    def interrupt_threadsafe(self, error: BaseException) -> None:
        """The same from another thread, or from a signal handler."""
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self.interrupt, error)

    def detach(self) -> bool:
        """The call has ended: nothing is thrown any more. True: a cancellation came too late to be seen; it is taken
        back, but the asyncio task will still raise CancelledError at its next step, once."""
        task, self._task = self._task, None
        if self._thrown is None or task is None:
            return False
        self._thrown = None
        task.uncancel()
        return True

    def send(self, value: Any) -> Any:
        self.stepping = True
        try:
            return self._scope.run(self._coroutine.send, value)
        finally:
            self.stepping = False

    def throw(self, kind: Any, value: Any = None, trace: Any = None) -> Any:
        error = kind if isinstance(kind, BaseException) else value if isinstance(value, BaseException) else kind()
        thrown = self._thrown
        if thrown is not None and type(error).__name__ == "CancelledError":
            self._thrown = None
            if self._task is not None:
                # who asks the asyncio task (a timeout, a task group) must not take it for their own cancellation
                self._task.uncancel()
            error = thrown
        self.stepping = True
        try:
            return self._scope.run(self._coroutine.throw, error)
        finally:
            self.stepping = False

    def close(self) -> None:
        self._scope.run(self._coroutine.close)

    def __await__(self) -> Generator[Any, Any, Any]:
        return self

    def __iter__(self) -> Drive:
        return self

    def __next__(self) -> Any:
        return self.send(None)
