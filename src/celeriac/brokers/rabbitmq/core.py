"""What broker and consumers share: the nodes, the topology, and the connection for everything but the claims."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from celeriac.brokers.rabbitmq.drafts import Draft, Need, declaration, drafts, errors
from celeriac.brokers.rabbitmq.topology import Question, Topology
from celeriac.drivers.amqp.aio import Connection, Link
from celeriac.drivers.amqp.channel import Channel
from celeriac.drivers.amqp.machine import Event
from celeriac.drivers.amqp.url import parse_all
from celeriac.errors import CeleryError, OperationalError
from celeriac.model.message import Envelope

log = logging.getLogger("celeriac.rabbitmq")


class Core:
    """One virtual host as a broker. Connects on first use; bound to one loop."""

    def __init__(self, url: str, options: Mapping[str, Any] | None) -> None:
        given = dict(options or {})
        self.servers = parse_all(url, given)
        self.topology = Topology(given)
        self.result_serializer = str(given.get("result_serializer") or "json")
        self.link = Link(self.servers, self.told_blocked)
        self._publisher: Channel | None = None
        self._declared: set[Need] = set()
        self._declared_on: Connection | None = None
        self._lock = asyncio.Lock()
        self._blocked = ""

    def describe(self) -> str:
        """The URL without its password."""
        return self.link.describe()

    def told_blocked(self, reason: str) -> None:
        """The server says that it takes no messages, or takes them again."""
        if reason and not self._blocked:
            log.warning("%s takes no messages at the moment: %s", self.describe(), reason)
        elif not reason and self._blocked:
            log.warning("%s takes messages again", self.describe())
        self._blocked = reason

    async def publisher(self) -> Channel:
        """The channel to publish on. Raises OperationalError."""
        channel = self._publisher
        if channel is None or channel.broken:
            async with self._lock:
                channel = self._publisher
                if channel is None or channel.broken:
                    connection = await self.link.connection()
                    channel = self._publisher = await connection.channel(confirms=True)
        return channel

    async def declare(self, needs: Iterable[Need], epoch: str = "") -> None:
        """Declare what was not yet declared over this connection. Raises OperationalError, ImproperlyConfigured."""
        connection = await self.link.connection()
        if self._declared_on is not connection:
            self._declared, self._declared_on = set(), connection
        missing = [need for need in dict.fromkeys(needs) if need not in self._declared]
        if not missing:
            return
        version = connection.session.version
        questions = [question for need in missing for question in declaration(need, self.topology, version, epoch)]
        await self.ask(dict.fromkeys(questions))
        self._declared.update(missing)

    async def ask(self, questions: Iterable[Question]) -> list[Event]:
        """Ask all of it at once, on a channel of its own: a refusal costs no other. Raises OperationalError."""
        questions = list(questions)
        if not questions:
            return []
        channel = await (await self.link.connection()).channel()
        try:
            return await on(channel, questions)
        finally:
            await channel.close()

    async def publish(self, envelopes: Sequence[Envelope]) -> None:
        """On return all are safe. Raises OperationalError, EncodeError."""
        batch = drafts(envelopes, self.topology, time.time())
        for fault in await self.send(batch):
            if fault:
                raise OperationalError(f"{self.describe()}: a message was not taken: {fault}")

    async def send(self, batch: Sequence[Draft], epoch: str = "") -> list[str]:
        """Publish, and say of each what went wrong; empty: it is safe. What is not there any more is declared again.
        Raises OperationalError when the broker can't be reached."""
        if not batch:
            return []
        await self.declare([*self.topology.replies, *(need for draft in batch for need in draft.needs)], epoch)
        faults = await self._send(batch)
        lost = [place for place, fault in enumerate(faults) if fault and batch[place].lost() == fault]
        if lost:
            needs = [need for place in lost for need in batch[place].needs]
            self._declared.difference_update(needs)
            await self.declare(needs, epoch)
            for place, fault in zip(lost, await self._send([batch[place] for place in lost]), strict=True):
                faults[place] = fault
        return faults

    async def _send(self, batch: Sequence[Draft]) -> list[str]:
        channel = await self.publisher()
        number, largest = channel.number, channel.connection.session.frame
        refused, returned = await channel.publish([draft.frames(number, largest) for draft in batch])
        return errors(batch, refused, returned)

    async def close(self) -> None:
        """Close the connection. A later call opens another one."""
        await self.link.close()


async def on(channel: Channel, questions: Sequence[Question]) -> list[Event]:
    """Ask all of it at once. Raises the first refusal."""
    asked = [channel.ask(which, arguments, answer, what=what) for which, arguments, answer, what in questions]
    found: list[Event] = []
    fault: CeleryError | None = None
    for future in asked:
        try:
            found.append(await channel.wait(future))
        except CeleryError as error:  # the first says why; the others only that the channel is gone
            fault = fault or error
    if fault is not None:
        raise fault
    return found
