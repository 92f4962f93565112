"""The blocking side, for callers without a loop: publish and wait for the confirmation. Connections are taken from a
pool that grows with the threads that publish at one moment, and made anew after a fork."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Sequence
from contextlib import suppress

from celeriac.drivers.amqp import frames
from celeriac.drivers.amqp.frames import M, Returned
from celeriac.drivers.amqp.login import Session, closed, ended, garbled, handshake, unreachable
from celeriac.drivers.amqp.machine import Event, Garbled, Machine
from celeriac.drivers.amqp.url import Server
from celeriac.drivers.pipe import Pipe, connect
from celeriac.errors import CeleryError, OperationalError

WINDOW_BYTES = 1 << 20
"""About how much is sent before confirmations are read."""
IDLE_KEPT = 10
"""Connections that wait for their next use."""


class Connection:
    """One connection with one channel in confirm mode, for one thread at a time. It sends no heartbeats, for nobody
    would: a caller's deadline takes their place."""

    def __init__(self, server: Server, deadline: float) -> None:
        """Connect and log in before `deadline` (monotonic seconds). Raises OperationalError or ImproperlyConfigured."""
        self.server = server
        self.pid = os.getpid()
        self.session = Session()
        self.known: set[object] = set()
        """For its owner: what was declared over it, and need not be again."""
        self.blocked = ""
        self._machine = Machine()
        self._events: list[Event] = []
        self._published = 0
        self._pipe: Pipe | None = None
        limit = min(deadline, time.monotonic() + server.connect_timeout)
        try:
            self._pipe = connect(server, max(0.001, limit - time.monotonic()))
            self._log_in(limit)
        except (OSError, Garbled) as error:
            self.close()
            if isinstance(error, ConnectionResetError) and error.errno == 0:
                raise ended(server, True) from error
            raise unreachable(server, error) if isinstance(error, OSError) else garbled(server, error) from error
        except BaseException:
            self.close()
            raise

    def _log_in(self, deadline: float) -> None:
        steps = handshake(self.server, 0)
        data = next(steps)
        try:
            while True:
                self._send(data, deadline)
                data = steps.send(self._next(deadline))
        except StopIteration as end:
            self.session = end.value
        self.ask(M.CHANNEL_OPEN, b"\x00", M.CHANNEL_OPEN_OK, deadline)
        self.ask(M.CONFIRM, b"\x00", M.CONFIRM_OK, deadline)

    def _send(self, data: bytes, deadline: float) -> None:
        assert self._pipe is not None
        self._pipe.send(data, deadline)

    def _next(self, deadline: float) -> Event:
        while not self._events:
            assert self._pipe is not None
            self._events = self._machine.feed(self._pipe.receive(deadline, True))
        return self._events.pop(0)

    def _event(self, deadline: float, what: str) -> Event:
        """The next event that is not about the connection itself."""
        while True:
            event = self._next(deadline)
            if event.which == M.BLOCKED:
                self.blocked = frames.read_short(event.arguments, 0)[0] or "no reason given"
            elif event.which == M.UNBLOCKED:
                self.blocked = ""
            elif event.which in (M.CLOSE, M.CHANNEL_CLOSE):
                raise closed(self.server, frames.read_close(event.arguments), what)
            else:
                return event

    def idle(self) -> bool:
        """Is it as it should be between two calls? Costs one system call."""
        pipe = self._pipe
        try:
            while pipe is not None and pipe.readable():
                self._events += self._machine.feed(pipe.receive(time.monotonic() + 1, False))
                for event in self._events:
                    if event.which not in (M.BLOCKED, M.UNBLOCKED):
                        self.close()
                        return False
                    self.blocked = "memory or disk" if event.which == M.BLOCKED else ""
                self._events.clear()
        except (OSError, Garbled):
            self.close()
        return self._pipe is not None

    def ask(self, which: M, arguments: bytes, answer: M, deadline: float, what: str = "") -> Event:
        """One method and its answer. Raises OperationalError or ImproperlyConfigured; the connection is closed then."""
        return self.many([(which, arguments, answer, what)], deadline)[0]

    def many(self, questions: Sequence[tuple[M, bytes, M, str]], deadline: float) -> list[Event]:
        """Several methods in one write, and their answers. Raises as `ask`."""
        if not questions:
            return []
        try:
            self._send(b"".join([frames.method(1, which, given) for which, given, _, _ in questions]), deadline)
            answers = []
            for _, _, answer, what in questions:
                event = self._event(deadline, what)
                if event.which != answer:
                    raise OperationalError(f"{self.server.describe()}: an answer came to no question")
                answers.append(event)
            return answers
        except BaseException as error:
            raise self._failed(error) from error

    def publish(self, messages: Sequence[bytes], deadline: float) -> tuple[list[int], list[Returned]]:
        """Publish messages (their frames) and wait until all are confirmed. Gives the places of those that the server
        refused, and what no queue takes. Raises OperationalError when the deadline passes or the connection breaks;
        then it is closed."""
        refused: list[int] = []
        returned: list[Returned] = []
        try:
            at = 0
            while at < len(messages):
                stop, size = at, 0
                while stop < len(messages) and size < WINDOW_BYTES:
                    size += len(messages[stop])
                    stop += 1
                first = self._published + 1
                place = at
                waiting = set(range(first, first + stop - at))
                self._published += stop - at
                self._send(b"".join(messages[at:stop]) if stop - at > 1 else messages[at], deadline)
                at = stop
                while waiting:
                    event = self._event(deadline, "publishing")
                    if event.which == M.RETURN:
                        returned.append(frames.read_returned(event.arguments))
                        continue
                    number = int.from_bytes(event.arguments[:8], "big")
                    said = {n for n in waiting if n <= number} if event.arguments[8] & 1 else waiting & {number}
                    waiting -= said
                    if event.which == M.NACK:
                        refused += [place + n - first for n in sorted(said)]
            return refused, returned
        except BaseException as error:
            raise self._failed(error) from error

    def listen(self, deadline: float) -> Event | None:
        """What comes unasked; None: nothing did before `deadline`. Raises OperationalError when the connection
        breaks."""
        try:
            return self._event(deadline, "listening")
        except TimeoutError:
            return None
        except BaseException as error:
            raise self._failed(error) from error

    def _failed(self, error: BaseException) -> BaseException:
        self.close()
        where = self.server.describe()
        if isinstance(error, TimeoutError):
            if self.blocked:
                return OperationalError(f"{where}: the server takes no messages at the moment ({self.blocked})")
            return OperationalError(f"{where}: no answer in time")
        if isinstance(error, Garbled):
            return garbled(self.server, error)
        if isinstance(error, OSError):
            return ended(self.server, False) if error.errno == 0 else unreachable(self.server, error)
        return error

    def close(self) -> None:
        """Close it. In a forked child this leaves the parent's connection alone."""
        pipe, self._pipe = self._pipe, None
        if pipe is None:
            return
        with suppress(OSError):
            if self.pid == os.getpid() and self.session.version:
                pipe.send(frames.method(0, M.CLOSE, b"\x00\xc8\x00\x00\x00\x00\x00"), time.monotonic() + 0.1)
        with suppress(OSError):
            pipe.close()


