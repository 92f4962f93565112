"""Tasks in the worker's own process, one at a time, in a thread: for debuggers. No limits, no terminate, no crash
protection: a task that kills its process kills the worker."""

from __future__ import annotations

import asyncio
import importlib
import time
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, cast

import msgspec

from celeriac.model.message import Store
from celeriac.model.outcome import Catalogue, Report
from celeriac.pools.frames import Ask
from celeriac.pools.handle import Call, Child, Listener
from celeriac.pools.program import Loader, Program, Ran, Runner


class InProcess:
    """The pool's shape without processes."""

    def __init__(self, listener: Listener, *, loader: str, spec: dict[str, Any]) -> None:
        self.listener = listener
        self.ready: deque[Call] = deque()
        self.children: dict[int, Child] = {}
        self._loader = loader
        self._spec = spec
        self._running: Call | None = None
        self._since = 0.0
        self._seq = 0
        self._closing = False
        self._thread = ThreadPoolExecutor(1, "celeriac-task")
        self._program: Program
        self._runner: Runner

    async def start(self) -> Catalogue:
        """Import the app here."""
        self._loop = asyncio.get_running_loop()
        module, _, name = self._loader.partition(":")
        self._program = cast(Loader, getattr(importlib.import_module(module), name))(self._spec)
        self._runner = self._program.runner(cast(Any, _Line(self._loop, self.listener)))
        self._runner.on_started = self._on_started
        self._program.on_process_init()
        return self._program.catalogue()

    async def stop(self, grace: float | None) -> None:
        """Take no more; wait for what runs, at most `grace` seconds."""
        self._closing = True
        end = None if grace is None else time.monotonic() + grace
        while self._running is not None and (end is None or time.monotonic() < end):
            await asyncio.sleep(0.02)
        self._thread.shutdown(wait=False, cancel_futures=True)

    def submit(self, call: Call) -> None:
        """Queue a call."""
        self.ready.append(call)

    def hunger(self) -> int:
        """One at a time, none ahead."""
        return 0 if self._closing or self._running is not None or self.ready else 1

    def free_seats(self) -> int:
        """No other task can run while one waits."""
        return 0

    def held(self) -> int:
        """Calls here, waiting or running."""
        return len(self.ready) + (self._running is not None)

    def busy(self) -> list[Call]:
        """The call that runs."""
        return [self._running] if self._running is not None else []

    def running(self) -> list[tuple[Call, float, int]]:
        """The call that runs, since how many seconds, and nobody's process id."""
        return [(self._running, time.monotonic() - self._since, 0)] if self._running is not None else []

    def first(self, call: Call) -> None:
        """Take a call before all others."""
        self.ready.appendleft(call)

    def drain(self) -> list[Call]:
        """Take back what does not run yet."""
        calls = list(self.ready)
        self.ready.clear()
        return calls

    def cancel(self, owner_matches: Callable[[Call], bool], why: str, detail: str, signum: int) -> int:
        """Nothing can be terminated here."""
        return 0

    def kill(self, calls: Iterable[Call]) -> None:
        """Nothing can be killed here."""

    def feed(self) -> None:
        """Start the next call when none runs."""
        if self._running is None and self.ready and not self._closing:
            self._seq += 1
            call = self.ready.popleft()
            call.seq = self._seq
            self._running, self._since = call, time.monotonic()
            future = self._thread.submit(self._run, call)
            future.add_done_callback(lambda done: self._loop.call_soon_threadsafe(self._ended, call, done.result()))

    def _run(self, call: Call) -> Ran:
        if call.end is not None:
            return self._runner.end(call.seq, call.blob, *call.end)
        if call.replay is not None:
            return self._runner.replay(call.seq, call.blob, call.replay)
        ran = self._runner.run(call.seq, call.blob)
        self._runner.flush_lines()
        return ran

    def _ended(self, call: Call, ran: Ran) -> None:
        self._running = None
        if isinstance(ran, Report):
            self.listener.on_report(call, ran)
        else:
            self.listener.on_done(call, *ran)
        self.listener.on_progress()

    def _on_started(self, store: Store) -> None:
        self._loop.call_soon_threadsafe(self.listener.on_store, msgspec.msgpack.encode(store))


class _Line:
    """What a task asks for, without a pipe between."""

    def __init__(self, loop: asyncio.AbstractEventLoop, listener: Listener) -> None:
        self._loop = loop
        self._listener = listener

    def ask(self, op: str, args: Any, timeout: float | None = 15.0) -> Any:
        """Ask and wait. A wait for another task would never end here, so it is refused as if every seat were taken."""
        return asyncio.run_coroutine_threadsafe(self._listener.ask(Ask[op.upper()], args), self._loop).result(timeout)

    async def aask(self, op: str, args: Any, timeout: float | None = 15.0) -> Any:
        """`ask` for a coroutine."""
        future = asyncio.run_coroutine_threadsafe(self._listener.ask(Ask[op.upper()], args), self._loop)
        async with asyncio.timeout(timeout):
            return await asyncio.wrap_future(future)

    def close(self) -> None:
        """Nothing is open."""
