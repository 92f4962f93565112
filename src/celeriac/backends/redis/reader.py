"""The synchronous side: what `AsyncResult.get()` uses. One connection for each thread or greenlet; no loop, no
asyncio."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any, TypeVar

from celeriac.backends.redis.chords import ADD, OPEN, openings
from celeriac.backends.redis.names import RECONNECT_PATIENCE, STORE, Names, batches, expiry, guarded, is_success, note
from celeriac.drivers.redis.blocking import Connection, Connections
from celeriac.drivers.redis.protocol import driver, failure
from celeriac.drivers.redis.url import parse
from celeriac.errors import BackendStoreError, CeleryError, OperationalError
from celeriac.model.message import DONE, Chord, Store

MGET_KEYS = 500
"""Keys in one MGET."""
SILENCE = 5.0
"""Seconds without a byte after which a server is asked whether it is there."""

R = TypeVar("R")


class RedisReader:
    """See `ports.Reader`. Connects on first use. A broken connection is made anew once: what it does may be done
    twice."""

    def __init__(self, url: str, options: Mapping[str, Any] | None = None) -> None:
        """Raises ImproperlyConfigured for a URL or an option that can't be used, and when hiredis is missing."""
        driver()
        self.server = parse(url, options)
        self.names = Names(self.server.options)
        self._connections = Connections(self.server)
        self._local = threading.local()

    def describe(self) -> str:
        """The URL without its password."""
        return self.server.describe()

    def _twice(self, work: Callable[[Connection, float], R]) -> R:
        deadline = time.monotonic() + self.server.timeout
        connection = self._connections.get(deadline)
        try:
            return work(connection, deadline)
        except OperationalError:
            if not connection.broken or time.monotonic() >= deadline:
                raise
        return work(self._connections.get(deadline), deadline)

    def fetch(self, ids: Sequence[str]) -> Mapping[str, bytes]:
        """Documents of those ids that have one."""

        def work(connection: Connection, deadline: float) -> dict[str, bytes]:
            found: dict[str, bytes] = {}
            for start in range(0, len(ids), MGET_KEYS):
                batch = ids[start : start + MGET_KEYS]
                documents = connection.call("MGET", *[self.names.task + name for name in batch], deadline=deadline)
                found.update({name: each for name, each in zip(batch, documents, strict=True) if each is not None})
            return found

        return self._twice(work) if ids else {}

    def store(self, stores: Sequence[Store]) -> None:
        """Store documents and tell the watchers. Raises BackendStoreError for one that can't be stored, after the
        others were."""
        if not stores:
            return
        held: set[str] = set()
        if ids := guarded(stores):
            with suppress(UnicodeEncodeError):  # the store that has it fails alone, below
                held = {name for name, document in self.fetch(ids).items() if is_success(document)}

        def work(connection: Connection, deadline: float) -> None:
            verdicts = [DONE] * len(stores)
            for indexes, words in batches(connection.pack, self.names.task, stores, verdicts, held=held):
                note(verdicts, indexes, connection.run(STORE, (), words, deadline))
            for store, verdict in zip(stores, verdicts, strict=True):
                if verdict.error:
                    raise BackendStoreError(verdict.error, state=store.state, task_id=store.id)

        self._twice(work)

    def forget(self, ids: Sequence[str]) -> None:
        """Delete documents."""
        if ids:
            keys = [self.names.task + name for name in ids]
            self._twice(lambda connection, deadline: connection.call("DEL", *keys, deadline=deadline))

    def save_group(self, group_id: str, document: bytes, expires: float | None) -> None:
        """Store a group's document, and tell its channel as Celery does."""
        words = ("", self.names.group + group_id, expiry(expires), document, "0")
        self._twice(lambda connection, deadline: connection.run(STORE, (), words, deadline))

    def fetch_group(self, group_id: str) -> bytes | None:
        """A group's document."""
        key = self.names.group + group_id

        def work(connection: Connection, deadline: float) -> bytes | None:
            document: bytes | None = connection.call("GET", key, deadline=deadline)
            return document

        return self._twice(work)

    def forget_group(self, group_id: str) -> None:
        """Delete a group's document."""
        key = self.names.group + group_id
        self._twice(lambda connection, deadline: connection.call("DEL", key, deadline=deadline))

    def open_chords(self, chords: Sequence[Chord]) -> None:
        """Make chords known."""
        for words in openings(self.names.prefix, chords):
            self._twice(lambda connection, deadline, words=words: connection.run(OPEN, (), words, deadline))  # type: ignore[misc]

    def add_to_chord(self, group: str, members: Sequence[str]) -> None:
        """More members of a chord, each once."""
        words = (self.names.prefix, group, *members)
        self._twice(lambda connection, deadline: connection.run(ADD, (), words, deadline))

    @contextmanager
    def watch(self, ids: Sequence[str], timeout: float | None) -> Iterator[Iterator[tuple[str, bytes]]]:
        """See ports.Reader. To be iterated in the thread that entered. A broken connection is mended for
        RECONNECT_PATIENCE seconds; then the iterator raises OperationalError."""
        deadline = float("inf") if timeout is None else time.monotonic() + timeout
        ear: _Ear | None = getattr(self._local, "ear", None)
        if ear is None:
            self._local.ear = ear = _Ear(self._connections)
        watch = _Watch({(self.names.task + name).encode(): name for name in ids})
        ear.add(watch)
        try:
            yield ear.changes(watch, deadline)
        finally:
            ear.remove(watch)

    def close(self) -> None:
        """Close the connections of all threads. A later call opens others."""
        self._connections.close()


