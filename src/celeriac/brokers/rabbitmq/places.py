"""Looking into queues as an operator does. AMQP has no look: messages are fetched and given back, in their order, and
are with nobody else meanwhile."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import NamedTuple

from celeriac.brokers.losses import begin_anew
from celeriac.brokers.rabbitmq import topology as names
from celeriac.brokers.rabbitmq.core import Core, on
from celeriac.brokers.rabbitmq.drafts import Draft, to_queue
from celeriac.brokers.rabbitmq.messages import DUE, REASON, TO, Message, encode, got
from celeriac.brokers.rabbitmq.notes import Notes
from celeriac.brokers.rabbitmq.topology import BOUNCES
from celeriac.drivers.amqp import frames
from celeriac.drivers.amqp.channel import Channel
from celeriac.drivers.amqp.frames import M
from celeriac.errors import CeleryError, ImproperlyConfigured, OperationalError
from celeriac.model.message import Counts, Item, Page
from celeriac.ports import Place

MOST = 10_000
"""Messages of a queue that are looked at, at most: they are in memory, and with nobody else, while one looks."""
COUNTED = 2_000
"""Scheduled messages up to which is counted which queue they are for; of more the total of all queues is told."""
_ROUND = 500


def _anew(message: Message, queue: str) -> Draft:
    """The same message, at the tail of the queue in which it lies."""
    return Draft("", queue, *message.copy({**message.marks(), **message.private}), ("nothing", ""))


class _Look(NamedTuple):
    """What is held while one looks."""

    found: list[tuple[Message, str]]
    """With limit keys."""
    channel: Channel | None
    taken: set[int]
    """Delivery tags of what was acknowledged."""


class Places:
    """The places of one virtual host."""

    def __init__(self, core: Core, notes: Notes) -> None:
        self._core = core
        self._notes = notes

    async def length(self, *queues: str) -> list[int | None]:
        """Ready messages of each; None: there is no such queue. Raises OperationalError."""
        found: list[int | None] = []
        channel: Channel | None = None
        for name in queues:
            if channel is None or channel.broken:
                channel = await (await self._core.link.connection()).channel()
            try:
                arguments = frames.queue_declare(name, passive=True)
                event = await channel.call(M.QUEUE_DECLARE, arguments, M.QUEUE_DECLARE_OK, what=f"the queue {name!r}")
                found.append(frames.read_declared(event.arguments).messages)
            except OperationalError:
                if channel.connection.broken:
                    raise
                found.append(None)  # 404: that has closed the channel
            except ImproperlyConfigured:  # another connection's own
                found.append(None)
        if channel is not None:
            await channel.close()
        return found

    async def _ladder(self) -> dict[str, int]:
        """Messages in each queue of our ladder of delays, for whatever queue they are."""
        queues = self._core.topology.ladder.queues
        if (await self.length(queues[0]))[0] is None:  # that which is declared last
            return {}
        asked = [(M.QUEUE_DECLARE, frames.queue_declare(name, passive=True), M.QUEUE_DECLARE_OK, "") for name in queues]
        declared = [frames.read_declared(event.arguments) for event in await self._core.ask(asked)]
        return {told.name: told.messages for told in declared}

    async def count(self, queue: str) -> Counts:
        """How much lies where."""
        await self._notes.read()
        keys = [names.parked(queue, key) for name, key in self._notes.keys if name == queue]
        dead = names.fitting(names.DEAD, queue)
        ready, buried, *waiting = await self.length(queue, dead, *keys)
        ladder = await self._ladder()
        scheduled = sum(ladder.values())
        if ladder and scheduled <= COUNTED:
            async with self.looking(Place.SCHEDULED, queue, COUNTED) as look:
                scheduled = len(look.found)
        return Counts(
            ready=ready or 0, scheduled=scheduled, parked=sum(count or 0 for count in waiting), dead=buried or 0
        )

    async def _queues(self, where: Place, queue: str) -> list[tuple[str, str, int]]:
        """(queue to look into, limit key, how many messages it has)."""
        if where is Place.SCHEDULED:
            return [(name, "", count) for name, count in (await self._ladder()).items()]
        if where is Place.IN_FLIGHT:
            return []
        found = [(queue, "")] if where is Place.READY else [(names.fitting(names.DEAD, queue), "")]
        if where is Place.PARKED:
            await self._notes.read()
            found = [(names.parked(queue, key), key) for name, key in sorted(self._notes.keys) if name == queue]
        counts = await self.length(*(name for name, _ in found))
        there = zip(found, counts, strict=True)
        return [(name, key, count) for (name, key), count in there if count is not None]

    @asynccontextmanager
    async def looking(self, where: Place, queue: str, most: int) -> AsyncIterator[_Look]:
        """The messages of a place with their limit keys, held until the context ends; then what was not acknowledged
        goes back."""
        found: list[tuple[Message, str]] = []
        tired: list[tuple[int, Draft]] = []
        taken: set[int] = set()
        channel: Channel | None = None
        try:
            for name, key, count in await self._queues(where, queue):
                count = min(count + 1, most - len(found))
                if count <= 0:
                    continue
                if channel is None:
                    channel = await (await self._core.link.connection()).channel()
                # a quorum queue's count lags: until it is empty
                while count > 0:
                    asked = [
                        channel.ask(M.GET, frames.get(name), M.GET_OK, M.GET_EMPTY) for _ in range(min(_ROUND, count))
                    ]
                    events = [await channel.wait(future) for future in asked]
                    messages = [got(event, queue)[0] for event in events if event.which == M.GET_OK]
                    found += [(message, key) for message in messages]
                    if where is not Place.SCHEDULED:  # there it would only go on its way too early
                        tired += [(each.tag, _anew(each, name)) for each in messages if each.count >= BOUNCES]
                    count = min(_ROUND, most - len(found)) if len(messages) == len(events) else 0
            if where is Place.SCHEDULED:
                found = [entry for entry in found if entry[0].private.get(TO) == queue]
                found.sort(key=lambda entry: entry[0].due)
            yield _Look(found, channel, taken)
        finally:
            if channel is not None:
                await self._put_back(channel, [entry for entry in tired if entry[0] not in taken])

    async def _put_back(self, channel: Channel, tired: Sequence[tuple[int, Draft]]) -> None:
        """`tired`: what was delivered so often that a quorum queue would soon drop it. Copies take its place."""
        try:
            faults = await self._core.send([draft for _, draft in tired])
            for (tag, _), fault in zip(tired, faults, strict=True):
                if not fault:
                    channel.write(frames.ack(channel.number, tag))
            channel.write(frames.nack(channel.number, 0, multiple=True))
            await on(channel, [(M.QOS, frames.qos(1), M.QOS_OK, "")])
        except CeleryError:  # the channel is gone, and what it held is back
            pass
        await channel.close()

    async def browse(self, where: Place, queue: str, limit: int, cursor: str) -> Page:
        """A page; the cursor is a position."""
        start = int(cursor or 0)
        async with self.looking(where, queue, MOST if where is Place.SCHEDULED else start + limit + 1) as look:
            found = look.found
            items = [
                Item(
                    message.digest,
                    message.blob(),
                    message.private.get(DUE),
                    str(message.private.get(REASON) or ""),
                    key,
                )
                for message, key in found[start : start + limit]
            ]
        return Page(items, str(start + limit) if len(found) > start + limit else "")

    async def take(self, where: Place, queue: str, ids: Sequence[str], *, again: bool) -> int:
        """Remove entries, and with `again` put them back to work at the tail of their queue."""
        wanted = set(ids)
        return await self._move(where, queue, lambda message: message.digest in wanted, again=again) if wanted else 0

    async def release(self, queue: str) -> int:
        """Move what is scheduled and parked to where a peer finds it."""
        count = 0
        for where in (Place.SCHEDULED, Place.PARKED):
            while moved := await self._move(where, queue, lambda _: True, again=True):
                count += moved
        return count

    async def _move(self, where: Place, queue: str, fits: Callable[[Message], bool], *, again: bool) -> int:
        async with self.looking(where, queue, MOST) as look:
            chosen = [message for message, _ in look.found if fits(message)]
            if again and chosen:
                drafts = [to_queue(queue, *self._fresh(message, where)) for message in chosen]
                for fault in await self._core.send(drafts):
                    if fault:
                        raise OperationalError(f"{self._core.describe()}: {fault}")
            if chosen and (channel := look.channel) is not None:
                look.taken.update(message.tag for message in chosen)
                channel.write(b"".join([frames.ack(channel.number, message.tag) for message in chosen]))
            return len(chosen)

    @staticmethod
    def _fresh(message: Message, where: Place) -> tuple[bytes, bytes]:
        blob = message.blob()
        fresh = begin_anew(blob) if where is Place.DEAD else blob
        return message.copy() if fresh == blob else encode(fresh, message.priority)

    async def purge(self, queue: str) -> int:
        """Delete what is ready."""
        if (await self.length(queue))[0] is None:
            return 0
        [event] = await self._core.ask([(M.PURGE, frames.purge(queue), M.PURGE_OK, f"the queue {queue!r}")])
        return int.from_bytes(event.arguments[:4], "big")
