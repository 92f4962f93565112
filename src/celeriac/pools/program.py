"""What a child is given to run: protocols that the runtime and the app keep, without knowing the pools."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from celeriac.model.message import Store
from celeriac.model.outcome import Catalogue, Report
from celeriac.pools.link import Link

Ran = Report | tuple[bytes | None, float]
"""How a run ended. The pair `(document or None, seconds)`: SUCCESS, acknowledge, nothing to send."""


class ParentGone(Exception):
    """The pipe ended without STOP: nobody wants to hear of anything any more."""


class Program(Protocol):
    """The app, loaded for running its tasks."""

    def catalogue(self) -> Catalogue:
        """Every task and the options that the parent needs."""
        ...

    def runner(self, link: Link) -> Runner:
        """What runs messages. From now on the app reaches broker and backend through `link`."""
        ...

    def on_process_init(self) -> None:
        """The child is made (`worker_process_init`)."""
        ...

    def on_process_shutdown(self) -> None:
        """The child ends in peace (`worker_process_shutdown`)."""
        ...


class Loader(Protocol):
    """`module:function` that imports the app."""

    def __call__(self, spec: dict[str, Any]) -> Program: ...


class Interruptible(Protocol):
    """A coroutine call that takes exceptions from outside."""

    stepping: bool

    def interrupt(self, error: BaseException) -> None:
        """Throw `error` into it at its next step. On the loop's thread."""
        ...

    def interrupt_threadsafe(self, error: BaseException) -> None:
        """The same from another thread."""
        ...


class Job(Protocol):
    """An opened message."""

    @property
    def is_async(self) -> bool:
        """Its task is a coroutine function."""
        ...

    @property
    def shown_name(self) -> str:
        """Its name in logs."""
        ...

    @property
    def drive(self) -> Interruptible | None:
        """Set while its coroutine runs."""
        ...


class Runner(Protocol):
    """Runs messages on one thread, or on one event loop."""

    armed: int
    """The call whose user code may be interrupted in this thread; 0: none."""
    drive: Any
    """Interruptible: the coroutine call that is armed, if it is one."""
    on_started: Callable[[Store], None]
    before_slow: Callable[[], None]
    """Called before a task that is known to be slow, or not known."""

    def twin(self) -> Runner:
        """A runner of the same tasks for another thread."""
        ...

    def begin(self) -> None:
        """This process runs tasks from now on; logging is set up."""
        ...

    def flush_lines(self) -> None:
        """Write log lines that were kept back."""
        ...

    def run(self, seq: int, blob: bytes) -> Ran:
        """Run a message to its end, on this thread."""
        ...

    def open(self, seq: int, blob: bytes) -> Any:
        """A Job, or the Report of a message that can't be run."""
        ...

    def call(self, job: Any) -> Ran:
        """Run an opened message on this thread."""
        ...

    async def acall(self, job: Any) -> Ran:
        """Run an opened message on the running loop."""
        ...

    def end(self, seq: int, blob: bytes, why: str, detail: str) -> Report:
        """End a message without running it."""
        ...

    def replay(self, seq: int, blob: bytes, document: bytes) -> Report:
        """Only say what follows from a SUCCESS that is stored."""
        ...

    def interrupt(self, seq: int, error: BaseException) -> bool:
        """Throw into call `seq` where it waits in an event loop. False: it is to be raised in the thread."""
        ...

    def exception_of(self, how: str) -> BaseException:
        """What a CANCEL frame throws: for `soft`, `hard`, `terminate`."""
        ...

    def close(self) -> None:
        """Close the event loop, if there was one."""
        ...
