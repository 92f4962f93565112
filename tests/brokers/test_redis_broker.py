"""Redis and Valkey keep the contract of brokers, with and without key prefixes."""

from __future__ import annotations

import pytest

from celeriac.testing.contract_broker import BrokerContract, BusContract, SenderContract
from celeriac.testing.contract_consumer import ConsumerContract
from tests.brokers.redis_rig import RedisRig


class _OnServers:
    @pytest.fixture(params=["redis", "valkey", "apart"])
    def rig(self, request: pytest.FixtureRequest) -> RedisRig:
        url = request.getfixturevalue("valkey_url" if request.param == "valkey" else "redis_url")
        return RedisRig(url, apart=request.param == "apart")


class TestRedisBroker(_OnServers, BrokerContract):
    """Publishing and operating."""


class TestRedisConsumer(_OnServers, ConsumerContract):
    """Claiming, settling, leases."""


class TestRedisSender(_OnServers, SenderContract):
    """Publishing without a loop."""


class TestRedisBus(_OnServers, BusContract):
    """Fanout."""
