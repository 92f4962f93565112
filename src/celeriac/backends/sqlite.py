"""Results in one SQLite file: no server, several processes of one machine."""

from __future__ import annotations

import asyncio
import os
import sqlite3
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from typing import TypeVar

from celeriac.drivers import sqlite_chords, sqlite_results
from celeriac.drivers.doorbell import Bell, Bells
from celeriac.drivers.listener import LOOK_OFTEN, LOOK_SECONDS, Listener
from celeriac.drivers.sqlite import WAL_LIMIT, Database, locate
from celeriac.drivers.sqlite_thread import DatabaseThread
from celeriac.errors import BackendStoreError
from celeriac.model.message import DONE, LOST, Chord, Fire, Part, Standing, Store, Verdict
from celeriac.ports import Keeping

T = TypeVar("T")
Stamps = dict[str, tuple[int, int]]
_DATA_ERRORS = (
    sqlite3.DataError, sqlite3.IntegrityError, sqlite3.InterfaceError, sqlite3.ProgrammingError,
    ValueError, TypeError, OverflowError,
)  # fmt: skip
_SWEEP_SECONDS = 30.0


def _store(
    database: Database, stores: Sequence[Store], clock: Callable[[], float], deadline: float | None = None
) -> list[Verdict]:
    """Store documents in one transaction; when one of them can't be, each in its own."""

    def work(connection: sqlite3.Connection) -> bool:
        now = clock()  # within the transaction: to wait for other writers may have taken long
        if deadline is not None and now > deadline:
            return False
        sqlite_results.put(connection, stores, now)
        return True

    try:
        return [DONE if database.write(work) else LOST] * len(stores)
    except _DATA_ERRORS as error:
        if len(stores) == 1:
            return [Verdict(False, error=f"{type(error).__name__}: {error}")]
        return [verdict for store in stores for verdict in _store(database, [store], clock, deadline)]


class _Sweeps:
    """When whoever stores is to sweep."""

    def __init__(self) -> None:
        self._sweeper = sqlite_results.Sweeper()
        self._next = time.monotonic() + _SWEEP_SECONDS

    def sweep(self, database: Database, now: float) -> None:
        """One chunk, if it is time; the next one soon if there is more."""
        if time.monotonic() >= self._next:
            self._next = time.monotonic() + (0.1 if self._sweeper.sweep(database, now) else _SWEEP_SECONDS)


