"""psycopg, imported at first use, with connections that keep our deadlines."""

from __future__ import annotations

import select
import time
from functools import cache
from typing import Any, NamedTuple

from celeriac.drivers.postgres.arrays import OIDS
from celeriac.errors import ImproperlyConfigured


class Late(Exception):
    """The deadline has passed."""


class Driver(NamedTuple):
    """What we use of psycopg."""

    Error: Any
    DataError: Any
    Connection: Any
    """For callers without a loop. `deadline`: monotonic seconds, after which a statement raises Late."""
    AsyncConnection: Any
    RawCursor: Any
    AsyncRawCursor: Any
    alive: Any
    """The status of a connection that stands."""
    can_pipeline: Any
    """Whether this libpq sends before it has the answer to what was sent."""

    def adapt(self, connection: Any) -> None:
        """Let a connection send our arrays."""
        for kind, dumper in _dumpers():
            connection.adapters.register_dumper(kind, dumper)


@cache
def driver() -> Driver:
    """psycopg 3. Raises ImproperlyConfigured when it is not installed, or has no libpq."""
    try:
        import psycopg
        from psycopg import waiting
    except ImportError as error:
        raise ImproperlyConfigured("PostgreSQL needs psycopg: pip install 'celeriac[postgres]'") from error

    class AsyncConnection(psycopg.AsyncConnection[Any]):
        async def wait(self, gen: Any, interval: float = 0.1, timeout: float | None = None) -> Any:
            """As psycopg's, without asking the server to cancel: a server that hangs would hold the caller."""
            return await waiting.wait_async(gen, self.pgconn.socket, interval=1.0)

    class Connection(psycopg.Connection[Any]):
        deadline = 0.0

        def wait(self, gen: Any, interval: float = 0.1, timeout: float | None = None) -> Any:
            """As psycopg's, with our deadline, without asking the server to cancel."""
            try:
                want = next(gen)
                while True:
                    found = ready(self.pgconn.socket, want, self.deadline - time.monotonic())
                    if not found:
                        raise Late
                    want = gen.send(waiting.Ready(found))
            except StopIteration as end:
                return end.value

    return Driver(
        psycopg.Error, psycopg.DataError, Connection, AsyncConnection, psycopg.RawCursor, psycopg.AsyncRawCursor,
        psycopg.pq.ConnStatus.OK, psycopg.Pipeline.is_supported,
    )  # fmt: skip


@cache
def _dumpers() -> list[tuple[type, Any]]:
    from psycopg.adapt import Dumper
    from psycopg.pq import Format

    class Finished(Dumper):
        format = Format.BINARY

        def dump(self, obj: Any) -> bytes:
            """The bytes as they are."""
            data: bytes = obj.data
            return data

    return [(kind, type(f"{kind.__name__}Dumper", (Finished,), {"oid": oid})) for kind, oid in OIDS.items()]


def ready(socket: int, want: int, seconds: float) -> int:
    """What a socket is ready for (1 to read, 2 to write) within so many seconds; 0: nothing."""
    seconds = max(seconds, 0.0)
    if hasattr(select, "poll"):
        poll = select.poll()
        poll.register(socket, (select.POLLIN if want & 1 else 0) | (select.POLLOUT if want & 2 else 0))
        found = poll.poll(seconds * 1000)
        if not found:
            return 0
        events = found[0][1]
        broken = events & (select.POLLERR | select.POLLHUP | select.POLLNVAL)
        return (1 if events & select.POLLIN or broken else 0) | (2 if events & select.POLLOUT else 0)
    readable, writable, _ = select.select(
        [socket] if want & 1 else [], [socket] if want & 2 else [], [], seconds
    )  # eventlet takes poll away
    return (1 if readable else 0) | (2 if writable else 0)
