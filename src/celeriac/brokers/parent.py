"""Broker and result backend as a pool child sees them: everything goes through the worker's parent."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from typing import Any, Protocol

from celeriac.errors import OperationalError
from celeriac.model.message import DONE, Chord, Envelope, Store, Verdict

SLICE = 3600.0
"""A watch without a bound asks again after so many seconds."""
GRACE = 5.0
"""The parent's answer to a watch may come so much after the watch's own end."""


class Line(Protocol):
    """The child's end of the side pair."""

    def ask(self, op: str, args: Any, timeout: float | None = ...) -> Any:
        """Ask the parent and wait for its answer."""
        ...

    async def aask(self, op: str, args: Any, timeout: float | None = ...) -> Any:
        """`ask` for a coroutine."""
        ...


class ParentSender:
    """Publishes through the parent. On return the broker has the envelopes safe."""

    def __init__(self, line: Line) -> None:
        self._line = line

    def publish(self, envelopes: Sequence[Envelope], timeout: float) -> None:
        """Hand over envelopes within `timeout` seconds, or raise OperationalError."""
        self._line.ask("publish", list(envelopes), timeout)

    async def apublish(self, envelopes: Sequence[Envelope], timeout: float) -> None:
        """`publish` for a coroutine."""
        await self._line.aask("publish", list(envelopes), timeout)

    def close(self) -> None:
        """Nothing is open here."""


class ParentReader:
    """Results through the parent."""

    def __init__(self, line: Line) -> None:
        self._line = line

    def fetch(self, ids: Sequence[str]) -> Mapping[str, bytes]:
        """Documents of those ids that have one."""
        found: Mapping[str, bytes] = self._line.ask("fetch", list(ids))
        return found

    @contextmanager
    def watch(self, ids: Sequence[str], timeout: float | None) -> Iterator[Iterator[tuple[str, bytes]]]:
        """The documents that are ready, each once, as they become so. Ends when `timeout` seconds have passed. Raises
        RuntimeError when no seat of the worker is left that could run what is waited for."""
        yield self._changes(list(ids), timeout)

    def _changes(self, ids: list[str], timeout: float | None) -> Iterator[tuple[str, bytes]]:
        end = None if timeout is None else time.monotonic() + timeout
        while ids:
            left = SLICE if end is None else max(0.0, end - time.monotonic())
            found = self._line.ask("watch", [ids, left], left + GRACE)
            for task_id, document in found.items():
                ids.remove(task_id)
                yield task_id, document
            if not found and end is not None and time.monotonic() >= end:
                return

    def store(self, stores: Sequence[Store]) -> None:
        """Store documents."""
        self._line.ask("store", list(stores))

    def forget(self, ids: Sequence[str]) -> None:
        """Delete documents."""
        self._line.ask("forget", list(ids))

    def save_group(self, group_id: str, document: bytes, expires: float | None) -> None:
        """Store the document of a group."""
        self._line.ask("group_save", [group_id, document, expires])

    def fetch_group(self, group_id: str) -> bytes | None:
        """The document of a group, if there is one."""
        found: bytes | None = self._line.ask("group_fetch", group_id)
        return found

    def forget_group(self, group_id: str) -> None:
        """Delete the document of a group."""
        self._line.ask("group_forget", group_id)

    def open_chords(self, chords: Sequence[Chord]) -> None:
        """Make chords known."""
        self._line.ask("chord_open", list(chords))

    def add_to_chord(self, group: str, members: Sequence[str]) -> None:
        """More members of a chord, each once."""
        self._line.ask("chord_add", [group, list(members)])

    def clean_up(self) -> None:
        """Delete results that have expired."""
        self._line.ask("clean_up", None)

    def close(self) -> None:
        """Nothing is open here."""


class ParentBackend:
    """ParentReader for coroutines: what of ports.ResultBackend a task can use."""

    persistent = True

    def __init__(self, line: Line) -> None:
        self._line = line

    def describe(self) -> str:
        """Where results go."""
        return "the worker's result backend"

    async def store(self, stores: Sequence[Store], deadline: float | None = None) -> Sequence[Verdict]:
        """Store documents; the parent's deadline counts."""
        await self._line.aask("store", list(stores))
        return [DONE] * len(stores)

    async def clock(self) -> float:
        """The store's clock is the parent's business."""
        raise OperationalError("a task does not see the clock of the result backend")

    async def fetch(self, ids: Sequence[str]) -> Mapping[str, bytes]:
        """Documents of those ids that have one."""
        found: Mapping[str, bytes] = await self._line.aask("fetch", list(ids))
        return found

    @asynccontextmanager
    async def watch(self, ids: Sequence[str]) -> AsyncIterator[AsyncIterator[tuple[str, bytes]]]:
        """The documents that are ready, each once, as they become so."""
        yield self._changes(list(ids))

    async def _changes(self, ids: list[str]) -> AsyncIterator[tuple[str, bytes]]:
        while ids:
            found = await self._line.aask("watch", [ids, SLICE], SLICE + GRACE)
            for task_id, document in found.items():
                ids.remove(task_id)
                yield task_id, document

    async def forget(self, ids: Sequence[str]) -> None:
        """Delete documents."""
        await self._line.aask("forget", list(ids))

    async def save_group(self, group_id: str, document: bytes, expires: float | None) -> None:
        """Store the document of a group."""
        await self._line.aask("group_save", [group_id, document, expires])

    async def fetch_group(self, group_id: str) -> bytes | None:
        """The document of a group, if there is one."""
        found: bytes | None = await self._line.aask("group_fetch", group_id)
        return found

    async def forget_group(self, group_id: str) -> None:
        """Delete the document of a group."""
        await self._line.aask("group_forget", group_id)

    async def open_chords(self, chords: Sequence[Chord]) -> None:
        """Make chords known."""
        await self._line.aask("chord_open", list(chords))

    async def add_to_chord(self, group: str, members: Sequence[str]) -> None:
        """More members of a chord, each once."""
        await self._line.aask("chord_add", [group, list(members)])

    async def close(self) -> None:
        """Nothing is open here."""
