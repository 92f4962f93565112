"""The asyncio side: one connection with its channels. Many calls share a channel; answers come in the order of the
questions. What is written in one turn of the loop by one call goes out in one piece.

A server that stops answering is noticed: both sides send heartbeats, silence ends the connection, and every question
has a deadline.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, cast

from celeriac.drivers.amqp import frames
from celeriac.drivers.amqp.frames import HEARTBEAT_FRAME, M, Returned
from celeriac.drivers.amqp.login import Session, closed, ended, garbled, handshake, unreachable
from celeriac.drivers.amqp.machine import Event, Garbled, Machine
from celeriac.drivers.amqp.url import Server
from celeriac.errors import CeleryError, OperationalError

log = logging.getLogger("celeriac.rabbitmq")

WINDOW = 1000
"""Messages that wait for their confirmation at most."""
WINDOW_BYTES = 8 << 20
MISSED = 1.5
"""Heartbeat intervals of silence that end a connection. The server says something twice in each."""
PATIENCE = 15.0
"""Seconds without a confirmation after which a publish is given up; not counted while the server blocks us."""


class Asked:
    """A question that waits for its answer."""

    __slots__ = ("answers", "future", "what")

    def __init__(self, answers: tuple[int, ...], future: asyncio.Future[Event], what: str) -> None:
        self.answers = answers
        self.future = future
        self.what = what


class Batch:
    """Published messages that wait for their confirmations."""

    __slots__ = ("future", "left", "refused", "returned")

    def __init__(self, future: asyncio.Future[None], left: int) -> None:
        self.future = future
        self.left = left
        self.refused: set[int] = set()
        """Numbers (of the channel) that the server did not take."""
        self.returned: list[Returned] = []


class Channel:
    """One channel. Made by `Connection.channel`."""

    def __init__(self, connection: Connection, number: int) -> None:
        self.connection = connection
        self.number = number
        self.on_deliver: Callable[[Event], object] | None = None
        self.on_cancelled: Callable[[str], None] | None = None
        """A consumer was ended by the server (its queue is gone)."""
        self.on_closed: Callable[[CeleryError], None] | None = None
        self._asked: deque[Asked] = deque()
        self._error: CeleryError | None = None
        self._published = 0
        self._batches: dict[int, Batch] = {}
        """Number of a published message -> its batch, in order."""

    @property
    def broken(self) -> bool:
        """Nothing can be asked any more."""
        return self._error is not None or self.connection.broken

    def error(self) -> CeleryError:
        """What broke it, in a new exception."""
        error = self._error
        return self.connection.error() if error is None else type(error)(*error.args)

    def write(self, data: bytes) -> None:
        """Send frames that have no answer. Raises OperationalError when the channel is broken."""
        if self._error is not None:
            raise self.error()
        self.connection.write(data)

    def method(self, which: M, arguments: bytes = b"") -> bytes:
        """The frame of a method on this channel."""
        return frames.method(self.number, which, arguments)

    def ask(self, which: M, arguments: bytes, *answers: M, what: str = "") -> asyncio.Future[Event]:
        """Send a method; the future holds what answers it. Questions may overlap. Raises OperationalError."""
        future: asyncio.Future[Event] = self.connection.loop.create_future()
        self._asked.append(Asked(answers, future, what))
        try:
            self.write(self.method(which, arguments))
        except BaseException:
            self._asked.pop()
            raise
        return future

    async def call(self, which: M, arguments: bytes, *answers: M, what: str = "") -> Event:
        """Ask and wait. Raises OperationalError or ImproperlyConfigured; a refusal closes the channel."""
        return await self.wait(self.ask(which, arguments, *answers, what=what))

    async def wait(self, asked: asyncio.Future[Event]) -> Event:
        """Wait for an answer as long as the server may take. The connection of one that takes longer is given up."""
        try:
            async with asyncio.timeout(self.connection.server.timeout):
                return await asked
        except TimeoutError:
            server = self.connection.server
            error = OperationalError(f"{server.describe()}: no answer within {server.timeout:g} s")
            if not self.connection.blocked:
                self.connection.fail(error)
            raise error from None

    # Publishing

    def send(self, messages: Sequence[bytes]) -> Batch:
        """Publish messages, each as its frames; the batch's future is done when all are confirmed. The channel must
        be in confirm mode. Raises OperationalError."""
        batch = Batch(self.connection.loop.create_future(), len(messages))
        for _ in messages:
            self._published += 1
            self._batches[self._published] = batch
        try:
            self.write(b"".join(messages))
        except BaseException:
            for _ in messages:
                self._batches.pop(self._published, None)
                self._published -= 1
            raise
        return batch

    async def publish(self, messages: Sequence[bytes]) -> tuple[list[int], list[Returned]]:
        """Publish in windows and wait for all confirmations. Returns the places (in `messages`) of those that the
        server refused, and what was returned because no queue takes it. Raises OperationalError."""
        refused: list[int] = []
        returned: list[Returned] = []
        sent: deque[tuple[int, int, int, Batch]] = deque()
        at = waiting = 0
        while at < len(messages) or sent:
            while at < len(messages) and (not sent or waiting < WINDOW):
                stop, weight = at, 0
                while stop < len(messages) and stop - at < WINDOW // 2 and weight < WINDOW_BYTES // 2:
                    weight += len(messages[stop])
                    stop += 1
                sent.append((self._published + 1, at, stop - at, self.send(messages[at:stop])))
                waiting += stop - at
                at = stop
            first, place, count, batch = sent.popleft()
            await self._confirmed(batch)
            waiting -= count
            refused += [place + number - first for number in sorted(batch.refused)]
            returned += batch.returned
        return refused, returned

    async def _confirmed(self, batch: Batch) -> None:
        connection = self.connection
        left = batch.left
        while not batch.future.done():
            done, _ = await asyncio.wait([batch.future], timeout=PATIENCE)
            if done:
                break
            if connection.blocked:
                continue
            if batch.left == left:
                text = f"{connection.server.describe()}: no confirmation within {PATIENCE:g} s"
                connection.fail(OperationalError(text))
            left = batch.left
        await batch.future

    def _confirm(self, event: Event) -> None:
        number = int.from_bytes(event.arguments[:8], "big")
        multiple = bool(event.arguments[8] & 1)
        batches = self._batches
        if multiple:
            numbers = []
            for waiting in batches:
                if waiting > number:
                    break
                numbers.append(waiting)
        else:
            numbers = [number] if number in batches else []
        for each in numbers:
            batch = batches.pop(each)
            if event.which == M.NACK:
                batch.refused.add(each)
            batch.left -= 1
            if not batch.left and not batch.future.done():
                batch.future.set_result(None)

    # What the connection calls

    def take(self, event: Event) -> None:
        """Something came on this channel."""
        which = event.which
        if which == M.DELIVER:
            if self.on_deliver is not None:
                self.on_deliver(event)
        elif which in (M.ACK, M.NACK):
            self._confirm(event)
        elif which == M.RETURN:
            told = frames.read_returned(event.arguments)
            for batch in dict.fromkeys(self._batches.values()):
                batch.returned.append(told)
        elif which == M.CANCEL:
            if self.on_cancelled is not None:
                self.on_cancelled(frames.read_short(event.arguments, 0)[0])
        elif which == M.FLOW:
            self.write(self.method(M.FLOW_OK, event.arguments[:1]))
        elif which == M.CHANNEL_CLOSE:
            what = self._asked[0].what if self._asked else ""
            why = closed(self.connection.server, frames.read_close(event.arguments), what or "on a channel")
            with suppress(CeleryError):
                self.write(self.method(M.CHANNEL_CLOSE_OK))
            self.fail(why)
            self.connection.forget(self)
        else:
            self._answer(event)

    def _answer(self, event: Event) -> None:
        # a queue says for itself that a consumer was made or ended, and what was asked later may be answered before
        for place, asked in enumerate(self._asked):
            if event.which in asked.answers:
                del self._asked[place]
                if not asked.future.done():
                    asked.future.set_result(event)
                return
        text = f"{self.connection.server.describe()}: an answer came to no question ({event.which:#x})"
        self.connection.fail(OperationalError(text))

    def fail(self, error: CeleryError) -> None:
        """It is over: whoever waits gets the error."""
        if self._error is not None:
            return
        self._error = error
        asked, self._asked = self._asked, deque()
        for each in asked:
            _refuse(each.future, self.error())
        batches, self._batches = self._batches, {}
        for batch in dict.fromkeys(batches.values()):
            _refuse(batch.future, self.error())
        if self.on_closed is not None:
            told, self.on_closed = self.on_closed, None
            told(error)

    async def close(self) -> None:
        """Close the channel; what it holds goes back to its queues. A broken one is closed already."""
        if self.broken:
            return
        self.on_deliver = self.on_closed = self.on_cancelled = None
        with suppress(CeleryError):
            await self.call(M.CHANNEL_CLOSE, b"\x00\xc8\x00\x00\x00\x00\x00", M.CHANNEL_CLOSE_OK)
        self.fail(OperationalError(f"{self.connection.server.describe()}: the channel was closed"))
        self.connection.forget(self)


def _refuse(future: asyncio.Future[Any], error: CeleryError) -> None:
    if not future.done():
        future.set_exception(error)
        future.exception()  # nobody may come for it any more


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
