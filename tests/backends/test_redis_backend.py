"""Redis and Valkey keep the contract of result backends, with and without key prefixes."""

from __future__ import annotations

from typing import Any

import pytest

from celeriac.backends.redis import RedisBackend, RedisReader
from celeriac.testing.contract_backend import BackendContract, ReaderContract
from celeriac.testing.rigs import BackendRig
from tests.servers import command


class RedisStoreRig(BackendRig):
    """One database of one server."""

    def __init__(self, url: str, options: dict[str, Any]) -> None:
        self.url = url
        self.options = options
        command(url, "FLUSHALL")

    def backend(self) -> RedisBackend:
        return RedisBackend(self.url, self.options)

    def reader(self) -> RedisReader:
        return RedisReader(self.url, self.options)


class _OnServers:
    @pytest.fixture(params=["redis", "valkey", "prefixed"])
    def rig(self, request: pytest.FixtureRequest) -> RedisStoreRig:
        url = request.getfixturevalue("valkey_url" if request.param == "valkey" else "redis_url")
        return RedisStoreRig(url, {"global_keyprefix": "results"} if request.param == "prefixed" else {})


class TestRedisBackend(_OnServers, BackendContract):
    """The asynchronous side."""


class TestRedisReader(_OnServers, ReaderContract):
    """The synchronous side."""
