"""The SQLite result backend keeps the contract; what is its own besides."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import pytest

from celeriac.backends.sqlite import SqliteBackend, SqliteReader
from celeriac.drivers import sqlite_layout
from celeriac.drivers.sqlite import Database
from celeriac.drivers.sqlite_results import Sweeper
from celeriac.model.message import Store
from celeriac.testing.contract_backend import BackendContract, ReaderContract
from celeriac.testing.contract_chords import chord, part
from celeriac.testing.rigs import BackendRig, in_loop


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


@in_loop
async def _opens_old_files(_: object, rig: SqliteRig) -> None:
    backend = rig.backend()
    assert await backend.fetch(["kept"]) == {"kept": b"1"}
    await backend.open_chords([chord(1)])
    assert list(await backend.count([part("m0", 0)], 30)) == [True]
    await backend.close()


def test_a_file_from_before_chords(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file of layout 1 is brought up to date with what is in it; who has it open goes on."""
    rig = SqliteRig(tmp_path)
    old = rig.reader()
    with monkeypatch.context() as patched:
        patched.setattr(sqlite_layout, "MIGRATIONS", sqlite_layout.MIGRATIONS[:1])
        old.store([Store("kept", b"1", "SUCCESS")])
    _opens_old_files(None, rig)
    old.store([Store("too", b"2", "SUCCESS")])
    assert set(old.fetch(["kept", "too"])) == {"kept", "too"}
    old.close()


def test_what_is_over_is_swept(tmp_path: Path) -> None:
    """Chords whose time is over leave nothing in the file; those that stand are left alone."""
    rig = SqliteRig(tmp_path)
    reader = rig.reader()
    reader.open_chords([chord(2, structure=b"shape", expires=1), chord(2, group="stays")])

    async def count() -> None:
        backend = rig.backend()
        await backend.count([part("m0", 0), part("m0", 0, group="stays")], 30)
        await backend.close()

    asyncio.run(count())
    rig.elapse_sync(2)
    database = Database(reader.location)
    Sweeper().sweep(database, rig.clock())
    for table, column in (("chords", "id"), ("chord_bodies", "id"), ("chord_parts", "chord")):
        rows = database.read(
            lambda connection, table=table, column=column: connection.execute(  # type: ignore[misc]
                f"SELECT {column} FROM celeriac_{table}"
            ).fetchall()
        )
        assert rows == [("stays",)], table
    database.close()
    reader.close()
