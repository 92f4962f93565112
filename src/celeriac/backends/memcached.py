"""Results in memcached, under Celery's keys. It is a cache: what it throws away for want of memory, or loses when it is
started anew, is gone."""

from __future__ import annotations

import math
import os
import threading
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from hashlib import sha256
from typing import Any, TypeVar
from urllib.parse import quote

import msgspec
from pymemcache import HashClient, PooledClient
from pymemcache.client.retrying import RetryingClient
from pymemcache.exceptions import MemcacheError, MemcacheIllegalInputError, MemcacheServerError

from celeriac.backends.blocking import BlockingBackend, BlockingReader, Ear
from celeriac.backends.keys import Keys, is_success, lost_entry
from celeriac.drivers.shelf_chords import ShelfChords, Written
from celeriac.errors import ImproperlyConfigured, OperationalError, RefusedError
from celeriac.model.message import DONE, LOST, Store, Verdict
from celeriac.ports import Keeping

T = TypeVar("T")

AT_ONCE = 500
"""Keys in one question."""
_MONTH = 30 * 86_400
"""Longer times are dates for memcached."""
_LONGEST_KEY = 250
_SAFE = "!\"#$&'()*+,/:;<=>?@[\\]^_`{|}~"
"""With letters, digits and `.-`: what a key may hold as it is. Ids of Celery hold nothing else."""
_PYLIBMC = ("behaviors", "binary")
_RETRYING = {
    "retry_attempts": "attempts", "retry_delay": "retry_delay", "retry_for": "retry_for",
    "do_not_retry_for": "do_not_retry_for",
}  # fmt: skip
_SCHEMES = ("memcached", "memcache", "pymemcache", "pylibmc")


