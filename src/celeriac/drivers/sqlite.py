"""One SQLite file as server: where it lies, how it is opened, and transactions with a deadline.

Nothing here knows what the tables hold; `sqlite_layout` does. A Database is used by one thread at a time.
"""

from __future__ import annotations

import math
import os
import random
import sqlite3
import threading
import time
import weakref
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import parse_qsl, unquote

import msgspec

from celeriac.drivers.sqlite_layout import prepare
from celeriac.drivers.unpatched import unpatched
from celeriac.errors import ImproperlyConfigured, OperationalError

T = TypeVar("T")

OLDEST_SQLITE = (3, 35, 0)
"""RETURNING and upserts are needed."""
WAL_LIMIT = 16 << 20
"""Bytes of write-ahead log after which a worker's connection folds it back into the database."""
_WAL_KEPT = 8 << 20
"""Bytes that the log file keeps afterwards. Below the limit, so that its size shows when it is time again."""
_PROJECT_MARKS = ("pyproject.toml", "manage.py", ".git")
_NETWORK_FILESYSTEMS = frozenset({
    "nfs", "nfs4", "cifs", "smb3", "smbfs", "ncpfs", "afs", "ceph", "glusterfs", "lustre", "gpfs", "beegfs",
    "gfs2", "ocfs2", "davfs",
})  # fmt: skip
_NETWORK_FUSE = ("sshfs", "glusterfs", "ceph", "s3fs", "rclone", "gcsfuse", "goofys", "davfs", "juicefs", "mountpoint")
_BUSY = frozenset({5, 6})
"""SQLITE_BUSY, SQLITE_LOCKED."""
_BROKEN = frozenset({10, 11, 26})
"""SQLITE_IOERR, SQLITE_CORRUPT, SQLITE_NOTADB: open anew before the next use."""
_DATA_ERRORS = (sqlite3.DataError, sqlite3.IntegrityError, sqlite3.InterfaceError, sqlite3.ProgrammingError)


class Location(msgspec.Struct, frozen=True):
    """A database file and how it is to be used."""

    path: str
    """Absolute."""
    synchronous: str = "FULL"
    """FULL: what was committed survives a power failure. NORMAL: the last commits may not; a crash loses nothing."""
    timeout: float = 10.0
    """Seconds to wait for other writers."""


def default_path(start: str | None = None) -> str:
    """`.celeriac/celeriac.db` in the nearest folder upwards that holds a project (pyproject.toml, manage.py or .git),
    otherwise in the current folder."""
    here = Path(start or os.getcwd())
    for folder in (here, *here.parents):
        if any((folder / mark).exists() for mark in _PROJECT_MARKS):
            return str(folder / ".celeriac" / "celeriac.db")
    return str(here / ".celeriac" / "celeriac.db")


def locate(url: str, options: Mapping[str, object]) -> Location:
    """Read `sqlite:///relative/path`, `sqlite:////absolute/path` or `sqlite://` (the default path), with options
    `synchronous` (full, normal) and `timeout` (seconds) from the query or the mapping."""
    rest = url.removeprefix("sqlite:")
    rest, _, query = rest.partition("?")
    given: dict[str, object] = {**options, **dict(parse_qsl(query))}
    rest = rest.removeprefix("//")
    if rest and not rest.startswith("/"):
        raise ImproperlyConfigured(
            f"{url}: an SQLite URL has no host: write sqlite:///relative/path or sqlite:////absolute/path"
        )
    path = unquote(rest[1:])
    if ":memory:" in path:
        raise ImproperlyConfigured(f"{url}: a database in memory can't be shared by processes: use memory:// instead")
    synchronous = str(given.get("synchronous", "full")).upper()
    if synchronous not in ("FULL", "NORMAL"):
        raise ImproperlyConfigured(f"{url}: synchronous is full or normal, not {given['synchronous']!r}")
    try:
        timeout = float(str(given.get("timeout", 10.0)))
    except ValueError:
        timeout = math.nan
    if not 0 < timeout < math.inf:
        raise ImproperlyConfigured(f"{url}: timeout is a number of seconds, not {given['timeout']!r}")
    return Location(os.path.abspath(path) if path else default_path(), synchronous, timeout)


