"""An event loop's ear for doorbells."""

from __future__ import annotations

import asyncio
from contextlib import suppress

from celeriac.drivers.alarm import Alarm
from celeriac.drivers.doorbell import Bells

LOOK_SECONDS = 0.25
"""How often who waits looks by itself where bells work: a lost ring costs so much."""
LOOK_OFTEN = 0.02
"""The same where they don't."""


class Listener:
    """Waits on the running loop for one kind of bell. Where there can't be a bell it only lets time pass."""

    def __init__(self, bells: Bells, kind: str) -> None:
        self._loop = asyncio.get_running_loop()
        self._bell = bells.bell(kind)
        self._rung = Alarm()
        if self._bell is not None:
            try:
                self._loop.add_reader(self._bell, self._hear)
            except NotImplementedError:  # a loop that can't watch sockets
                self._bell.close()
                self._bell = None

    @property
    def path(self) -> str:
        """The bell's path, for who does not want to ring his own; empty without a bell."""
        return "" if self._bell is None else self._bell.path

    @property
    def look(self) -> float:
        """After how many seconds without a ring it is time to look."""
        return LOOK_OFTEN if self._bell is None else LOOK_SECONDS

    def _hear(self) -> None:
        if self._bell is not None:
            self._bell.drain()
        self._rung.set()

    def ring(self) -> None:
        """Ring from within."""
        self._rung.set()

    def clear(self) -> None:
        """Forget the rings that have come."""
        self._rung.clear()

    async def wait(self, seconds: float) -> bool:
        """Wait for a ring, up to so many seconds. Did one come?"""
        return await self._rung.wait(seconds)

    def close(self) -> None:
        """Take the bell away."""
        bell, self._bell = self._bell, None
        if bell is not None:
            with suppress(RuntimeError, ValueError):  # the loop is closed already
                self._loop.remove_reader(bell)
            bell.close()
