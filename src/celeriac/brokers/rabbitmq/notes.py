"""What workers and operators have to know of each other, in a stream: everyone reads all of it, from the beginning,
and nobody takes anything away. It is gone after a week; a revocation is kept for three days."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Iterable

import msgspec

from celeriac.brokers.rabbitmq.core import Core, on
from celeriac.brokers.rabbitmq.drafts import Draft
from celeriac.brokers.rabbitmq.topology import NOTES
from celeriac.drivers.amqp import frames
from celeriac.drivers.amqp.aio import Channel
from celeriac.drivers.amqp.frames import M
from celeriac.drivers.amqp.machine import Event
from celeriac.drivers.amqp.table import properties
from celeriac.errors import CeleryError, OperationalError
from celeriac.wire.ids import new_id

log = logging.getLogger("celeriac.rabbitmq")

PREFETCH = 1000
_HEADER = properties({"content_type": "application/json", "delivery_mode": 2})


class Note(msgspec.Struct, omit_defaults=True):
    """One entry."""

    mark: str = ""
    """Its writer waits until it reads it."""
    cancel: tuple[str, ...] = ()
    until: float = 0.0
    """Unix seconds until which `cancel` holds."""
    queue: str = ""
    """There is this queue."""
    key: str = ""
    """Messages of `queue` are parked under it."""


_decode = msgspec.json.Decoder(Note).decode


class Notes:
    """The notes as far as they are read. Bound to one loop."""

    def __init__(self, core: Core) -> None:
        self._core = core
        self._channel: Channel | None = None
        self._marks: dict[str, asyncio.Future[None]] = {}
        self._lock = asyncio.Lock()
        self._cancelled: dict[str, float] = {}
        self.version = 0
        """Another one after each revocation."""
        self.queues: set[str] = set()
        self.keys: set[tuple[str, str]] = set()
        """(queue, limit key) of what was ever parked."""

    async def read(self) -> None:
        """Read up to what stands there now; from then on what comes is read by itself. Raises OperationalError."""
        if self._channel is None or self._channel.broken:
            async with self._lock:
                if self._channel is None or self._channel.broken:
                    await self._attach()

    async def _attach(self) -> None:
        await self._core.ask(self._core.topology.notes())
        channel = await (await self._core.link.connection()).channel()
        channel.on_deliver = lambda event: self._hear(channel, event)
        await on(channel, [(M.QOS, frames.qos(PREFETCH), M.QOS_OK, "")])
        arguments = {"x-stream-offset": "first"}
        await on(channel, [(M.CONSUME, frames.consume(NOTES, "notes", arguments=arguments), M.CONSUME_OK, "the notes")])
        self._channel = channel
        await self.write(Note())

    def _hear(self, channel: Channel, event: Event) -> None:
        at = 1 + event.arguments[0]
        channel.write(frames.ack(channel.number, int.from_bytes(event.arguments[at : at + 8], "big")))
        try:
            note = _decode(event.body)
        except msgspec.MsgspecError:  # of a later version
            return
        if note.cancel:
            self._cancelled.update(dict.fromkeys(note.cancel, note.until))
            self.version += 1
        if note.key:
            self.keys.add((note.queue, note.key))
        elif note.queue:
            self.queues.add(note.queue)
        waiting = self._marks.pop(note.mark, None)
        if waiting is not None and not waiting.done():
            waiting.set_result(None)

    async def write(self, note: Note) -> None:
        """On return it is safe, and read here. Raises OperationalError."""
        if self._channel is None or self._channel.broken:
            await self.read()
        note = msgspec.structs.replace(note, mark=new_id())
        waiting = self._marks[note.mark] = asyncio.get_running_loop().create_future()
        try:
            draft = Draft("", NOTES, _HEADER, msgspec.json.encode(note), ("notes", ""))
            [fault] = await self._core.send([draft])
            if fault:
                raise OperationalError(f"{self._core.describe()}: {fault}")
            async with asyncio.timeout(self._core.servers[0].timeout):
                await waiting
        except TimeoutError:
            raise OperationalError(f"{self._core.describe()}: the stream {NOTES!r} does not answer") from None
        finally:
            self._marks.pop(note.mark, None)

    def cancelled(self) -> frozenset[str]:
        """The ids that are cancelled now."""
        now = time.time()
        self._cancelled = {name: until for name, until in self._cancelled.items() if until > now}
        return frozenset(self._cancelled)

    async def tell_queues(self, names: Iterable[str]) -> None:
        """Let everybody know of queues. One that can't be told of is only missing in lists."""
        await self._tell([Note(queue=name) for name in names if name not in self.queues])

    async def tell_keys(self, keys: Iterable[tuple[str, str]]) -> None:
        """Let everybody know that something is parked there."""
        await self._tell([Note(queue=queue, key=key) for queue, key in keys if (queue, key) not in self.keys])

    async def _tell(self, notes: list[Note]) -> None:
        try:
            for note in notes:
                await self.write(note)
        except CeleryError as error:
            log.warning("%s", error)
