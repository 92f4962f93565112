"""The runtime of a gevent or eventlet child: K greenlets run calls, one more reads the pipe.

The process is patched before anything else is imported (`child`), so sockets, locks and sleeps of tasks give way.
Coroutine tasks run on one asyncio loop, which is a greenlet too.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import socket
import threading
from collections import deque
from collections.abc import Callable
from time import monotonic_ns
from typing import Any

import msgspec

from celeriac.model.outcome import Report
from celeriac.pools.frames import SEQ, Down, Splitter
from celeriac.pools.outbox import report_frame, skipped_frame, started_frame
from celeriac.pools.program import ParentGone, Ran, Runner
from celeriac.pools.slots import Slots


class Hub:
    """What gevent and eventlet call differently."""

    def __init__(self, kind: str) -> None:
        library: Any = importlib.import_module(kind)
        self.spawn: Callable[..., Any] = library.spawn
        self.sleep: Callable[[float], Any] = library.sleep
        self.soon: Callable[[Callable[[], None]], Any]
        """Call a function in the hub, while no other greenlet runs."""
        if kind == "gevent":
            self.soon = lambda function: library.get_hub().loop.run_callback(function)
        else:
            self.soon = lambda function: library.hubs.get_hub().schedule_call_global(0, function)


class _Seat:
    """One greenlet that runs calls."""

    def __init__(self, number: int, runner: Runner) -> None:
        self.number = number
        self.runner = runner
        self.green: Any = None


def _strike(seat: _Seat, seq: int, error: BaseException) -> None:
    """In the hub, where the greenlet can only be waiting: if it still waits in this call, raise the error there."""
    if seat.runner.armed == seq:
        seat.green.throw(error)


class Loop:
    """Reads calls for the greenlets."""

    def __init__(self, work: socket.socket, slots: Slots, runner: Runner, kind: str) -> None:
        self._work = work
        self._slots = slots
        self._runner = runner
        self._hub = Hub(kind)
        self._calls: deque[tuple[int, int, Any] | None] = deque()
        self._ready = threading.Semaphore(0)
        self._seats: list[_Seat] = []
        self._busy = 0
        self._terminated: set[int] = set()
        self._out = bytearray()
        self._writing = False
        self._asyncio: _Besides | None = None
        runner.on_started = lambda store: self._say(started_frame(store))

    def serve(self) -> None:
        """Until STOP. Raises ParentGone."""
        splitter = Splitter()
        while True:
            try:
                data = self._work.recv(65536)
            except OSError:
                data = b""
            if not data:
                raise ParentGone
            for kind, payload in splitter.feed(data):
                if kind == Down.RUN:
                    self._take((kind, SEQ.unpack_from(payload)[0], payload[8:]))
                elif kind in (Down.END, Down.REPLAY):
                    seq, *rest = msgspec.msgpack.decode(payload)
                    self._take((kind, seq, rest))
                elif kind == Down.CANCEL:
                    self._cancel(*msgspec.msgpack.decode(payload))
                elif kind == Down.STOP:
                    while self._busy or self._calls or self._out:
                        self._hub.sleep(0.005)
                    return

    def _take(self, call: tuple[int, int, Any]) -> None:
        self._calls.append(call)
        if self._busy + len(self._calls) > len(self._seats) < self._slots.seats:
            seat = _Seat(len(self._seats), self._runner.twin())
            self._seats.append(seat)
            seat.green = self._hub.spawn(self._run, seat)
        self._ready.release()

    def _cancel(self, seq: int, how: str) -> None:
        for seat in self._seats:
            if seat.runner.armed == seq:
                self._hub.soon(functools.partial(_strike, seat, seq, self._runner.exception_of(how)))
                return
        if self._asyncio is not None and self._asyncio.cancel(seq, self._runner.exception_of(how)):
            return
        if how == "terminate" and any(call is not None and call[1] == seq for call in self._calls):
            self._terminated.add(seq)

    def _run(self, seat: _Seat) -> None:
        while True:
            self._ready.acquire()
            call = self._calls.popleft()
            if call is None:
                return
            self._busy += 1
            try:
                self._one(seat, *call)
            finally:
                self._busy -= 1

    def _one(self, seat: _Seat, kind: int, seq: int, rest: Any) -> None:
        if not self._slots.start(seat.number, seq, monotonic_ns()):
            self._say(skipped_frame(seq))
            return
        runner = seat.runner
        ran: Ran
        if seq in self._terminated:
            self._terminated.discard(seq)
            ran = runner.end(seq, rest if kind == Down.RUN else rest[0], "terminated", "")
        elif kind == Down.RUN:
            job = runner.open(seq, rest)
            if isinstance(job, Report):
                ran = job
            elif job.is_async:
                if self._asyncio is None:
                    self._asyncio = _Besides(self._hub, self._runner.twin())
                ran = self._asyncio.run(seq, job)
            else:
                ran = runner.call(job)
        elif kind == Down.END:
            ran = runner.end(seq, *rest)
        else:
            ran = runner.replay(seq, *rest)
        self._slots.stop(seat.number)
        self._say(report_frame(seq, ran))

    def _say(self, data: bytes) -> None:
        """Whoever comes while another greenlet writes leaves it to that one."""
        self._out += data
        if self._writing:
            return
        self._writing = True
        try:
            while self._out:
                self._runner.flush_lines()
                piece = bytes(self._out)
                self._out.clear()
                with contextlib.suppress(OSError):
                    self._work.sendall(piece)
        finally:
            self._writing = False


class _Besides:
    """The asyncio loop beside the greenlets."""

    def __init__(self, hub: Hub, runner: Runner) -> None:
        import asyncio

        self._runner = runner
        self._loop = asyncio.new_event_loop()
        self._jobs: dict[int, Any] = {}
        hub.spawn(self._loop.run_forever)

    def run(self, seq: int, job: Any) -> Ran:
        done = threading.Event()
        found: list[Ran] = []
        self._jobs[seq] = job

        async def carry_out() -> None:
            try:
                found.append(await self._runner.acall(job))
            finally:
                done.set()

        self._loop.call_soon_threadsafe(lambda: self._loop.create_task(carry_out()))
        done.wait()
        del self._jobs[seq]
        return found[0]

    def cancel(self, seq: int, error: BaseException) -> bool:
        job = self._jobs.get(seq)
        if job is None:
            return False
        self._loop.call_soon_threadsafe(lambda: job.drive is not None and job.drive.interrupt(error))
        return True


def serve(work: socket.socket, slots: Slots, runner: Runner, kind: str) -> None:
    """Run calls until STOP. Raises ParentGone."""
    Loop(work, slots, runner, kind).serve()
