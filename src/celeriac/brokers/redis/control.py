"""What broker and consumers share: the server, the layout, and the control connection (everything but the cycles)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from celeriac.brokers.redis.layout import VERSION, Layout, too_new
from celeriac.drivers.redis.aio import AsyncConnection, AsyncLink
from celeriac.drivers.redis.protocol import Words, driver
from celeriac.drivers.redis.site import Site, run_id_of
from celeriac.drivers.redis.url import parse
from celeriac.errors import CeleryError, EncodeError


class Control:
    """One server as a broker. Connects on first use; bound to one loop."""

    def __init__(
        self,
        url: str,
        options: Mapping[str, Any] | None,
        on_push: Callable[[list[Any]], None],
        on_lost: Callable[[CeleryError], None],
    ) -> None:
        """Raises ImproperlyConfigured for a URL or an option that can't be used, and when hiredis is missing."""
        driver()
        self.server = parse(url, options)
        self.layout = Layout(self.server.options, self.server.db)
        self.link = AsyncLink(self.server, on_push, on_lost, self._prepare)
        self.run_id = ""
        """Of the server process that the link leads to; empty where the user may not ask."""
        self.stores_at: Site | None = None
        """Where the results of completions go; None: into this database, without a prefix."""
        self._declared: set[str] = set()

    def describe(self) -> str:
        """The URL without its password."""
        return self.server.describe()

    async def declare(self, queues: Iterable[str]) -> None:
        """Make queues known to us and to peers, once for each connection."""
        unknown = sorted(set(queues) - self._declared)
        if unknown:
            try:
                await self.link.many(self.layout.declaration(unknown))
            except UnicodeEncodeError as error:
                raise EncodeError(f"a queue name can't be written in UTF-8: {error}") from error
            self._declared.update(unknown)

    def undeclared(self, queue: str) -> bool:
        """Has this queue not been made known yet?"""
        return queue not in self._declared

    async def _prepare(self, connection: AsyncConnection) -> None:
        self._declared.clear()
        key = f"{self.layout.private}layout"
        commands: list[Words] = [("SETNX", key, VERSION), ("GET", key), ("INFO", "server")]
        _, version, info = await connection.send(b"".join(map(connection.pack, commands)), len(commands))
        if isinstance(version, bytes) and version.isdigit() and int(version) > VERSION:
            raise too_new(self.describe(), int(version))
        self.run_id = run_id_of(info)
