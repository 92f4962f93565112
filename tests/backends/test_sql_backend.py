"""Results in SQL tables keep the contract, on real databases; what is their own besides."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from celeriac.backends.sql import SqlBackend, SqlReader
from celeriac.testing.contract_backend import BackendContract, ReaderContract
from celeriac.testing.rigs import BackendRig

TABLES = ("celery_taskmeta", "celery_tasksetmeta", "celeriac_sql_chords", "celeriac_sql_chord_entries")


class SqlRig(BackendRig):
    """One database. SQLite has a clock that jumps."""

    exact = False
    forgets = False

    def __init__(self, url: str, options: dict[str, Any] | None = None) -> None:
        self.url = url
        self.options = options or {}
        self.ahead = 0.0
        self.jumps = "sqlite" in url
        reader = self.reader()
        reader.fetch(["make the tables"])
        engine = reader._store._connected()  # type: ignore[attr-defined]
        with engine.begin() as connection:
            for table in TABLES:
                connection.execute(sa.text(f"DELETE FROM {table}"))
        reader.close()

    def clock(self) -> float:
        return time.time() + self.ahead

    def backend(self) -> SqlBackend:
        return SqlBackend(self.url, self.options, self.clock if self.jumps else None)

    def reader(self) -> SqlReader:
        return SqlReader(self.url, self.options, self.clock if self.jumps else None)

    async def elapse(self, seconds: float) -> None:
        if self.jumps:
            self.ahead += seconds
        else:
            await super().elapse(seconds)


class _OnDatabases:
    @pytest.fixture(params=["sqlite", "postgres", "mariadb"])
    def rig(self, request: pytest.FixtureRequest, tmp_path: Path) -> SqlRig:
        if request.param == "sqlite":
            return SqlRig(f"db+sqlite:///{tmp_path}/results.db")
        return SqlRig("db+" + request.getfixturevalue(f"{request.param}_url"))


class TestSqlBackend(_OnDatabases, BackendContract):
    """The asynchronous side."""


class TestSqlReader(_OnDatabases, ReaderContract):
    """The synchronous side."""
