"""The SQLite result backend keeps the contract; what is its own besides."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from celeriac.backends.sqlite import SqliteBackend, SqliteReader
from celeriac.testing.contract_backend import BackendContract, ReaderContract
from celeriac.testing.rigs import BackendRig


class SqliteRig(BackendRig):
    """A file of its own, and a clock that jumps instead of going."""

    def __init__(self, folder: Path) -> None:
        self.ahead = 0.0
        self.url = f"sqlite:///{folder}/test.db"
        self.options = {"synchronous": "normal"}

    def clock(self) -> float:
        return time.time() + self.ahead

    def backend(self) -> SqliteBackend:
        return SqliteBackend(self.url, self.options, self.clock)

    def reader(self) -> SqliteReader:
        return SqliteReader(self.url, self.options, self.clock)

    async def elapse(self, seconds: float) -> None:
        self.ahead += seconds


class TestSqliteBackend(BackendContract):
    @pytest.fixture
    def rig(self, tmp_path: Path) -> SqliteRig:
        return SqliteRig(tmp_path)


class TestSqliteReader(ReaderContract):
    @pytest.fixture
    def rig(self, tmp_path: Path) -> SqliteRig:
        return SqliteRig(tmp_path)
