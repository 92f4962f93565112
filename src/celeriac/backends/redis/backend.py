"""The asynchronous side: one connection, over which all watchers of a loop hear too."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any

from celeriac.backends.redis.chords import (
    ADD,
    COUNT,
    FIRE,
    HOLD,
    LOOK,
    OPEN,
    STANDING,
    countings,
    milliseconds,
    openings,
    standing,
)
from celeriac.backends.redis.names import (
    RECONNECT_PATIENCE,
    STORE,
    Names,
    again,
    batches,
    expiry,
    guarded,
    is_success,
    note,
)
from celeriac.drivers.chords import done_seconds
from celeriac.drivers.redis.aio import AsyncConnection, AsyncLink
from celeriac.drivers.redis.protocol import driver, failure
from celeriac.drivers.redis.site import Site, run_id_of
from celeriac.drivers.redis.url import parse
from celeriac.errors import CeleryError, OperationalError
from celeriac.model.message import DONE, Chord, Fire, Part, Standing, Store, Verdict
from celeriac.ports import Keeping

MGET_KEYS = 500
"""Keys in one MGET."""


class RedisBackend:
    """See `ports.ResultBackend`. Connects on first use."""

    persistent = True
    keeping = Keeping(
        waits="told at once, by PUBLISH",
        forgets="by itself",
        chords="counted in the step that stores the member, together with Celery 5.7",
        layout="Celery",
    )

    def __init__(self, url: str, options: Mapping[str, Any] | None = None) -> None:
        """Raises ImproperlyConfigured for a URL or an option that can't be used, and when hiredis is missing."""
        driver()
        self.server = parse(url, options)
        self.names = Names(self.server.options)
        self._link = AsyncLink(self.server, self._pushed, self._lost, self._prepare)
        self._run_id = ""
        self._watches: dict[bytes, list[_Watch]] = {}
        self._mending: asyncio.Task[None] | None = None

    def describe(self) -> str:
        """The URL without its password."""
        return self.server.describe()

    async def _prepare(self, connection: AsyncConnection) -> None:
        self._run_id = run_id_of(await connection.send(connection.pack(("INFO", "server"))))

    async def site(self) -> Site:
        """Where it stores, for a broker on the same server."""
        await self._link.connection()
        return Site(self._run_id, self.server.db, self.names.prefix, is_success, self.names.ordered)

    async def store(self, stores: Sequence[Store], deadline: float | None = None) -> Sequence[Verdict]:
        """Store documents and tell the watchers. See ports.ResultBackend."""
        if not stores:
            return []
        verdicts = [DONE] * len(stores)
        connection = await self._link.connection()
        limit = "" if deadline is None else repr(float(deadline))
        held: set[str] = set()
        if ids := guarded(stores):
            with suppress(UnicodeEncodeError):  # the store that has it gets its verdict below
                held = {name for name, document in (await self.fetch(ids)).items() if is_success(document)}
        for indexes, words in batches(
            connection.pack, self.names.task, stores, verdicts, deadline=limit, held=held
        ):
            note(verdicts, indexes, await connection.run(STORE, (), *words))
        return verdicts

    async def clock(self) -> float:
        """The server's clock, Unix seconds."""
        seconds, micros = await self._link.call("TIME")
        return int(seconds) + int(micros) / 1_000_000

    async def fetch(self, ids: Sequence[str]) -> Mapping[str, bytes]:
        """Documents of those ids that have one."""
        found: dict[str, bytes] = {}
        for start in range(0, len(ids), MGET_KEYS):
            batch = ids[start : start + MGET_KEYS]
            documents = await self._link.call("MGET", *[self.names.task + name for name in batch])
            found.update({name: each for name, each in zip(batch, documents, strict=True) if each is not None})
        return found

    async def forget(self, ids: Sequence[str]) -> None:
        """Delete documents."""
        for start in range(0, len(ids), MGET_KEYS):
            await self._link.call("DEL", *[self.names.task + name for name in ids[start : start + MGET_KEYS]])

    async def save_group(self, group_id: str, document: bytes, expires: float | None) -> None:
        """Store a group's document, and tell its channel as Celery does."""
        key = self.names.group + group_id
        await self._link.run(STORE, (), "", key, expiry(expires), document, "0")

    async def fetch_group(self, group_id: str) -> bytes | None:
        """A group's document."""
        document: bytes | None = await self._link.call("GET", self.names.group + group_id)
        return document

    async def forget_group(self, group_id: str) -> None:
        """Delete a group's document."""
        await self._link.call("DEL", self.names.group + group_id)

    # Chords

    async def open_chords(self, chords: Sequence[Chord]) -> None:
        """Make chords known. See ports.ResultBackend."""
        for words in openings(self.names.prefix, chords):
            await self._link.run(OPEN, (), *words)

    async def add_to_chord(self, group: str, members: Sequence[str]) -> None:
        """More members of a chord, each once."""
        await self._link.run(ADD, (), self.names.prefix, group, *members)

    async def count(self, parts: Sequence[Part], hold: float) -> Sequence[bool]:
        """Count members, each once. True: the chord is complete and held by the part's token."""
        held: list[bool] = []
        for words in countings(self.names.prefix, self.names.ordered, parts, hold):
            held += map(bool, await self._link.run(COUNT, (), *words))
        return held

    async def chord(self, group: str) -> Standing | None:
        """A chord as it stands, whoever opened it."""
        reply = await self._link.run(LOOK, (), self.names.prefix, group)
        return None if reply is None else standing(reply)

    async def fire(self, fires: Sequence[Fire], hold: float) -> Sequence[bool]:
        """End chords. True: it was the token's to end."""
        if not fires:
            return []
        words = [word for fire in fires for word in (fire.group, fire.token)]
        seconds = int(done_seconds(hold))
        return [bool(each) for each in await self._link.run(FIRE, (), self.names.prefix, seconds, *words)]

    async def hold(self, fire: Fire, hold: float) -> bool:
        """Take or keep a chord that is complete."""
        words = (self.names.prefix, fire.group, fire.token, milliseconds(hold))
        return bool(await self._link.run(HOLD, (), *words))

    async def standing(self, idle: float, limit: int) -> Sequence[Standing]:
        """Chords that are not done and have not moved for long, the oldest first: those that one of us counted in."""
        found = await self._link.run(STANDING, (), self.names.prefix, idle, limit)
        return [standing(reply) for reply in found]

    async def close(self) -> None:
        """Close the connection; whoever watches gets an OperationalError."""
        if self._mending is not None:
            self._mending.cancel()
            self._mending = None
        self._link.close()
        self._fail(OperationalError(f"{self.describe()}: closed"))

    # Watching

    @asynccontextmanager
    async def watch(self, ids: Sequence[str]) -> AsyncIterator[AsyncIterator[tuple[str, bytes]]]:
        """The documents as they are now, then each change. A broken connection is mended for RECONNECT_PATIENCE
        seconds; then the iterator raises OperationalError."""
        watch = _Watch({(self.names.task + name).encode(): name for name in ids})
        fresh = [key for key in watch.keys if key not in self._watches]
        for key in watch.keys:
            self._watches.setdefault(key, []).append(watch)
        try:
            connection = await self._link.connection()
            await self._follow(connection, [watch], fresh)
            yield watch.changes()
        finally:
            idle = []
            for key in watch.keys:
                watches = self._watches.get(key, [])
                if watch in watches:
                    watches.remove(watch)
                if not watches:
                    self._watches.pop(key, None)
                    idle.append(key)
            current = self._link.current
            if idle and current is not None:
                current.tell(("UNSUBSCRIBE", *idle))

    async def _follow(self, connection: AsyncConnection, watches: Sequence[_Watch], fresh: Sequence[bytes]) -> None:
        """Subscribe to keys, then read what stands there for these watches."""
        before = connection.pack(("SUBSCRIBE", *fresh)) if fresh else b""
        for watch in watches:
            watch.heard.clear()
            keys = list(watch.keys)
            for start in range(0, len(keys), MGET_KEYS):
                batch = keys[start : start + MGET_KEYS]
                documents = await connection.send(before + connection.pack(("MGET", *batch)))
                before = b""
                if isinstance(documents, Exception):
                    connection.close()  # if SUBSCRIBE was refused, answers and questions are out of step
                    raise failure(self.server, documents, "watching results")
                for key, document in zip(batch, documents, strict=True):
                    # What was heard meanwhile is this one, or came after it.
                    if document is not None and key not in watch.heard:
                        watch.give(key, document)

    def _pushed(self, push: list[Any]) -> None:
        if push[0] == b"message":
            key = push[1]
            for watch in self._watches.get(key, ()):
                watch.heard.add(key)
                watch.give(key, push[2])

    def _lost(self, error: CeleryError) -> None:
        if self._watches and (self._mending is None or self._mending.done()):
            self._mending = asyncio.get_running_loop().create_task(self._mend(error))

    async def _mend(self, error: CeleryError) -> None:
        """Connect again and take all watches over."""
        loop = asyncio.get_running_loop()
        end = loop.time() + RECONNECT_PATIENCE
        pause = 0.05
        while self._watches:
            try:
                connection = await self._link.connection()
                watches = list({id(watch): watch for each in self._watches.values() for watch in each}.values())
                await self._follow(connection, watches, list(self._watches))
                return
            except CeleryError as failed:
                error = failed
            if loop.time() + pause > end:
                self._fail(error)
                return
            await asyncio.sleep(pause)
            pause = min(1.0, pause * 2)

    def _fail(self, error: CeleryError) -> None:
        for watches in self._watches.values():
            for watch in watches:
                watch.fail(error)


class _Watch:
    """What one watcher has yet to see."""

    def __init__(self, keys: Mapping[bytes, str]) -> None:
        self.keys = keys
        self.heard: set[bytes] = set()
        """Keys of which something was heard since the last look at what stands."""
        self._last: dict[bytes, bytes] = {}
        self._queue: asyncio.Queue[tuple[str, bytes] | CeleryError] = asyncio.Queue()
        self._failed = False

    def give(self, key: bytes, document: bytes) -> None:
        """A document, unless it is the last one that was seen."""
        if self._last.get(key) != document:
            self._last[key] = document
            self._queue.put_nowait((self.keys[key], document))

    def fail(self, error: CeleryError) -> None:
        """Nothing more will come."""
        if not self._failed:
            self._failed = True
            self._queue.put_nowait(error)

    async def changes(self) -> AsyncIterator[tuple[str, bytes]]:
        """What comes."""
        while True:
            item = await self._queue.get()
            if isinstance(item, CeleryError):
                raise again(item)
            yield item
