"""PostgreSQL keeps the contract of brokers: Debian's version in every run, the newest in the long form."""

from __future__ import annotations

import pytest

from celeriac.testing.contract_broker import BrokerContract, BusContract, SenderContract
from celeriac.testing.contract_consumer import ConsumerContract
from tests.brokers.postgres_rig import PostgresRig


class _OnServers:
    @pytest.fixture(params=["debian", pytest.param("newest", marks=pytest.mark.full)])
    def rig(self, request: pytest.FixtureRequest) -> PostgresRig:
        name = "newest_postgres_server" if request.param == "newest" else "postgres_server"
        return PostgresRig(request.getfixturevalue(name).url)


class TestPostgresBroker(_OnServers, BrokerContract):
    """Publishing and operating."""


class TestPostgresConsumer(_OnServers, ConsumerContract):
    """Claiming, settling, leases."""


class TestPostgresSender(_OnServers, SenderContract):
    """Publishing without a loop."""


class TestPostgresBus(_OnServers, BusContract):
    """Fanout."""
