"""The synchronous side of Redis as a broker: what `delay()` uses. No loop, no asyncio."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from celeriac.brokers.redis import scripts
from celeriac.brokers.redis.layout import LPUSH_BYTES, LPUSH_VALUES, Layout, too_new, weight
from celeriac.drivers.redis.blocking import Connection, Connections
from celeriac.drivers.redis.protocol import Words, driver, failure
from celeriac.drivers.redis.url import parse
from celeriac.errors import EncodeError
from celeriac.model.message import Envelope

WRITE_BYTES = 1 << 20
"""About how much is sent before the answers are read."""


class RedisSender:
    """Publishes to one database of a Redis or Valkey server, over one connection for each thread or greenlet.

    A publish whose answer was lost may have been carried out: OperationalError then says that no answer came. Repeat it
    with the same envelopes only; a second message has the same task id and publish id."""

    def __init__(self, url: str, options: Mapping[str, Any] | None = None) -> None:
        """Raises ImproperlyConfigured for a URL or an option that can't be used, and when hiredis is missing."""
        self.server = parse(url, options)
        self.layout = Layout(self.server.options, self.server.db)
        driver()
        self._connections = Connections(self.server)

    def describe(self) -> str:
        """The URL without its password."""
        return self.server.describe()

    def publish(self, envelopes: Sequence[Envelope], timeout: float) -> None:
        """Hand over envelopes within `timeout` seconds in all, or raise OperationalError. On return all are safe."""
        if not envelopes:
            return
        deadline = time.monotonic() + timeout
        connection = self._connections.get(deadline)
        try:
            if len(envelopes) == 1:
                envelope = envelopes[0]
                if envelope.not_before is None and envelope.queue in connection.known and not envelope.once:
                    words = ("LPUSH", self.layout.target(envelope), envelope.blob)
                    reply = connection.ask(connection.pack(words), 1, deadline)[0]
                    if type(reply) is not int:
                        raise failure(self.server, reply, "publishing")
                    return
            self._publish(connection, envelopes, deadline)
        except UnicodeEncodeError as error:
            raise EncodeError(f"a queue name can't be written in UTF-8: {error}") from error

    def stream(self, envelopes: Iterator[Envelope], timeout: float) -> None:
        """See ports.StreamingSender."""
        first = next(envelopes, None)
        if first is None:
            return
        deadline = time.monotonic() + timeout
        connection = self._connections.get(deadline)
        key = self.layout.target(first)

        def pushes() -> Iterator[tuple[bytes, int]]:
            blobs, size = [first.blob], len(first.blob)
            for envelope in envelopes:
                if len(blobs) == LPUSH_VALUES or size + len(envelope.blob) > LPUSH_BYTES:
                    yield connection.pack(("LPUSH", key, *blobs)), 1
                    blobs, size = [], 0
                blobs.append(envelope.blob)
                size += len(envelope.blob)
            yield connection.pack(("LPUSH", key, *blobs)), 1

        try:
            if first.queue not in connection.known:
                connection.many(self.layout.declaration([first.queue]), deadline)
                connection.known.add(first.queue)
            for reply in connection.stream(pushes(), deadline):
                if type(reply) is not int:
                    raise failure(self.server, reply, "publishing")
        except UnicodeEncodeError as error:
            raise EncodeError(f"a queue name can't be written in UTF-8: {error}") from error

    def _publish(self, connection: Connection, envelopes: Sequence[Envelope], deadline: float) -> None:
        queues = {envelope.queue for envelope in envelopes} - connection.known
        commands: list[Words] = self.layout.declaration(sorted(queues)) if queues else []
        pushes, schedules, onces = self.layout.pushes(envelopes)
        size = 0
        for words in pushes:
            commands.append(words)
            size += weight(words)
            if size >= WRITE_BYTES:
                connection.many(commands, deadline)
                commands, size = [], 0
        if commands:
            connection.many(commands, deadline)
        for script, calls in ((scripts.SCHEDULE, schedules), (scripts.ONCE, onces)):
            for arguments in calls:
                known = connection.run(script, (), arguments, deadline)
                if known < 0:
                    raise too_new(self.describe(), -known)
        connection.known |= queues

    def close(self) -> None:
        """Close the connections of all threads. A later publish opens others."""
        self._connections.close()
