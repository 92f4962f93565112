"""The thread that owns a database on the asynchronous side, so that a slow disk never stops the loop."""

from __future__ import annotations

import asyncio
import os
import queue
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import TypeVar, cast

from celeriac.drivers.sqlite import WAL_LIMIT, Database, Location

T = TypeVar("T")


class DatabaseThread:
    """One thread with one Database. Jobs are done in the order in which they were asked for."""

    def __init__(self, location: Location, wal_limit: int = WAL_LIMIT) -> None:
        self.location = location
        self._database = Database(location, wal_limit)
        self._jobs: queue.SimpleQueue[Callable[[Database], None] | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._pid = os.getpid()

    async def run(self, work: Callable[[Database], T]) -> T:
        """Have the thread do `work`. It is done also when the caller is cancelled meanwhile."""
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[T] = loop.create_future()

        def job(database: Database) -> None:
            result: T | None = None
            failure: BaseException | None = None
            try:
                result = work(database)
            except BaseException as error:
                failure = error
            call(loop, lambda: deliver(answer, cast(T, result), failure))

        self.submit(job)
        return await answer

    def submit(self, job: Callable[[Database], None]) -> None:
        """Have the thread do a job that looks after its own outcome and raises nothing."""
        if self._pid != os.getpid():  # forked: the thread has stayed behind, with its jobs
            self._pid, self._thread, self._jobs = os.getpid(), None, queue.SimpleQueue()
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name="celeriac-sqlite", daemon=True)
            self._thread.start()
        self._jobs.put(job)

    def _work(self) -> None:
        jobs = self._jobs
        while (job := jobs.get()) is not None:
            job(self._database)
            del job  # or its message would stay in memory until the next one
        self._database.close()

    async def close(self) -> None:
        """Finish what was asked for and close the connection. The next use starts anew."""
        thread, self._thread = self._thread, None
        if thread is not None and self._pid == os.getpid():
            self._jobs.put(None)
            await asyncio.to_thread(thread.join)


def call(loop: asyncio.AbstractEventLoop, callback: Callable[[], object]) -> None:
    """Call something on a loop from another thread. Does nothing when that loop has ended, and its callers with it."""
    with suppress(RuntimeError):
        loop.call_soon_threadsafe(callback)


def deliver(answer: asyncio.Future[T], result: T, failure: BaseException | None) -> None:
    """Give a caller its outcome, unless it has gone."""
    if answer.done():
        return
    if failure is not None:
        answer.set_exception(failure)
    else:
        answer.set_result(result)
