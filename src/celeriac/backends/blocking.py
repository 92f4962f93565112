"""Result backends made of a store that can only block: a thread of their own on the asynchronous side, the caller's
thread on the other.

Whoever waits looks again and again, seldomer the longer it lasts; where the store can ring, it is looked at then too.
"""

from __future__ import annotations

import asyncio
import math
import random
import time
from collections.abc import AsyncIterator, Callable, Collection, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from typing import Protocol, TypeVar

from celeriac.drivers.alarm import Alarm
from celeriac.drivers.owned_thread import OwnedThread
from celeriac.drivers.shelf_chords import ShelfChords
from celeriac.errors import BackendStoreError, CeleryError, OperationalError, RefusedError
from celeriac.model.message import Chord, Fire, Part, Standing, Store, Verdict

T = TypeVar("T")

LOOK_FIRST, LOOK_LAST = 0.01, 0.5
"""Seconds until the second look at what is waited for, and at most between two."""
SLOWER = 1.3
"""By how much each pause is longer than the one before."""
PATIENCE = 10.0
"""Seconds that who waits already goes on looking for a server that went away."""
CLEAN_SECONDS = 600.0
"""How often whoever stores deletes what has expired, where the store does not do it itself."""
FINAL = b'{"status": "SUCCESS"'
"""What begins so does not change any more: a stored SUCCESS stays."""


class Ear(Protocol):
    """Hears a store ring."""

    def fileno(self) -> int:
        """For select and event loops: readable after a ring."""
        ...

    def drain(self) -> Collection[str]:
        """Task ids whose documents have changed since the last call. Raises OperationalError when it is broken."""
        ...

    def wait(self, seconds: float) -> Collection[str]:
        """As `drain`, after waiting for a ring for so long. Raises OperationalError when it is broken."""
        ...

    def close(self) -> None:
        """Stop listening."""
        ...


class BlockingStore(Protocol):
    """Where results lie. Safe for threads and forks. Raises OperationalError where the store can't be reached."""

    persistent: bool

    def describe(self) -> str:
        """Where it is, without a password."""
        ...

    def store(self, stores: Sequence[Store], deadline: float | None = None) -> list[Verdict]:
        """As ports.ResultBackend.store."""
        ...

    def clock(self) -> float:
        """The store's clock."""
        ...

    def fetch(self, ids: Collection[str]) -> dict[str, bytes]:
        """Documents of those ids that have one."""
        ...

    def forget(self, ids: Sequence[str]) -> None:
        """Delete documents."""
        ...

    def save_group(self, group_id: str, document: bytes, expires: float | None) -> None:
        """Keep a group's document."""
        ...

    def fetch_group(self, group_id: str) -> bytes | None:
        """A group's document."""
        ...

    def forget_group(self, group_id: str) -> None:
        """Delete a group's document."""
        ...

    def with_chords(self, work: Callable[[ShelfChords], T]) -> T:
        """Do something with the chords. It may be done twice when the connection broke in the middle."""
        ...

    def clean_up(self, limit: int | None = None) -> int:
        """Delete what has expired, at most about `limit` of it. How much it was."""
        ...

    def ear(self) -> Ear | None:
        """A new ear; None: this store does not ring."""
        ...

    def close(self) -> None:
        """Close what is open. The next use opens it again."""
        ...


class _Watch:
    """What one watcher has seen."""

    def __init__(self, ids: Sequence[str]) -> None:
        self.open = dict.fromkeys(ids, b"")
        """Id -> the last document that was seen, of those that may change yet."""
        self.changes: asyncio.Queue[tuple[str, bytes] | Exception] = asyncio.Queue()

    def news(self, found: Mapping[str, bytes]) -> list[tuple[str, bytes]]:
        """Those of these documents that are new."""
        news = [(name, found[name]) for name, last in self.open.items() if name in found and found[name] != last]
        for name, document in news:
            if document.startswith(FINAL):
                del self.open[name]
            else:
                self.open[name] = document
        return news


