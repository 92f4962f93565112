"""Results in Celery's SQL tables, over SQLAlchemy Core: PostgreSQL, MariaDB and MySQL, SQLite."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

from celeriac.backends.blocking import BlockingBackend, BlockingReader
from celeriac.backends.sql.store import SqlStore
from celeriac.errors import OperationalError
from celeriac.ports import Keeping


class SqlBackend(BlockingBackend):
    """ResultBackend on a database."""

    keeping = Keeping(
        waits="PostgreSQL with psycopg: told at once, by NOTIFY; others, and what Celery stores: looked for, twice a"
        " second at last",
        forgets="cleaned up, by workers and by celery.backend_cleanup",
        chords="counted in tables of celeriac; those that Celery sent: asked for by celery.chord_unlock",
        layout="Celery 5.7; reads 5.6 too",
    )

    def __init__(self, url: str, options: Mapping[str, Any], clock: Callable[[], float] | None = None) -> None:
        self._sql = SqlStore(url, options, clock)
        super().__init__(self._sql)
        self._early = options.get("create_tables_at_setup") is True

    async def prepare(self) -> None:
        """Make the tables, where `database_create_tables_at_setup` asks for it."""
        if self._early:
            with suppress(OperationalError):
                await self._thread.run(lambda _: self._sql.prepare())


class SqlReader(BlockingReader):
    """The synchronous side."""

    def __init__(self, url: str, options: Mapping[str, Any], clock: Callable[[], float] | None = None) -> None:
        super().__init__(SqlStore(url, options, clock))
