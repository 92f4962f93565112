"""Results in a PostgreSQL database. Who waits for one is told by a notification; whoever stores tells only if somebody
waits."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager

from celeriac.drivers.alarm import Alarm
from celeriac.drivers.postgres import calls
from celeriac.drivers.postgres.blocking import Blocking
from celeriac.drivers.postgres.calls import Call
from celeriac.drivers.postgres.failures import is_about_values, reason_of
from celeriac.drivers.postgres.line import Rows
from celeriac.drivers.postgres.lines import Holder, Lines
from celeriac.drivers.postgres.site import Site, parse
from celeriac.errors import BackendStoreError
from celeriac.model.message import DONE, LOST, Chord, Fire, Part, Standing, Store, Verdict
from celeriac.ports import Keeping

_CHANNEL = "celeriac_results"
_LOOK_SECONDS = 2.0
"""How often who waits looks by itself where notifications come through."""
_LOOK_SOON = 0.05
"""The first look: a commit that was under way when we said that we wait."""
_LOOK_OFTEN = 0.1
"""How often where none come through."""
_EARS = 8
"""So many threads of a process wait on connections of their own; the others look."""
Stamps = dict[str, str]


class PostgresBackend:
    """ResultBackend on a database. All watches of a backend share one look at it."""

    persistent = True
    keeping = Keeping(
        waits="told at once, by NOTIFY; through PgBouncer it looks, ten times a second",
        forgets="by workers, every ten seconds",
        chords="counted in the step that stores the member",
        layout="celeriac",
    )

    def __init__(self, url: str, options: Mapping[str, object]) -> None:
        self.site = parse(url, options)
        self._holder = Holder(self.site)
        self._name = f"r{os.urandom(8).hex()}"
        self._watches: set[_Watch] = set()
        self._looking: asyncio.Task[None] | None = None
        self._rung: Alarm | None = None
        self._told: set[str] | None = None
        """Ids whose documents have changed; None: any may have."""
        self._said = 0.0
        """Until when it stands that somebody waits here, monotonic."""

    @property
    def _lines(self) -> Lines:
        return self._holder.lines()

    async def _run(self, call: Call) -> Rows:
        return await self._lines.side.run(*call)

    def describe(self) -> str:
        """The URL without its password."""
        return self.site.shown

    async def identity(self) -> tuple[object, ...]:
        """What no other database has."""
        return (await self._lines.side.run(calls.IDENTITY))[0]

    async def store(self, stores: Sequence[Store], deadline: float | None = None) -> Sequence[Verdict]:
        """Store documents, each by itself; after `deadline` none."""
        verdicts: list[Verdict] = [DONE] * len(stores)
        for places in calls.rounds(stores):
            for place, verdict in zip(
                places, await self._store([stores[place] for place in places], deadline), strict=True
            ):
                verdicts[place] = verdict
        return verdicts

    async def _store(self, stores: Sequence[Store], deadline: float | None) -> list[Verdict]:
        try:
            [(in_time,)] = await self._run(calls.store(stores, deadline))
        except Exception as error:
            if not is_about_values(error):
                raise
            if len(stores) == 1:
                return [Verdict(False, error=reason_of(error))]
            return [verdict for store in stores for verdict in await self._store([store], deadline)]
        return [DONE if in_time else LOST] * len(stores)

    async def clock(self) -> float:
        """The server's clock."""
        [(now,)] = await self._lines.side.run(calls.NOW)
        return float(now) / 1e6

    async def fetch(self, ids: Sequence[str]) -> Mapping[str, bytes]:
        """Documents of those ids that have one."""
        return dict(await self._run(calls.fetch(ids))) if ids else {}

    @asynccontextmanager
    async def watch(self, ids: Sequence[str]) -> AsyncIterator[AsyncIterator[tuple[str, bytes]]]:
        """The documents as they are now, then each change; of quick changes of one document maybe only the last."""
        watch = _Watch(ids)
        self._watches.add(watch)
        self._told = None
        if self._rung is None:
            self._rung = Alarm()
        self._rung.set()
        if self._looking is None or self._looking.done():
            self._looking = asyncio.ensure_future(self._look(self._rung))
        try:
            yield watch.documents()
        finally:
            self._watches.discard(watch)
            if not self._watches:
                await self._stop_looking()

    def _hear(self, channel: str, payload: str) -> None:
        if channel and channel != _CHANNEL:
            return
        if not channel or not payload:
            self._told = None
        elif self._told is not None:
            self._told.update(payload.split(","))
        if self._rung is not None:
            self._rung.set()

    async def _look(self, rung: Alarm) -> None:
        try:
            lines = self._lines
            listens = await lines.hear(self._hear, (_CHANNEL,))
            new = time.monotonic() >= self._said
            while True:
                if listens and time.monotonic() > self._said - calls.WAIT_SECONDS / 2:
                    await lines.side.run(*calls.wait(self._name, "r"))
                    self._said = time.monotonic() + calls.WAIT_SECONDS
                    await lines.ear.open()
                rung.clear()
                told, self._told = self._told, set()
                await self._tell(told)
                pause = (_LOOK_SOON if new else _LOOK_SECONDS) if listens and lines.ear.listens else _LOOK_OFTEN
                if not await rung.wait(pause):
                    self._told = None
                    new = False
        except Exception as error:
            for watch in self._watches:
                watch.changes.put_nowait(error)

    async def _tell(self, told: set[str] | None) -> None:
        """Give each watch what it has not seen yet of what was told."""
        watches = tuple(self._watches)
        wanted = {name for watch in watches for name in watch.ids}
        if told is not None:
            wanted &= told
        if not wanted:
            return
        # what one of them has not seen yet is not known
        known = {name: "" for name in wanted}
        for name in wanted:
            stamps = {watch.seen.get(name, "") for watch in watches if name in watch.ids}
            if len(stamps) == 1:
                known[name] = stamps.pop()
        for name, stamp, document in await self._run(calls.news(known)):
            for watch in watches:
                if name in watch.ids and watch.seen.get(name) != stamp:
                    watch.seen[name] = stamp
                    watch.changes.put_nowait((name, document))

    async def _stop_looking(self) -> None:
        looking, self._looking = self._looking, None
        if looking is not None:
            looking.cancel()
            await asyncio.wait([looking])
        self._lines.ears.discard(self._hear)

    async def forget(self, ids: Sequence[str]) -> None:
        """Delete documents."""
        if ids:
            await self._run(calls.forget(ids))

    async def save_group(self, group_id: str, document: bytes, expires: float | None) -> None:
        """Keep a group's document."""
        await self._run(calls.save_group(group_id, document, expires))

    async def fetch_group(self, group_id: str) -> bytes | None:
        """A group's document, if it stands."""
        rows = await self._run(calls.fetch_group(group_id))
        return rows[0][0] if rows else None

    async def forget_group(self, group_id: str) -> None:
        """Delete a group's document."""
        await self._run(calls.forget_group(group_id))

    # Chords

    async def open_chords(self, chords: Sequence[Chord]) -> None:
        """Make chords known, all or none."""
        if chords:
            await self._run(calls.open_chords(chords))

    async def add_to_chord(self, group: str, members: Sequence[str]) -> None:
        """More members of a chord, each once."""
        await self._run(calls.add_to_chord(group, members))

    async def count(self, parts: Sequence[Part], hold: float) -> Sequence[bool]:
        """Count members, each once. True: the chord is complete and held by the part's token."""
        if not parts:
            return []
        [(held,)] = await self._run(calls.count(parts, hold))
        return list(held)

    async def chord(self, group: str) -> Standing | None:
        """A chord as it stands."""
        return calls.seen(await self._run(calls.look([group]))).get(group)

    async def fire(self, fires: Sequence[Fire], hold: float) -> Sequence[bool]:
        """End chords. True: it was the token's to end."""
        if not fires:
            return []
        [(ended,)] = await self._run(calls.fire(fires, hold))
        return list(ended)

    async def hold(self, fire: Fire, hold: float) -> bool:
        """Take or keep a chord that is complete."""
        [(held,)] = await self._run(calls.hold(fire, hold))
        return bool(held)

    async def standing(self, idle: float, limit: int) -> Sequence[Standing]:
        """Chords that are not done and have not moved for long, the oldest first."""
        [(groups,)] = await self._run(calls.standing(idle, limit))
        if not groups:
            return []
        found = calls.seen(await self._run(calls.look(groups)))
        return [found[group] for group in groups if group in found]

    async def close(self) -> None:
        """Close the connections. The next use opens them again."""
        if self._looking is not None:
            await self._stop_looking()
        await self._holder.close()