class SqliteBackend:
    """ResultBackend on an SQLite file. All watches of a backend share one look at it."""

    persistent = True
    keeping = Keeping(
        waits="told at once, by a socket beside the file",
        forgets="by itself",
        chords="counted in the step that stores the member",
        layout="celeriac",
    )

    def __init__(self, url: str, options: Mapping[str, object], clock: Callable[[], float] = time.time) -> None:
        self.location = locate(url, options)
        self._clock = clock
        self._database = DatabaseThread(self.location)
        self._bells = Bells(self.location.path)
        self._sweeps = _Sweeps()
        self._watches: set[_Watch] = set()
        self._looking: asyncio.Task[None] | None = None
        self._listener: Listener | None = None

    def describe(self) -> str:
        """The file's absolute path."""
        return self.location.path

    async def _read(self, work: Callable[[sqlite3.Connection], T]) -> T:
        return await self._database.run(lambda database: database.read(work))

    async def _write(self, work: Callable[[sqlite3.Connection], T]) -> T:
        return await self._database.run(lambda database: database.write(work))

    async def store(self, stores: Sequence[Store], deadline: float | None = None) -> Sequence[Verdict]:
        """Store documents, each by itself; after `deadline` none."""
        if not stores:
            return []

        def work(database: Database) -> list[Verdict]:
            verdicts = _store(database, stores, self._clock, deadline)
            self._sweeps.sweep(database, self._clock())
            return verdicts

        verdicts = await self._database.run(work)
        self._bells.ring("r")
        return verdicts

    async def clock(self) -> float:
        """The machine's clock: all users of the file have the same."""
        return self._clock()

    async def fetch(self, ids: Sequence[str]) -> Mapping[str, bytes]:
        """Documents of those ids that have one."""
        now = self._clock()
        return await self._read(lambda connection: sqlite_results.fetch(connection, ids, now))

    @asynccontextmanager
    async def watch(self, ids: Sequence[str]) -> AsyncIterator[AsyncIterator[tuple[str, bytes]]]:
        """The documents as they are now, then each change; of quick changes of one document maybe only the last."""
        watch = _Watch(ids)
        if self._listener is None:
            self._listener = Listener(self._bells, "r")
        self._watches.add(watch)
        self._listener.ring()
        if self._looking is None or self._looking.done():
            self._looking = asyncio.ensure_future(self._look(self._listener))
        try:
            yield watch.documents()
        finally:
            self._watches.discard(watch)
            if not self._watches:
                await self._stop_looking()

    async def _look(self, listener: Listener) -> None:
        version = (-1, -1)
        try:
            while True:
                rung = await listener.wait(listener.look)
                listener.clear()
                watches = tuple(self._watches)
                if not rung and await self._database.run(lambda database: database.version()) == version:
                    continue
                version, found = await self._changes(watches)
                for watch, documents in found:
                    for document in documents:
                        watch.changes.put_nowait(document)
        except Exception as error:
            for watch in self._watches:
                watch.changes.put_nowait(error)

    async def _changes(
        self, watches: Sequence[_Watch]
    ) -> tuple[tuple[int, int], list[tuple[_Watch, list[tuple[str, bytes]]]]]:
        """What each watch has not seen yet, and the version of the file that was looked at."""
        now = self._clock()
        wanted = {name for watch in watches for name in watch.ids}

        def work(connection: sqlite3.Connection) -> list[tuple[_Watch, list[tuple[str, bytes]]]]:
            stamps = sqlite_results.stamps(connection, wanted, now)
            news = [(watch, watch.news(stamps)) for watch in watches]
            documents = sqlite_results.fetch(connection, {name for _, names in news for name in names}, now)
            return [(watch, [(name, documents[name]) for name in names]) for watch, names in news if names]

        return await self._database.run(lambda database: (database.version(), database.read(work)))

    async def _stop_looking(self) -> None:
        looking, self._looking = self._looking, None
        listener, self._listener = self._listener, None
        if looking is not None:
            looking.cancel()
            await asyncio.wait([looking])
        if listener is not None:
            listener.close()

    async def forget(self, ids: Sequence[str]) -> None:
        """Delete documents."""
        if ids:
            await self._write(lambda connection: sqlite_results.forget(connection, ids))

    async def save_group(self, group_id: str, document: bytes, expires: float | None) -> None:
        """Keep a group's document."""
        now = self._clock()
        await self._write(
            lambda connection: sqlite_results.save_group(connection, group_id, document, expires, now)
        )

    async def fetch_group(self, group_id: str) -> bytes | None:
        """A group's document, if it stands."""
        now = self._clock()
        return await self._read(lambda connection: sqlite_results.fetch_group(connection, group_id, now))

    async def forget_group(self, group_id: str) -> None:
        """Delete a group's document."""
        await self._write(lambda connection: sqlite_results.forget_group(connection, group_id))

    # Chords

    async def open_chords(self, chords: Sequence[Chord]) -> None:
        """Make chords known, all or none."""
        await self._write(lambda connection: sqlite_chords.open_chords(connection, chords, self._clock()))

    async def add_to_chord(self, group: str, members: Sequence[str]) -> None:
        """More members of a chord, each once."""
        await self._write(lambda connection: sqlite_chords.add(connection, group, members, self._clock()))

    async def count(self, parts: Sequence[Part], hold: float) -> Sequence[bool]:
        """Count members, each once. True: the chord is complete and held by the part's token."""
        return await self._write(lambda connection: sqlite_chords.count(connection, parts, self._clock(), hold))

    async def chord(self, group: str) -> Standing | None:
        """A chord as it stands."""
        now = self._clock()
        return await self._read(lambda connection: sqlite_chords.look(connection, group, now))

    async def fire(self, fires: Sequence[Fire], hold: float) -> Sequence[bool]:
        """End chords. True: it was the token's to end."""
        return await self._write(lambda connection: sqlite_chords.fire(connection, fires, self._clock(), hold))

    async def hold(self, fire: Fire, hold: float) -> bool:
        """Take or keep a chord that is complete."""
        return await self._write(lambda connection: sqlite_chords.hold(connection, fire, self._clock(), hold))

    async def standing(self, idle: float, limit: int) -> Sequence[Standing]:
        """Chords that are not done and have not moved for long, the oldest first."""
        return await self._write(lambda connection: sqlite_chords.standing(connection, idle, limit, self._clock()))

    async def close(self) -> None:
        """Close the connection. The next use opens it again."""
        await self._stop_looking()
        await self._database.close()
        self._bells.close()


class _Watch:
    """One watch: its ids, and what it has seen of them."""

    def __init__(self, ids: Sequence[str]) -> None:
        self.ids = tuple(ids)
        self.changes: asyncio.Queue[tuple[str, bytes] | Exception] = asyncio.Queue()
        self._seen: Stamps = {}

    def news(self, stamps: Stamps) -> list[str]:
        """Ids whose documents have changed since the last call."""
        return _news(self.ids, stamps, self._seen)

    async def documents(self) -> AsyncIterator[tuple[str, bytes]]:
        """The documents as they come. Raises what looking has raised."""
        while True:
            change = await self.changes.get()
            if isinstance(change, Exception):
                raise change
            yield change