class Pool:
    """Connections to the first node that answers. Safe for threads, greenlets and forks."""

    def __init__(self, servers: Sequence[Server]) -> None:
        self.servers = list(servers)
        self._turn = 0
        self._lock = threading.Lock()
        self._idle: list[Connection] = []
        self._pid = os.getpid()

    def take(self, deadline: float) -> Connection:
        """A connection that nobody else uses: alive when it was looked at. Raises OperationalError or
        ImproperlyConfigured."""
        while True:
            with self._lock:
                if self._pid != os.getpid():
                    # the parent's: to close them here would end them for it
                    self._idle, self._pid = [], os.getpid()
                connection = self._idle.pop() if self._idle else None
            if connection is None:
                return self._open(deadline)
            if connection.idle():
                return connection

    def _open(self, deadline: float) -> Connection:
        last: CeleryError | None = None
        for _ in self.servers:
            try:
                return Connection(self.servers[self._turn % len(self.servers)], deadline)
            except OperationalError as error:
                self._turn += 1
                last = error
                if time.monotonic() >= deadline:
                    break
        assert last is not None
        raise last

    def give(self, connection: Connection) -> None:
        """Done with it."""
        if connection._pipe is None:
            return
        with self._lock:
            if len(self._idle) < IDLE_KEPT and self._pid == connection.pid:
                self._idle.append(connection)
                return
        connection.close()

    def close(self) -> None:
        """Close those that nobody uses."""
        with self._lock:
            idle, self._idle = self._idle, []
        for connection in idle:
            connection.close()
