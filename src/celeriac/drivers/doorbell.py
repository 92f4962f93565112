"""Doorbells: Unix datagram sockets beside a file, by which processes tell each other that there is something to see.

Who waits binds a socket in the file's bell folder; who has changed something sends one byte to each of them. A bell
is a hint: a lost or needless ring does no harm, because whoever waits also looks now and then by itself.
"""

from __future__ import annotations

import hashlib
import os
import socket
import stat
import tempfile
import time
from contextlib import suppress

_PATH_LIMIT = 100
"""sockaddr_un holds 104 bytes on macOS and 108 on Linux."""
_SETTLED_SECONDS = 0.1
"""A folder's time of change ticks in steps of some ms: a listing that is younger than this may miss a bell."""


def folder_of(path: str) -> str | None:
    """The folder for the bells of a file: beside it, or where that path is too long for a socket, in the temporary
    folder under a hash. None: this system has no Unix sockets, or there is no safe place for them."""
    if not hasattr(socket, "AF_UNIX"):
        return None
    head, tail = os.path.split(path)
    folder = os.path.join(head, f".{tail}-bells")
    if len(os.fsencode(folder)) + 24 <= _PATH_LIMIT and _made(folder, 0o777):
        return folder
    name = hashlib.sha256(os.fsencode(path)).hexdigest()[:16]
    uid = os.getuid()
    folder = os.path.join(tempfile.gettempdir(), f"celeriac-{uid}-{name}")
    if len(os.fsencode(folder)) + 24 > _PATH_LIMIT:
        folder = os.path.join("/tmp", f"celeriac-{uid}-{name}")
    if not _made(folder, 0o700):
        return None
    # Anyone may create names in the temporary folder: only a real folder of our own is trusted.
    found = os.lstat(folder)
    return folder if stat.S_ISDIR(found.st_mode) and found.st_uid == uid else None


def _made(folder: str, mode: int) -> bool:
    try:
        os.mkdir(folder, mode)
    except FileExistsError:
        return True
    except OSError:
        return False
    return True


class Bell:
    """One bound socket that can be rung. Raises OSError when it can't be bound."""

    def __init__(self, folder: str, kind: str) -> None:
        # Random, not the process id: two containers that share a folder have the same ids.
        self.path = os.path.join(folder, kind + os.urandom(6).hex())
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        try:
            self._socket.setblocking(False)
            self._socket.bind(self.path)
        except OSError:
            self._socket.close()
            raise

    def fileno(self) -> int:
        """For select and event loops: readable after a ring."""
        return self._socket.fileno()

    def drain(self) -> bool:
        """Take all rings that have come. Was there one?"""
        rung = False
        try:
            while True:
                self._socket.recv(64)
                rung = True
        except OSError:  # nothing more, or closed
            return rung

    def wait(self, seconds: float) -> bool:
        """Block until a ring, up to so many seconds. Did one come?"""
        self._socket.settimeout(max(seconds, 0.0))
        try:
            self._socket.recv(64)
        except OSError:
            return False
        finally:
            self._socket.setblocking(False)
        self.drain()
        return True

    def close(self) -> None:
        """Take the bell away."""
        self._socket.close()
        with suppress(OSError):
            os.unlink(self.path)


class Bells:
    """The bells of one file. Safe for threads and forks: whatever a race spoils, the next call does anew."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._folder: str | None = None
        self._looked = False
        self._socket: socket.socket | None = None
        self._bells: list[str] = []
        self._changed = -1
        self._pid = 0

    def folder(self) -> str | None:
        """The folder of the bells, made on first use; None: there can't be bells."""
        if not self._looked:
            self._folder = folder_of(self._path)
            self._looked = True
        return self._folder

    def bell(self, kind: str) -> Bell | None:
        """A new bell of a kind (one letter), or None where there can't be one."""
        folder = self.folder()
        if folder is None:
            return None
        try:
            return Bell(folder, kind)
        except OSError:
            return None

    def ring(self, kinds: str, own: str = "") -> None:
        """Ring every bell whose kind is one of these letters, except `own`. Never blocks, never fails."""
        folder = self.folder()
        if folder is None:
            return
        try:
            changed = os.stat(folder).st_mtime_ns
            if changed != self._changed:
                self._bells = [os.path.join(folder, name) for name in os.listdir(folder)]
                settled = time.time() - changed / 1e9 > _SETTLED_SECONDS
                self._changed = changed if settled else -1
            if not self._bells:
                return
            sender = self._socket
            if sender is None or self._pid != os.getpid():
                sender = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
                sender.setblocking(False)
                self._socket, self._pid = sender, os.getpid()
        except OSError:
            return
        start = len(folder) + 1
        for path in self._bells:
            if path[start] in kinds and path != own:
                try:
                    sender.sendto(b"\a", path)
                except (ConnectionRefusedError, FileNotFoundError):
                    # Whoever bound it was killed: nobody will take it away but us.
                    with suppress(OSError):
                        os.unlink(path)
                except OSError:
                    pass  # its queue is full of rings: it is about to look anyway

    def close(self) -> None:
        """Close the sending socket. The next ring opens it again."""
        sender, self._socket = self._socket, None
        if sender is not None:
            sender.close()
