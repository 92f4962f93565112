"""The connections of one loop to one database, shared by its broker and its result backend: a PostgreSQL server has
room for a hundred connections or so."""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import Callable, Sequence

from celeriac.drivers.postgres.line import Line
from celeriac.drivers.postgres.site import Site

Ear = Callable[[str, str], None]
LONG = 300.0
"""Seconds for what may take long: counting, purging, sweeping."""


class Lines:
    """Two connections: `side` for what may be large or slow, `ear` for leases and notifications. A worker's cycles have
    one of their own. Made by `lines_of`."""

    def __init__(self, site: Site) -> None:
        self.site = site
        self.side = Line(site)
        self.ear = Line(site, hear=self._hear)
        self.ears: set[Ear] = set()
        """Who is told of each notification (channel, payload); of a lost connection as `("", "")`."""
        self.users = 0

    def _hear(self, channel: str, payload: str) -> None:
        for ear in tuple(self.ears):
            ear(channel, payload)

    async def hear(self, ear: Ear, channels: Sequence[str]) -> bool:
        """Tell `ear` of notifications from now on. False: none come through, it has to look by itself."""
        self.ears.add(ear)
        for channel in channels:
            await self.ear.listen(channel)
        await self.ear.open()
        return self.ear.listens

    async def release(self) -> None:
        """One user less; the last one closes the connections."""
        self.users -= 1
        if not self.users:
            _held.get(asyncio.get_running_loop(), {}).pop(self.site, None)
            await self.side.close()
            await self.ear.close()


_held: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, dict[Site, Lines]] = weakref.WeakKeyDictionary()


class Holder:
    """What one broker or backend holds of the lines, from its first use to its close."""

    def __init__(self, site: Site) -> None:
        self.site = site
        self._lines: Lines | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    def lines(self) -> Lines:
        """The lines of the running loop."""
        loop = asyncio.get_running_loop()
        if self._lines is None or self._loop is not loop:
            self._loop = loop
            self._lines = _held.setdefault(loop, {}).setdefault(self.site, Lines(self.site))
            self._lines.users += 1
        return self._lines

    async def close(self) -> None:
        """Give them back. The next use takes them anew."""
        lines, self._lines = self._lines, None
        if lines is not None:
            await lines.release()
