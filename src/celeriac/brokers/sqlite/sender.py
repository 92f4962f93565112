"""Publishing to the SQLite file: the synchronous side, and what both sides share."""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from sqlite3 import Connection

from celeriac.brokers.sqlite.publishing import DATA_ERRORS, name_queues, publish
from celeriac.drivers.doorbell import Bells
from celeriac.drivers.sqlite import WAL_LIMIT, Database, locate
from celeriac.errors import CeleryError, EncodeError, OperationalError
from celeriac.model.message import Envelope


def publish_all(
    database: Database, batches: Sequence[Sequence[Envelope]], now: float, timeout: float | None = None
) -> list[Exception | None]:
    """Commit some publishes together. Returns what went wrong with each; one that can't be kept does not spoil the
    others."""
    try:
        _commit(database, batches, now, timeout)
    except DATA_ERRORS as error:
        if len(batches) == 1:
            return [EncodeError(f"a message can't be stored: {error}")]
        return [failure for batch in batches for failure in publish_all(database, [batch], now, timeout)]
    except CeleryError as error:
        return [type(error)(*error.args) for _ in batches]
    return [None] * len(batches)


def _commit(
    database: Database, batches: Sequence[Sequence[Envelope]], now: float, timeout: float | None
) -> None:
    envelopes = batches[0] if len(batches) == 1 else [envelope for batch in batches for envelope in batch]
    queues = {envelope.queue for envelope in envelopes}

    def work(connection: Connection) -> None:
        if not queues <= database.known:
            name_queues(connection, queues)
        publish(connection, envelopes, now, remember=True)

    database.write(work, timeout)
    database.known |= queues


class _Ticket:
    """One publish that waits for its turn, or for a thread that takes it along."""

    __slots__ = ("committed", "envelopes", "failure")

    def __init__(self, envelopes: Sequence[Envelope]) -> None:
        self.envelopes = envelopes
        self.committed = False
        self.failure: Exception | None = None


class SqliteSender:
    """The synchronous side. Threads that publish at the same time share a commit; after a fork it opens anew."""

    def __init__(self, url: str, options: Mapping[str, object], clock: Callable[[], float] = time.time) -> None:
        self.location = locate(url, options)
        self._clock = clock
        self._bells = Bells(self.location.path)
        # A caller's thread folds the log only when no worker has done it for long.
        self._database = Database(self.location, wal_limit=4 * WAL_LIMIT)
        self._reset()

    def _reset(self) -> None:
        self._pid = os.getpid()
        self._lock = threading.Lock()
        self._tickets: deque[_Ticket] = deque()

    def publish(self, envelopes: Sequence[Envelope], timeout: float) -> None:
        """Hand over envelopes within `timeout` seconds. On return they are committed. Raises OperationalError, or
        EncodeError for an envelope that no database can keep."""
        if not envelopes:
            return
        if self._pid != os.getpid():
            self._reset()  # another thread may have held the lock when we were forked
        deadline = time.monotonic() + timeout
        ticket = _Ticket(envelopes)
        self._tickets.append(ticket)
        if not self._lock.acquire(timeout=max(timeout, 0.0)):
            try:
                self._tickets.remove(ticket)
            except ValueError:
                # Another thread is committing it now, and has a deadline of its own: only it knows the outcome.
                self._lock.acquire()
            else:
                raise OperationalError(f"{self.location.path}: other threads kept this one waiting for {timeout:g} s")
        try:
            if not ticket.committed and ticket.failure is None:
                self._lead(ticket, max(deadline - time.monotonic(), 0.0))
        finally:
            self._lock.release()
        if ticket.failure is not None:
            raise ticket.failure

    def _lead(self, own: _Ticket, timeout: float) -> None:
        """Commit all that waits. Whose deadline is later than ours tries again itself after a failure."""
        tickets = []
        while self._tickets:
            tickets.append(self._tickets.popleft())
        if own not in tickets:
            tickets.append(own)  # a leader before has failed and put it back meanwhile
        failures = publish_all(self._database, [ticket.envelopes for ticket in tickets], self._clock(), timeout)
        for ticket, failure in zip(tickets, failures, strict=True):
            if failure is None:
                ticket.committed = True
            elif ticket is own or isinstance(failure, EncodeError):
                ticket.failure = failure
            else:
                self._tickets.append(ticket)
        self._bells.ring("w")

    def close(self) -> None:
        """Close the connection. The next publish opens it again."""
        with self._lock:
            self._database.close()
            self._bells.close()