class BlockingBackend:
    """ResultBackend on a BlockingStore. All watches of a backend share one look at it."""

    def __init__(self, store: BlockingStore) -> None:
        self._store = store
        self.persistent = store.persistent
        self._thread = OwnedThread(store)
        self._watches: set[_Watch] = set()
        self._looking: asyncio.Task[None] | None = None
        self._alarm: Alarm | None = None
        self._clean_at = time.monotonic() + random.uniform(0.1, 1.0) * CLEAN_SECONDS

    def describe(self) -> str:
        """Where it is, without a password."""
        return self._store.describe()

    async def store(self, stores: Sequence[Store], deadline: float | None = None) -> Sequence[Verdict]:
        """Store documents, each by itself; after `deadline` none."""
        if not stores:
            return []
        verdicts = await self._thread.run(lambda store: store.store(stores, deadline))
        if time.monotonic() > self._clean_at:
            self._clean_at = time.monotonic() + CLEAN_SECONDS
            with suppress(CeleryError):  # the next one does it
                await self._thread.run(lambda store: store.clean_up(1000))
        if self._alarm is not None:
            self._alarm.set()
        return verdicts

    async def clock(self) -> float:
        """The store's clock."""
        return await self._thread.run(lambda store: store.clock())

    async def fetch(self, ids: Sequence[str]) -> Mapping[str, bytes]:
        """Documents of those ids that have one."""
        return await self._thread.run(lambda store: store.fetch(ids)) if ids else {}

    @asynccontextmanager
    async def watch(self, ids: Sequence[str]) -> AsyncIterator[AsyncIterator[tuple[str, bytes]]]:
        """The documents as they are now, then each change; of quick changes of one document maybe only the last."""
        watch = _Watch(ids)
        if self._alarm is None:
            self._alarm = Alarm()
        self._watches.add(watch)
        self._alarm.set()
        if self._looking is None or self._looking.done():
            self._looking = asyncio.ensure_future(self._look(self._alarm))
        try:
            yield _documents(watch)
        finally:
            self._watches.discard(watch)
            if not self._watches:
                await self._stop_looking()

    async def _look(self, alarm: Alarm) -> None:
        loop = asyncio.get_running_loop()
        pause = LOOK_FIRST
        seen = -math.inf  # when the store answered for the last time
        ear: Ear | None = None
        try:
            ear = await self._thread.run(lambda store: store.ear())
            if ear is not None:
                heard = ear

                def hear() -> None:
                    try:
                        if any(name in watch.open for name in heard.drain() for watch in self._watches):
                            alarm.set()
                    except CeleryError:
                        loop.remove_reader(heard.fileno())  # from now on it only looks

                loop.add_reader(ear.fileno(), hear)
            while True:
                alarm.clear()
                wanted = {name for watch in self._watches for name in watch.open}
                try:
                    found = await self._thread.run(lambda store, wanted=wanted: store.fetch(wanted))  # type: ignore[misc]
                    seen = loop.time()
                except OperationalError as error:
                    if isinstance(error, RefusedError) or loop.time() > seen + PATIENCE:
                        raise
                    found = {}
                pause = min(pause * SLOWER, LOOK_LAST)
                for watch in tuple(self._watches):
                    for document in watch.news(found):
                        watch.changes.put_nowait(document)
                        pause = LOOK_FIRST
                if await alarm.wait(pause):
                    pause = LOOK_FIRST
        except Exception as error:
            for watch in self._watches:
                watch.changes.put_nowait(error)
        finally:
            if ear is not None:
                with suppress(RuntimeError, ValueError, OSError):  # the loop is closed, or the connection
                    loop.remove_reader(ear.fileno())
                ear.close()

    async def _stop_looking(self) -> None:
        looking, self._looking = self._looking, None
        self._alarm = None
        if looking is not None:
            looking.cancel()
            await asyncio.wait([looking])

    async def forget(self, ids: Sequence[str]) -> None:
        """Delete documents."""
        if ids:
            await self._thread.run(lambda store: store.forget(ids))

    async def save_group(self, group_id: str, document: bytes, expires: float | None) -> None:
        """Keep a group's document."""
        await self._thread.run(lambda store: store.save_group(group_id, document, expires))

    async def fetch_group(self, group_id: str) -> bytes | None:
        """A group's document, if it stands."""
        return await self._thread.run(lambda store: store.fetch_group(group_id))

    async def forget_group(self, group_id: str) -> None:
        """Delete a group's document."""
        await self._thread.run(lambda store: store.forget_group(group_id))

    # Chords

    async def _chords(self, work: Callable[[ShelfChords], T]) -> T:
        return await self._thread.run(lambda store: store.with_chords(work))

    async def open_chords(self, chords: Sequence[Chord]) -> None:
        """Make chords known."""
        if chords:
            await self._chords(lambda book: book.open(chords))

    async def add_to_chord(self, group: str, members: Sequence[str]) -> None:
        """More members of a chord, each once."""
        await self._chords(lambda book: book.add(group, members))

    async def count(self, parts: Sequence[Part], hold: float) -> Sequence[bool]:
        """Count members, each once. True: the chord is complete and held by the part's token."""
        return await self._chords(lambda book: book.count(parts, hold)) if parts else []

    async def chord(self, group: str) -> Standing | None:
        """A chord as it stands."""
        return await self._chords(lambda book: book.look(group))

    async def fire(self, fires: Sequence[Fire], hold: float) -> Sequence[bool]:
        """End chords. True: it was the token's to end."""
        return await self._chords(lambda book: book.fire(fires, hold)) if fires else []

    async def hold(self, fire: Fire, hold: float) -> bool:
        """Take or keep a chord that is complete."""
        return await self._chords(lambda book: book.hold(fire, hold))

    async def standing(self, idle: float, limit: int) -> Sequence[Standing]:
        """Chords that are not done and have not moved for long, the oldest first."""
        return await self._chords(lambda book: book.standing(idle, limit))

    async def clean_up(self) -> None:
        """Delete all that has expired, some of it at a time."""
        while await self._thread.run(lambda store: store.clean_up(1000)):
            pass

    async def close(self) -> None:
        """Close the store. The next use opens it again."""
        await self._stop_looking()
        await self._thread.close()