class _Watch:
    """What one watcher has yet to see."""

    __slots__ = ("keys", "last", "ready")

    def __init__(self, keys: Mapping[bytes, str]) -> None:
        self.keys = keys
        self.last: dict[bytes, bytes] = {}
        self.ready: deque[tuple[str, bytes]] = deque()

    def give(self, key: bytes, document: bytes) -> None:
        """A document, unless it is the last one that was seen."""
        if self.last.get(key) != document:
            self.last[key] = document
            self.ready.append((self.keys[key], document))


class _Ear:
    """All watches of one thread, heard over its connection."""

    def __init__(self, connections: Connections) -> None:
        self._connections = connections
        self._connection: Connection | None = None
        self._watches: dict[bytes, list[_Watch]] = {}

    def add(self, watch: _Watch) -> None:
        """Subscribe, then read what stands. Raises OperationalError."""
        for key in watch.keys:
            self._watches.setdefault(key, []).append(watch)
        try:
            self._listen_for([watch])
        except BaseException:
            self.remove(watch)
            raise

    def remove(self, watch: _Watch) -> None:
        """Stop listening for what nobody watches any more."""
        idle = []
        for key in watch.keys:
            watches = self._watches.get(key, [])
            if watch in watches:
                watches.remove(watch)
            if not watches:
                self._watches.pop(key, None)
                idle.append(key)
        connection = self._connection
        if idle and connection is not None and not connection.broken:
            with suppress(CeleryError):
                connection.tell(connection.pack(("UNSUBSCRIBE", *idle)), time.monotonic() + 1.0)

    def _listen_for(self, watches: Sequence[_Watch]) -> None:
        deadline = time.monotonic() + self._connections.server.timeout
        connection = self._connections.get(deadline)
        if connection is not self._connection:
            self._connection = connection
            channels = list(self._watches)
            watches = list({id(watch): watch for each in self._watches.values() for watch in each}.values())
        else:
            channels = [key for watch in watches for key in watch.keys if len(self._watches[key]) == 1]
        before = connection.pack(("SUBSCRIBE", *channels)) if channels else b""
        for watch in watches:
            keys = list(watch.keys)
            for start in range(0, len(keys), MGET_KEYS):
                batch = keys[start : start + MGET_KEYS]
                documents = connection.ask(before + connection.pack(("MGET", *batch)), 1, deadline)[0]
                before = b""
                if isinstance(documents, Exception):
                    connection.close()  # if SUBSCRIBE was refused, answers and questions are out of step
                    raise failure(connection.server, documents, "watching results")
                self._hear(connection)
                for key, document in zip(batch, documents, strict=True):
                    if document is not None:
                        watch.give(key, document)

    def _hear(self, connection: Connection) -> None:
        pushes = connection.pushes
        while pushes:
            push = pushes.popleft()
            if push[0] == b"message":
                for watch in self._watches.get(push[1], ()):
                    watch.give(push[1], push[2])

    def changes(self, watch: _Watch, deadline: float) -> Iterator[tuple[str, bytes]]:
        """What comes for a watch, until the deadline."""
        ready = watch.ready
        while True:
            while ready:
                yield ready.popleft()
            if time.monotonic() >= deadline:
                return
            try:
                self._wait(deadline)
            except OperationalError as error:
                self._mend(error, deadline)

    def _wait(self, deadline: float) -> None:
        connection = self._connection
        if connection is None or connection.broken:
            raise OperationalError(f"{self._connections.server.describe()}: the connection is gone")
        if connection.pushes or connection.listen(min(deadline, time.monotonic() + SILENCE)):
            self._hear(connection)
        elif time.monotonic() < deadline:
            connection.call("PING", deadline=min(deadline, time.monotonic() + SILENCE))

    def _mend(self, error: OperationalError, deadline: float) -> None:
        """Connect again and subscribe to everything. Gives up at the deadline silently, after the patience loudly."""
        end = time.monotonic() + RECONNECT_PATIENCE
        pause = 0.05
        while True:
            try:
                self._connection = None
                self._listen_for(())
                return
            except OperationalError as failed:
                error = failed
            left = deadline - time.monotonic()
            if left <= 0:
                return
            if time.monotonic() + pause > end:
                raise error
            time.sleep(min(pause, left))
            pause = min(1.0, pause * 2)
