"""The parent's end of a child's two pairs, for tests: answers what is asked, feeds calls, collects reports."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Callable
from typing import Any

import msgspec

from celeriac.pools.frames import SEQ, Answer, Ask, Splitter, frame


class SideParent:
    """Answers requests on the side pair in a thread. `answer(op, args)` gives the value, or raises."""

    def __init__(self, answer: Callable[[Ask, Any], Any], delay: Callable[[int], float] = lambda n: 0.0) -> None:
        self.socket, self.child = socket.socketpair()
        self.seen: list[tuple[Ask, Any]] = []
        self._answer = answer
        self._delay = delay
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        splitter = Splitter()
        while True:
            try:
                data = self.socket.recv(65536)
            except OSError:
                return
            if not data:
                return
            for kind, payload in splitter.feed(data):
                number = SEQ.unpack_from(payload)[0]
                args = msgspec.msgpack.decode(payload[8:])
                self.seen.append((Ask(kind), args))
                wait = self._delay(number)
                if wait:
                    threading.Timer(wait, self._reply, (Ask(kind), payload[:8], args)).start()
                else:
                    self._reply(Ask(kind), payload[:8], args)

    def _reply(self, op: Ask, number: bytes, args: Any) -> None:
        try:
            data = frame(Answer.OK, number + msgspec.msgpack.encode(self._answer(op, args)))
        except Exception as error:
            data = frame(Answer.ERROR, number + msgspec.msgpack.encode((type(error).__name__, str(error))))
        with self._lock, contextlib.suppress(OSError):
            self.socket.sendall(data)

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self.socket.shutdown(socket.SHUT_RDWR)
        self.socket.close()


def until(condition: Callable[[], Any], seconds: float = 5.0) -> Any:
    """Wait for a condition; its value."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        value = condition()
        if value:
            return value
        time.sleep(0.002)
    raise AssertionError("the condition did not come true")
