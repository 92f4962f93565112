"""Results as files in a folder, in Celery's layout: one file for each document, named as the key. Chords lie in folders
of our own below it. For several machines the folder has to be on a file system that has locks (flock)."""

from __future__ import annotations

import errno
import math
import os
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote, unquote

from celeriac.backends.blocking import BlockingBackend, BlockingReader, Ear
from celeriac.backends.keys import Keys, is_success, lost_entry
from celeriac.drivers.shelf_chords import ShelfChords, Written
from celeriac.errors import ImproperlyConfigured, OperationalError
from celeriac.model.message import DONE, LOST, Store, Verdict
from celeriac.ports import Keeping

T = TypeVar("T")
_NEVER = 4_102_444_800.0
"""The year 2100: as time of a file's change, for what does not expire."""


class FileStore:
    """See `blocking.BlockingStore`."""

    persistent = True

    def __init__(self, url: str, options: Mapping[str, Any], clock: Callable[[], float] | None = None) -> None:
        """`options`: serializer, expires (seconds), global_keyprefix. Raises ImproperlyConfigured."""
        self.folder = _folder(url)
        self._keys = Keys(options)
        self._lost = partial(lost_entry, serializer=str(options.get("serializer") or "json"))
        self._expires: float | None = options.get("expires")
        self._clock = clock or time.time

    def describe(self) -> str:
        """The folder as URL."""
        return f"file://{self.folder}"

    # Files

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Alone in the folder, on this machine and others."""
        import fcntl

        with self._telling(), open(self.folder / ".celeriac-lock", "a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    @contextmanager
    def _telling(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise OperationalError(f"{self.describe()}: {error.strerror or error}") from error

    def _path(self, key: str) -> Path:
        """Raises ValueError for a name that would lead elsewhere."""
        if "/" in key or os.sep in key or "\0" in key:
            raise ValueError(f"{key!r} can't be the name of a file")
        return self.folder / key

    def _write(self, path: Path, data: bytes, changed: float | None = None) -> None:
        """Write a file so that who reads it sees all of it or what was there before."""
        beside = self.folder / f".celeriac-{os.urandom(8).hex()}"
        try:
            beside.write_bytes(data)
            if changed is not None:
                os.utime(beside, (changed, changed))
            os.replace(beside, path)
        except BaseException:
            beside.unlink(missing_ok=True)
            raise

    def _read(self, path: Path) -> bytes | None:
        try:
            return path.read_bytes()
        except FileNotFoundError:
            return None

    # Results

    def store(self, stores: Sequence[Store], deadline: float | None = None) -> list[Verdict]:
        """Store documents, each by itself."""
        verdicts = []
        with self._locked():
            for store in stores:
                if deadline is not None and self._clock() > deadline:
                    verdicts.append(LOST)
                    continue
                try:
                    path = self._path(self._keys.task + store.id)
                    before = self._read(path) if store.guard else None
                    if before is None or not is_success(before):
                        self._write(path, store.document)
                    verdicts.append(DONE)
                except (OSError, ValueError) as error:
                    verdicts.append(Verdict(False, error=f"{type(error).__name__}: {error}"))
        return verdicts

    def clock(self) -> float:
        """The machine's clock."""
        return self._clock()

    def fetch(self, ids: Collection[str]) -> dict[str, bytes]:
        """Documents of those ids that have one."""
        found = {}
        with self._telling():
            for task_id in ids:
                with suppress(ValueError), _unless_too_long():  # a name that no file can have
                    document = self._read(self._path(self._keys.task + task_id))
                    if document:  # an empty one is just being written by Celery
                        found[task_id] = document
        return found

    def forget(self, ids: Sequence[str]) -> None:
        """Delete documents."""
        with self._telling():
            for task_id in ids:
                with suppress(ValueError), _unless_too_long():  # there is none of such a name
                    self._path(self._keys.task + task_id).unlink(missing_ok=True)

    def save_group(self, group_id: str, document: bytes, expires: float | None) -> None:
        """Keep a group's document."""
        with self._telling():
            self._write(self._path(self._keys.group + group_id), document)

    def fetch_group(self, group_id: str) -> bytes | None:
        """A group's document."""
        with self._telling():
            return self._read(self._path(self._keys.group + group_id)) or None

    def forget_group(self, group_id: str) -> None:
        """Delete a group's document."""
        with self._telling():
            self._path(self._keys.group + group_id).unlink(missing_ok=True)

    def clean_up(self, limit: int | None = None) -> int:
        """Delete documents that were written longer ago than `result_expires`, and chords whose time is over."""
        now = self._clock()
        deleted = 0
        with self._locked():
            if self._expires:
                ours = (self._keys.task, self._keys.group)
                deleted += _delete_older(self.folder, now - self._expires, lambda name: name.startswith(ours), limit)
                _delete_older(
                    self.folder, now - 3600, lambda name: name.startswith(".celeriac-") and len(name) > 20, 100
                )
            deleted += _FileShelf(self).clean_up(now, limit)
        return deleted

    # Chords

    def with_chords(self, work: Callable[[ShelfChords], T]) -> T:
        """Do something with the chords."""
        with self._locked():
            return work(ShelfChords(_FileShelf(self), self._lost))

    def ear(self) -> Ear | None:
        """A folder does not ring."""
        return None

    def close(self) -> None:
        """Nothing is open."""


