"""Results in Celery's SQL tables, over SQLAlchemy Core: PostgreSQL, MariaDB and MySQL, SQLite."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from celeriac.backends.blocking import BlockingBackend, BlockingReader
from celeriac.backends.sql.store import SqlStore


class SqlBackend(BlockingBackend):
    """ResultBackend on a database."""

    def __init__(self, url: str, options: Mapping[str, Any], clock: Callable[[], float] | None = None) -> None:
        super().__init__(SqlStore(url, options, clock))


class SqlReader(BlockingReader):
    """The synchronous side."""

    def __init__(self, url: str, options: Mapping[str, Any], clock: Callable[[], float] | None = None) -> None:
        super().__init__(SqlStore(url, options, clock))
