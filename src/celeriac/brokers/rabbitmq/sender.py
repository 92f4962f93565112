"""The synchronous side of RabbitMQ as a broker: what `delay()` uses. No loop, no asyncio."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

from celeriac.brokers.rabbitmq.drafts import Draft, declaration, drafts, errors
from celeriac.brokers.rabbitmq.topology import Topology
from celeriac.drivers.amqp.blocking import Connection, Pool
from celeriac.drivers.amqp.url import parse_all
from celeriac.errors import OperationalError
from celeriac.model.message import Envelope


class RabbitmqSender:
    """Publishes with confirmations, over as many connections as threads publish at one moment.

    A publish whose confirmation was lost may have been carried out: OperationalError then says that no answer came.
    Repeat it with the same envelopes only; a second message has the same task id."""

    def __init__(self, url: str, options: Mapping[str, Any] | None = None) -> None:
        """Raises ImproperlyConfigured for a URL or an option that can't be used."""
        given = dict(options or {})
        self.servers = parse_all(url, given)
        self.topology = Topology(given)
        self._pool = Pool(self.servers)

    def describe(self) -> str:
        """The URL without its password."""
        return self.servers[0].describe()

    def publish(self, envelopes: Sequence[Envelope], timeout: float) -> None:
        """Hand over envelopes within `timeout` seconds in all, or raise OperationalError. On return all are safe."""
        if not envelopes:
            return
        deadline = time.monotonic() + timeout
        batch = drafts(envelopes, self.topology, time.time())
        connection = self._pool.take(deadline)
        try:
            faults = self._send(connection, batch, deadline)
            if any(faults):  # a queue that was there is gone: declare it again, once
                connection.known.clear()
                batch = [draft for draft, fault in zip(batch, faults, strict=True) if fault]
                faults = self._send(connection, batch, deadline)
        finally:
            self._pool.give(connection)
        for fault in faults:
            if fault:
                raise OperationalError(f"{self.describe()}: a message was not taken: {fault}")

    def _send(self, connection: Connection, batch: Sequence[Draft], deadline: float) -> list[str]:
        version, largest = connection.session.version, connection.session.frame
        for need in (*self.topology.replies, *(need for draft in batch for need in draft.needs)):
            if need not in connection.known:
                connection.many(declaration(need, self.topology, version), deadline)
                connection.known.add(need)
        refused, returned = connection.publish([draft.frames(1, largest) for draft in batch], deadline)
        return errors(batch, refused, returned)

    def close(self) -> None:
        """Close the connections that nobody uses. A later publish opens others."""
        self._pool.close()