class _FileShelf:
    """See `shelf_chords.Shelf`. All of it under the folder's lock. The time of change of a document's file is when it
    is to be forgotten, that of its mark in `open` is when it moved."""

    def __init__(self, store: FileStore) -> None:
        self._store = store
        self.clock = store._clock
        top = store.folder / f"{store._keys.prefix}celeriac-chords"
        self._documents, self._open, self._entries = top / "documents", top / "open", top / "entries"
        for folder in (self._documents, self._open, self._entries):
            folder.mkdir(parents=True, exist_ok=True)

    def change(self, group: str, work: Callable[[bytes | None], Written | None]) -> None:
        """Give a chord's document to `work` and keep what it gives back."""
        name = _name(group)
        written = work(self.read(group))
        if written is None:
            return
        if written.moved is not None:
            self._store._write(self._open / name, b"", written.moved)
        self._store._write(
            self._documents / name, written.document, _NEVER if math.isinf(written.expires) else written.expires
        )
        if written.moved is None:
            (self._open / name).unlink(missing_ok=True)

    def read(self, group: str) -> bytes | None:
        """A chord's document."""
        return self._store._read(self._documents / _name(group))

    def keep(self, group: str, entries: Mapping[str, bytes]) -> None:
        """Keep what members gave; where there is something already, that stays."""
        folder = self._entries / _name(group)
        folder.mkdir(exist_ok=True)
        for member, entry in entries.items():
            path = folder / _name(member)
            if not path.exists():
                self._store._write(path, entry)

    def kept(self, group: str, members: Sequence[str]) -> Mapping[str, bytes]:
        """What those of these members gave of whom there is something."""
        folder = self._entries / _name(group)
        found = {member: self._store._read(folder / _name(member)) for member in members}
        return {member: entry for member, entry in found.items() if entry is not None}

    def drop(self, group: str, members: Iterable[str]) -> None:
        """Forget what members gave."""
        folder = self._entries / _name(group)
        for member in members:
            (folder / _name(member)).unlink(missing_ok=True)
        with suppress(OSError):  # another member is there
            folder.rmdir()

    def oldest(self, before: float, limit: int) -> Sequence[str]:
        """Chords that are not done and have not moved since `before`, the oldest first."""
        with os.scandir(self._open) as marks:
            found = sorted((mark.stat().st_mtime, mark.name) for mark in marks)
        return [unquote(name[1:]) for moved, name in found if moved <= before + 1e-6][: max(limit, 0)]

    def structure(self, group: str, document: bytes, expires: float) -> None:
        """Save a group's document."""
        self._store.save_group(group, document, None)

    def renew_structure(self, group: str, expires: float) -> None:
        """Files stay until they are cleaned up."""

    def read_structure(self, group: str) -> bytes | None:
        """A group's document."""
        return self._store.fetch_group(group)

    def clean_up(self, now: float, limit: int | None) -> int:
        """Delete chords whose time is over."""
        with os.scandir(self._documents) as documents:
            over = [each.name for each in documents if each.stat().st_mtime < now][:limit]
        for name in over:
            for path in (self._documents / name, self._open / name):
                path.unlink(missing_ok=True)
            folder = self._entries / name
            if folder.is_dir():
                for entry in folder.iterdir():
                    entry.unlink()
                folder.rmdir()
        return len(over)


def _name(text: str) -> str:
    """The name of a file for a group or a member."""
    return "c" + quote(text, safe="")  # neither empty nor a dot


@contextmanager
def _unless_too_long() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno != errno.ENAMETOOLONG:
            raise


def _folder(url: str) -> Path:
    rest = url.removeprefix("file://").removeprefix("localhost")
    if not rest.startswith("/") or len(rest) < 2:
        raise ImproperlyConfigured(f"result_backend: {url!r} names no folder: write file:///path/of/a/folder")
    folder = Path(rest[1:] if os.name == "nt" else rest)
    if os.name == "nt":
        raise ImproperlyConfigured("result_backend: file:// needs a system with flock; use db+sqlite:/// on Windows")
    if not folder.is_dir():
        raise ImproperlyConfigured(f"result_backend: the folder {folder} does not exist: make it, or name another")
    if not os.access(folder, os.R_OK | os.W_OK | os.X_OK):
        raise ImproperlyConfigured(f"result_backend: no right to read and write in {folder}: change its mode or owner")
    return folder


def _delete_older(folder: Path, before: float, ours: Callable[[str], bool], limit: int | None) -> int:
    deleted = 0
    with os.scandir(folder) as files:
        for each in files:
            if ours(each.name):
                with suppress(FileNotFoundError):
                    if each.stat().st_mtime < before:
                        os.unlink(each.path)
                        deleted += 1
                if limit is not None and deleted >= limit:
                    break
    return deleted


class FileBackend(BlockingBackend):
    """ResultBackend on a folder."""

    keeping = Keeping(
        waits="looked for, twice a second at last",
        forgets="cleaned up, by workers and by celery.backend_cleanup",
        chords="counted in files of celeriac; those that Celery sent: asked for by celery.chord_unlock",
        layout="Celery",
    )
    def __init__(self, url: str, options: Mapping[str, Any], clock: Callable[[], float] | None = None) -> None:
        super().__init__(FileStore(url, options, clock))


class FileReader(BlockingReader):
    """The synchronous side."""

    def __init__(self, url: str, options: Mapping[str, Any], clock: Callable[[], float] | None = None) -> None:
        super().__init__(FileStore(url, options, clock))
