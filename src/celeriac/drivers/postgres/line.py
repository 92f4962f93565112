"""One connection of an event loop: opened at first use, one statement at a time, each with a deadline.

Between statements it hears notifications. A statement that is not answered in time, or whose caller is cancelled,
costs the connection: its outcome is not known, and the next one gets a new connection.
"""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any

from celeriac.drivers.postgres import layout
from celeriac.drivers.postgres.driver import driver
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
from celeriac.drivers.postgres.site import Site
from celeriac.errors import OperationalError

Rows = list[tuple[Any, ...]]
_TRIES = 5
"""How often a statement is run that another one got in the way of."""
PROBE = """
SELECT pg_backend_pid(), current_setting('default_transaction_isolation'), pg_is_in_recovery()
"""
ISOLATION = "SET default_transaction_isolation = 'read committed'"


def is_pooled(seen_pid: int, real_pid: int) -> bool:
    """PgBouncer and its like tell clients a process id of their own making."""
    return seen_pid != real_pid


class Line:
    """A connection, for one loop. `hear`: gets channel and payload of each notification on `channels`."""

    def __init__(
        self, site: Site, *, channels: Sequence[str] = (), hear: Callable[[str, str], None] | None = None
    ) -> None:
        self.site = site
        self.pooled = False
        """There is a pooler in between, through which no notification comes. Known once it was open."""
        self.opened = 0
        """How often it was opened."""
        self._channels = list(channels)
        self._hear = hear
        self._lock = asyncio.Lock()
        self._connection: Any = None
        self._loop = asyncio.get_running_loop()
        self._reading = -1

    @property
    def listens(self) -> bool:
        """Notifications come through, as far as is known."""
        return self._connection is not None and not self.pooled

    async def run(self, statement: str, parameters: Sequence[Any] = (), timeout: float | None = None) -> Rows:
        """Run one statement in a transaction of its own. Returns its rows. Raises OperationalError,
        ImproperlyConfigured, or what `failures.is_about_values`, nothing done."""
        async with self._lock:
            rows: Rows = await self._guarded(
                lambda connection: self._execute(connection, statement, parameters), timeout
            )
            return rows

    @asynccontextmanager
    async def transaction(self, timeout: float | None = None) -> AsyncIterator[Callable[..., Any]]:
        """Several statements in one transaction: `rows = await run(statement, parameters)`. It is committed at the end
        of the block, or rolled back by an exception."""
        async with self._lock:

            async def run(statement: str, parameters: Sequence[Any] = ()) -> Rows:
                rows: Rows = await self._guarded(
                    lambda connection: self._execute(connection, statement, parameters), timeout, again=False
                )
                return rows

            await self._guarded(lambda connection: self._execute(connection, "BEGIN"), timeout)
            try:
                yield run
            except BaseException:
                if self._connection is not None:
                    try:
                        await run("ROLLBACK")
                    except BaseException:
                        self._drop()  # the server rolls back what has lost its connection
                        raise
                raise
            if self._connection is None:
                raise OperationalError(f"{self.site.shown}: the connection was closed within a transaction")
            await self._guarded(lambda connection: self._execute(connection, "COMMIT"), timeout, again=False)

    async def listen(self, channel: str) -> None:
        """Hear of a channel too, from now on."""
        if channel in self._channels:
            return
        self._channels.append(channel)
        if self._connection is not None and not self.pooled:
            await self.run(f"LISTEN {channel}")

    async def open(self) -> None:
        """Open it, if it is not. Raises OperationalError, ImproperlyConfigured."""
        async with self._lock:
            await self._guarded(_nothing, None)

    async def _guarded(
        self, work: Callable[[Any], Any], timeout: float | None, again: bool = True
    ) -> Any:
        if self._loop is not asyncio.get_running_loop():
            raise RuntimeError("a connection belongs to the loop that made it")
        seconds = self.site.timeout if timeout is None else timeout
        connection = self._connection
        if connection is not None and (connection.closed or _has_ended(connection)):
            self._drop()
            connection = None
        if connection is None:
            if not again:
                raise OperationalError(f"{self.site.shown}: the connection was lost within a transaction")
            connection = await self._open()
        self._stop_reading()
        try:
            async with asyncio.timeout(seconds):
                for tries in range(_TRIES, 0, -1):
                    try:
                        return await work(connection)
                    except driver().Error as error:
                        if tries == 1 or not again or not is_in_the_way(error):
                            raise
        except TimeoutError:
            self._drop()
            raise OperationalError(f"{self.site.shown} did not answer within {seconds:g} s") from None
        except driver().Error as error:
            if connection.closed:
                self._drop()
            if code_of(error) in MISSING:
                layout.known.discard(self.site)
            raise translated(error, self.site) from error
        except BaseException as error:
            if not is_about_values(error):
                self._drop()  # cancelled in the middle: what comes next on it would be the old answer
            raise
        finally:
            self._read()

    async def _execute(self, connection: Any, statement: str, parameters: Sequence[Any] = ()) -> Rows:
        cursor = await connection.execute(worded(statement, self.site), parameters or None, binary=True)
        return await cursor.fetchall() if cursor.description is not None else []

    async def _open(self) -> Any:
        site = self.site
        try:
            async with asyncio.timeout(site.connect_timeout):
                made = await driver().AsyncConnection.connect(
                    site.conninfo, autocommit=True, cursor_factory=driver().AsyncRawCursor
                )
        except TimeoutError:
            raise OperationalError(f"{site.shown} did not answer within {site.connect_timeout:g} s") from None
        except driver().Error as error:
            raise refused(error, site) from None
        try:
            async with asyncio.timeout(site.timeout):
                await self._set_up(made)
        except BaseException as error:
            made.pgconn.finish()
            if isinstance(error, TimeoutError):
                raise OperationalError(f"{site.shown} did not answer within {site.timeout:g} s") from None
            raise translated(error, site) if isinstance(error, Exception) else error from None
        self._connection = made
        self.opened += 1
        self._read()
        return made

    async def _set_up(self, made: Any) -> None:
        site = self.site
        driver().adapt(made)
        made.prepare_threshold = None
        [(pid, isolation, standby)] = await self._execute(made, PROBE)
        self.pooled = is_pooled(made.info.backend_pid, pid) if site.listen is None else not site.listen
        if isolation != "read committed":
            if self.pooled:
                raise layout.wrong_isolation(site, isolation)
            await self._execute(made, ISOLATION)
        if standby:
            raise layout.on_standby(site)
        await self._prepare(made)
        if not self.pooled:
            made.prepare_threshold = 3
            if self._hear is not None:
                hear = self._hear
                made.add_notify_handler(lambda notify: hear(notify.channel, notify.payload))
                for channel in self._channels:
                    await made.execute(f"LISTEN {channel}")

    async def _prepare(self, made: Any) -> None:
        """See that the tables are there: make them at first use, where this user may."""
        if self.site in layout.known:
            return
        steps = layout.checking(self.site)
        version = await self._walk(made, steps)
        if version < layout.VERSION:
            try:
                async with made.transaction():
                    await self._walk(made, layout.migrating(self.site))
            except driver().Error as error:
                if lacks_rights(error):
                    raise layout.forbidden(self.site) from error
                raise
        layout.known.add(self.site)

    async def _walk(self, made: Any, steps: Any) -> int:
        step: layout.Step = next(steps)
        while True:
            cursor = await made.execute(step.statement, step.parameters or None)
            rows = await cursor.fetchall() if cursor.description is not None else []
            try:
                step = steps.send(rows)
            except StopIteration as end:
                return int(end.value)

    def _read(self) -> None:
        """Hear notifications while no statement runs."""
        connection = self._connection
        if self._hear is None or connection is None or connection.closed or self.pooled:
            return
        self._reading = connection.pgconn.socket
        self._loop.add_reader(self._reading, _hear, weakref.ref[Line](self))

    def _stop_reading(self) -> None:
        if self._reading >= 0:
            with suppress(RuntimeError, ValueError, OSError):
                self._loop.remove_reader(self._reading)
            self._reading = -1

    def _consume(self) -> None:
        connection = self._connection
        if connection is None:
            return
        try:
            connection.pgconn.consume_input()
            while (note := connection.pgconn.notifies()) is not None:
                if self._hear is not None:
                    self._hear(note.relname.decode(), note.extra.decode())
        except driver().Error:  # the server has closed it: whoever uses it next opens another one
            self._drop()
            if self._hear is not None:
                self._hear("", "")

    def _drop(self) -> None:
        self._stop_reading()
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.pgconn.finish()

    async def close(self) -> None:
        """Close it. The next use opens it again."""
        async with self._lock:
            self._drop()


async def _nothing(_: Any) -> None:
    """What `open` runs."""


def _hear(line: weakref.ref[Line]) -> None:
    found = line()
    if found is not None:
        found._consume()


def _has_ended(connection: Any) -> bool:
    """The server has closed a connection that nobody used meanwhile."""
    try:
        connection.pgconn.consume_input()
    except driver().Error:
        return True
    return bool(connection.pgconn.status != driver().alive)
