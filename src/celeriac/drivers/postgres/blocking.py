"""One connection for callers without a loop: opened at first use, anew after a fork, each statement with a deadline.

For one thread or greenlet at a time; whoever shares it holds a lock.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from typing import Any

from celeriac.drivers.postgres import layout
from celeriac.drivers.postgres.driver import Late, driver, ready
from celeriac.drivers.postgres.failures import (
    MISSING,
    code_of,
    is_about_values,
    is_in_the_way,
    lacks_rights,
    refused,
    translated,
)
from celeriac.drivers.postgres.layout import worded
from celeriac.drivers.postgres.line import ISOLATION, PROBE, Rows, is_pooled
from celeriac.drivers.postgres.site import Site
from celeriac.errors import OperationalError

_TRIES = 5


class Blocking:
    """A connection. `pooled`: there is a pooler in between, through which no notification comes."""

    def __init__(self, site: Site) -> None:
        self.site = site
        self.pooled = False
        self._connection: Any = None
        self._pid = 0
        self._listening: Any = None
        self._heard: list[tuple[str, str]] = []

    def run(self, statement: str, parameters: Sequence[Any] = (), timeout: float | None = None) -> Rows:
        """Run one statement in a transaction of its own, within `timeout` seconds in all. Returns its rows. Raises
        OperationalError, ImproperlyConfigured, or what `failures.is_about_values`, nothing done."""
        with self._asking(timeout) as connection:
            tries = _TRIES
            while True:
                try:
                    return self._execute(connection, worded(statement, self.site), parameters)
                except driver().Error as error:
                    tries -= 1
                    if not tries or not is_in_the_way(error):
                        raise

    def stream(self, statement: str, pieces: Iterable[Sequence[Any]], timeout: float) -> None:
        """Run one statement for each of `pieces`, all in one transaction. The server works on one piece while the next
        is made, where its connection lets it. Errors as of `run`; what another one got in the way of is not tried
        again."""
        with self._asking(timeout) as connection:
            text = worded(statement, self.site)
            ahead = not self.pooled and driver().can_pipeline()
            with connection.pipeline() if ahead else nullcontext(), connection.transaction():
                for piece in pieces:
                    connection.execute(text, piece, binary=True)

    @contextmanager
    def _asking(self, timeout: float | None) -> Iterator[Any]:
        """A connection with a deadline, and what its errors mean."""
        seconds = self.site.timeout if timeout is None else timeout
        deadline = time.monotonic() + seconds
        connection = self._ready_connection(deadline)
        connection.deadline = deadline
        try:
            yield connection
        except Late:
            self.close()
            raise OperationalError(f"{self.site.shown} did not answer within {seconds:g} s") from None
        except driver().Error as error:
            if connection.closed:
                self.close()
            if code_of(error) in MISSING:
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

    def _execute(self, connection: Any, statement: str, parameters: Sequence[Any]) -> Rows:
        cursor = connection.execute(statement, parameters or None, binary=bool(parameters))
        return cursor.fetchall() if cursor.description is not None else []

    def _ready_connection(self, deadline: float) -> Any:
        connection = self._connection
        if connection is not None and self._pid != os.getpid():
            connection = self._connection = None  # the parent's: psycopg leaves its socket alone
        if connection is not None and not _stands(connection):
            self.close()
            connection = None
        return self._open(deadline) if connection is None else connection

    def _open(self, deadline: float) -> Any:
        site = self.site
        left = min(site.connect_timeout, max(0.0, deadline - time.monotonic()))
        try:
            # libpq counts in whole seconds, at least two: a shorter deadline is kept a little late
            made = driver().Connection.connect(
                site.conninfo, autocommit=True, cursor_factory=driver().RawCursor, connect_timeout=max(2, round(left))
            )
        except driver().Error as error:
            raise refused(error, site) from None
        try:
            made.deadline = time.monotonic() + site.timeout
            self._set_up(made)
        except BaseException as error:
            made.pgconn.finish()
            if isinstance(error, Late):
                raise OperationalError(f"{site.shown} did not answer within {site.timeout:g} s") from None
            raise translated(error, site) if isinstance(error, Exception) else error from None
        self._connection, self._pid = made, os.getpid()
        return made

    def _set_up(self, made: Any) -> None:
        site = self.site
        driver().adapt(made)
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

    def _prepare(self, made: Any) -> None:
        def execute(step: layout.Step) -> Rows:
            return self._execute(made, step.statement, step.parameters)

        if layout.run(layout.checking(self.site), execute) < layout.VERSION:
            try:
                with made.transaction():
                    layout.run(layout.migrating(self.site), execute)
            except driver().Error as error:
                if lacks_rights(error):
                    raise layout.forbidden(self.site) from error
                raise

    def heard(self, seconds: float) -> list[tuple[str, str]]:
        """Channel and payload of the notifications that have come; waits up to so many seconds for the first. A
        connection that has ended says `("", "")`."""
        end = time.monotonic() + seconds
        while not self._heard:
            connection = self._connection
            if connection is None or connection.closed:
                return [("", "")]
            if not ready(connection.pgconn.socket, 1, end - time.monotonic()):
                break
            try:
                connection.pgconn.consume_input()
                while (note := connection.pgconn.notifies()) is not None:
                    self._heard.append((note.relname.decode(), note.extra.decode()))
            except driver().Error:
                self.close()
        found, self._heard = self._heard, []
        return found

    def close(self) -> None:
        """Close it. The next use opens it again."""
        connection, self._connection = self._connection, None
        if connection is not None and self._pid == os.getpid():
            with suppress(driver().Error):
                connection.pgconn.finish()


def _stands(connection: Any) -> bool:
    """The server has not closed it meanwhile. One system call when nothing came."""
    if connection.closed:
        return False
    try:
        connection.pgconn.consume_input()
    except driver().Error:
        return False
    return bool(connection.pgconn.status == driver().alive)
