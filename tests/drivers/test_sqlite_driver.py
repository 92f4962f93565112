"""A database file is opened, used, refused and mended as promised."""

from __future__ import annotations

import asyncio
import gc
import os
import sqlite3
import threading
import time
from pathlib import Path

import pytest

from celeriac.drivers import sqlite_layout
from celeriac.drivers.sqlite import WAL_LIMIT, Database, Location, locate
from celeriac.drivers.sqlite_thread import DatabaseThread
from celeriac.errors import ImproperlyConfigured, LayoutTooNew, OperationalError


def _database(path: Path, timeout: float = 10.0, wal_limit: int = WAL_LIMIT) -> Database:
    return Database(Location(str(path), "NORMAL", timeout), wal_limit)


def _names(connection: sqlite3.Connection) -> list[str]:
    return [name for (name,) in connection.execute("SELECT name FROM celeriac_queues ORDER BY name")]



def _write(database: Database, name: str, timeout: float | None = None) -> None:
    database.write(lambda connection: connection.execute("INSERT INTO celeriac_queues VALUES (?)", (name,)), timeout)


def test_the_default_folder_is_made_and_kept_out_of_git(tmp_path: Path) -> None:
    """The folder of the default path is made at first use, with a .gitignore; nothing is made before."""
    (tmp_path / "pyproject.toml").touch()
    path = tmp_path / ".celeriac" / "celeriac.db"
    database = _database(path)
    assert not path.parent.exists()
    _write(database, "a")
    assert path.exists()
    assert (path.parent / ".gitignore").read_text() == "*\n"
    database.close()


def test_durable_by_default(tmp_path: Path) -> None:
    """Unless asked otherwise every commit is on the disk before it returns; the journal is a write-ahead log."""
    database = Database(locate(f"sqlite:///{tmp_path}/x.db", {}))
    connection = database.connection()
    assert connection.execute("PRAGMA synchronous").fetchone() == (2,)
    assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    database.close()
    database = Database(locate(f"sqlite:///{tmp_path}/x.db?synchronous=normal", {}))
    assert database.connection().execute("PRAGMA synchronous").fetchone() == (1,)
    database.close()


def test_a_write_is_all_or_nothing(tmp_path: Path) -> None:
    """When the work raises, nothing of it is done, and the next one works."""
    database = _database(tmp_path / "x.db")

    def work(connection: sqlite3.Connection) -> None:
        connection.execute("INSERT INTO celeriac_queues VALUES ('a')")
        raise KeyError("stop")

    with pytest.raises(KeyError, match="stop"):
        database.write(work)
    _write(database, "b")
    assert database.read(_names) == ["b"]
    with pytest.raises(sqlite3.IntegrityError):
        _write(database, "b")
    with pytest.raises(UnicodeEncodeError):
        _write(database, "\ud800")
    assert database.read(_names) == ["b"]
    database.close()


# Layout


def test_a_newer_layout_is_refused(tmp_path: Path) -> None:
    """A file that a newer celeriac wrote is refused in one line, and left as it is."""
    path = tmp_path / "x.db"
    database = _database(path)
    database.write(lambda connection: connection.execute("UPDATE celeriac_layout SET version = version + 1"))
    database.close()
    before = path.read_bytes()
    with pytest.raises(LayoutTooNew, match="newer celeriac") as caught:
        _database(path).connection()
    assert "\n" not in str(caught.value)
    assert path.read_bytes() == before