class MemcachedStore:
    """See `blocking.BlockingStore`."""

    persistent = True

    def __init__(self, url: str, options: Mapping[str, Any], clock: Callable[[], float] | None = None) -> None:
        """`options`: serializer, global_keyprefix, cache_options. Raises ImproperlyConfigured."""
        scheme, _, rest = url.partition("+")[2].partition("://")
        if scheme.lower() not in _SCHEMES:
            raise ImproperlyConfigured(
                f"result_backend: the cache {scheme!r} is unknown; use cache+memcached://host:port or cache+memory://"
            )
        self.servers = [server.strip() for server in rest.rstrip("/").split(";") if server.strip()]
        if not self.servers:
            raise ImproperlyConfigured("result_backend: no server is named; write cache+memcached://host:11211/")
        self._keys = Keys(options)
        self._lost = partial(lost_entry, serializer=str(options.get("serializer") or "json"))
        self._cache_options = dict(options.get("cache_options") or {})
        self._clock = clock or time.time
        self._lock = threading.Lock()
        self._client: Any = None
        self._pid = os.getpid()
        self._make()  # wrong options are told at once; it connects to nothing yet

    def describe(self) -> str:
        """The URL."""
        return f"cache+memcached://{';'.join(self.servers)}/"

    def _make(self) -> Any:
        given = {"default_noreply": False, "connect_timeout": 5.0, "timeout": 5.0, **self._cache_options}
        retrying = {word: given.pop(name) for name, word in _RETRYING.items() if name in given}
        for name in _PYLIBMC:
            given.pop(name, None)
        try:
            client: Any = (
                PooledClient(self.servers[0], **given)
                if len(self.servers) == 1
                else HashClient(self.servers, use_pooling=True, **given)
            )
            return RetryingClient(client, **retrying) if retrying else client
        except (TypeError, ValueError) as error:
            raise ImproperlyConfigured(f"cache_backend_options or result_backend: {error}") from None

    @contextmanager
    def connected(self) -> Iterator[Any]:
        """The client. Raises OperationalError."""
        if self._pid != os.getpid():  # forked: the sockets are the parent's
            self._pid, self._lock, self._client = os.getpid(), threading.Lock(), None
        with self._lock:
            if self._client is None:
                self._client = self._make()
            client = self._client
        try:
            yield client
        except (OSError, MemcacheError) as error:
            text = str(error) or type(error).__name__
            if "too large" in text:
                raise RefusedError(f"{self.describe()}: {text} (memcached -I sets how large a value may be)") from error
            raise OperationalError(f"{self.describe()}: {text}") from error

    def key(self, prefix: str, name: str) -> str:
        """A key that memcached takes. Raises UnicodeEncodeError."""
        key = quote(prefix + name, safe=_SAFE)
        return key if len(key) <= _LONGEST_KEY else f"{prefix}sha256-{sha256(name.encode()).hexdigest()}"

    def ttl(self, expires: float | None) -> int:
        """What memcached takes for so many seconds: never less, though its seconds begin at any time."""
        if expires is None or math.isinf(expires):
            return 0
        seconds = math.ceil(max(expires, 0.0)) + 1
        return seconds if seconds <= _MONTH else int(time.time()) + seconds

    # Results

    def store(self, stores: Sequence[Store], deadline: float | None = None) -> list[Verdict]:
        """Store documents, each by itself."""
        with self.connected() as client:
            return [self._store(client, store, deadline) for store in stores]

    def _store(self, client: Any, store: Store, deadline: float | None) -> Verdict:
        try:
            key = self.key(self._keys.task, store.id)
            if deadline is not None and self._clock() > deadline:
                return LOST
            ttl = self.ttl(store.expires)
            if not store.guard:
                client.set(key, store.document, expire=ttl)
                return DONE
            while True:
                before, mark = client.gets(key)
                if before is None:
                    if client.add(key, store.document, expire=ttl):
                        return DONE
                elif is_success(before) or client.cas(key, store.document, mark, expire=ttl):
                    return DONE
        except (MemcacheServerError, MemcacheIllegalInputError, UnicodeEncodeError) as error:
            if isinstance(error, MemcacheServerError) and "too large" not in str(error):
                raise
            return Verdict(False, error=f"{error} (memcached -I sets how large a value may be)")

    def clock(self) -> float:
        """The machine's clock."""
        return self._clock()

    def _get(self, keys: Mapping[str, str]) -> dict[str, bytes]:
        """`keys`: name -> key."""
        found: dict[str, bytes] = {}
        names = {key: name for name, key in keys.items()}
        listed = list(names)
        with self.connected() as client:
            for start in range(0, len(listed), AT_ONCE):
                for key, value in client.get_many(listed[start : start + AT_ONCE]).items():
                    found[names[key]] = value
        return found

    def fetch(self, ids: Collection[str]) -> dict[str, bytes]:
        """Documents of those ids that have one."""
        return self._get(self._named(ids))

    def _named(self, ids: Iterable[str]) -> dict[str, str]:
        """Id -> key, of those that can have one."""
        keys = {}
        for name in ids:
            with suppress(UnicodeEncodeError):
                keys[name] = self.key(self._keys.task, name)
        return keys

    def forget(self, ids: Sequence[str]) -> None:
        """Delete documents."""
        with self.connected() as client:
            client.delete_many(list(self._named(ids).values()))

    def save_group(self, group_id: str, document: bytes, expires: float | None) -> None:
        """Keep a group's document."""
        with self.connected() as client:
            client.set(self.key(self._keys.group, group_id), document, expire=self.ttl(expires))

    def fetch_group(self, group_id: str) -> bytes | None:
        """A group's document."""
        with self.connected() as client:
            found: bytes | None = client.get(self.key(self._keys.group, group_id))
            return found

    def forget_group(self, group_id: str) -> None:
        """Delete a group's document."""
        with self.connected() as client:
            client.delete(self.key(self._keys.group, group_id))

    def clean_up(self, limit: int | None = None) -> int:
        """Nothing is to be done: it forgets by itself."""
        return 0

    # Chords

    def with_chords(self, work: Callable[[ShelfChords], T]) -> T:
        """Do something with the chords."""
        with self.connected() as client:
            return work(ShelfChords(_MemcachedShelf(self, client, self._keys, self._clock), self._lost))

    def ear(self) -> Ear | None:
        """memcached does not ring."""
        return None

    def close(self) -> None:
        """Close all connections. The next use opens others."""
        with self._lock:
            client, self._client = self._client, None
        if client is not None:
            client.close()


