"""The asyncio side: one connection with its channels. What is written in one turn of the loop by one call goes out in
one piece.

A server that stops answering is noticed: both sides send heartbeats, silence ends the connection, and every question
has a deadline.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import cast

from celeriac.drivers.amqp import frames
from celeriac.drivers.amqp.channel import Channel
from celeriac.drivers.amqp.frames import HEARTBEAT_FRAME, M
from celeriac.drivers.amqp.login import Session, closed, ended, garbled, handshake, unreachable
from celeriac.drivers.amqp.machine import Event, Garbled, Machine
from celeriac.drivers.amqp.url import Server
from celeriac.errors import CeleryError, OperationalError

log = logging.getLogger("celeriac.rabbitmq")

MISSED = 1.5
"""Heartbeat intervals of silence that end a connection. The server says something twice in each."""


class Connection(asyncio.Protocol):
    """One connection. Made by `open`."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self.loop = asyncio.get_running_loop()
        self.session = Session()
        self.blocked = ""
        """Why the server takes no messages at the moment; empty: it does."""
        self.on_blocked: Callable[[str], None] | None = None
        self.on_lost: Callable[[CeleryError], None] | None = None
        self._machine = Machine()
        self._transport: asyncio.Transport | None = None
        self._login: asyncio.Queue[Event | CeleryError] | None = asyncio.Queue()
        self._channels: dict[int, Channel] = {}
        self._numbers = 0
        self._error: CeleryError | None = None
        self._heard = self._said = self.loop.time()
        self._timer: asyncio.TimerHandle | None = None
        self._closing: asyncio.Future[None] | None = None

    @classmethod
    async def open(cls, server: Server) -> Connection:
        """Connect and log in. Raises OperationalError or ImproperlyConfigured."""
        loop = asyncio.get_running_loop()
        context = server.tls.context() if server.tls else None
        connection: Connection | None = None
        try:
            async with asyncio.timeout(server.connect_timeout):
                transport, connection = await loop.create_connection(
                    lambda: cls(server), server.host, server.port, ssl=context,
                    server_hostname=server.host if context else None,
                )  # fmt: skip
                link = transport.get_extra_info("socket")
                with suppress(OSError, AttributeError):
                    link.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
                    link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                await connection._log_in()
        except (OSError, TimeoutError) as error:
            if connection is not None:
                connection.abort()
            raise unreachable(server, error) from error
        except BaseException:
            if connection is not None:
                connection.abort()
            raise
        return connection

    async def _log_in(self) -> None:
        assert self._login is not None
        steps = handshake(self.server, self.server.heartbeat)
        data = next(steps)
        try:
            while True:
                self.write(data)
                event = await self._login.get()
                if isinstance(event, CeleryError):
                    raise event
                data = steps.send(event)
        except StopIteration as end:
            self.session = end.value
        self._login = None
        if self.session.heartbeat:
            self._timer = self.loop.call_later(self.session.heartbeat / 2, self._beat)

    # What asyncio calls

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Part of asyncio.Protocol."""
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        """Part of asyncio.Protocol."""
        self._heard = self.loop.time()
        try:
            events = self._machine.feed(data)
        except Garbled as error:
            self.fail(garbled(self.server, error))
            return
        channels = self._channels
        for event in events:
            channel = channels.get(event.channel)
            if channel is not None:
                channel.take(event)
            elif event.channel == 0:
                self._take(event)

    def connection_lost(self, exc: BaseException | None) -> None:
        """Part of asyncio.Protocol."""
        self.fail(ended(self.server, self._login is not None) if exc is None else unreachable(self.server, exc))

    def _take(self, event: Event) -> None:
        if event.which == M.CLOSE and self._login is None:
            why = closed(self.server, frames.read_close(event.arguments), "on the connection")
            with suppress(CeleryError):
                self.write(frames.method(0, M.CLOSE_OK))
            self.fail(why)
        elif self._login is not None:
            self._login.put_nowait(event)
        elif event.which == M.BLOCKED:
            self.blocked = frames.read_short(event.arguments, 0)[0] or "no reason given"
            if self.on_blocked is not None:
                self.on_blocked(self.blocked)
        elif event.which == M.UNBLOCKED:
            self.blocked = ""
            if self.on_blocked is not None:
                self.on_blocked("")
        elif event.which == M.CLOSE_OK and self._closing is not None and not self._closing.done():
            self._closing.set_result(None)

    # What callers use

    @property
    def broken(self) -> bool:
        """Nothing can be asked any more."""
        return self._error is not None

    def error(self) -> CeleryError:
        """What broke it, in a new exception: one exception raised twice would grow its traceback."""
        error = self._error
        if error is None:
            return OperationalError(f"{self.server.describe()}: not connected")
        return type(error)(*error.args)

    def write(self, data: bytes) -> None:
        """Send frames. Raises OperationalError when the connection is broken."""
        if self._error is not None or self._transport is None:
            raise self.error()
        self._said = self.loop.time()
        self._transport.write(data)

    async def channel(self, *, confirms: bool = False) -> Channel:
        """Open another channel. Raises OperationalError."""
        self._numbers += 1
        number = self._numbers
        while number in self._channels or number > 2000:
            number = number % 2000 + 1
        self._numbers = number
        channel = self._channels[number] = Channel(self, number)
        asked = channel.ask(M.CHANNEL_OPEN, b"\x00", M.CHANNEL_OPEN_OK)
        if confirms:
            channel.ask(M.CONFIRM, b"\x00", M.CONFIRM_OK)
        await channel.wait(asked)
        return channel

    def forget(self, channel: Channel) -> None:
        """This channel is closed; its number may be given again."""
        if self._channels.get(channel.number) is channel:
            del self._channels[channel.number]

    def fail(self, error: CeleryError) -> None:
        """It is over: whoever waits gets the error."""
        if self._error is not None:
            return
        self._error = error
        if self._timer is not None:
            self._timer.cancel()
        if self._transport is not None:
            self._transport.abort()
        if self._login is not None:
            self._login.put_nowait(self.error())
        if self._closing is not None and not self._closing.done():
            self._closing.set_result(None)
        for channel in list(self._channels.values()):
            channel.fail(self.error())
        self._channels.clear()
        if self.on_lost is not None:
            told, self.on_lost = self.on_lost, None
            told(error)

    def abort(self) -> None:
        """Close at once."""
        self.on_lost = None
        self.fail(OperationalError(f"{self.server.describe()}: the connection was closed"))

    async def close(self) -> None:
        """Say goodbye, then close. What its channels hold goes back to its queues."""
        if self._error is None and self._login is None:
            self.on_lost = None
            self._closing = self.loop.create_future()
            with suppress(CeleryError, TimeoutError):
                self.write(frames.method(0, M.CLOSE, b"\x00\xc8\x00\x00\x00\x00\x00"))
                async with asyncio.timeout(1.0):
                    await self._closing
        self.abort()

    def _beat(self) -> None:
        if self._error is not None:
            return
        interval, now = self.session.heartbeat, self.loop.time()
        silent = now - self._heard
        if silent >= MISSED * interval:
            error = OperationalError(f"{self.server.describe()}: no answer, not even a heartbeat, for {silent:.0f} s")
            self.fail(error)
            return
        if now - self._said >= interval / 2.2 and self._transport is not None:
            self._said = now
            self._transport.write(HEARTBEAT_FRAME)
        self._timer = self.loop.call_later(interval / 4, self._beat)


class Link:
    """A connection that is opened when it is first needed, and again after it broke, at the next of several nodes.
    Bound to one loop."""

    def __init__(self, servers: Sequence[Server], on_blocked: Callable[[str], None] | None = None) -> None:
        self.servers = list(servers)
        self._turn = 0
        self._on_blocked = on_blocked
        self._connection: Connection | None = None
        self._opening = asyncio.Lock()

    @property
    def current(self) -> Connection | None:
        """The connection if there is one that is not broken."""
        connection = self._connection
        return connection if connection is not None and not connection.broken else None

    def describe(self) -> str:
        """The node in use."""
        return self.servers[self._turn % len(self.servers)].describe()

    async def connection(self) -> Connection:
        """A connection that works as far as is known; each node is tried once. Raises OperationalError or
        ImproperlyConfigured."""
        if (current := self.current) is not None:
            return current
        async with self._opening:
            if (current := self.current) is not None:
                return current
            left = len(self.servers)
            while True:
                left -= 1
                server = self.servers[self._turn % len(self.servers)]
                try:
                    self._connection = connection = await Connection.open(server)
                    break
                except OperationalError as error:
                    self._turn += 1
                    if not left:
                        raise
                    log.warning("%s; trying the next node", error)
            connection.on_blocked = self._on_blocked
            return connection

    async def close(self) -> None:
        """Close the connection; a later call opens another one."""
        connection, self._connection = self._connection, None
        if connection is not None:
            await connection.close()
