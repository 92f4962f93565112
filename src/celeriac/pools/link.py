"""The child's end of the side pair: what running tasks ask the parent for, many at once, from any thread or loop.

There is no reader thread. Of the threads that wait, one is the leader: it reads the socket for all of them and hands
the role on when its own answer has come. An event loop reads for itself while something is asked on it. Whoever reads
delivers everybody's answers; a leader whose answer was read by a loop is woken through a pipe of its own.
"""

from __future__ import annotations

import builtins
import contextlib
import os
import select
import socket
import threading
import time
from typing import Any

import msgspec

from celeriac import errors
from celeriac.errors import OperationalError
from celeriac.pools.frames import HEADER, SEQ, Answer, Ask, Splitter
from celeriac.pools.shield import shields

PATIENCE = 15.0
"""Seconds that a request waits unless told otherwise: longer than the parent's deadlines, so its word comes."""
SLICE = 0.1
_PLAIN_ERRORS = frozenset({"RuntimeError", "ValueError", "TypeError", "KeyError", "NotImplementedError"})


class _Wait:
    """One open request. `lock` is held until there is something to look at."""

    __slots__ = ("error", "future", "lock", "loop", "ready", "thread", "value", "woken")

    def __init__(self, loop: Any = None, future: Any = None) -> None:
        self.ready = False
        self.value: Any = None
        self.error: BaseException | None = None
        self.loop = loop
        self.future = future
        self.woken = False
        self.lock: Any = None
        self.thread = threading.get_ident()
        if loop is None:
            self.lock = threading.Lock()
            self.lock.acquire()

    def wake(self) -> None:
        """Under the link's mutex."""
        if not self.woken:
            self.woken = True
            self.lock.release()


class _Shielded:
    """Where an exception from outside may not strike this thread."""

    __slots__ = ("_shield",)

    def __enter__(self) -> None:
        self._shield = shields.get(threading.get_ident())
        if self._shield is not None:
            self._shield.depth += 1

    def __exit__(self, *exc: object) -> None:
        if self._shield is not None:
            self._shield.leave()


