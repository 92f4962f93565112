"""The asyncio side: one connection that many calls share, each answered in its turn, and a link that opens it anew.

A server that stops answering is noticed: a reply may take `Server.timeout`, and a connection that was silent for
SILENCE seconds is asked with PING. So no caller waits longer than that on a connection that leads nowhere.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from typing import Any, cast

from celeriac.drivers.redis.protocol import (
    MISSING,
    Words,
    check_handshake,
    driver,
    failure,
    garbled,
    handshake,
    new_reader,
    unreachable,
)
from celeriac.drivers.redis.script import Script, unknown
from celeriac.drivers.redis.url import Server
from celeriac.errors import CeleryError, OperationalError

log = logging.getLogger("celeriac.redis")

SILENCE = 5.0
"""Seconds without a byte from the server after which it is asked whether it is there."""
PING_PATIENCE = 5.0
"""Seconds within which it has to say so."""

_PING = b"*1\r\n$4\r\nPING\r\n"


class _Asked:
    """Replies that somebody waits for."""

    __slots__ = ("future", "limit", "patience", "replies", "want")

    def __init__(self, future: asyncio.Future[Any], want: int, limit: float, patience: float) -> None:
        self.future = future
        self.want = want
        self.limit = limit
        self.patience = patience
        self.replies: list[Any] = []


class AsyncConnection(asyncio.Protocol):
    """One connection, speaking RESP3. Made by `open`. Calls may overlap; replies come in the order of the calls."""

    def __init__(
        self,
        server: Server,
        on_push: Callable[[list[Any]], None] | None,
        on_lost: Callable[[CeleryError], None] | None,
    ) -> None:
        self.server = server
        self._on_push = on_push
        self._on_lost = on_lost
        self._loop = asyncio.get_running_loop()
        hiredis = driver()
        self.pack: Callable[[Words], bytes] = hiredis.pack_command
        self._push = hiredis.PushNotification
        self._garbage = hiredis.ProtocolError
        self._reader = new_reader(hiredis)
        self._asked: deque[_Asked] = deque()
        self._transport: asyncio.Transport | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._heard = self._loop.time()
        self._error: CeleryError | None = None
        self._quiet = True

    @classmethod
    async def open(
        cls,
        server: Server,
        on_push: Callable[[list[Any]], None] | None = None,
        on_lost: Callable[[CeleryError], None] | None = None,
    ) -> AsyncConnection:
        """Connect and log in. `on_push` is given what comes unasked (messages of channels, invalidations); `on_lost` is
        called once when the connection breaks by itself. Raises OperationalError or ImproperlyConfigured."""
        loop = asyncio.get_running_loop()
        context = server.tls.context() if server.tls else None

        def make() -> AsyncConnection:
            return cls(server, on_push, on_lost)

        connection: AsyncConnection | None = None
        try:
            async with asyncio.timeout(server.connect_timeout):
                if server.path:
                    _, connection = await loop.create_unix_connection(
                        make, server.path, ssl=context, server_hostname=server.host if context else None
                    )
                else:
                    transport, connection = await loop.create_connection(
                        make, server.host, server.port, ssl=context, server_hostname=server.host if context else None
                    )
                    _keep_alive(transport.get_extra_info("socket"))
                commands = handshake(server)
                replies = await connection.send(b"".join(map(connection.pack, commands)), len(commands))
            check_handshake(server, replies if len(commands) > 1 else [replies])
        except (OSError, TimeoutError) as error:
            if connection is not None:
                connection.close()
            raise unreachable(server, error) from error
        except BaseException:
            if connection is not None:
                connection.close()
            raise
        connection._quiet = False
        return connection

    # What asyncio calls

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Part of asyncio.Protocol."""
        self._transport = cast(asyncio.Transport, transport)
        self._watch()

    def data_received(self, data: bytes) -> None:
        """Part of asyncio.Protocol."""
        self._heard = self._loop.time()
        reader = self._reader
        reader.feed(data)
        gets, asked, push = reader.gets, self._asked, self._push
        try:
            while True:
                reply = gets()
                if reply is MISSING:
                    return
                if type(reply) is push:
                    if self._on_push is not None:
                        self._on_push(reply)
                    continue
                if not asked:
                    self._break(OperationalError(f"{self.server.describe()}: an answer came to no question"))
                    return
                first = asked[0]
                if first.want == 1:
                    asked.popleft()
                    if not first.future.done():
                        first.future.set_result(reply)
                    continue
                first.replies.append(reply)
                if len(first.replies) == first.want:
                    asked.popleft()
                    if not first.future.done():
                        first.future.set_result(first.replies)
        except self._garbage as error:
            self._break(garbled(self.server, error))

    def connection_lost(self, exc: BaseException | None) -> None:
        """Part of asyncio.Protocol."""
        self._break(
            unreachable(self.server, exc)
            if exc is not None
            else OperationalError(f"{self.server.describe()}: the server closed the connection")
        )

    # What callers use

    @property
    def broken(self) -> bool:
        """Nothing can be asked any more."""
        return self._error is not None

    def send(self, data: bytes, want: int = 1, patience: float | None = None) -> asyncio.Future[Any]:
        """Send packed commands that get `want` replies in all; the future holds the reply, or their list if `want` > 1.
        Error replies are values. Raises OperationalError when the connection is broken."""
        if self._error is not None or self._transport is None:
            raise self.error()
        loop = self._loop
        future = loop.create_future()
        if patience is None:
            patience = self.server.timeout
        limit = loop.time() + patience
        self._asked.append(_Asked(future, want, limit, patience))
        timer = self._timer
        if timer is not None and timer.when() > limit:
            timer.cancel()
            self._timer = loop.call_at(limit, self._look)
        self._transport.write(data)
        return future

    def tell(self, *commands: Words) -> None:
        """Send commands that have no reply of their own (SUBSCRIBE and its like). Raises OperationalError."""
        if self._error is not None or self._transport is None:
            raise self.error()
        self._transport.write(b"".join(map(self.pack, commands)))

    async def call(self, *words: str | bytes | int | float, patience: float | None = None) -> Any:
        """One command and its reply. Raises OperationalError, also for an error reply."""
        reply = await self.send(self.pack(words), 1, patience)
        if isinstance(reply, Exception):
            raise failure(self.server, reply, str(words[0]))
        return reply

    async def many(self, commands: Sequence[Words]) -> list[Any]:
        """Several commands in one write. Raises OperationalError for the first error reply."""
        if not commands:
            return []
        replies = await self.send(b"".join(map(self.pack, commands)), len(commands))
        if len(commands) == 1:
            replies = [replies]
        for words, reply in zip(commands, replies, strict=True):
            if isinstance(reply, Exception):
                raise failure(self.server, reply, str(words[0]))
        return cast(list[Any], replies)

    async def run(self, script: Script, keys: Sequence[str | bytes], *arguments: str | bytes | int | float) -> Any:
        """Run a script. Raises OperationalError."""
        reply = await self.send(self.pack(script.by_digest(tuple(keys), arguments)))
        if unknown(reply):
            reply = await self.send(self.pack(script.whole(tuple(keys), arguments)))
        if isinstance(reply, Exception):
            raise failure(self.server, reply, "a script")
        return reply

    def close(self) -> None:
        """Close at once; whoever waits gets an OperationalError."""
        self._on_lost = None
        self._break(OperationalError(f"{self.server.describe()}: the connection was closed"))

    # Watching over it

    def error(self) -> CeleryError:
        """What broke it, in a new exception: one exception raised twice would grow its traceback."""
        error = self._error
        if error is None:
            return OperationalError(f"{self.server.describe()}: not connected")
        return type(error)(*error.args)

    def _break(self, error: CeleryError) -> None:
        if self._error is not None:
            return
        self._error = error
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._transport is not None:
            self._transport.abort()
        asked, self._asked = self._asked, deque()
        for each in asked:
            if not each.future.done():
                each.future.set_exception(self.error())
        if self._on_lost is not None:
            lost, self._on_lost = self._on_lost, None
            lost(error)

    def _watch(self) -> None:
        due = self._heard + SILENCE
        if self._asked:
            first = self._asked[0]
            due = min(max(first.limit, self._heard + first.patience), self._loop.time() + SILENCE)
        self._timer = self._loop.call_at(due, self._look)

    def _look(self) -> None:
        self._timer = None
        if self._error is not None:
            return
        now = self._loop.time()
        if self._asked:
            first = self._asked[0]
            if now >= max(first.limit, self._heard + first.patience):
                text = f"no answer within {first.patience:g} s"
                if not self._quiet:
                    # not a warning: whoever uses the connection says it once, for all its connections
                    log.info("%s: %s; the connection is given up", self.server.describe(), text)
                self._break(OperationalError(f"{self.server.describe()}: {text}"))
                return
        elif now >= self._heard + SILENCE:
            asked = self.send(_PING, 1, PING_PATIENCE)
            asked.add_done_callback(_look_away)
        self._watch()