class _MemcachedShelf:
    """See `shelf_chords.Shelf`. Changes are by compare-and-swap."""

    def __init__(self, store: MemcachedStore, client: Any, keys: Keys, clock: Callable[[], float]) -> None:
        self._store = store
        self._client = client
        self._keys = keys
        self.clock = clock

    def _key(self, group: str) -> str:
        return self._store.key(self._keys.chord, group)

    def _ttl(self, expires: float) -> int:
        return self._store.ttl(expires - self.clock())

    def _change(self, key: str, work: Callable[[bytes | None], tuple[bytes, int] | None]) -> None:
        while True:
            before, mark = self._client.gets(key)
            after = work(before)
            if after is None:
                return
            document, ttl = after
            if before is None:
                if self._client.add(key, document, expire=ttl):
                    return
            elif self._client.cas(key, document, mark, expire=ttl):
                return

    def change(self, group: str, work: Callable[[bytes | None], Written | None]) -> None:
        """Give a chord's document to `work` and keep what it gives back."""
        last: Written | None = None

        def swap(before: bytes | None) -> tuple[bytes, int] | None:
            nonlocal last
            last = work(before)
            if last is None:
                return None
            if before is None:
                self._list(group, True)  # first: what is not listed would never be found again
            return last.document, self._ttl(last.expires)

        self._change(self._key(group), swap)
        if last is not None and last.moved is None:
            self._list(group, False)

    def _list(self, group: str, there: bool) -> None:
        def swap(before: bytes | None) -> tuple[bytes, int] | None:
            groups = _names(before)
            if (group in groups) == there:
                return None
            groups = [*groups, group] if there else [each for each in groups if each != group]
            return msgspec.msgpack.encode(groups), 0

        self._change(self._keys.chord + "s", swap)

    def read(self, group: str) -> bytes | None:
        """A chord's document."""
        found: bytes | None = self._client.get(self._key(group))
        return found

    def _entry(self, group: str, member: str) -> str:
        return self._store.key(self._keys.chord, f"{group}:{member}")

    def keep(self, group: str, entries: Mapping[str, bytes]) -> None:
        """Keep what members gave; where there is something already, that stays."""
        for member, entry in entries.items():
            self._client.add(self._entry(group, member), entry, expire=0)

    def kept(self, group: str, members: Sequence[str]) -> Mapping[str, bytes]:
        """What those of these members gave of whom there is something."""
        return self._store._get({member: self._entry(group, member) for member in members})

    def drop(self, group: str, members: Iterable[str]) -> None:
        """Forget what members gave."""
        self._client.delete_many([self._entry(group, member) for member in members])

    def oldest(self, before: float, limit: int) -> Sequence[str]:
        """All chords that are not done, in the order in which they came."""
        groups = _names(self._client.get(self._keys.chord + "s"))
        there = self._store._get({group: self._key(group) for group in groups})
        for group in groups:
            if group not in there:
                self._list(group, False)
        return [group for group in groups if group in there]

    def structure(self, group: str, document: bytes, expires: float) -> None:
        """Save a group's document."""
        self._store.save_group(group, document, expires - self.clock())

    def renew_structure(self, group: str, expires: float) -> None:
        """Keep a group's document until another time."""
        self._client.touch(self._store.key(self._keys.group, group), self._ttl(expires))

    def read_structure(self, group: str) -> bytes | None:
        """A group's document."""
        return self._store.fetch_group(group)


def _names(data: bytes | None) -> list[str]:
    return msgspec.msgpack.decode(data, type=list[str]) if data else []


class MemcachedBackend(BlockingBackend):
    """ResultBackend on memcached."""

    keeping = Keeping(
        waits="looked for, twice a second at last",
        forgets="by itself, and whatever else it has no room for",
        chords="counted in keys of celeriac; their members have to run on the kind of workers that sent them",
        layout="Celery",
    )
    def __init__(self, url: str, options: Mapping[str, Any], clock: Callable[[], float] | None = None) -> None:
        super().__init__(MemcachedStore(url, options, clock))


class MemcachedReader(BlockingReader):
    """The synchronous side."""

    def __init__(self, url: str, options: Mapping[str, Any], clock: Callable[[], float] | None = None) -> None:
        super().__init__(MemcachedStore(url, options, clock))