def network_filesystem(path: str, mounts: str | None = None) -> str | None:
    """The type of the network file system that a path lies on; None: a local one, or this system doesn't tell."""
    if mounts is None:
        try:
            mounts = Path("/proc/self/mountinfo").read_text(errors="replace")
        except OSError:
            return None
    where, kind = "", ""
    real = os.path.realpath(path)
    for line in mounts.splitlines():
        left, _, right = line.partition(" - ")
        fields = left.split()
        if len(fields) < 5 or not right:
            continue
        mount = fields[4].replace("\\040", " ").replace("\\011", "\t").replace("\\134", "\\")
        inside = real == mount or real.startswith(mount.rstrip("/") + "/")
        if inside and len(mount) >= len(where):  # a later mount on the same point covers the earlier one
            where, kind = mount, right.split()[0]
    if kind in _NETWORK_FILESYSTEMS or (kind.startswith("fuse.") and kind[5:].startswith(_NETWORK_FUSE)):
        return kind
    return None


def _code(error: BaseException) -> int:
    """SQLite's primary result code; 0 for errors of Python's own."""
    return int(getattr(error, "sqlite_errorcode", 0)) & 0xFF


def translated(error: sqlite3.Error, path: str) -> Exception:
    """The celeriac error for what SQLite says, in one line that says what to do."""
    match _code(error):
        case 5 | 6:
            return OperationalError(f"{path} is locked by another process; find it with `fuser {path}`")
        case 8:
            return OperationalError(
                f"{path} can't be written: give this user the right to write the file and its folder"
            )
        case 10:
            return OperationalError(f"{path}: the disk reports an error ({error}); look at the system's log")
        case 11:
            return OperationalError(
                f"{path} is damaged ({error}): stop the workers, then save what can be with `sqlite3 {path} .recover`"
            )
        case 13:
            return OperationalError(f"{path}: the disk is full; nothing of this was stored")
        case 14:
            return OperationalError(f"{path} can't be opened: does its folder exist, and may this user use it?")
        case 26:
            return ImproperlyConfigured(
                f"{path} is not an SQLite database: choose another path, or move that file away"
            )
        case _:
            return OperationalError(f"{path}: {error}")


