"""A broker in a PostgreSQL database. One cycle of a worker is one statement, and so one transaction."""

from celeriac.brokers.postgres.broker import PostgresBroker
from celeriac.brokers.postgres.consumer import PostgresConsumer
from celeriac.brokers.postgres.relay import PostgresRelay
from celeriac.brokers.postgres.sender import PostgresSender

__all__ = ["PostgresBroker", "PostgresConsumer", "PostgresRelay", "PostgresSender"]