class Link:
    """Numbered requests to the parent. Safe for threads, greenlets and event loops at the same time."""

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self._socket = sock
        self._fd = sock.fileno()
        self._pid = os.getpid()
        self._number = 0
        self._waits: dict[int, _Wait] = {}
        self._leader: _Wait | None = None
        self._mutex = threading.Lock()
        self._reading = threading.Lock()
        self._writing = threading.Lock()
        self._out = bytearray()
        self._splitter = Splitter()
        self._bell, self._ringer = os.pipe()
        os.set_blocking(self._bell, False)
        os.set_blocking(self._ringer, False)
        self._loops: dict[Any, int] = {}
        self._gone = ""

    def ask(self, op: str, args: Any, timeout: float | None = PATIENCE) -> Any:
        """Ask the parent and wait for its answer. `op` names an `Ask` in lower case, `timeout` is seconds in all, None
        is without bound. Raises what the parent answered, or OperationalError when it is gone or does not answer."""
        wait = _Wait()
        end = None if timeout is None else time.monotonic() + timeout
        shield = shields.get(threading.get_ident())
        if shield is not None:
            shield.depth += 1
        try:
            number = self._register(wait)
            try:
                self._send(op, number, args)
                while self._out and not self._flush():
                    # read meanwhile: a parent that is busy writing to us may not read before
                    self._pause(end, op, timeout, shield, write=True)
                    self._read()
                while not wait.ready:
                    if self._lead(wait):
                        self._read()
                        if not wait.ready:
                            self._pause(end, op, timeout, shield)
                    else:
                        self._follow(wait, end, op, timeout, shield)
            finally:
                self._forget(number, wait)
        finally:
            if shield is not None:
                shield.leave()
        if wait.error is not None:
            raise wait.error
        return wait.value

    async def aask(self, op: str, args: Any, timeout: float | None = PATIENCE) -> Any:
        """`ask` for a coroutine: the loop runs on meanwhile."""
        import asyncio

        loop = asyncio.get_running_loop()
        wait = _Wait(loop, loop.create_future())
        with _Shielded():
            number = self._register(wait)
            self._watch(loop)
            self._send(op, number, args)
            if self._out and not self._flush():
                loop.add_writer(self._fd, self._on_writable, loop)
        try:
            async with asyncio.timeout(timeout):
                return await wait.future
        except builtins.TimeoutError:
            raise _late(op, timeout) from None
        finally:
            with _Shielded():
                self._unwatch(loop)
                self._forget(number, wait)

    def close(self) -> None:
        """Every request that is open fails, and so does every later one."""
        self._fail("the line to the worker's main process is closed")

    # --- requests

    def _register(self, wait: _Wait) -> int:
        if self._pid != os.getpid():
            raise OperationalError(
                "this process was forked by a task and has no line to the worker's main process; send from the task "
                "itself, or start a new process (subprocess, multiprocessing's spawn)"
            )
        with self._mutex:
            if self._gone:
                raise OperationalError(self._gone)
            self._number = number = self._number + 1
            self._waits[number] = wait
        return number

    def _forget(self, number: int, wait: _Wait) -> None:
        """The request is over, whether answered or given up: the role of the reader goes to another thread."""
        with self._mutex:
            self._waits.pop(number, None)
            if self._leader is wait:
                self._leader = None
            if self._leader is None:
                for other in self._waits.values():
                    if other.loop is None:
                        other.wake()
                        break

    def _send(self, op: str, number: int, args: Any) -> None:
        payload = msgspec.msgpack.encode(args)
        kind = Ask[op.upper()]
        with self._mutex:
            self._out += HEADER.pack(len(payload) + 9, kind) + SEQ.pack(number) + payload
        self._flush()

    def _flush(self) -> bool:
        """Write what can be written now; True when all is. Half a frame stays in the buffer for the next one."""
        with self._writing:
            while True:
                with self._mutex:
                    piece = bytes(memoryview(self._out)[:262144])
                if not piece:
                    return True
                try:
                    count = self._socket.send(piece)
                except BlockingIOError:
                    return False
                except OSError:
                    self._fail("the worker's main process is gone")
                    return True
                with self._mutex:
                    del self._out[:count]

    # --- waiting threads

    def _lead(self, wait: _Wait) -> bool:
        with self._mutex:
            if self._leader is None and not wait.ready:
                self._leader = wait
            return self._leader is wait

    def _pause(self, end: float | None, op: str, timeout: float | None, shield: Any, write: bool = False) -> None:
        """Wait until the socket can be read (or written), or the bell rings. An interruption may strike here."""
        left = _left(end, op, timeout)
        if shield is None:
            self._await_socket(left, write)
            return
        if shield.sliced:
            left = SLICE if left is None else min(left, SLICE)
        shield.open = True
        try:
            shield.raise_pending()
            self._await_socket(left, write)
        finally:
            shield.open = False
        shield.raise_pending()

    def _await_socket(self, seconds: float | None, write: bool) -> None:
        if self._bell in _await(self._fd, self._bell, seconds, write):
            with contextlib.suppress(BlockingIOError):
                os.read(self._bell, 4096)

    def _follow(self, wait: _Wait, end: float | None, op: str, timeout: float | None, shield: Any) -> None:
        """Wait until the leader has our answer, or hands the role on."""
        left = _left(end, op, timeout)
        if shield is None:
            wait.lock.acquire(timeout=-1 if left is None else left)
        else:
            if shield.sliced:
                left = SLICE if left is None else min(left, SLICE)
            shield.open = True
            try:
                shield.raise_pending()
                wait.lock.acquire(timeout=-1 if left is None else left)
            finally:
                shield.open = False
            shield.raise_pending()
        with self._mutex:
            if wait.woken and not wait.ready:
                wait.woken = False
                # the lock was released once for this: take it again, unless the wait itself has taken it
                wait.lock.acquire(blocking=False)

    # --- reading, by whoever is there

    def _read(self) -> None:
        """Read what is there and deliver it."""
        with self._reading:
            while True:
                try:
                    data = self._socket.recv(262144)
                except BlockingIOError:
                    return
                except OSError:
                    data = b""
                if not data:
                    self._fail("the worker's main process is gone")
                    return
                for kind, payload in self._splitter.feed(data):
                    self._deliver(kind, payload)
                if len(data) < 262144:
                    return

    def _deliver(self, kind: int, payload: bytes) -> None:
        with self._mutex:
            wait = self._waits.pop(SEQ.unpack_from(payload)[0], None)
        if wait is None:
            return  # it was given up
        try:
            value = msgspec.msgpack.decode(memoryview(payload)[8:])
            error = None if kind == Answer.OK else _error(value)
        except Exception as broken:
            value, error = None, OperationalError(f"an answer of the worker's main process can't be read: {broken}")
        self._settle(wait, value, error)

    def _settle(self, wait: _Wait, value: Any, error: BaseException | None) -> None:
        if wait.loop is None:
            with self._mutex:
                wait.value, wait.error, wait.ready = value, error, True
                wait.wake()
                ring = self._leader is wait and wait.thread != threading.get_ident()
            if ring:
                with contextlib.suppress(BlockingIOError):
                    os.write(self._ringer, b"!")
            return
        with contextlib.suppress(RuntimeError):  # its loop is closed: nobody waits any more
            wait.loop.call_soon_threadsafe(_resolve, wait.future, value, error)

    def _fail(self, reason: str) -> None:
        with self._mutex:
            self._gone = self._gone or reason
            waits = list(self._waits.values())
            self._waits.clear()
            self._out.clear()
        for wait in waits:
            self._settle(wait, None, OperationalError(reason))

    # --- event loops

    def _watch(self, loop: Any) -> None:
        with self._mutex:
            count = self._loops.get(loop, 0)
            self._loops[loop] = count + 1
        if not count:
            loop.add_reader(self._fd, self._on_readable)

    def _unwatch(self, loop: Any) -> None:
        with self._mutex:
            count = self._loops[loop] - 1
            if count:
                self._loops[loop] = count
            else:
                del self._loops[loop]
        if not count:
            loop.remove_reader(self._fd)

    def _on_readable(self) -> None:
        if self._reading.locked():
            return  # a thread is at it, and delivers ours too
        self._read()

    def _on_writable(self, loop: Any) -> None:
        if self._flush():
            loop.remove_writer(self._fd)