def _news(ids: Sequence[str], stamps: Stamps, seen: Stamps) -> list[str]:
    news = [name for name in ids if name in stamps and seen.get(name) != stamps[name]]
    for name in news:
        seen[name] = stamps[name]
    return news


class SqliteReader:
    """The synchronous side. Threads take turns at one connection; after a fork it opens anew."""

    def __init__(self, url: str, options: Mapping[str, object], clock: Callable[[], float] = time.time) -> None:
        self.location = locate(url, options)
        self._clock = clock
        self._bells = Bells(self.location.path)
        self._sweeps = _Sweeps()
        self._database = Database(self.location, wal_limit=4 * WAL_LIMIT)
        self._reset()

    def _reset(self) -> None:
        self._pid = os.getpid()
        self._lock = threading.Lock()

    def _locked(self) -> threading.Lock:
        if self._pid != os.getpid():
            self._reset()
        return self._lock

    def fetch(self, ids: Sequence[str]) -> Mapping[str, bytes]:
        """Documents of those ids that have one."""
        now = self._clock()
        with self._locked():
            return self._database.read(lambda connection: sqlite_results.fetch(connection, ids, now))

    @contextmanager
    def watch(self, ids: Sequence[str], timeout: float | None) -> Iterator[Iterator[tuple[str, bytes]]]:
        """The documents as they are now, then each change, until `timeout` seconds have passed since entering; of
        quick changes of one document maybe only the last."""
        deadline = None if timeout is None else time.monotonic() + timeout
        bell = self._bells.bell("r")
        try:
            yield self._documents(tuple(ids), bell, deadline)
        finally:
            if bell is not None:
                bell.close()

    def _documents(
        self, ids: Sequence[str], bell: Bell | None, deadline: float | None
    ) -> Iterator[tuple[str, bytes]]:
        seen: Stamps = {}
        version = (-1, -1)
        while True:
            changed, documents = self._changes(ids, seen, version)
            version = changed
            yield from documents
            patience = LOOK_OFTEN if bell is None else LOOK_SECONDS
            if deadline is not None:
                patience = min(patience, deadline - time.monotonic())
                if patience <= 0:
                    return
            if bell is None:
                time.sleep(patience)
            elif bell.wait(patience):
                version = (-1, -1)

    def _changes(
        self, ids: Sequence[str], seen: Stamps, version: tuple[int, int]
    ) -> tuple[tuple[int, int], list[tuple[str, bytes]]]:
        def work(connection: sqlite3.Connection) -> list[tuple[str, bytes]]:
            now = self._clock()
            news = _news(ids, sqlite_results.stamps(connection, ids, now), seen)
            documents = sqlite_results.fetch(connection, news, now) if news else {}
            return [(name, documents[name]) for name in news]

        with self._locked():
            changed = self._database.version()
            return changed, self._database.read(work) if changed != version else []

    def _write(self, work: Callable[[sqlite3.Connection], T]) -> T:
        with self._locked():
            return self._database.write(work)

    def store(self, stores: Sequence[Store]) -> None:
        """Store documents. Raises BackendStoreError for one that can't be kept; the others are."""
        if not stores:
            return
        with self._locked():
            verdicts = _store(self._database, stores, self._clock)
            self._sweeps.sweep(self._database, self._clock())
        self._bells.ring("r")
        for store, verdict in zip(stores, verdicts, strict=True):
            if not verdict.ok:
                raise BackendStoreError(verdict.error, state=store.state, task_id=store.id)

    def forget(self, ids: Sequence[str]) -> None:
        """Delete documents."""
        if ids:
            self._write(lambda connection: sqlite_results.forget(connection, ids))

    def save_group(self, group_id: str, document: bytes, expires: float | None) -> None:
        """Keep a group's document."""
        now = self._clock()
        self._write(lambda connection: sqlite_results.save_group(connection, group_id, document, expires, now))

    def fetch_group(self, group_id: str) -> bytes | None:
        """A group's document, if it stands."""
        now = self._clock()
        with self._locked():
            return self._database.read(lambda connection: sqlite_results.fetch_group(connection, group_id, now))

    def forget_group(self, group_id: str) -> None:
        """Delete a group's document."""
        self._write(lambda connection: sqlite_results.forget_group(connection, group_id))

    def open_chords(self, chords: Sequence[Chord]) -> None:
        """Make chords known, all or none."""
        self._write(lambda connection: sqlite_chords.open_chords(connection, chords, self._clock()))

    def add_to_chord(self, group: str, members: Sequence[str]) -> None:
        """More members of a chord, each once."""
        self._write(lambda connection: sqlite_chords.add(connection, group, members, self._clock()))

    def close(self) -> None:
        """Close the connection. The next use opens it again."""
        with self._locked():
            self._database.close()
            self._bells.close()
