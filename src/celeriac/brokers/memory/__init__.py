"""A broker inside one process: for tests, eager trips and workers in threads. Gone with the process.

All work is done by short calls under the server's lock, so the same adapter serves threads and event loops.
"""

from celeriac.brokers.memory.broker import MemoryBroker
from celeriac.brokers.memory.consumer import MemoryConsumer
from celeriac.brokers.memory.sender import MemorySender
from celeriac.drivers.memory import MemoryServer

__all__ = ["MemoryBroker", "MemoryConsumer", "MemorySender", "MemoryServer"]