async def _documents(watch: _Watch) -> AsyncIterator[tuple[str, bytes]]:
    while True:
        change = await watch.changes.get()
        if isinstance(change, Exception):
            raise change
        yield change


class BlockingReader:
    """The synchronous side."""

    def __init__(self, store: BlockingStore) -> None:
        self._store = store

    def describe(self) -> str:
        """Where it is, without a password."""
        return self._store.describe()

    def fetch(self, ids: Sequence[str]) -> Mapping[str, bytes]:
        """Documents of those ids that have one."""
        return self._store.fetch(ids) if ids else {}

    @contextmanager
    def watch(self, ids: Sequence[str], timeout: float | None) -> Iterator[Iterator[tuple[str, bytes]]]:
        """The documents as they are now, then each change, until `timeout` seconds have passed since entering; of
        quick changes of one document maybe only the last."""
        deadline = float("inf") if timeout is None else time.monotonic() + timeout
        ear = None if timeout == 0 else self._store.ear()
        try:
            yield self._documents(_Watch(ids), ear, deadline)
        finally:
            if ear is not None:
                ear.close()

    def _documents(self, watch: _Watch, ear: Ear | None, deadline: float) -> Iterator[tuple[str, bytes]]:
        pause = LOOK_FIRST
        seen = -math.inf
        while True:
            try:
                news = watch.news(self._store.fetch(watch.open)) if watch.open else []
                seen = time.monotonic()
            except OperationalError as error:
                if isinstance(error, RefusedError) or time.monotonic() > seen + PATIENCE:
                    raise
                news = []
            yield from news
            pause = LOOK_FIRST if news else min(pause * SLOWER, LOOK_LAST)
            end = min(time.monotonic() + pause, deadline)
            while (left := end - time.monotonic()) > 0:
                if ear is None:
                    time.sleep(left)
                    break
                try:
                    if any(name in watch.open for name in ear.wait(left)):
                        pause = LOOK_FIRST
                        break
                except CeleryError:
                    ear = None  # from now on it only looks
            if time.monotonic() >= deadline:
                return

    def store(self, stores: Sequence[Store]) -> None:
        """Store documents. Raises BackendStoreError for one that can't be kept; the others are."""
        if not stores:
            return
        for store, verdict in zip(stores, self._store.store(stores), strict=True):
            if not verdict.ok:
                raise BackendStoreError(verdict.error, state=store.state, task_id=store.id)

    def forget(self, ids: Sequence[str]) -> None:
        """Delete documents."""
        if ids:
            self._store.forget(ids)

    def save_group(self, group_id: str, document: bytes, expires: float | None) -> None:
        """Keep a group's document."""
        self._store.save_group(group_id, document, expires)

    def fetch_group(self, group_id: str) -> bytes | None:
        """A group's document, if it stands."""
        return self._store.fetch_group(group_id)

    def forget_group(self, group_id: str) -> None:
        """Delete a group's document."""
        self._store.forget_group(group_id)

    def open_chords(self, chords: Sequence[Chord]) -> None:
        """Make chords known."""
        if chords:
            self._store.with_chords(lambda book: book.open(chords))

    def add_to_chord(self, group: str, members: Sequence[str]) -> None:
        """More members of a chord, each once."""
        self._store.with_chords(lambda book: book.add(group, members))

    def clean_up(self) -> None:
        """Delete all that has expired."""
        while self._store.clean_up(1000):
            pass

    def close(self) -> None:
        """Close the store. The next use opens it again."""
        self._store.close()
