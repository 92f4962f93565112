"""Publishing without a loop. Threads that publish at the same time share a commit."""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

from celeriac.drivers.postgres import calls
from celeriac.drivers.postgres.blocking import Blocking
from celeriac.drivers.postgres.failures import is_about_values, is_in_the_way, reason_of
from celeriac.drivers.postgres.site import parse
from celeriac.errors import CeleryError, EncodeError, OperationalError
from celeriac.model.message import Envelope

PIECE = 250
"""Messages of a stream that the server gets together."""


class _Ticket:
    """One publish that waits for its turn, or for a thread that takes it along."""

    __slots__ = ("committed", "envelopes", "failure")

    def __init__(self, envelopes: Sequence[Envelope]) -> None:
        self.envelopes = envelopes
        self.committed = False
        self.failure: Exception | None = None


class PostgresSender:
    """The synchronous side; after a fork it opens anew."""

    def __init__(self, url: str, options: Mapping[str, object]) -> None:
        self.site = parse(url, options)
        self._connection = Blocking(self.site)
        self._reset()

    def _reset(self) -> None:
        self._pid = os.getpid()
        self._lock = threading.Lock()
        self._tickets: deque[_Ticket] = deque()

    def _look_for_fork(self) -> None:
        if self._pid != os.getpid():
            self._reset()  # another thread may have held the lock when we were forked

    def publish(self, envelopes: Sequence[Envelope], timeout: float) -> None:
        """Hand over envelopes within `timeout` seconds. On return they are committed. Raises OperationalError, or
        EncodeError for an envelope that no database can keep."""
        if not envelopes:
            return
        self._look_for_fork()
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
                raise OperationalError(f"{self.site.shown}: other threads kept this one waiting for {timeout:g} s")
        try:
            if not ticket.committed and ticket.failure is None:
                self._lead(ticket, deadline)
        finally:
            self._lock.release()
        if ticket.failure is not None:
            raise ticket.failure

    def stream(self, envelopes: Iterator[Envelope], timeout: float) -> None:
        """See ports.StreamingSender. All of them are committed together, or none."""
        self._look_for_fork()
        deadline = time.monotonic() + timeout
        made: list[Envelope] = []

        def pieces() -> Iterator[tuple[Any, ...]]:
            while piece := list(islice(envelopes, PIECE)):
                made.extend(piece)
                yield calls.publish(piece).parameters

        if not self._lock.acquire(timeout=max(timeout, 0.0)):
            raise OperationalError(f"{self.site.shown}: other threads kept this one waiting for {timeout:g} s")
        try:
            self._connection.stream(calls.PUBLISH, pieces(), max(deadline - time.monotonic(), 0.001))
            return
        except OperationalError as error:
            if not is_in_the_way(error.__cause__):
                raise
        except Exception as error:
            if not is_about_values(error):
                raise
            raise EncodeError(f"a message can't be stored: {reason_of(error)}") from error
        finally:
            self._lock.release()
        self.publish([*made, *envelopes], deadline - time.monotonic())

    def _lead(self, own: _Ticket, deadline: float) -> None:
        """Commit all that waits. Whose deadline is later than ours tries again itself after a failure."""
        tickets = []
        while self._tickets:
            tickets.append(self._tickets.popleft())
        if own not in tickets:
            tickets.append(own)  # a leader before has failed and put it back meanwhile
        for ticket, failure in zip(tickets, self._commit(tickets, deadline), strict=True):
            if failure is None:
                ticket.committed = True
            elif ticket is own or isinstance(failure, EncodeError):
                ticket.failure = failure
            else:
                self._tickets.append(ticket)

    def _commit(self, tickets: Sequence[_Ticket], deadline: float) -> list[Exception | None]:
        envelopes = [envelope for ticket in tickets for envelope in ticket.envelopes]
        try:
            self._connection.run(*calls.publish(envelopes), max(deadline - time.monotonic(), 0.001))
        except CeleryError as error:
            return [type(error)(*error.args) for _ in tickets]
        except Exception as error:
            if not is_about_values(error):
                raise
            if len(tickets) == 1:
                return [EncodeError(f"a message can't be stored: {reason_of(error)}")]
            return [failure for ticket in tickets for failure in self._commit([ticket], deadline)]
        return [None] * len(tickets)

    def identity(self) -> int:
        """What no other database has."""
        with self._lock:
            return int(self._connection.run(calls.IDENTITY)[0][0])

    def close(self) -> None:
        """Close the connection. The next publish opens it again."""
        with self._lock:
            self._connection.close()