def _look_away(asked: asyncio.Future[Any]) -> None:
    """Nobody awaits a PING of the watchdog; its failure breaks the connection by itself."""
    if not asked.cancelled():
        asked.exception()


def _keep_alive(link: Any) -> None:
    with suppress(OSError, AttributeError):  # a transport without a socket: the watchdog does it alone
        link.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)


class AsyncLink:
    """A connection that is opened when it is first needed, and again after it broke. Bound to one loop."""

    def __init__(
        self,
        server: Server,
        on_push: Callable[[list[Any]], None] | None = None,
        on_lost: Callable[[CeleryError], None] | None = None,
        prepare: Callable[[AsyncConnection], Awaitable[None]] | None = None,
    ) -> None:
        """`prepare` is awaited on each new connection before anything else goes over it."""
        self.server = server
        self._on_push = on_push
        self._on_lost = on_lost
        self._prepare = prepare
        self._connection: AsyncConnection | None = None
        self._opening = asyncio.Lock()

    @property
    def current(self) -> AsyncConnection | None:
        """The connection if there is one that is not broken."""
        connection = self._connection
        return connection if connection is not None and not connection.broken else None

    async def connection(self) -> AsyncConnection:
        """A connection that works as far as is known. Raises OperationalError or ImproperlyConfigured."""
        connection = self._connection
        if connection is not None and not connection.broken:
            return connection
        async with self._opening:
            connection = self._connection
            if connection is None or connection.broken:
                connection = await AsyncConnection.open(self.server, self._on_push, self._on_lost)
                if self._prepare is not None:
                    try:
                        await self._prepare(connection)
                    except BaseException:
                        connection.close()
                        raise
                self._connection = connection
        return connection

    async def call(self, *words: str | bytes | int | float) -> Any:
        """See AsyncConnection.call."""
        return await (await self.connection()).call(*words)

    async def many(self, commands: Sequence[Words]) -> list[Any]:
        """See AsyncConnection.many."""
        return await (await self.connection()).many(commands)

    async def run(self, script: Script, keys: Sequence[str | bytes], *arguments: str | bytes | int | float) -> Any:
        """See AsyncConnection.run."""
        return await (await self.connection()).run(script, keys, *arguments)

    def close(self) -> None:
        """Close the connection; a later call opens another one."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()
