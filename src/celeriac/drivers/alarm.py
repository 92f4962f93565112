"""An event that an asyncio task can await with a limit of time, without losing a cancellation."""

from __future__ import annotations

import asyncio


class Alarm:
    """As asyncio.Event, for one loop. `asyncio.wait_for` swallows a cancellation that comes together with the event
    (Python 3.11): a task that waits in a circle would never end. This one does not."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._rung = False
        self._waiters: set[asyncio.Future[None]] = set()

    def is_set(self) -> bool:
        """Has it rung since the last `clear`?"""
        return self._rung

    def set(self) -> None:
        """Wake everyone who waits, and whoever will wait until `clear`."""
        self._rung = True
        for waiter in self._waiters:
            _release(waiter)

    def clear(self) -> None:
        """Forget that it rang."""
        self._rung = False

    async def wait(self, seconds: float) -> bool:
        """Wait until it rings, up to so many seconds. Has it rung?"""
        if self._rung:
            return True
        waiter = self._loop.create_future()
        self._waiters.add(waiter)
        timer = self._loop.call_later(seconds, _release, waiter)
        try:
            await waiter
        finally:
            timer.cancel()
            self._waiters.discard(waiter)
        return self._rung


def _release(waiter: asyncio.Future[None]) -> None:
    if not waiter.done():
        waiter.set_result(None)
