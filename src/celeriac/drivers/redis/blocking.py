"""The blocking side, for callers without a loop: one connection for each thread or greenlet, made anew after a fork."""

from __future__ import annotations

import math
import os
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from typing import Any

from celeriac.drivers.pipe import Pipe, connect
from celeriac.drivers.redis.protocol import (
    MISSING,
    Words,
    check_handshake,
    driver,
    failure,
    garbled,
    handshake,
    new_reader,
    unreachable,
)
from celeriac.drivers.redis.script import Script, unknown
from celeriac.drivers.redis.url import Server
from celeriac.errors import OperationalError

PIECE_BYTES = 32 << 10
"""Commands that are smaller than this are sent together."""


class Connection:
    """One connection, speaking RESP3, for one thread at a time. Made by `Connections`."""

    def __init__(self, server: Server, deadline: float) -> None:
        """Connect and log in before `deadline` (monotonic seconds). Raises OperationalError or ImproperlyConfigured."""
        self.server = server
        self.pid = os.getpid()
        hiredis = driver()
        self.pack: Callable[[Words], bytes] = hiredis.pack_command
        self._push = hiredis.PushNotification
        self._garbage = hiredis.ProtocolError
        self._reader = new_reader(hiredis)
        self.pushes: deque[list[Any]] = deque()
        """What came unasked."""
        self.known: set[str] = set()
        """For its owner: what was made known over it, and need not be said again."""
        self._pipe: Pipe | None = None
        limit = min(deadline, time.monotonic() + server.connect_timeout)
        try:
            self._pipe = connect(server, max(0.001, limit - time.monotonic()))
            commands = handshake(server)
            check_handshake(server, self.ask(b"".join(map(self.pack, commands)), len(commands), limit))
        except OSError as error:
            self.close()
            raise unreachable(server, error) from error
        except BaseException:
            self.close()
            raise

    @property
    def broken(self) -> bool:
        """Nothing can be asked any more."""
        return self._pipe is None

    def idle(self) -> bool:
        """Is it as it should be between two calls? No: the server closed it, or something came that no one asked for.
        What came of channels is put into `pushes`. Costs one system call when nothing came."""
        try:
            while True:
                while (reply := self._reader.gets()) is not MISSING:
                    if type(reply) is not self._push:
                        self.close()
                        return False
                    self.pushes.append(reply)
                pipe = self._pipe
                if pipe is None or not pipe.readable():
                    return pipe is not None
                self._reader.feed(pipe.receive(math.inf, False))
        except (OSError, ValueError, self._garbage):
            self.close()
            return False

    def ask(self, data: bytes, want: int, deadline: float) -> list[Any]:
        """Send packed commands and return their `want` replies; error replies are values. Raises OperationalError when
        the deadline (monotonic seconds) passes or the connection breaks; then it is closed."""
        return self.stream(((data, want),) if data else (), deadline)

    def stream(self, pieces: Iterable[tuple[bytes, int]], deadline: float) -> list[Any]:
        """As `ask`, of commands in pieces (each with how many replies it gets) that may be made only now: the server
        works on one piece while the next is made. Whoever makes them asks nothing over this connection meanwhile."""
        pipe = self._pipe
        if pipe is None:
            raise OperationalError(f"{self.server.describe()}: not connected")
        try:
            want = 0
            for data, count in pieces:
                pipe.send(data, deadline)
                want += count
            replies: list[Any] = []
            gets, push = self._reader.gets, self._push
            while len(replies) < want:
                reply = gets()
                if reply is MISSING:
                    self._reader.feed(pipe.receive(deadline, True))
                elif type(reply) is push:
                    self.pushes.append(reply)
                else:
                    replies.append(reply)
            return replies
        except self._garbage as error:
            self.close()
            raise garbled(self.server, error) from error
        except TimeoutError as error:
            self.close()
            raise OperationalError(f"{self.server.describe()}: no answer in time") from error
        except OSError as error:
            self.close()
            raise unreachable(self.server, error) from error
        except BaseException:  # an interrupt in the middle: the next answer would go to the wrong question
            self.close()
            raise

    def tell(self, data: bytes, deadline: float) -> None:
        """Send packed commands that have no reply of their own. Raises OperationalError."""
        self.ask(data, 0, deadline)

    def listen(self, deadline: float) -> bool:
        """Wait until something came unasked (it is in `pushes`), at most until `deadline`; False: it did not. Raises
        OperationalError when the connection breaks."""
        pipe = self._pipe
        if pipe is None:
            raise OperationalError(f"{self.server.describe()}: not connected")
        try:
            while not self.pushes:
                reply = self._reader.gets()
                if reply is MISSING:
                    self._reader.feed(pipe.receive(deadline, False))
                elif type(reply) is self._push:
                    self.pushes.append(reply)
                else:
                    raise OSError("an answer came to no question")
            return True
        except TimeoutError:
            return False
        except self._garbage as error:
            self.close()
            raise garbled(self.server, error) from error
        except OSError as error:
            self.close()
            raise unreachable(self.server, error) from error
        except BaseException:
            self.close()
            raise

    def call(self, *words: str | bytes | int | float, deadline: float) -> Any:
        """One command and its reply. Raises OperationalError, also for an error reply."""
        reply = self.ask(self.pack(words), 1, deadline)[0]
        if isinstance(reply, Exception):
            raise failure(self.server, reply, str(words[0]))
        return reply

    def many(self, commands: Sequence[Words], deadline: float) -> list[Any]:
        """Several commands before the first answer is read. Raises OperationalError for the first error reply."""
        replies = self.stream(self._pieces(commands), deadline)
        for words, reply in zip(commands, replies, strict=True):
            if isinstance(reply, Exception):
                raise failure(self.server, reply, str(words[0]))
        return replies

    def _pieces(self, commands: Sequence[Words]) -> Iterator[tuple[bytes, int]]:
        """Packed commands, the small ones together."""
        small: list[bytes] = []
        size = 0
        for words in commands:
            small.append(packed := self.pack(words))
            size += len(packed)
            if size >= PIECE_BYTES:
                yield b"".join(small), len(small)
                small.clear()
                size = 0
        yield b"".join(small), len(small)

    def run(self, script: Script, keys: Sequence[str | bytes], arguments: Sequence[Any], deadline: float) -> Any:
        """Run a script. Raises OperationalError."""
        reply = self.ask(self.pack(script.by_digest(tuple(keys), tuple(arguments))), 1, deadline)[0]
        if unknown(reply):
            reply = self.ask(self.pack(script.whole(tuple(keys), tuple(arguments))), 1, deadline)[0]
        if isinstance(reply, Exception):
            raise failure(self.server, reply, "a script")
        return reply

    def close(self) -> None:
        """Close it. In a forked child this leaves the parent's connection alone."""
        pipe, self._pipe = self._pipe, None
        if pipe is not None:
            with suppress(OSError):
                pipe.close()


class _Held:
    """A thread's connection. Dies with the thread, and closes the connection then."""

    __slots__ = ("__weakref__", "connection")

    def __init__(self) -> None:
        self.connection: Connection | None = None

    def __del__(self) -> None:
        if self.connection is not None:
            self.connection.close()


class Connections:
    """A connection for each thread (or greenlet) that asks for one; closed when the thread ends. Safe over a fork."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self._local = threading.local()
        self._all: weakref.WeakSet[_Held] = weakref.WeakSet()

    def get(self, deadline: float) -> Connection:
        """This thread's connection: alive when it was looked at, before anything is sent. Raises OperationalError or
        ImproperlyConfigured."""
        held: _Held | None = getattr(self._local, "held", None)
        if held is None:
            self._local.held = held = _Held()
            self._all.add(held)
        connection = held.connection
        if connection is not None:
            if connection.pid == os.getpid() and connection.idle():
                return connection
            held.connection = None
            connection.close()
        held.connection = connection = Connection(self.server, deadline)
        return connection

    def close(self) -> None:
        """Close the connections of all threads; a later call opens others."""
        for held in list(self._all):
            connection, held.connection = held.connection, None
            if connection is not None:
                connection.close()
