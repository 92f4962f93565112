"""Threads that run calls, each with a runner of its own, and how an exception gets into one of them.

An exception is put into a thread (PyThreadState_SetAsyncExc) only while its runner says that a task's own code runs
there. The test and the act happen between two bytecodes, so nothing comes between them; and a thread that waits for the
parent behind a shield is told through the shield.
"""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any

from celeriac.pools.program import Runner
from celeriac.pools.shield import Shield, protect, unprotect

_set_exception = ctypes.pythonapi.PyThreadState_SetAsyncExc
_set_exception.argtypes = (ctypes.c_ulong, ctypes.py_object)


class Seat(threading.Thread):
    """One thread that runs calls."""

    def __init__(
        self, number: int, items: SimpleQueue[Any], runner: Runner, handle: Callable[[Seat, Any], None]
    ) -> None:
        super().__init__(name=f"celeriac-task-{number + 1}", daemon=True)
        self.number = number
        self.runner = runner
        self._shield = Shield(sliced=True)
        self._items = items
        self._handle = handle

    def run(self) -> None:
        """Handle items until there is a None."""
        self._shield = protect(sliced=True)
        take, handle = self._items.get, self._handle
        while (item := take()) is not None:
            try:
                handle(self, item)
            finally:
                self._shield.pending = None
        self.runner.close()
        unprotect()

    def strike(self, seq: int, error: BaseException) -> bool:
        """Raise `error` in this thread if it runs call `seq`. Called from another thread."""
        runner, shield, put = self.runner, self._shield, _set_exception
        ident, kind = self.ident, type(error)
        if runner.armed != seq:
            return False
        drive = runner.drive
        # From a test to what it guards nothing may be called: a call is where another thread may come in between.
        if drive is not None:
            if drive.stepping:
                if shield.depth:
                    shield.pending = error
                else:
                    put(ident, kind)
            else:
                drive.interrupt_threadsafe(error)
        elif runner.armed == seq:
            if shield.depth:
                shield.pending = error
            else:
                put(ident, kind)
        return True


class Crew:
    """Up to `size` threads; one is started whenever work waits and none is idle."""

    def __init__(self, size: int, runner: Runner, handle: Callable[[Seat, Any], None]) -> None:
        """`handle(seat, item)` runs on a seat's thread and never raises."""
        self._size = size
        self._runner = runner
        self._handle = handle
        self._items: SimpleQueue[Any] = SimpleQueue()
        self._seats: list[Seat] = []
        self._open = 0
        self._lock = threading.Lock()

    def submit(self, item: Any) -> None:
        """Have a thread handle the item, in order."""
        with self._lock:
            self._open += 1
            if self._open > len(self._seats) < self._size:
                seat = Seat(len(self._seats), self._items, self._runner.twin(), self._run)
                self._seats.append(seat)
                seat.start()
        self._items.put(item)

    def _run(self, seat: Seat, item: Any) -> None:
        try:
            self._handle(seat, item)
        finally:
            with self._lock:
                self._open -= 1

    def idle(self) -> bool:
        """No item waits for a thread."""
        return self._items.empty()

    def strike(self, seq: int, how: str) -> bool:
        """Raise what `how` (of a CANCEL frame) means in the thread that runs call `seq`. False: none does."""
        error = self._runner.exception_of(how)
        return any(seat.strike(seq, error) for seat in self._seats)

    def close(self) -> None:
        """Wait until everything is handled; end the threads."""
        for _ in self._seats:
            self._items.put(None)
        for seat in self._seats:
            seat.join()
