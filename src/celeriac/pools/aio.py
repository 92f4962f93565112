"""The runtime of an asyncio child: coroutine tasks on one event loop, plain functions in threads beside it.

A fixed set of coroutines takes calls from a queue: a task that never waits costs no asyncio task, one that waits costs
one switch. A loop that is blocked is noticed from a thread, and whoever blocks it is named.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import sys
import threading
from collections import deque
from time import monotonic_ns
from typing import Any

import msgspec

from celeriac.model.message import Store
from celeriac.model.outcome import Report
from celeriac.pools.crew import Crew, Seat
from celeriac.pools.frames import SEQ, Down, Splitter
from celeriac.pools.outbox import report_frame, skipped_frame, started_frame
from celeriac.pools.program import Job, ParentGone, Ran, Runner
from celeriac.pools.slots import Slots

log = logging.getLogger("celeriac.pool")

BREATH = 32
"""After so many calls that never waited, a seat lets the loop do other things."""
BLOCKED_SECONDS = 1.0
THREADS = 128
"""At most so many plain functions at once."""


class Loop:
    """Reads calls, has them run, writes reports once in each turn of the event loop."""

    def __init__(self, work: socket.socket, slots: Slots, runner: Runner) -> None:
        self._work = work
        self._slots = slots
        self._runner = runner
        self._splitter = Splitter()
        self._calls: deque[tuple[int, int, Any]] = deque()
        self._idle: deque[asyncio.Future[None]] = deque()
        self._seats: list[asyncio.Task[None]] = []
        self._jobs: dict[int, Job] = {}
        self._terminated: set[int] = set()
        self._busy = 0
        self._out = bytearray()
        self._flushing = False
        self._finished: deque[tuple[asyncio.Future[Ran], Ran]] = deque()
        self._collecting = False
        self._closing = False
        self._crew = Crew(min(slots.seats, THREADS), runner, self._in_thread)

    async def serve(self) -> None:
        """Until STOP. Raises ParentGone."""
        self._loop = asyncio.get_running_loop()
        self._stopped: asyncio.Future[None] = self._loop.create_future()
        self._runner.on_started = self._on_started
        self._work.setblocking(False)
        self._watch = _Watch(self._loop, self._jobs)
        self._loop.add_reader(self._work.fileno(), self._read)
        try:
            await self._stopped
        finally:
            self._loop.remove_reader(self._work.fileno())
            self._closing = True
            for seat in self._seats:
                seat.cancel()
            self._watch.close()
        self._crew.close()
        self._work.setblocking(True)
        with contextlib.suppress(OSError):
            self._runner.flush_lines()
            self._work.sendall(self._out)

    # --- intake

    def _read(self) -> None:
        try:
            data = self._work.recv(65536)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._lost()
            return
        for kind, payload in self._splitter.feed(data):
            if kind == Down.RUN:
                self._calls.append((kind, SEQ.unpack_from(payload)[0], payload[8:]))
            elif kind in (Down.END, Down.REPLAY):
                seq, *rest = msgspec.msgpack.decode(payload)
                self._calls.append((kind, seq, rest))
            elif kind == Down.CANCEL:
                self._cancel(*msgspec.msgpack.decode(payload))
            elif kind == Down.STOP:
                self._loop.remove_reader(self._work.fileno())
                self._closing = True
                self._stop_if_done()
        waiting = len(self._calls)
        while waiting and self._idle:
            waker = self._idle.popleft()
            if not waker.done():
                waker.set_result(None)
                waiting -= 1
        while waiting and len(self._seats) < self._slots.seats:
            self._seats.append(self._loop.create_task(self._seat(len(self._seats))))
            waiting -= 1

    def _cancel(self, seq: int, how: str) -> None:
        job = self._jobs.get(seq)
        if job is not None:
            if job.drive is not None:
                job.drive.interrupt(self._runner.exception_of(how))
        elif not self._crew.strike(seq, how) and how == "terminate" and any(call[1] == seq for call in self._calls):
            self._terminated.add(seq)

    # --- running

    async def _seat(self, number: int) -> None:
        calls = self._calls
        breath = 0
        while True:
            try:
                if not calls:
                    waker: asyncio.Future[None] = self._loop.create_future()
                    self._idle.append(waker)
                    breath = 0
                    await waker
                    continue
                call = calls.popleft()
                self._busy += 1
                try:
                    await self._one(number, *call)
                finally:
                    self._busy -= 1
                    if self._closing:
                        self._stop_if_done()
                breath += 1
                if breath >= BREATH:
                    breath = 0
                    await asyncio.sleep(0)
            except asyncio.CancelledError:
                if self._stopped.done():
                    raise
                # a cancellation that came when its call had ended; the seat goes on

    async def _one(self, number: int, kind: int, seq: int, rest: Any) -> None:
        if not self._slots.start(number, seq, monotonic_ns()):
            self._say(skipped_frame(seq))
            return
        self._watch.busy()
        ran: Ran
        if seq in self._terminated:
            self._terminated.discard(seq)
            ran = await self._thread(seq, Down.END, (rest if kind == Down.RUN else rest[0], "terminated", ""))
        elif kind == Down.RUN:
            job = self._runner.open(seq, rest)
            if isinstance(job, Report):
                ran = job
            elif job.is_async:
                self._jobs[seq] = job
                try:
                    ran = await self._runner.acall(job)
                finally:
                    del self._jobs[seq]
            else:
                ran = await self._thread(seq, Down.RUN, job)
        else:
            ran = await self._thread(seq, kind, rest)
        self._slots.stop(number)
        self._say(report_frame(seq, ran))

    async def _thread(self, seq: int, kind: int, what: Any) -> Ran:
        done: asyncio.Future[Ran] = self._loop.create_future()
        self._crew.submit((seq, kind, what, done))
        while True:
            try:
                return await asyncio.shield(done)
            except asyncio.CancelledError:
                # the thread can't be left behind: it is told otherwise
                if done.cancelled() or self._stopped.done():
                    raise

    def _in_thread(self, seat: Seat, item: Any) -> None:
        seq, kind, what, done = item
        runner = seat.runner
        ran: Ran
        if kind == Down.RUN:
            ran = runner.call(what)
        elif kind == Down.END:
            ran = runner.end(seq, *what)
        else:
            ran = runner.replay(seq, *what)
        self._finished.append((done, ran))
        if not self._collecting:
            # one wake-up of the loop collects what all threads have finished until it comes to it
            self._collecting = True
            with contextlib.suppress(RuntimeError):  # the loop is closed: the child ends
                self._loop.call_soon_threadsafe(self._collect)

    def _collect(self) -> None:
        self._collecting = False
        finished = self._finished
        while finished:
            done, ran = finished.popleft()
            if not done.done():
                done.set_result(ran)

    # --- saying

    def _on_started(self, store: Store) -> None:
        if threading.current_thread() is threading.main_thread():
            self._say(started_frame(store))
        else:
            self._loop.call_soon_threadsafe(self._say, started_frame(store))

    def _say(self, data: bytes) -> None:
        self._out += data
        if not self._flushing:
            self._flushing = True
            self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        self._runner.flush_lines()
        try:
            count = self._work.send(memoryview(self._out)[:262144])
        except BlockingIOError:
            count = 0
        except OSError:
            self._lost()
            return
        del self._out[:count]
        if self._out:
            self._loop.add_writer(self._work.fileno(), self._flush)
        else:
            self._loop.remove_writer(self._work.fileno())
            self._flushing = False

    def _lost(self) -> None:
        if not self._stopped.done():
            self._stopped.set_exception(ParentGone())

    def _stop_if_done(self) -> None:
        if not self._busy and not self._calls:
            self._stop()

    def _stop(self) -> None:
        if not self._stopped.done():
            self._stopped.set_result(None)


class _Watch:
    """A thread that names the task which blocks the event loop. Asleep while nothing runs."""

    def __init__(self, loop: asyncio.AbstractEventLoop, jobs: dict[int, Job]) -> None:
        self._loop = loop
        self._jobs = jobs
        self._main = threading.get_ident()
        self._active = threading.Event()
        self._closed = False
        self._answered = True
        threading.Thread(target=self._run, name="celeriac-watch", daemon=True).start()

    def busy(self) -> None:
        """Something runs."""
        if not self._active.is_set():
            self._active.set()

    def close(self) -> None:
        """End the thread."""
        self._closed = True
        self._active.set()

    def _answer(self) -> None:
        self._answered = True
        if not self._jobs:
            self._active.clear()

    def _run(self) -> None:
        pause = threading.Event()
        while True:
            self._active.wait()
            if self._closed:
                return
            self._answered = False
            try:
                self._loop.call_soon_threadsafe(self._answer)
            except RuntimeError:
                return
            pause.wait(BLOCKED_SECONDS)
            if not self._answered:
                self._tell()
                while not self._answered and not self._closed:
                    pause.wait(BLOCKED_SECONDS / 10)

    def _tell(self) -> None:
        names = [job.shown_name for job in list(self._jobs.values()) if job.drive is not None and job.drive.stepping]
        frame = sys._current_frames().get(self._main)
        where = f"{frame.f_code.co_filename}:{frame.f_lineno} in {frame.f_code.co_name}" if frame is not None else "?"
        log.warning(
            "the event loop of this child has been blocked for %g s by %s, at %s; other tasks of the child wait. "
            "Blocking calls belong into a plain function task or into asyncio.to_thread()",
            BLOCKED_SECONDS,
            f"task {names[0]}" if names else "something that is not a task",
            where,
        )


def serve(work: socket.socket, slots: Slots, runner: Runner) -> None:
    """Run calls until STOP. Raises ParentGone."""
    asyncio.run(Loop(work, slots, runner).serve())
