"""A server that says what a test wants: for faults that a real Redis shows only by chance."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable
from types import TracebackType
from typing import Self

HELLO = b"%1\r\n$7\r\nversion\r\n$5\r\n7.0.0\r\n"
"""What a server says to HELLO."""


class FakeServer:
    """Listens on a free port; `answer(n, data)` gives the bytes for the n-th thing heard on a connection (0 first),
    None to close it, b"" to say nothing."""

    def __init__(self, answer: Callable[[int, bytes], bytes | None]) -> None:
        self._answer = answer
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.accepted = 0
        """How many connections came."""
        self.heard: list[bytes] = []
        """Everything that was heard."""

    @property
    def url(self) -> str:
        """Its URL."""
        return f"redis://127.0.0.1:{self._listener.getsockname()[1]}/0"

    def _accept(self) -> None:
        while True:
            try:
                link, _ = self._listener.accept()
            except OSError:
                return
            self.accepted += 1
            threading.Thread(target=self._serve, args=(link,), daemon=True).start()

    def _serve(self, link: socket.socket) -> None:
        with link:
            turn = 0
            while True:
                try:
                    data = link.recv(1 << 16)
                    if not data:
                        return
                    self.heard.append(data)
                    reply = self._answer(turn, data)
                    if reply is None:
                        return
                    link.sendall(reply)
                except OSError:
                    return
                turn += 1

    def __enter__(self) -> Self:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
