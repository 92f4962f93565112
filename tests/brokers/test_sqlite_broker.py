"""The SQLite broker keeps the contract; what is its own besides."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from celeriac.backends.sqlite import SqliteBackend
from celeriac.brokers.sqlite import SqliteBroker, SqliteConsumer, SqliteSender
from celeriac.ports import Broker, Bus, Consumer
from celeriac.testing.contract_broker import BrokerContract, BusContract, SenderContract
from celeriac.testing.contract_consumer import ConsumerContract
from celeriac.testing.rigs import BrokerRig


class SqliteRig(BrokerRig):
    """A file of its own, and a clock that jumps instead of going."""

    def __init__(self, folder: Path) -> None:
        self.ahead = 0.0
        self.url = f"sqlite:///{folder}/test.db"
        self.options = {"synchronous": "normal"}

    def clock(self) -> float:
        return time.time() + self.ahead

    def broker(self) -> SqliteBroker:
        return SqliteBroker(self.url, self.options, self.clock)

    def sender(self) -> SqliteSender:
        return SqliteSender(self.url, self.options, self.clock)

    def backend(self) -> SqliteBackend:
        return SqliteBackend(self.url, self.options, self.clock)

    def bus(self, broker: Broker) -> Bus:
        assert isinstance(broker, SqliteBroker)
        return broker

    async def elapse(self, seconds: float) -> None:
        self.ahead += seconds

    async def cut(self, consumer: Consumer) -> None:
        assert isinstance(consumer, SqliteConsumer)
        await consumer._database.run(lambda database: database.connection().close())


class _Rigged:
    @pytest.fixture
    def rig(self, tmp_path: Path) -> SqliteRig:
        return SqliteRig(tmp_path)


class TestSqliteBroker(_Rigged, BrokerContract):
    pass


class TestSqliteSender(_Rigged, SenderContract):
    pass


class TestSqliteBus(_Rigged, BusContract):
    pass


class TestSqliteConsumer(_Rigged, ConsumerContract):
    pass