class Database:
    """A connection to the file, opened at first use; anew after a fork, a failure, or when the file was replaced.

    `native`: its thread is one of the operating system also where gevent or eventlet has patched the standard library.
    """

    def __init__(self, location: Location, wal_limit: int = WAL_LIMIT, *, native: bool = False) -> None:
        self.location = location
        self.path = location.path
        self.known: set[str] = set()
        """What the users of this object know to stand in the file. Emptied when it is opened anew."""
        self.commits = 0
        """Number of transactions that wrote."""
        self._connection: sqlite3.Connection | None = None
        self._opened = 0
        self._pid = 0
        self._file = (0, 0)
        # A green lock can't be handed from one thread to another, and a native one would stop all greenlets.
        self._lock: Callable[[], Any] = unpatched("_thread", "RLock") if native else threading.RLock
        self._sleep: Callable[[float], object] = unpatched("time", "sleep") if native else time.sleep
        self._busy = self._lock()
        self._wal = f"{location.path}-wal"
        self._wal_limit = wal_limit
        self._no_fold_before = 0.0
        _watch_forks(self)

    def connection(self) -> sqlite3.Connection:
        """The open connection. Raises OperationalError or ImproperlyConfigured when the file can't be used."""
        with self._busy:
            return self._opened_connection()

    def _opened_connection(self) -> sqlite3.Connection:
        connection = self._connection
        if connection is not None:
            if self._pid == os.getpid():
                try:
                    found = os.stat(self.path)
                    if (found.st_dev, found.st_ino) == self._file:
                        return connection
                except OSError:
                    pass
                # Someone deleted or replaced the file: what we wrote to the old one nobody would ever read.
                self.close()
            else:
                self._disown()
        return self._open()

    def _open(self) -> sqlite3.Connection:
        path = self.path
        if sqlite3.sqlite_version_info < OLDEST_SQLITE:
            raise ImproperlyConfigured(
                f"SQLite {sqlite3.sqlite_version} is too old: at least {'.'.join(map(str, OLDEST_SQLITE))} is needed"
            )
        folder = os.path.dirname(path)
        if os.path.basename(folder) == ".celeriac":
            _make_private(folder)
        if not os.path.isdir(folder):
            raise ImproperlyConfigured(f"{path}: there is no folder {folder}: create it, or choose another path")
        if kind := network_filesystem(path):
            raise ImproperlyConfigured(
                f"{path} lies on a network file system ({kind}), where SQLite loses data: use a local disk, or Redis"
            )
        deadline = time.monotonic() + self.location.timeout
        connection: sqlite3.Connection | None = None
        try:
            connection = opened = sqlite3.connect(
                path, timeout=0, isolation_level=None, cached_statements=256, check_same_thread=False
            )
            self._retrying(lambda: self._set_up(opened, deadline), deadline)
        except sqlite3.Error as error:
            if connection is not None:
                connection.close()
            raise translated(error, path) from error
        except BaseException:
            if connection is not None:
                connection.close()
            raise
        found = os.stat(path)
        self._file = (found.st_dev, found.st_ino)
        self._pid = os.getpid()
        self._connection = connection
        self._opened += 1
        self.known.clear()
        return connection

    def _set_up(self, connection: sqlite3.Connection, deadline: float) -> None:
        execute = connection.execute
        execute(f"PRAGMA synchronous={self.location.synchronous}")
        execute("PRAGMA fullfsync=1")  # macOS: without it fsync does not reach the disk
        execute("PRAGMA cache_size=-16000")
        execute("PRAGMA temp_store=MEMORY")
        execute(f"PRAGMA journal_size_limit={min(_WAL_KEPT, self._wal_limit // 2)}")
        # SQLite's own checkpoints run beside writers, which up to 3.51.2 can damage the file
        # (https://sqlite.org/wal.html#walresetbug). `_fold` takes the write lock, so that it can't.
        execute("PRAGMA wal_autocheckpoint=0")
        if execute("PRAGMA journal_mode").fetchone()[0] != "wal":
            [mode] = execute("PRAGMA journal_mode=WAL").fetchone()
            if mode != "wal":
                raise ImproperlyConfigured(
                    f"{self.path}: the file system can't share memory between processes: use a local disk"
                )
        prepare(connection, self.path, lambda: self._begin(connection, deadline))

    def _retrying(self, step: Callable[[], T], deadline: float) -> T:
        pause = 0.0002
        while True:
            try:
                return step()
            except sqlite3.OperationalError as error:
                if _code(error) not in _BUSY:
                    raise
                left = deadline - time.monotonic()
                if left <= 0:
                    raise
            # SQLite's own handler is unfair: it sleeps longer and longer while newcomers get through.
            self._sleep(min(pause * (0.5 + random.random()), left))
            pause = min(pause * 1.5, 0.005)

    def _begin(self, connection: sqlite3.Connection, deadline: float) -> None:
        self._retrying(lambda: connection.execute("BEGIN IMMEDIATE"), deadline)

    def write(self, work: Callable[[sqlite3.Connection], T], timeout: float | None = None) -> T:
        """Run `work` in one transaction: all of it or nothing. Waits up to `timeout` seconds for other writers.
        Raises OperationalError; what is wrong with the values themselves comes out as it is, nothing done."""
        deadline = time.monotonic() + (self.location.timeout if timeout is None else timeout)
        _give_way(self._sleep)
        with self._busy:
            connection = self._opened_connection()
            try:
                try:
                    connection.execute("BEGIN IMMEDIATE")
                except sqlite3.OperationalError as error:
                    if _code(error) not in _BUSY:
                        raise
                    self._begin(connection, deadline)
                result = work(connection)
                connection.execute("COMMIT")
            except BaseException as error:
                self._undo(connection, error)
                raise
            self.commits += 1
            self._fold(connection)
            return result

    def read(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """Run `work` on one consistent state of the database. Writers don't keep it waiting."""
        _give_way(self._sleep)
        with self._busy:
            connection = self._opened_connection()

            def whole() -> T:
                connection.execute("BEGIN")
                try:
                    return work(connection)
                finally:
                    connection.execute("COMMIT")

            try:
                return self._retrying(whole, time.monotonic() + self.location.timeout)
            except BaseException as error:
                self._undo(connection, error)
                raise

    def version(self) -> tuple[int, int]:
        """Differs when another connection, or this one, has changed the database. Costs some microseconds."""
        _give_way(self._sleep)
        with self._busy:
            connection = self._opened_connection()
            try:
                [number] = connection.execute("PRAGMA data_version").fetchone()
            except sqlite3.Error as error:
                self._undo(connection, error)
                raise
            return int(number) + self._opened * 1_000_000_007, self.commits

    def _undo(self, connection: sqlite3.Connection, error: BaseException) -> None:
        """Roll back after a failure, and raise it in our words where it is not about the values."""
        broken = _code(error) in _BROKEN
        try:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
        except sqlite3.Error:  # the connection itself is of no use any more
            broken = True
        if broken:
            self.close()
        if isinstance(error, sqlite3.Error) and (broken or not isinstance(error, _DATA_ERRORS)):
            raise translated(error, self.path) from error

    def _fold(self, connection: sqlite3.Connection) -> None:
        """Fold the write-ahead log back into the database once it is long, so that it does not grow without bound."""
        try:
            if os.stat(self._wal).st_size <= self._wal_limit:
                return
        except OSError:
            return
        now = time.monotonic()
        if now < self._no_fold_before:
            return
        try:
            # RESTART waits for readers of old states to end; the write lock is held meanwhile.
            connection.execute("PRAGMA busy_timeout=1000")
            busy, _, _ = connection.execute("PRAGMA wal_checkpoint(RESTART)").fetchone()
            connection.execute("PRAGMA busy_timeout=0")
        except sqlite3.Error:  # the commit before stands: this is for the next one to try
            busy = 1
        # The next commit shortens the file. Should it not, others' settings differ: don't fold after each commit.
        self._no_fold_before = now + (5.0 if busy else 0.02)

    def _disown(self) -> None:
        """After a fork that Python did not see begin (uWSGI's): be rid of the parent's connection before one of our
        own is opened, which would otherwise share its locks, and so have none. One that was in use is left alone."""
        connection, self._connection = self._connection, None
        self._busy = self._lock()
        if connection is not None and connection.in_transaction:
            _inherited.append(connection)
        elif connection is not None:
            connection.close()

    def close(self) -> None:
        """Close the connection. The next use opens it again."""
        with self._busy:
            connection, self._connection = self._connection, None
            if connection is not None:
                with suppress(sqlite3.Error):
                    connection.close()

    def before_fork(self) -> None:
        """Wait for what is under way and close the connection: SQLite forbids to carry one across a fork."""
        self._busy.acquire()
        self.close()

    def after_fork(self) -> None:
        """Let others use it again, in the parent and in the child."""
        self._busy.release()


_inherited: list[sqlite3.Connection] = []
_databases: weakref.WeakSet[Database] = weakref.WeakSet()
_forking: list[Database] = []
_fork_lock = threading.Lock()


def _watch_forks(database: Database) -> None:
    _hook()
    with _fork_lock:
        _databases.add(database)


@cache
def _hook() -> None:
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(before=_before_fork, after_in_parent=_after_fork, after_in_child=_after_fork)


def _before_fork() -> None:
    _fork_lock.acquire()
    _forking.extend(_databases)
    for database in _forking:
        database.before_fork()


def _give_way(sleep: Callable[[float], object]) -> None:
    """Let a fork that is waiting for us be done first: a lock alone is not fair, and a busy thread would starve it."""
    while _forking:
        sleep(0.0005)


def _after_fork() -> None:
    for database in _forking:
        database.after_fork()
    _forking.clear()
    _fork_lock.release()


def _make_private(folder: str) -> None:
    """Make the default folder, and keep it out of version control."""
    with suppress(OSError):
        os.mkdir(folder)
        Path(folder, ".gitignore").write_text("*\n")
