"""PostgreSQL for the contract suites."""

from __future__ import annotations

from celeriac.backends.postgres import PostgresBackend
from celeriac.brokers.postgres import PostgresBroker, PostgresConsumer, PostgresSender
from celeriac.ports import Consumer
from celeriac.testing.rigs import BrokerRig
from tests.servers import empty_postgres


class PostgresRig(BrokerRig):
    """One database, emptied at the start."""

    def __init__(self, url: str) -> None:
        self.url = url
        empty_postgres(url)

    def broker(self) -> PostgresBroker:
        return PostgresBroker(self.url, {})

    def sender(self) -> PostgresSender:
        return PostgresSender(self.url, {})

    def backend(self) -> PostgresBackend:
        return PostgresBackend(self.url, {})

    async def cut(self, consumer: Consumer) -> None:
        assert isinstance(consumer, PostgresConsumer)
        line = consumer._hot
        await line.open()
        [(pid,)] = await line.run("SELECT pg_backend_pid()")
        await consumer._lines.side.run("SELECT pg_terminate_backend($1::integer)", (pid,))
