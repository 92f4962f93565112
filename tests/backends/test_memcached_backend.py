"""Results in memcached keep the contract, on a real one; what is their own besides."""

from __future__ import annotations

import asyncio
import time
import uuid
from typing import Any

import pytest
from pymemcache import Client

from celeriac.backends.memcached import MemcachedBackend, MemcachedReader
from celeriac.errors import BackendStoreError, ImproperlyConfigured, OperationalError
from celeriac.model.message import Store
from celeriac.testing.contract_backend import BackendContract, ReaderContract
from celeriac.testing.contract_chords import HOLD, chord, part
from celeriac.testing.rigs import BackendRig


class MemcachedRig(BackendRig):
    """Keys of its own on one server. The times of chords are by a clock that jumps instead of going; what memcached
    itself forgets has a test of its own."""

    forgets = False

    def __init__(self, address: str) -> None:
        self.ahead = 0.0
        self.address = address
        self.prefix = f"{uuid.uuid4().hex}-"

    def clock(self) -> float:
        return time.time() + self.ahead

    def backend(self) -> MemcachedBackend:
        return MemcachedBackend(*self._where(), self.clock)

    def reader(self) -> MemcachedReader:
        return MemcachedReader(*self._where(), self.clock)

    def _where(self) -> tuple[str, dict[str, Any]]:
        return f"cache+memcached://{self.address}/", {"global_keyprefix": self.prefix}

    async def elapse(self, seconds: float) -> None:
        self.ahead += seconds


class TestMemcachedBackend(BackendContract):
    """The asynchronous side."""

    @pytest.fixture
    def rig(self, memcached_address: str) -> MemcachedRig:
        return MemcachedRig(memcached_address)


class TestMemcachedReader(ReaderContract):
    """The synchronous side."""

    @pytest.fixture
    def rig(self, memcached_address: str) -> MemcachedRig:
        return MemcachedRig(memcached_address)


def test_memcached_forgets(memcached_address: str) -> None:
    """Results and groups are gone after their time and not before; a later store sets a new time."""
    reader = MemcachedRig(memcached_address).reader()
    reader.store([Store("short", b"1", "SUCCESS", expires=1), Store("long", b"2", "SUCCESS", expires=100)])
    reader.store([Store("renewed", b"3", "STARTED", expires=1), Store("renewed", b"4", "SUCCESS", expires=100)])
    reader.save_group("short", b"g", 1)
    time.sleep(0.8)
    assert set(reader.fetch(["short", "long", "renewed"])) == {"short", "long", "renewed"}
    time.sleep(2.4)
    assert set(reader.fetch(["short", "long", "renewed"])) == {"long", "renewed"}
    assert reader.fetch_group("short") is None


def test_a_lost_entry_of_a_chord_fails_its_body(memcached_address: str) -> None:
    """What memcached has thrown away of a chord's member reads as a failure: the chord ends all the same."""
    rig = MemcachedRig(memcached_address)

    async def story() -> None:
        backend = rig.backend()
        await backend.open_chords([chord(2)])
        assert list(await backend.count([part("m0", 0), part("m1", 1)], HOLD)) == [False, True]
        Client(memcached_address).delete(f"{rig.prefix}celeriac-chord-g:m0:0")
        standing = await backend.chord("g")
        assert standing is not None
        assert b'"FAILURE"' in standing.entries[0]
        assert standing.entries[1] == part("m1", 1).entry
        await backend.close()

    asyncio.run(story())


def test_several_servers(memcached_address: str) -> None:
    """Documents are spread over the servers, and found again."""
    _, _, port = memcached_address.partition(":")
    options = {"global_keyprefix": uuid.uuid4().hex}
    reader = MemcachedReader(f"cache+memcached://{memcached_address};localhost:{port}/", options)
    reader.store([Store(f"id{n}", b"%d" % n, "SUCCESS") for n in range(20)])
    assert reader.fetch([f"id{n}" for n in range(20)]) == {f"id{n}": b"%d" % n for n in range(20)}


def test_long_times_and_too_large_documents(memcached_address: str) -> None:
    """More than 30 days are not taken for a date; a document that is too large says so."""
    reader = MemcachedRig(memcached_address).reader()
    reader.store([Store("a", b"1", "SUCCESS", expires=90 * 86_400)])
    assert dict(reader.fetch(["a"])) == {"a": b"1"}
    with pytest.raises(BackendStoreError, match="too large"):
        reader.store([Store("b", b"x" * (9 << 20), "SUCCESS")])


@pytest.mark.parametrize(
    ("url", "options", "error", "told"),
    [
        ("cache+memcached:///", {}, ImproperlyConfigured, "no server is named"),
        ("cache+dummy://h", {}, ImproperlyConfigured, "'dummy' is unknown; use cache"),
        ("cache+memcached://h", {"cache_options": {"nonsense": 1}}, ImproperlyConfigured, "nonsense"),
        ("cache+memcached://127.0.0.1:1/", {}, OperationalError, "127.0.0.1:1/: .*refused"),
    ],
)
def test_errors_are_one_line(url: str, options: dict[str, Any], error: type[Exception], told: str) -> None:
    """What is wrong with a URL, an option or a server is told in one line."""
    with pytest.raises(error, match=told) as raised:
        MemcachedReader(url, options).fetch(["a"])
    assert "\n" not in str(raised.value)
