"""What the parent knows of one call and of one child, and how it writes to a child without blocking."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import time
from typing import Any, Protocol

import msgspec

from celeriac.model.outcome import Catalogue, Report
from celeriac.pools.frames import Ask, Splitter
from celeriac.pools.slots import Slots


class Call(msgspec.Struct, gc=False):
    """One message on its way through the pool."""

    blob: bytes
    task: str
    owner: Any
    """What the worker knows of it; carried along."""
    soft: float | None = None
    hard: float | None = None
    alone: bool = False
    """Ran in a child that was lost: run it in a child where nothing else runs."""
    end: tuple[str, Any] | None = None
    """`(why, detail)` of an END frame: don't run it, end it."""
    replay: bytes | None = None
    """The stored document of an earlier SUCCESS: only say what follows from it."""
    seq: int = 0
    cost: float = 0.0
    soft_sent: bool = False
    told: bool = False
    """That it started has been told."""
    hard_at: float = 0.0
    """Monotonic time at which the hard cancel was sent."""
    doomed: str = ""
    """Why its child is being killed on purpose: timeout or terminated."""


class Listener(Protocol):
    """Who hears what becomes of calls. Called on the loop, must not block."""

    def on_done(self, call: Call, document: bytes | None, runtime: float) -> None:
        """The plain case: SUCCESS, nothing follows. `runtime` is seconds."""
        ...

    def on_report(self, call: Call, report: Report) -> None:
        """Any other outcome."""
        ...

    def on_lost(self, call: Call, reason: str) -> None:
        """The child died while it ran this call."""

    def on_surplus(self, calls: list[Call]) -> None:
        """Calls that wait while every child is stuck: give them back to the broker."""

    def on_started(self, call: Call) -> None:
        """A call runs for longer than a moment."""
        ...

    def on_store(self, payload: bytes) -> None:
        """A STARTED document (msgpack Store)."""

    def on_events(self, events: list[dict[str, Any]]) -> None:
        """Events that a task made itself."""
        ...

    def on_catalogue(self, catalogue: Catalogue) -> None:
        """The tasks, at the start or registered later."""
        ...

    def on_progress(self) -> None:
        """A batch of reports was read, or room became free."""

    def on_broken(self, text: str) -> None:
        """No child can be started; the worker has to stop."""

    async def ask(self, op: Ask, args: Any) -> Any:
        """A running task asks for something."""
        ...


class Child:
    """One child process, as the parent sees it."""

    __slots__ = (
        "asking",
        "done",
        "given_up",
        "index",
        "load",
        "out",
        "pid",
        "progress",
        "quarantine",
        "ready",
        "recalled",
        "recalling",
        "retiring",
        "seats",
        "sent",
        "side",
        "side_out",
        "side_splitter",
        "slots",
        "splitter",
        "started_at",
        "stopping",
        "work",
    )

    def __init__(
        self, index: int, seats: int, slots: Slots, work: socket.socket, side: socket.socket, quarantine: bool
    ) -> None:
        self.index = index
        self.seats = seats
        self.slots = slots
        self.work = work
        self.side = side
        self.quarantine = quarantine
        self.pid = 0
        self.ready = False
        self.retiring = False
        self.stopping = False
        self.given_up = 0.0
        self.started_at = time.monotonic()
        self.progress = self.started_at
        self.sent: dict[int, Call] = {}
        self.load = 0.0
        self.done = 0
        self.asking = 0
        self.recalling = False
        self.recalled = 0
        """The call behind which calls were last taken back."""
        self.out = bytearray()
        self.side_out = bytearray()
        self.splitter = Splitter()
        self.side_splitter = Splitter()

    def room(self) -> bool:
        """Whether it may get calls. Not while some are taken back: what it got now would be taken for one of them, and
        run twice."""
        return self.ready and not self.retiring and not self.stopping and not self.recalling

    def signal(self, signum: int) -> None:
        """Send a signal to the process; it may be gone already."""
        if self.pid:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signum)

    def kill(self) -> None:
        """End the process at once."""
        self.signal(signal.SIGKILL)


def send(loop: asyncio.AbstractEventLoop, sock: socket.socket, out: bytearray, data: bytes) -> None:
    """Write without blocking; what the pipe does not take waits in `out`."""
    if out:
        out += data
        return
    try:
        count = sock.send(data)
    except BlockingIOError:
        count = 0
    except OSError:
        return  # the child is gone; its calls come back when the template says so
    if count < len(data):
        out += data[count:]
        loop.add_writer(sock.fileno(), _flush, loop, sock, out)


def _flush(loop: asyncio.AbstractEventLoop, sock: socket.socket, out: bytearray) -> None:
    try:
        count = sock.send(memoryview(out)[:262144])
    except BlockingIOError:
        return
    except OSError:
        out.clear()
        count = 0
    del out[:count]
    if not out:
        loop.remove_writer(sock.fileno())
