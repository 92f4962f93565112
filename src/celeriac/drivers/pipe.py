"""One connected socket with deadlines: plain ones are polled, all others keep time by their own timeouts."""

from __future__ import annotations

import _socket
import math
import select
import socket
import time
from typing import Any, Protocol

SLICE = 2.5
"""Longest socket timeout; a deadline further away is reached in slices, so that most calls need not set it anew."""
LOOKS = 60
"""How often a read looks for an answer before it sleeps, about 40 us in all. An answer from near by comes within them,
and to be woken costs both sides more than the looks."""
LONGEST_PENALTY = 64
"""Most reads that go to sleep at once after looks that found nothing."""


class Endpoint(Protocol):
    """Where to connect to."""

    @property
    def host(self) -> str:
        """Name or address."""
        ...

    @property
    def port(self) -> int:
        """TCP."""
        ...

    @property
    def path(self) -> str:
        """Of a Unix socket; empty: TCP."""
        ...

    @property
    def tls(self) -> Any:
        """What makes a TLS context; None: plain."""
        ...


class Pipe(Protocol):
    """What a connection needs of its socket. Deadlines are monotonic seconds; past them TimeoutError is raised."""

    def send(self, data: bytes, deadline: float) -> None:
        """Send all of it."""
        ...

    def receive(self, deadline: float, looks: bool) -> bytes:
        """What came, at least a byte. `looks`: it is expected soon. Raises ConnectionResetError at the end."""
        ...

    def readable(self) -> bool:
        """Something is there to be received."""
        ...

    def close(self) -> None:
        """Close it. In a forked child this leaves the parent's connection alone."""
        ...


def connect(server: Endpoint, timeout: float) -> Pipe:
    """Connect within `timeout` seconds. Raises OSError."""
    link: socket.socket
    if server.path:
        link = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            link.settimeout(timeout)
            link.connect(server.path)
        except BaseException:
            link.close()
            raise
    else:
        link = socket.create_connection((server.host, server.port), timeout)
        link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        link.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    if server.tls is not None:
        try:
            return Timed(server.tls.context().wrap_socket(link, server_hostname=server.host))
        except BaseException:
            link.close()
            raise
    # gevent and eventlet put classes of their own in place of the standard one (and take `poll` away)
    if type(link).__base__ is _socket.socket and hasattr(select, "poll"):
        return Polled(link)
    return Timed(link)


class Polled:
    """A plain socket that never blocks by itself."""

    def __init__(self, link: socket.socket) -> None:
        link.setblocking(False)
        self._link = link
        self._input, self._output = select.poll(), select.poll()
        self._input.register(link, select.POLLIN)
        self._output.register(link, select.POLLOUT)
        self._penalty = self._skipped = 0

    def send(self, data: bytes, deadline: float) -> None:
        """See Pipe."""
        sent, size = 0, len(data)
        while True:
            try:
                sent += self._link.send(memoryview(data)[sent:] if sent else data)
            except BlockingIOError:
                _wait(self._output, deadline)
            if sent == size:
                return

    def receive(self, deadline: float, looks: bool) -> bytes:
        """See Pipe."""
        link = self._link
        if looks and self._skipped >= self._penalty:
            self._skipped = 0
            for _ in range(LOOKS):
                try:
                    data = link.recv(65536)
                except BlockingIOError:
                    continue
                self._penalty = 0
                return data or _ended()
            self._penalty = min(LONGEST_PENALTY, 2 * self._penalty or 1)
        else:
            self._skipped += 1
        while True:
            try:
                return link.recv(65536) or _ended()
            except BlockingIOError:
                _wait(self._input, deadline)

    def readable(self) -> bool:
        """See Pipe."""
        return bool(self._input.poll(0))

    def close(self) -> None:
        """See Pipe."""
        self._link.close()


class Timed:
    """A socket that blocks, with timeouts: TLS, a socket of gevent or eventlet, a system without poll."""

    def __init__(self, link: Any) -> None:
        self._link = link
        self._timeout = link.gettimeout() or 0.0
        self._poll = None
        if hasattr(select, "poll"):
            self._poll = select.poll()
            self._poll.register(link.fileno(), select.POLLIN)

    def send(self, data: bytes, deadline: float) -> None:
        """See Pipe."""
        sent, size = 0, len(data)
        view = memoryview(data)
        while sent < size:
            self._allow(deadline)
            try:
                sent += self._link.send(view[sent:] if sent else data)
            except TimeoutError:
                if time.monotonic() >= deadline:
                    raise

    def receive(self, deadline: float, looks: bool) -> bytes:
        """See Pipe."""
        while True:
            self._allow(deadline)
            try:
                data: bytes = self._link.recv(65536)
            except TimeoutError:
                if time.monotonic() >= deadline:
                    raise
                continue
            return data or _ended()

    def readable(self) -> bool:
        """See Pipe."""
        if self._poll is not None:
            return bool(self._poll.poll(0))
        return self._link.fileno() < 1024 and bool(select.select([self._link], [], [], 0)[0])

    def close(self) -> None:
        """See Pipe."""
        self._link.close()

    def _allow(self, deadline: float) -> None:
        left = deadline - time.monotonic()
        if left < self._timeout or self._timeout <= 0:
            if left <= 0:
                raise TimeoutError
            self._timeout = min(left, SLICE)
            self._link.settimeout(self._timeout)


def _wait(poll: Any, deadline: float) -> None:
    left = deadline - time.monotonic()
    if (left <= 0 or not poll.poll(math.ceil(min(left, 3600.0) * 1000))) and time.monotonic() >= deadline:
        raise TimeoutError


def _ended() -> bytes:
    raise ConnectionResetError(0, "the server closed the connection")
