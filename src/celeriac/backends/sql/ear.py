"""Hears PostgreSQL's notifications, on a connection of its own."""

from __future__ import annotations

import selectors
from collections.abc import Callable, Collection
from typing import Any

import sqlalchemy as sa

from celeriac.errors import OperationalError


class PostgresEar:
    """See `blocking.Ear`."""

    def __init__(self, engine: sa.Engine, channel: str, ended: Callable[[], object]) -> None:
        """`ended`: called at the end of listening. Raises OperationalError, or what SQLAlchemy raises."""
        from psycopg import Error

        fairy = engine.raw_connection()
        connection: Any = fairy.driver_connection
        fairy.detach()  # it is ours: the pool lends it to nobody else
        self._connection = connection
        self._ended = ended
        try:
            connection.autocommit = True
            connection.execute(f"LISTEN {channel}")
        except Error as error:
            connection.close()
            raise OperationalError(str(error).partition("\n")[0]) from None

    def fileno(self) -> int:
        """Readable after a ring."""
        number: int = self._connection.fileno()
        return number

    def drain(self) -> Collection[str]:
        """Task ids whose documents have changed since the last call."""
        from psycopg import Error

        names: set[str] = set()
        raw = self._connection.pgconn
        try:
            raw.consume_input()
            while (notify := raw.notifies()) is not None:
                names.update(notify.extra.decode("utf-8", "replace").split(","))
        except Error as error:
            raise OperationalError(str(error).partition("\n")[0]) from None
        return names

    def wait(self, seconds: float) -> Collection[str]:
        """As `drain`, after waiting for a ring for so long."""
        with selectors.DefaultSelector() as selector:
            selector.register(self.fileno(), selectors.EVENT_READ)
            return self.drain() if selector.select(max(seconds, 0.0)) else ()

    def close(self) -> None:
        """Stop listening. Once only."""
        self._connection.close()
        self._ended()
