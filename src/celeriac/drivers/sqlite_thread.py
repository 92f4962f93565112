"""The thread that owns a SQLite file on the asynchronous side."""

from __future__ import annotations

from celeriac.drivers.owned_thread import OwnedThread
from celeriac.drivers.sqlite import WAL_LIMIT, Database, Location


class DatabaseThread(OwnedThread[Database]):
    """One thread with one Database."""

    def __init__(self, location: Location, wal_limit: int = WAL_LIMIT) -> None:
        super().__init__(Database(location, wal_limit, native=True))
        self.location = location
