"""One event loop in one thread under the sync API, for what has no direct sync path (remote control, browsing).

The thread, its locks and its selector are the operating system's own even where gevent or eventlet has patched the
standard library: a patched lock in the loop's thread would wait for a hub that never runs. A caller waits on a socket
of *its* world, so that a greenlet that waits lets the others run.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Coroutine
from contextlib import suppress
from typing import TYPE_CHECKING, Any, TypeVar

from celeriac.drivers.unpatched import unpatched

if TYPE_CHECKING:
    import asyncio

T = TypeVar("T")
_GRACE = 1.0
"""Seconds that a cancelled coroutine gets to end before its caller is let go."""


class Bridge:
    """Runs coroutines for sync callers. Safe for threads, greenlets and forks; the loop starts at the first use."""

    def __init__(self, name: str = "celeriac-bridge") -> None:
        self._name = name
        self._lock = unpatched("_thread", "allocate_lock")()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._pid = 0

    @property
    def loop(self) -> asyncio.AbstractEventLoop:
        """The loop; started, or started again in a forked child."""
        loop = self._loop
        if loop is None or self._pid != os.getpid():
            loop = self._start()
        return loop

    def run(self, job: Coroutine[Any, Any, T], timeout: float | None = None) -> T:
        """Run a coroutine on the loop and return its result. Raises TimeoutError (and cancels it) after `timeout`
        seconds, RuntimeError when called on the bridge's own thread, where it would wait for itself."""
        import _socket
        import asyncio
        import socket

        loop = self.loop
        try:
            running = asyncio.get_running_loop()
        except RuntimeError:
            running = None
        if running is loop:
            job.close()
            raise RuntimeError("the sync API was called on the loop of the bridge: use the async twin there")
        ours, theirs = socket.socketpair()
        bell = _socket.socket(fileno=theirs.detach())  # rung by the loop's thread: must not be a green socket
        outcome: list[tuple[bool, Any]] = []
        tasks: list[asyncio.Task[T]] = []

        def ended(task: asyncio.Task[T]) -> None:
            if task.cancelled():
                outcome.append((False, TimeoutError(f"no answer within {timeout} s")))
            elif (error := task.exception()) is not None:
                outcome.append((False, error))
            else:
                outcome.append((True, task.result()))
            with suppress(OSError):  # the caller may have gone
                bell.send(b"x")
            bell.close()

        def start() -> None:
            task = loop.create_task(job)
            tasks.append(task)
            task.add_done_callback(ended)

        def cancel() -> None:
            tasks[0].cancel()

        loop.call_soon_threadsafe(start)
        try:
            ours.settimeout(timeout)
            ours.recv(1)
        except TimeoutError:
            loop.call_soon_threadsafe(cancel)
            ours.settimeout(_GRACE)
            with suppress(TimeoutError):
                ours.recv(1)
        except BaseException:
            loop.call_soon_threadsafe(cancel)
            raise
        finally:
            ours.close()
        if not outcome:
            raise TimeoutError(f"no answer within {timeout} s")
        good, value = outcome[0]
        if good:
            return value  # type: ignore[no-any-return]
        raise value

    def stop(self) -> None:
        """Stop the loop and its thread. A later `run` starts a new one."""
        with self._lock:
            loop, self._loop = self._loop, None
            if loop is not None and self._pid == os.getpid():
                loop.call_soon_threadsafe(loop.stop)

    def _start(self) -> asyncio.AbstractEventLoop:
        with self._lock:
            if self._loop is not None and self._pid == os.getpid():
                return self._loop
            loop = _new_loop()
            unpatched("_thread", "start_new_thread")(_serve, (loop,))
            self._loop, self._pid = loop, os.getpid()
            return loop


def _serve(loop: asyncio.AbstractEventLoop) -> None:
    import asyncio

    try:
        loop.run_forever()
        pending = asyncio.all_tasks(loop)
        for task in pending:
            task.cancel()
        if pending:
            loop.run_until_complete(asyncio.gather(*pending, return_exceptions=True))
    finally:
        loop.close()


def _new_loop() -> asyncio.AbstractEventLoop:
    import asyncio

    if not _is_green():
        return asyncio.new_event_loop()
    from celeriac.app.greenloop import GreenProofLoop

    return GreenProofLoop(unpatched("select", "poll")())


def _is_green() -> bool:
    monkey = sys.modules.get("gevent.monkey")
    if monkey is not None and monkey.is_module_patched("select"):
        return True
    patcher = sys.modules.get("eventlet.patcher")
    return patcher is not None and bool(patcher.is_monkey_patched("select"))
