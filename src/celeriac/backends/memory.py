"""Results inside one process: for tests, eager trips and workers in threads. Gone with the process."""

from __future__ import annotations

import asyncio
import queue
import time
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress

from celeriac.drivers.memory import MemoryServer
from celeriac.model.message import Chord, Fire, Part, Standing, Store, Verdict
from celeriac.ports import Keeping


class MemoryBackend:
    """ResultBackend on a MemoryServer."""

    persistent = False
    keeping = Keeping(
        waits="told at once",
        forgets="by itself",
        chords="counted in the step that stores the member",
        layout="celeriac, gone with the process",
    )

    def __init__(self, server: MemoryServer) -> None:
        self.server = server

    def describe(self) -> str:
        """`memory://name`."""
        return f"memory://{self.server.name}"

    async def store(self, stores: Sequence[Store], deadline: float | None = None) -> Sequence[Verdict]:
        """Store documents, each by itself; after `deadline` none."""
        return self.server.store(stores, deadline)

    async def clock(self) -> float:
        """The server's clock."""
        return self.server.clock()

    async def fetch(self, ids: Sequence[str]) -> Mapping[str, bytes]:
        """Documents of those ids that have one."""
        return self.server.fetch(ids)

    @asynccontextmanager
    async def watch(self, ids: Sequence[str]) -> AsyncIterator[AsyncIterator[tuple[str, bytes]]]:
        """The documents as they are now, then each change."""
        loop = asyncio.get_running_loop()
        changes: asyncio.Queue[tuple[str, bytes]] = asyncio.Queue()

        def push(name: str, document: bytes) -> None:
            with suppress(RuntimeError):  # that loop has ended, and its watch with it
                loop.call_soon_threadsafe(changes.put_nowait, (name, document))

        async def documents(standing: Mapping[str, bytes]) -> AsyncIterator[tuple[str, bytes]]:
            for change in standing.items():
                yield change
            while True:
                yield await changes.get()

        standing = self.server.watch(ids, push)
        try:
            yield documents(standing)
        finally:
            self.server.unwatch(ids, push)

    async def forget(self, ids: Sequence[str]) -> None:
        """Delete documents."""
        self.server.forget(ids)

    async def save_group(self, group_id: str, document: bytes, expires: float | None) -> None:
        """Keep a group's document."""
        self.server.save_group(group_id, document, expires)

    async def fetch_group(self, group_id: str) -> bytes | None:
        """A group's document, if it stands."""
        return self.server.fetch_group(group_id)

    async def forget_group(self, group_id: str) -> None:
        """Delete a group's document."""
        self.server.forget_group(group_id)

    async def open_chords(self, chords: Sequence[Chord]) -> None:
        """Make chords known."""
        self.server.chords.open(chords)

    async def add_to_chord(self, group: str, members: Sequence[str]) -> None:
        """More members of a chord, each once."""
        self.server.chords.add(group, members)

    async def count(self, parts: Sequence[Part], hold: float) -> Sequence[bool]:
        """Count members, each once. True: the chord is complete and held by the part's token."""
        return self.server.chords.count(parts, hold)

    async def chord(self, group: str) -> Standing | None:
        """A chord as it stands."""
        return self.server.chords.look(group)

    async def fire(self, fires: Sequence[Fire], hold: float) -> Sequence[bool]:
        """End chords. True: it was the token's to end."""
        return self.server.chords.fire(fires, hold)

    async def hold(self, fire: Fire, hold: float) -> bool:
        """Take or keep a chord that is complete."""
        return self.server.chords.hold(fire, hold)

    async def standing(self, idle: float, limit: int) -> Sequence[Standing]:
        """Chords that are not done and have not moved for long, the oldest first."""
        return self.server.chords.standing(idle, limit)

    async def close(self) -> None:
        """Nothing to close."""


class MemoryReader:
    """The synchronous side."""

    def __init__(self, server: MemoryServer) -> None:
        self.server = server

    def fetch(self, ids: Sequence[str]) -> Mapping[str, bytes]:
        """Documents of those ids that have one."""
        return self.server.fetch(ids)

    @contextmanager
    def watch(self, ids: Sequence[str], timeout: float | None) -> Iterator[Iterator[tuple[str, bytes]]]:
        """The documents as they are now, then each change, until `timeout` seconds have passed since entering."""
        deadline = None if timeout is None else time.monotonic() + timeout
        changes: queue.SimpleQueue[tuple[str, bytes]] = queue.SimpleQueue()

        def push(name: str, document: bytes) -> None:
            changes.put((name, document))

        def documents(standing: Mapping[str, bytes]) -> Iterator[tuple[str, bytes]]:
            yield from standing.items()
            while True:
                patience = None if deadline is None else deadline - time.monotonic()
                try:
                    yield changes.get(timeout=None if patience is None else max(patience, 0.0))
                except queue.Empty:
                    return

        standing = self.server.watch(ids, push)
        try:
            yield documents(standing)
        finally:
            self.server.unwatch(ids, push)

    def store(self, stores: Sequence[Store]) -> None:
        """Store documents."""
        self.server.store(stores)

    def forget(self, ids: Sequence[str]) -> None:
        """Delete documents."""
        self.server.forget(ids)

    def save_group(self, group_id: str, document: bytes, expires: float | None) -> None:
        """Keep a group's document."""
        self.server.save_group(group_id, document, expires)

    def fetch_group(self, group_id: str) -> bytes | None:
        """A group's document, if it stands."""
        return self.server.fetch_group(group_id)

    def forget_group(self, group_id: str) -> None:
        """Delete a group's document."""
        self.server.forget_group(group_id)

    def open_chords(self, chords: Sequence[Chord]) -> None:
        """Make chords known."""
        self.server.chords.open(chords)

    def add_to_chord(self, group: str, members: Sequence[str]) -> None:
        """More members of a chord, each once."""
        self.server.chords.add(group, members)

    def close(self) -> None:
        """Nothing to close."""
