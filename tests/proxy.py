"""A TCP proxy that can freeze: it stops forwarding without closing, as a network does that drops packets silently."""

from __future__ import annotations

import contextlib
import selectors
import socket
import threading
from types import TracebackType
from typing import Self


class FreezeProxy:
    """Forwards connections to a port of this machine. `freeze` silences the connections that stand then; those made
    afterwards pass. Entering starts it; leaving closes everything."""

    def __init__(self, port: int) -> None:
        self._target = port
        self._lock = threading.Lock()
        self._peers: dict[socket.socket, socket.socket] = {}
        self._frozen: set[socket.socket] = set()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._selector = selectors.DefaultSelector()
        self._stopping = False
        self._wake, self._bell = socket.socketpair()
        self._thread = threading.Thread(target=self._run, daemon=True)

    @property
    def port(self) -> int:
        """Where it listens."""
        port: int = self._listener.getsockname()[1]
        return port

    @property
    def url(self) -> str:
        """A Redis URL of database 0 through this proxy."""
        return f"redis://127.0.0.1:{self.port}/0"

    def instead_of(self, url: str) -> str:
        """A URL of the server, with this proxy's port in the place of its own."""
        return url.replace(f":{self._target}/", f":{self.port}/")

    @property
    def connections(self) -> int:
        """How many connections pass now; frozen ones don't count."""
        with self._lock:
            return (len(self._peers) - len(self._frozen)) // 2

    def freeze(self) -> int:
        """Stop forwarding on all standing connections, in both directions; they stay open. Returns how many."""
        with self._lock:
            standing = [end for end in self._peers if end not in self._frozen]
            for end in standing:
                self._frozen.add(end)
                self._selector.unregister(end)
            self._bell.send(b"x")
        return len(standing) // 2

    def thaw(self) -> None:
        """Let the frozen connections pass again; what was sent meanwhile arrives now."""
        with self._lock:
            for end in self._frozen:
                self._selector.register(end, selectors.EVENT_READ)
            self._frozen.clear()
            self._bell.send(b"x")

    def _run(self) -> None:
        self._selector.register(self._listener, selectors.EVENT_READ)
        self._selector.register(self._wake, selectors.EVENT_READ)
        while not self._stopping:
            for key, _ in self._selector.select(1.0):
                end = key.fileobj
                if end is self._wake:
                    self._wake.recv(4096)
                elif end is self._listener:
                    self._accept()
                elif isinstance(end, socket.socket):
                    self._forward(end)

    def _accept(self) -> None:
        near, _ = self._listener.accept()
        try:
            far = socket.create_connection(("127.0.0.1", self._target), 5.0)
        except OSError:  # the server is down: the client sees a connection that ends at once
            near.close()
            return
        for end in (near, far):
            end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with self._lock:
            self._peers[near], self._peers[far] = far, near
            for end in (near, far):
                self._selector.register(end, selectors.EVENT_READ)

    def _forward(self, end: socket.socket) -> None:
        with self._lock:
            other = self._peers.get(end)
            if other is None or end in self._frozen:
                return
        try:
            data = end.recv(1 << 16)
            if data:
                other.sendall(data)
                return
        except OSError:  # either side is gone: close both, as the network would
            pass
        self._drop(end, other)

    def _drop(self, *ends: socket.socket) -> None:
        with self._lock:
            for end in ends:
                if self._peers.pop(end, None) is not None and end not in self._frozen:
                    with contextlib.suppress(KeyError, ValueError):
                        self._selector.unregister(end)
                self._frozen.discard(end)
                end.close()

    def close(self) -> None:
        """Close every connection and stop listening. Safe to call twice."""
        if self._stopping:
            return
        self._stopping = True
        self._bell.send(b"x")
        self._thread.join(5.0)
        self._drop(*list(self._peers))
        for end in (self._listener, self._wake, self._bell):
            end.close()
        self._selector.close()

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        self.close()
