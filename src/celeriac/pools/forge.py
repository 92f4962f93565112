"""The parent's end of the template process: it is started fresh, before the parent imports the app, and forks children.

Control socket: AF_UNIX stream of frames (kind 0) with msgpack inside; see `template` for the other end.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import mmap
import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable
from typing import Any, Protocol

import msgspec

from celeriac import errors
from celeriac.model.outcome import Catalogue
from celeriac.pools.frames import Splitter, frame
from celeriac.pools.slots import Slots, block_size

log = logging.getLogger("celeriac.pool")


class Smith(Protocol):
    """Who hears from the template: the pool."""

    def on_forked(self, index: int, pid: int) -> None:
        """A child has got its process."""
        ...

    def on_exited(self, index: int, pid: int, status: int) -> None:
        """A child has ended; `status` is that of waitpid."""
        ...

    def on_failed(self, index: int, text: str) -> None:
        """A child could not be made."""
        ...

    def on_template_lost(self) -> None:
        """The template has ended, and its children with it."""
        ...


class Forge:
    """Starts the template and asks it for children."""

    def __init__(
        self,
        smith: Smith,
        kind: str,
        loader: str,
        spec: dict[str, Any],
        *,
        blocks: int,
        seats: int,
        child: Callable[..., Any],
    ) -> None:
        self._smith = smith
        self._kind = kind
        self._loader = loader
        self._spec = spec
        self._seats = seats
        self._blocks = blocks
        self._child = child
        self._free = list(range(blocks - 1, -1, -1))
        self._process: subprocess.Popen[bytes] | None = None
        self._control: socket.socket | None = None
        self._file = _memory_file(blocks * block_size(seats))
        self._memory = mmap.mmap(self._file, blocks * block_size(seats))
        self._catalogue: asyncio.Future[Catalogue] | None = None

    async def start(self) -> Catalogue:
        """Start the template; return its catalogue. Raises ImproperlyConfigured when it can't import the app."""
        loop = asyncio.get_running_loop()
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        self._control = ours
        self._splitter = Splitter()
        self._catalogue = loop.create_future()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "celeriac.pools.template", "--control-fd", str(theirs.fileno())],
            pass_fds=(theirs.fileno(), self._file),
            stdin=subprocess.DEVNULL,
        )
        theirs.close()
        loop.add_reader(ours.fileno(), self._read)
        self._send(
            {
                "loader": self._loader,
                "spec": self._spec,
                "kind": self._kind,
                "seats": self._seats,
                "blocks": self._blocks,
                "memory_fd": self._file,
                "loglevel": logging.getLogger().level,
            }
        )
        return await self._catalogue

    async def stop(self) -> None:
        """Close the control socket, which ends the template and its children; wait for it, kill it in the end."""
        process, self._process = self._process, None
        self._close()
        if process is None:
            return
        for _ in range(300):
            if process.poll() is not None:
                return
            await asyncio.sleep(0.01)
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(signal.SIGKILL)
        process.wait()

    @property
    def pid(self) -> int:
        """Process id of the template, 0 when there is none."""
        return self._process.pid if self._process is not None else 0

    def request(self, quarantine: bool) -> Any:
        """Ask for a child; it says READY on its work pair when it is there. Raises OperationalError when all blocks
        of shared memory are in use."""
        if not self._free:
            raise errors.OperationalError("all blocks of the pool's shared memory are in use")
        index = self._free.pop()
        slots = Slots(self._memory, index, self._seats)
        slots.reset()
        work, work_end = socket.socketpair()
        side, side_end = socket.socketpair()
        for sock in (work, work_end):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
        try:
            self._send(["fork", index, self._seats], [work_end.fileno(), side_end.fileno()])
        finally:
            work_end.close()
            side_end.close()
        work.setblocking(False)
        side.setblocking(False)
        return self._child(index, self._seats, slots, work, side, quarantine)

    def reclaim(self, index: int) -> None:
        """The block of a dead child is free."""
        self._free.insert(0, index)

    def _send(self, value: Any, fds: list[int] | None = None) -> None:
        if self._control is None:
            raise errors.OperationalError("the template process is not running")
        data = frame(0, msgspec.msgpack.encode(value))
        # small and rare: a blocking write keeps a fork request and its descriptors together
        self._control.setblocking(True)
        try:
            if fds:
                socket.send_fds(self._control, [data], fds)
            else:
                self._control.sendall(data)
        finally:
            self._control.setblocking(False)

    def _read(self) -> None:
        assert self._control is not None
        try:
            data = self._control.recv(65536)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._lost()
            return
        for _, payload in self._splitter.feed(data):
            match msgspec.msgpack.decode(payload):
                case ["catalogue", value]:
                    if self._catalogue is not None and not self._catalogue.done():
                        self._catalogue.set_result(msgspec.convert(value, Catalogue))
                case ["forked", index, pid]:
                    self._smith.on_forked(index, pid)
                case ["exited", index, pid, status]:
                    self._smith.on_exited(index, pid, status)
                case ["failed", -1, text] if self._catalogue is not None and not self._catalogue.done():
                    self._catalogue.set_exception(errors.ImproperlyConfigured(text))
                case ["failed", index, text]:
                    self._smith.on_failed(index, text)

    def _lost(self) -> None:
        self._close()
        process, self._process = self._process, None
        if self._catalogue is not None and not self._catalogue.done():
            status = process.wait() if process is not None else 0
            self._catalogue.set_exception(
                errors.ImproperlyConfigured(
                    f"the template process ended with status {status} while it imported the app"
                )
            )
        elif process is not None:
            process.kill()
            process.wait()
            self._smith.on_template_lost()

    def _close(self) -> None:
        if self._control is not None:
            asyncio.get_running_loop().remove_reader(self._control.fileno())
            self._control.close()
            self._control = None


def _memory_file(size: int) -> int:
    """A file without a name, shared by inheritance."""
    fd: int
    if hasattr(os, "memfd_create"):
        fd = os.memfd_create("celeriac-slots", 0)
    else:
        with tempfile.TemporaryFile() as file:
            fd = os.dup(file.fileno())
    os.ftruncate(fd, size)
    return fd