def test_an_older_layout_is_brought_up_to_date(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An older file is migrated when a newer celeriac opens it; who has it open goes on, who opens it is refused."""
    path = tmp_path / "x.db"
    old = _database(path)
    _write(old, "kept")
    with monkeypatch.context() as patched:
        newer = (*sqlite_layout.MIGRATIONS, "CREATE TABLE celeriac_more (x INTEGER); CREATE TABLE celeriac_most (y)")
        patched.setattr(sqlite_layout, "MIGRATIONS", newer)
        new = _database(path)
        assert new.read(_names) == ["kept"]
        assert new.read(lambda connection: connection.execute("SELECT count(*) FROM celeriac_more").fetchone()) == (0,)
        _write(old, "by the old one")
        assert new.read(_names) == ["by the old one", "kept"]
        new.close()
    old.close()
    with pytest.raises(LayoutTooNew):
        _database(path).connection()


def test_many_open_a_new_file_at_once(tmp_path: Path) -> None:
    """Threads that find no file and make one at the same time all get the same one."""
    failures: list[BaseException] = []

    def work(number: int) -> None:
        try:
            database = _database(tmp_path / "x.db")
            _write(database, f"{number}")
            database.close()
        except BaseException as failure:
            failures.append(failure)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    database = _database(tmp_path / "x.db")
    assert len(database.read(_names)) == 12
    database.close()


def test_it_stands_beside_other_tables(tmp_path: Path) -> None:
    """A database of the application's own may hold our tables too: they have names of our own."""
    path = tmp_path / "x.db"
    theirs = sqlite3.connect(path)
    theirs.execute("CREATE TABLE users (name)")
    theirs.commit()
    theirs.close()
    database = _database(path)
    _write(database, "a")
    tables = database.read(lambda connection: connection.execute("SELECT name FROM sqlite_master").fetchall())
    assert {name for (name,) in tables if not name.startswith(("celeriac_", "sqlite_"))} == {"users"}
    database.close()


# What can go wrong


def _one_line(error: BaseException, path: Path) -> None:
    assert "\n" not in str(error)
    assert str(path) in str(error)


def test_a_missing_folder(tmp_path: Path) -> None:
    """A folder that does not exist is named, and not made."""
    path = tmp_path / "nowhere" / "x.db"
    with pytest.raises(ImproperlyConfigured, match="no folder") as caught:
        _database(path).connection()
    _one_line(caught.value, path)
    assert not path.parent.exists()


def test_not_a_database(tmp_path: Path) -> None:
    """A file that is something else is refused and left alone."""
    path = tmp_path / "x.db"
    path.write_bytes(b"This is no database, but long enough to look like one." * 100)
    before = path.read_bytes()
    with pytest.raises(ImproperlyConfigured, match="not an SQLite database") as caught:
        _database(path).connection()
    _one_line(caught.value, path)
    assert path.read_bytes() == before


def test_a_folder_in_its_place(tmp_path: Path) -> None:
    """A folder where the file should be can't be opened, and is told so."""
    path = tmp_path / "x.db"
    path.mkdir()
    with pytest.raises(OperationalError, match="can't be opened") as caught:
        _database(path).connection()
    _one_line(caught.value, path)


def test_a_damaged_file(tmp_path: Path) -> None:
    """A damaged file is told as such, with what to do."""
    path = tmp_path / "x.db"
    database = _database(path)
    for number in range(200):
        _write(database, f"{number}" * 50)
    database.close()
    with open(path, "r+b") as file:
        file.seek(4096)
        file.write(b"\xff" * (os.path.getsize(path) - 4096))
    with pytest.raises(OperationalError, match="damaged") as caught:
        _database(path).read(_names)
    _one_line(caught.value, path)


def test_a_read_only_file(tmp_path: Path) -> None:
    """A file that this user may not write is told as such."""
    path = tmp_path / "x.db"
    database = _database(path)
    database.connection().execute("PRAGMA query_only=1")  # what a missing right brings, also for root
    with pytest.raises(OperationalError, match="can't be written") as caught:
        _write(database, "a")
    _one_line(caught.value, path)
    database.close()


def test_a_full_disk(tmp_path: Path) -> None:
    """A full disk is told as such; nothing of that transaction is stored, and later ones work once there is room."""
    path = tmp_path / "x.db"
    database = _database(path)
    connection = database.connection()
    [pages] = connection.execute("PRAGMA page_count").fetchone()
    connection.execute(f"PRAGMA max_page_count={pages + 2}")

    def much(connection: sqlite3.Connection) -> None:
        for number in range(1000):
            connection.execute("INSERT INTO celeriac_queues VALUES (?)", (f"{number}" * 100,))

    with pytest.raises(OperationalError, match="the disk is full") as caught:
        database.write(much)
    _one_line(caught.value, path)
    assert database.read(_names) == []
    connection.execute("PRAGMA max_page_count=1000000")
    _write(database, "a")
    database.close()


def test_a_locked_file_has_a_deadline(tmp_path: Path) -> None:
    """Who can't get the write lock raises when the deadline passes, neither sooner nor much later, and does not stop
    readers."""
    path = tmp_path / "x.db"
    database, other = _database(path), _database(path)
    database.connection()
    other.connection().execute("BEGIN IMMEDIATE")
    before = time.monotonic()
    with pytest.raises(OperationalError, match="locked by another process") as caught:
        _write(database, "a", timeout=0.3)
    assert 0.25 < time.monotonic() - before < 2
    _one_line(caught.value, path)
    assert database.read(_names) == []
    threading.Timer(0.1, lambda: other.connection().execute("COMMIT")).start()
    _write(database, "a", timeout=10)
    database.close()
    other.close()


def test_a_connection_that_was_closed_under_us(tmp_path: Path) -> None:
    """A connection that is of no use any more raises OperationalError once, and is opened again."""
    database = _database(tmp_path / "x.db")
    database.connection().close()
    with pytest.raises(OperationalError):
        _write(database, "a")
    _write(database, "a")
    database.close()


def test_a_file_that_was_deleted_or_replaced(tmp_path: Path) -> None:
    """When the file is deleted or replaced, the next use opens what stands there now: nothing is written where nobody
    would read it."""
    path = tmp_path / "x.db"
    database = _database(path)
    _write(database, "old")
    for name in list(tmp_path.iterdir()):
        name.unlink()
    _write(database, "new")
    other = _database(path)
    assert other.read(_names) == database.read(_names) == ["new"]
    database.close()
    other.close()


# Fork, log, thread


def test_a_fork_opens_anew(tmp_path: Path) -> None:
    """A child opens a connection of its own and never touches its parent's; both go on, the file stays sound."""
    path = tmp_path / "x.db"
    database = _database(path)
    _write(database, "parent")
    children = []
    for number in range(4):
        pid = os.fork()
        if pid == 0:
            try:
                for n in range(20):
                    _write(database, f"child {number}.{n}")
                database.close()
                gc.collect()
                os._exit(0)
            finally:
                os._exit(1)
        children.append(pid)
    for n in range(20):
        _write(database, f"parent {n}")
    assert [os.waitpid(pid, 0)[1] for pid in children] == [0] * 4
    assert len(database.read(_names)) == 101
    assert database.connection().execute("PRAGMA integrity_check").fetchone() == ("ok",)
    database.close()


def test_the_log_does_not_grow_without_bound(tmp_path: Path) -> None:
    """The write-ahead log is folded back once it is long, also with readers that come and go, and never by SQLite
    itself beside a writer."""
    path = tmp_path / "x.db"
    database = _database(path, wal_limit=1 << 20)
    reader = _database(path)
    assert database.connection().execute("PRAGMA wal_autocheckpoint").fetchone() == (0,)
    stop = threading.Event()

    def read() -> None:
        while not stop.wait(0.002):
            reader.read(lambda connection: connection.execute("SELECT count(*) FROM celeriac_queues").fetchone())

    thread = threading.Thread(target=read)
    thread.start()
    longest = 0
    try:
        for number in range(3000):
            _write(database, f"{number}" + "x" * 3000)
            longest = max(longest, os.path.getsize(f"{path}-wal"))
    finally:
        stop.set()
        thread.join()
    assert os.path.getsize(path) > 8 << 20
    assert longest < 8 << 20
    database.close()
    reader.close()


def test_a_long_reader_stops_no_writer(tmp_path: Path) -> None:
    """While someone reads an old state for long, the log can't be folded; writers go on all the same."""
    path = tmp_path / "x.db"
    database = _database(path, wal_limit=1 << 16)
    _write(database, "first")
    old = sqlite3.connect(path)
    old.execute("BEGIN")
    old.execute("SELECT * FROM celeriac_queues").fetchall()
    before = time.monotonic()
    for number in range(300):
        _write(database, f"{number}" + "x" * 1000)
    assert time.monotonic() - before < 15
    assert len(database.read(_names)) == 301
    old.close()
    database.close()


def test_versions_tell_changes(tmp_path: Path) -> None:
    """The version changes with each commit of anyone, and with nothing else."""
    one, two = _database(tmp_path / "x.db"), _database(tmp_path / "x.db")
    seen = one.version()
    two.read(_names)
    assert one.version() == seen
    _write(two, "a")
    assert one.version() != seen
    seen = one.version()
    _write(one, "b")
    assert one.version() != seen
    one.close()
    two.close()


def test_the_thread_does_what_was_asked_before_it_ends(tmp_path: Path) -> None:
    """Closing waits for what was asked for, also when its caller was cancelled; afterwards it can be used again."""

    async def story() -> None:
        thread = DatabaseThread(Location(str(tmp_path / "x.db"), "NORMAL"))
        writes = [
            asyncio.ensure_future(
                thread.run(lambda database, name=f"{n}": _write(database, name))  # type: ignore[misc]
            )
            for n in range(50)
        ]
        await asyncio.sleep(0)
        for write in writes[::2]:
            write.cancel()
        await thread.close()
        assert len(await thread.run(lambda database: database.read(_names))) == 50
        with pytest.raises(ZeroDivisionError):
            await thread.run(lambda database: 1 / 0)
        await thread.close()
        await thread.close()

    asyncio.run(story())
