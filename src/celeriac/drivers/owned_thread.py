"""The thread that owns a connection on the asynchronous side, so that a slow disk or server never stops the loop.

It is a thread of the operating system also where gevent or eventlet has patched the standard library: under the sync
API its loop runs in such a thread too, where no hub would ever start a greenlet.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Generic, Protocol, TypeVar, cast

from celeriac.drivers.unpatched import unpatched


class Owned(Protocol):
    """What a thread can own."""

    def close(self) -> None:
        """Close what is open. The next use opens it again."""
        ...


T = TypeVar("T")
R = TypeVar("R", bound=Owned)


class OwnedThread(Generic[R]):
    """One thread with what it owns. Jobs are done in the order in which they were asked for."""

    def __init__(self, owned: R) -> None:
        self._owned = owned
        self._jobs: Any = None
        """The queue of the thread that runs; None: none does."""
        self._pid = os.getpid()

    async def run(self, work: Callable[[R], T]) -> T:
        """Have the thread do `work`. It is done also when the caller is cancelled meanwhile."""
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[T] = loop.create_future()

        def job(owned: R) -> None:
            result: T | None = None
            failure: BaseException | None = None
            try:
                result = work(owned)
            except BaseException as error:
                failure = error
            call(loop, lambda: deliver(answer, cast(T, result), failure))

        self.submit(job)
        return await answer

    def submit(self, job: Callable[[R], None]) -> None:
        """Have the thread do a job that looks after its own outcome and raises nothing."""
        if self._jobs is None or self._pid != os.getpid():  # forked: the thread has stayed behind, with its jobs
            self._pid, self._jobs = os.getpid(), unpatched("queue", "SimpleQueue")()
            unpatched("_thread", "start_new_thread")(self._work, (self._jobs,))
        self._jobs.put(job)

    def _work(self, jobs: Any) -> None:
        while (job := jobs.get()) is not None:
            job(self._owned)
            del job  # or its message would stay in memory until the next one

    async def close(self) -> None:
        """Finish what was asked for and close what is owned. The next use starts anew."""
        if self._jobs is None or self._pid != os.getpid():
            return
        loop = asyncio.get_running_loop()
        closed: asyncio.Future[None] = loop.create_future()

        def last(owned: R) -> None:
            owned.close()
            call(loop, lambda: deliver(closed, None, None))

        jobs, self._jobs = self._jobs, None
        jobs.put(last)
        jobs.put(None)
        await closed


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