def _left(end: float | None, op: str, timeout: float | None) -> float | None:
    if end is None:
        return None
    left = end - time.monotonic()
    if left <= 0:
        raise _late(op, timeout)
    return left


def _late(op: str, timeout: float | None) -> OperationalError:
    return OperationalError(f"the worker's main process did not answer a request ({op}) within {timeout:g} s")


def _await(fd: int, bell: int, seconds: float | None, write: bool) -> list[int]:
    """Wait until the socket or the bell can be read, or (if `write`) the socket be written; by poll, which knows no
    highest number, where there is one (eventlet takes it away)."""
    make = getattr(select, "poll", None)
    if make is None:
        ready = select.select([fd, bell], [fd] if write else [], [], seconds)
        return [*ready[0], *ready[1]]
    poll = make()
    poll.register(fd, select.POLLIN | select.POLLOUT if write else select.POLLIN)
    poll.register(bell, select.POLLIN)
    return [found for found, _ in poll.poll(None if seconds is None else max(1, int(seconds * 1000)))]


def _error(value: Any) -> BaseException:
    name, text = value
    if name == "TimeoutError":
        return OperationalError(text or "the worker's main process did not carry it out in time")
    found = getattr(errors, name, None)
    if found is None and name in _PLAIN_ERRORS:
        found = getattr(builtins, name)
    if isinstance(found, type) and issubclass(found, Exception):
        return found(text)
    return OperationalError(f"{name}: {text}")


def _resolve(future: Any, value: Any, error: BaseException | None) -> None:
    if future.done():
        return
    if error is not None:
        future.set_exception(error)
    else:
        future.set_result(value)
