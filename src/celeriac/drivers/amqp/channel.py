"""One of a connection's channels: questions with their answers, and publishing with confirmations. Many calls share a
channel; answers come in the order of the questions."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, Protocol

from celeriac.drivers.amqp import frames
from celeriac.drivers.amqp.frames import M, Returned
from celeriac.drivers.amqp.login import Session, closed
from celeriac.drivers.amqp.machine import Event
from celeriac.drivers.amqp.url import Server
from celeriac.errors import CeleryError, OperationalError

WINDOW = 1000
"""Messages that wait for their confirmation at most."""
WINDOW_BYTES = 8 << 20
PATIENCE = 15.0
"""Seconds without a confirmation after which a publish is given up; not counted while the server blocks us."""


class Carrier(Protocol):
    """The connection, as its channels see it."""

    server: Server
    session: Session
    loop: asyncio.AbstractEventLoop
    blocked: str

    @property
    def broken(self) -> bool:
        """Nothing can be asked any more."""
        ...

    def error(self) -> CeleryError:
        """What broke it, in a new exception."""
        ...

    def write(self, data: bytes) -> None:
        """Send frames. Raises OperationalError when the connection is broken."""
        ...

    def fail(self, error: CeleryError) -> None:
        """It is over."""
        ...

    def forget(self, channel: Channel) -> None:
        """This channel is closed."""
        ...


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

    def __init__(self, connection: Carrier, number: int) -> None:
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
        elif self._error is not None:  # given up by us: the server comes to it late
            if which == M.CHANNEL_CLOSE:
                self.connection.write(self.method(M.CHANNEL_CLOSE_OK))
            if which in (M.CHANNEL_CLOSE, M.CHANNEL_CLOSE_OK):
                self.connection.forget(self)
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
        self.on_deliver = None
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
        closing = b"\x00\xc8\x00\x00\x00\x00\x00"
        busy = bool(self._asked)  # with what we don't wait for any more, for however long
        with suppress(CeleryError):
            if busy:
                self.write(self.method(M.CHANNEL_CLOSE, closing))
            else:
                await self.call(M.CHANNEL_CLOSE, closing, M.CHANNEL_CLOSE_OK)
        self.fail(OperationalError(f"{self.connection.server.describe()}: the channel was closed"))
        if not busy:
            self.connection.forget(self)


def _refuse(future: asyncio.Future[Any], error: CeleryError) -> None:
    if not future.done():
        future.set_exception(error)
        future.exception()  # nobody may come for it any more
