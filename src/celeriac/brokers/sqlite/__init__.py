"""A broker in one SQLite file: no server, several processes of one machine.

One cycle of a worker is one transaction, so that the cost of a durable commit is shared by all that is in it.
Publishes that come in while a transaction is under way share the next one.
"""

from celeriac.brokers.sqlite.broker import SqliteBroker
from celeriac.brokers.sqlite.consumer import SqliteConsumer
from celeriac.brokers.sqlite.sender import SqliteSender

__all__ = ["SqliteBroker", "SqliteConsumer", "SqliteSender"]
