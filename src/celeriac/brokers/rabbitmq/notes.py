"""What workers and operators have to know of each other: cancelled ids, names of queues. Notes lie in a durable queue,
which each one reads from end to end when he comes, one at a time, and gives back; later ones reach him by an exchange.

They are a help and not the work: where they can't be read, that is said once, and the work goes on.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Iterable

import msgspec

from celeriac.brokers.rabbitmq.core import Core, on
from celeriac.brokers.rabbitmq.drafts import Draft
from celeriac.brokers.rabbitmq.topology import NOTES
from celeriac.drivers.amqp import frames
from celeriac.drivers.amqp.channel import Channel
from celeriac.drivers.amqp.frames import M
from celeriac.drivers.amqp.machine import Event
from celeriac.drivers.amqp.table import properties
from celeriac.errors import CeleryError, OperationalError
from celeriac.wire.ids import new_id

log = logging.getLogger("celeriac.rabbitmq")

_HEADER = properties({"content_type": "application/json", "delivery_mode": 2, "headers": {}})
PATIENCE = 5.0
"""Seconds in which one's turn to read has to come. A server whose node with the queue is down lets one wait longer."""
PAUSE = 30.0
"""Seconds without another try after that."""


class Note(msgspec.Struct, omit_defaults=True):
    """One entry."""

    mark: str = ""
    """Its writer waits until it comes back to him."""
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
        self._faulty = False
        self._tried = 0.0
        self.version = 0
        """Another one after each revocation."""
        self.queues: set[str] = set()
        self.keys: set[tuple[str, str]] = set()
        """(queue, limit key) of what was ever parked."""

    async def read(self) -> None:
        """Read up to what stands there now; from then on what comes is read by itself. Raises OperationalError when the
        broker can't be reached."""
        if self._channel is not None and not self._channel.broken:
            return
        async with self._lock:
            if self._channel is not None and not self._channel.broken:
                return
            if self._faulty and time.monotonic() < self._tried + PAUSE:
                return
            try:
                async with asyncio.timeout(PATIENCE):
                    await self._listen()
                    await self._read_all()
                self._faulty = False
            except (CeleryError, TimeoutError) as error:
                if self._core.link.current is None:
                    raise
                if not self._faulty:
                    why = str(error) or f"the queue {NOTES!r} does not answer; its node may be down"
                    log.warning("revocations can't be read: %s", why)
                self._faulty, self._tried = True, time.monotonic()

    async def _listen(self) -> None:
        await self._core.ask(self._core.topology.notes())
        channel = await (await self._core.link.connection()).channel()
        name = f"{NOTES}.{new_id()}"
        await on(channel, self._core.topology.hearing(name))
        channel.on_deliver = lambda event: self._take(event.body)
        await on(channel, [(M.CONSUME, frames.consume(name, "notes", no_ack=True), M.CONSUME_OK, "the notes")])
        self._channel = channel

    async def _read_all(self) -> None:
        mark = Note(mark=new_id())
        while True:
            channel = await (await self._core.link.connection()).channel()
            try:
                await self._read_queue(channel, mark)
                return
            except CeleryError:  # somebody else reads
                if channel.connection.broken:
                    raise
                await asyncio.sleep(random.uniform(0.01, 0.05))
            finally:
                await channel.close()

    async def _read_queue(self, channel: Channel, mark: Note) -> None:
        done = asyncio.get_running_loop().create_future()
        spent: list[int] = []
        seen: set[bytes] = set()

        def hear(event: Event) -> None:
            at = 1 + event.arguments[0]
            note = self._take(event.body)
            plain = b"" if note is None else msgspec.json.encode(msgspec.structs.replace(note, mark=""))
            if note is None or not (note.queue or note.until > time.time()) or plain in seen:
                spent.append(int.from_bytes(event.arguments[at : at + 8], "big"))
            seen.add(plain)
            if note is not None and note.mark == mark.mark and not done.done():
                done.set_result(None)

        channel.on_deliver = hear
        consume = frames.consume(NOTES, "notes", exclusive=True)
        await on(channel, [(M.QOS, frames.qos(0), M.QOS_OK, ""), (M.CONSUME, consume, M.CONSUME_OK, "the notes")])
        await self._send(mark)
        await done
        # what nobody needs any more goes, the rest goes back when the channel closes
        channel.write(b"".join([frames.ack(channel.number, tag) for tag in spent]))

    def _take(self, body: bytes) -> Note | None:
        try:
            note = _decode(body)
        except msgspec.MsgspecError:  # of a later version
            return None
        if note.cancel and not self._cancelled.keys() >= set(note.cancel):
            self.version += 1
        self._cancelled.update(dict.fromkeys(note.cancel, note.until))
        if note.key:
            self.keys.add((note.queue, note.key))
        elif note.queue:
            self.queues.add(note.queue)
        waiting = self._marks.pop(note.mark, None)
        if waiting is not None and not waiting.done():
            waiting.set_result(None)
        return note

    async def _send(self, note: Note) -> None:
        draft = Draft(NOTES, "", _HEADER, msgspec.json.encode(note), ("notes", ""))
        [fault] = await self._core.send([draft])
        if fault:
            raise OperationalError(f"{self._core.describe()}: {fault}")

    async def write(self, note: Note) -> None:
        """On return it is safe, and read here. Raises OperationalError."""
        await self.read()
        if self._faulty:
            raise OperationalError(f"{self._core.describe()}: the queue {NOTES!r} can't be used now")
        note = msgspec.structs.replace(note, mark=new_id())
        waiting = self._marks[note.mark] = asyncio.get_running_loop().create_future()
        try:
            await self._send(note)
            async with asyncio.timeout(PATIENCE):
                await waiting
        except TimeoutError:
            raise OperationalError(f"{self._core.describe()}: what was sent to {NOTES!r} does not come") from None
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
            if not self._faulty:
                log.warning("%s", error)
