"""One connection for callers without a loop: opened at first use, anew after a fork, each statement with a deadline.

For one thread or greenlet at a time; whoever shares it holds a lock.
"""

from __future__ import annotations

import os
import select
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import psycopg
from psycopg import Connection, RawCursor, errors
from psycopg.waiting import Ready

from celeriac.drivers.postgres import layout
from celeriac.drivers.postgres.arrays import DUMPERS
from celeriac.drivers.postgres.failures import AGAIN, is_about_values, refused, translated
from celeriac.drivers.postgres.layout import worded
from celeriac.drivers.postgres.line import ISOLATION, PROBE, Rows, is_pooled
from celeriac.drivers.postgres.site import Site
from celeriac.errors import ImproperlyConfigured, OperationalError

_TRIES = 5


class _Late(Exception):
    """The deadline has passed."""


class _Connection(Connection[Any]):
    deadline = 0.0
    """Monotonic seconds."""

    def wait(self, gen: Any, interval: float = 0.1, timeout: float | None = None) -> Any:
        """As psycopg's, with our deadline, without asking the server to cancel."""
        try:
            want = next(gen)
            while True:
                ready = _ready(self.pgconn.socket, want, self.deadline - time.monotonic())
                if not ready:
                    raise _Late
                want = gen.send(Ready(ready))
        except StopIteration as end:
            return end.value


def _ready(socket: int, want: int, seconds: float) -> int:
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


class Blocking:
    """A connection. `pooled`: there is a pooler in between, through which no notification comes."""

    def __init__(self, site: Site) -> None:
        self.site = site
        self.pooled = False
        self._connection: _Connection | None = None
        self._pid = 0
        self._listening: _Connection | None = None
        self._heard: list[tuple[str, str]] = []

    def run(self, statement: str, parameters: Sequence[Any] = (), timeout: float | None = None) -> Rows:
        """Run one statement in a transaction of its own, within `timeout` seconds in all. Returns its rows. Raises
        OperationalError, ImproperlyConfigured, or what `failures.is_about_values`, nothing done."""
        seconds = self.site.timeout if timeout is None else timeout
        deadline = time.monotonic() + seconds
        connection = self._ready_connection(deadline)
        connection.deadline = deadline
        tries = _TRIES
        try:
            while True:
                try:
                    return self._execute(connection, worded(statement, self.site), parameters)
                except AGAIN:
                    tries -= 1
                    if not tries:
                        raise
        except _Late:
            self.close()
            raise OperationalError(f"{self.site.shown} did not answer within {seconds:g} s") from None
        except psycopg.Error as error:
            if connection.closed:
                self.close()
            if isinstance(error, errors.UndefinedFunction | errors.UndefinedTable):
                layout.known.discard(self.site)
            raise translated(error, self.site) from error
        except BaseException as error:
            if not is_about_values(error):
                self.close()  # interrupted: the next answer on it would be the old one
            raise

    def open(self, timeout: float | None = None) -> None:
        """Open it, if it is not. Raises OperationalError, ImproperlyConfigured."""
        self._ready_connection(time.monotonic() + (self.site.timeout if timeout is None else timeout))

    def listen(self, channel: str) -> None:
        """Hear of a channel, as long as the connection stands."""
        self.run(f"LISTEN {channel}")
        self._listening = self._connection

    @property
    def is_listening(self) -> bool:
        """`listen` was called on the connection that stands."""
        return self._connection is not None and self._listening is self._connection

    def _execute(self, connection: _Connection, statement: str, parameters: Sequence[Any]) -> Rows:
        cursor = connection.execute(statement, parameters or None, binary=bool(parameters))
        return cursor.fetchall() if cursor.description is not None else []

    def _ready_connection(self, deadline: float) -> _Connection:
        connection = self._connection
        if connection is not None and self._pid != os.getpid():
            connection = self._connection = None  # the parent's: psycopg leaves its socket alone
        if connection is not None and not _stands(connection):
            self.close()
            connection = None
        return self._open(deadline) if connection is None else connection

    def _open(self, deadline: float) -> _Connection:
        site = self.site
        left = min(site.connect_timeout, max(0.0, deadline - time.monotonic()))
        try:
            # libpq counts in whole seconds, at least two: a shorter deadline is kept a little late
            made = _Connection.connect(
                site.conninfo, autocommit=True, cursor_factory=RawCursor, connect_timeout=max(2, round(left))
            )
        except psycopg.Error as error:
            raise refused(error, site) from None
        try:
            made.deadline = time.monotonic() + site.timeout
            self._set_up(made)
        except BaseException as error:
            made.pgconn.finish()
            if isinstance(error, _Late):
                raise OperationalError(f"{site.shown} did not answer within {site.timeout:g} s") from None
            raise translated(error, site) if isinstance(error, psycopg.Error) else error from None
        self._connection, self._pid = made, os.getpid()
        return made

    def _set_up(self, made: _Connection) -> None:
        site = self.site
        for kind, dumper in DUMPERS:
            made.adapters.register_dumper(kind, dumper)
        made.prepare_threshold = None
        made.add_notify_handler(lambda notify: self._heard.append((notify.channel, notify.payload)))
        [(pid, isolation, standby)] = self._execute(made, PROBE, ())
        self.pooled = is_pooled(made.info.backend_pid, pid) if site.listen is None else not site.listen
        if isolation != "read committed":
            if self.pooled:
                raise layout.wrong_isolation(site, isolation)
            self._execute(made, ISOLATION, ())
        if standby:
            raise layout.on_standby(site)
        if site not in layout.known:
            self._prepare(made)
            layout.known.add(site)
        if not self.pooled:
            made.prepare_threshold = 3

    def _prepare(self, made: _Connection) -> None:
        def execute(step: layout.Step) -> Rows:
            return self._execute(made, step.statement, step.parameters)

        if layout.run(layout.checking(self.site), execute) < layout.VERSION:
            try:
                with made.transaction():
                    layout.run(layout.migrating(self.site), execute)
            except errors.InsufficientPrivilege as error:
                raise layout.forbidden(self.site) from error

    def heard(self, seconds: float) -> list[tuple[str, str]]:
        """Channel and payload of the notifications that have come; waits up to so many seconds for the first. A
        connection that has ended says `("", "")`."""
        end = time.monotonic() + seconds
        while not self._heard:
            connection = self._connection
            if connection is None or connection.closed:
                return [("", "")]
            if not _ready(connection.pgconn.socket, 1, end - time.monotonic()):
                break
            try:
                connection.pgconn.consume_input()
                while (note := connection.pgconn.notifies()) is not None:
                    self._heard.append((note.relname.decode(), note.extra.decode()))
            except psycopg.Error:
                self.close()
        found, self._heard = self._heard, []
        return found

    def close(self) -> None:
        """Close it. The next use opens it again."""
        connection, self._connection = self._connection, None
        if connection is not None and self._pid == os.getpid():
            with suppress(psycopg.Error):
                connection.pgconn.finish()


def _stands(connection: _Connection) -> bool:
    """The server has not closed it meanwhile. One system call when nothing came."""
    if connection.closed:
        return False
    try:
        connection.pgconn.consume_input()
    except psycopg.Error:
        return False
    return bool(connection.pgconn.status == psycopg.pq.ConnStatus.OK)