class _Watch:
    """One watch: its ids, and what it has seen of them."""

    def __init__(self, ids: Sequence[str]) -> None:
        self.ids = frozenset(ids)
        self.changes: asyncio.Queue[tuple[str, bytes] | Exception] = asyncio.Queue()
        self.seen: Stamps = {}

    async def documents(self) -> AsyncIterator[tuple[str, bytes]]:
        """The documents as they come. Raises what looking has raised."""
        while True:
            change = await self.changes.get()
            if isinstance(change, Exception):
                raise change
            yield change


class PostgresReader:
    """The synchronous side. Threads take turns at one connection; who waits has one of its own, up to a number. After a
    fork all are opened anew."""

    def __init__(self, url: str, options: Mapping[str, object]) -> None:
        self.site = parse(url, options)
        self._reset()

    def _reset(self) -> None:
        self._pid = os.getpid()
        self._lock = threading.Lock()
        self._connection = Blocking(self.site)
        self._idle: list[_Ear] = []
        self._ears = 0

    def _run(self, call: Call) -> Rows:
        if self._pid != os.getpid():
            self._reset()  # another thread may have held the lock when we were forked
        with self._lock:
            return self._connection.run(*call)

    def fetch(self, ids: Sequence[str]) -> Mapping[str, bytes]:
        """Documents of those ids that have one."""
        return dict(self._run(calls.fetch(ids))) if ids else {}

    @contextmanager
    def watch(self, ids: Sequence[str], timeout: float | None) -> Iterator[Iterator[tuple[str, bytes]]]:
        """The documents as they are now, then each change, until `timeout` seconds have passed since entering; of
        quick changes of one document maybe only the last."""
        deadline = None if timeout is None else time.monotonic() + timeout
        ear: _Ear | None = None
        try:
            ear = self._ear()
            yield self._documents(tuple(ids), ear, deadline)
        finally:
            if ear is not None:
                self._give_back(ear)

    def _ear(self) -> _Ear | None:
        if self._pid != os.getpid():
            self._reset()
        with self._lock:
            if self._idle:
                return self._idle.pop()
            if self._ears >= _EARS:
                return None
            self._ears += 1
        return _Ear(self.site)

    def _give_back(self, ear: _Ear) -> None:
        if self._pid == os.getpid():
            with self._lock:
                self._idle.append(ear)

    def _documents(
        self, ids: Sequence[str], ear: _Ear | None, deadline: float | None
    ) -> Iterator[tuple[str, bytes]]:
        seen: Stamps = {}
        wanted: Sequence[str] = ids
        new = False
        while True:
            if ear is not None:
                new = ear.listen() or new
            if wanted:
                rows = self._run(calls.news({name: seen.get(name, "") for name in wanted}))
                for name, stamp, document in rows:
                    seen[name] = stamp
                    yield name, document
            pause = _LOOK_OFTEN if ear is None or ear.deaf else _LOOK_SOON if new else _LOOK_SECONDS
            if deadline is not None:
                pause = min(pause, deadline - time.monotonic())
                if pause <= 0:
                    return
            if ear is None or ear.deaf:
                time.sleep(pause)
                wanted = ids
                continue
            told = ear.heard(pause)
            if told is None:
                wanted, new = ids, False
            else:
                wanted = [name for name in ids if name in told]

    def store(self, stores: Sequence[Store]) -> None:
        """Store documents. Raises BackendStoreError for one that can't be kept; the others are."""
        failure: BackendStoreError | None = None
        for places in calls.rounds(stores):
            failure = self._store([stores[place] for place in places]) or failure
        if failure is not None:
            raise failure

    def _store(self, stores: Sequence[Store]) -> BackendStoreError | None:
        try:
            self._run(calls.store(stores, None))
        except Exception as error:
            if not is_about_values(error):
                raise
            if len(stores) == 1:
                return BackendStoreError(reason_of(error), state=stores[0].state, task_id=stores[0].id)
            failures = [self._store([store]) for store in stores]
            return next((failure for failure in failures if failure is not None), None)
        return None

    def forget(self, ids: Sequence[str]) -> None:
        """Delete documents."""
        if ids:
            self._run(calls.forget(ids))

    def save_group(self, group_id: str, document: bytes, expires: float | None) -> None:
        """Keep a group's document."""
        self._run(calls.save_group(group_id, document, expires))

    def fetch_group(self, group_id: str) -> bytes | None:
        """A group's document, if it stands."""
        rows = self._run(calls.fetch_group(group_id))
        return rows[0][0] if rows else None

    def forget_group(self, group_id: str) -> None:
        """Delete a group's document."""
        self._run(calls.forget_group(group_id))

    def open_chords(self, chords: Sequence[Chord]) -> None:
        """Make chords known, all or none."""
        if chords:
            self._run(calls.open_chords(chords))

    def add_to_chord(self, group: str, members: Sequence[str]) -> None:
        """More members of a chord, each once."""
        self._run(calls.add_to_chord(group, members))

    def close(self) -> None:
        """Close the connections. The next use opens them again."""
        with self._lock:
            self._connection.close()
            self._ears -= len(self._idle)
            while self._idle:
                self._idle.pop().close()


class _Ear:
    """A connection on which one watch at a time hears of results."""

    def __init__(self, site: Site) -> None:
        self._connection = Blocking(site)
        self._name = f"r{os.urandom(8).hex()}"
        self._said = 0.0

    @property
    def deaf(self) -> bool:
        """No notification comes through."""
        return self._connection.pooled

    def listen(self) -> bool:
        """See that we are told. True: only from now on."""
        self._connection.open()
        if self.deaf:
            return False
        listening = self._connection.is_listening
        if not listening:
            self._connection.listen(_CHANNEL)
        if not listening or time.monotonic() > self._said - calls.WAIT_SECONDS / 2:
            fresh = time.monotonic() > self._said
            self._connection.run(*calls.wait(self._name, "r"))
            self._said = time.monotonic() + calls.WAIT_SECONDS
            return fresh or not listening
        return False

    def heard(self, seconds: float) -> set[str] | None:
        """The ids of what was stored since; waits up to so many seconds. None: any may have been."""
        told: set[str] = set()
        heard = self._connection.heard(seconds)
        for channel, payload in heard:
            if not channel or not payload:
                return None
            told.update(payload.split(","))
        return told if heard else None

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()
