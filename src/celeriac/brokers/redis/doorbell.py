"""Waking up on a server that refuses CLIENT TRACKING: a blocking command that moves the head of one list onto
itself."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from celeriac.drivers.redis.aio import AsyncLink
from celeriac.drivers.redis.url import Server
from celeriac.errors import CeleryError

LONGEST = 20
"""Seconds that the server is asked to wait."""


class Doorbell:
    """Rings when a list gets an entry. Nothing is ever taken out: BLMOVE from a list to the same end of the same list
    is one step, after which all is as before."""

    def __init__(self, server: Server, ring: Callable[[], None]) -> None:
        self._link = AsyncLink(server)
        self._ring = ring
        self._listening: asyncio.Task[None] | None = None
        self._refused = False

    def listen(self, key: str) -> None:
        """Ring once when there is something in the list, or something has come. Without effect while it listens, and
        for good when the server refuses this too."""
        if not self._refused and (self._listening is None or self._listening.done()):
            self._listening = asyncio.get_running_loop().create_task(self._listen(key))

    async def _listen(self, key: str) -> None:
        words: tuple[Any, ...] = ("BLMOVE", key, key, "RIGHT", "RIGHT", LONGEST)
        try:
            connection = await self._link.connection()
            reply = await connection.send(connection.pack(words), 1, LONGEST + connection.server.timeout)
        except CeleryError:  # the next cycle will see what is wrong
            return
        if isinstance(reply, Exception):
            self._refused = True
        elif reply is not None:
            self._ring()

    def close(self) -> None:
        """Stop listening."""
        if self._listening is not None:
            self._listening.cancel()
        self._link.close()
