"""What every measurement needs: a plain Redis client, processes with their CPU time and memory, medians and tables."""

from __future__ import annotations

import contextlib
import os
import platform
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast
from urllib.parse import urlsplit

import hiredis
import psutil

from tests.processes import SOURCE, celery_python
from tests.servers import RedisServer, redis_server

ROOT = Path(__file__).resolve().parent.parent
PROJECTS = Path(__file__).parent / "projects"


@dataclass(frozen=True, slots=True)
class Effort:
    """How long and how often to measure."""

    window: float = 10.0
    """Seconds of steady work that are measured."""
    warmup: float = 3.0
    runs: int = 5
    scale: float = 1.0
    """Factor on the numbers of tasks of those measurements that have no window."""


FULL = Effort()
QUICK = Effort(window=1.5, warmup=0.7, runs=1, scale=0.02)


@dataclass
class Table:
    """What a measurement says: rows for people, and the raw numbers of every run."""

    name: str
    columns: Sequence[str]
    rows: list[Sequence[Any]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    raw: list[Mapping[str, Any]] = field(default_factory=list)

    def markdown(self) -> str:
        """The table and its notes."""
        lines = ["| " + " | ".join(self.columns) + " |", "|---" * len(self.columns) + "|"]
        lines += ["| " + " | ".join(text(cell) for cell in row) + " |" for row in self.rows]
        if self.notes:
            lines += ["", *self.notes]
        return "\n".join(lines)


def text(cell: Any) -> str:
    """A number as people read it."""
    if isinstance(cell, float):
        return f"{cell:,.0f}" if cell >= 1000 else f"{cell:.3g}"
    if isinstance(cell, int):
        return f"{cell:,}"
    return str(cell)


def median(values: Iterable[float]) -> float:
    """The median; 0 for nothing."""
    found = list(values)
    return statistics.median(found) if found else 0.0


def percentile(values: Iterable[float], percent: float) -> float:
    """The value below which so many percent lie."""
    found = sorted(values)
    return found[min(len(found) - 1, int(len(found) * percent / 100))] if found else 0.0


# --- Redis, without any client library


class Client:
    """One connection. `call` waits for one reply, `many` writes all commands at once."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self._link = socket.create_connection((parts.hostname or "127.0.0.1", parts.port or 6379), 60.0)
        self._link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._reader = hiredis.Reader()

    def call(self, *words: str | bytes | int | float) -> Any:
        """Send one command, give its reply. Raises hiredis.ReplyError."""
        return self.many([words])[0]

    def many(self, commands: Iterable[Sequence[str | bytes | int | float]]) -> list[Any]:
        """Send commands in one write, give their replies."""
        packed = [hiredis.pack_command(cast(Any, tuple(words))) for words in commands]
        self._link.sendall(b"".join(packed))
        replies: list[Any] = []
        while len(replies) < len(packed):
            if (reply := self._reader.gets()) is False:
                self._reader.feed(self._link.recv(1 << 20))
            elif isinstance(reply, hiredis.ReplyError):
                raise reply
            else:
                replies.append(reply)
        return replies

    def send(self, packed: bytes) -> Any:
        """Send a packed command, give its reply."""
        self._link.sendall(packed)
        while (reply := self._reader.gets()) is False:
            self._reader.feed(self._link.recv(1 << 16))
        return reply

    def close(self) -> None:
        """Close the connection."""
        self._link.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


@contextlib.contextmanager
def redis() -> Iterator[RedisServer]:
    """A Redis of the measurement's own, without persistence."""
    with redis_server() as server:
        yield server


def server_version(server: RedisServer) -> str:
    """What it says about itself."""
    info = server.command("INFO", "server").decode()
    return str(next(line.partition(":")[2] for line in info.splitlines() if line.startswith("redis_version")))


# --- processes


class Running:
    """A worker of whatever kind: its output goes to a file, its whole family is measured and killed."""

    def __init__(self, words: Sequence[str], folder: Path, env: Mapping[str, str], log: Path) -> None:
        self.log = log
        with log.open("wb") as sink:
            self._popen = subprocess.Popen(
                list(words), cwd=folder, env=dict(env), stdin=subprocess.DEVNULL, stdout=sink,
                stderr=subprocess.STDOUT, start_new_session=True,
            )  # fmt: skip

    @property
    def pid(self) -> int:
        """The process that was started."""
        return self._popen.pid

    def family(self) -> list[int]:
        """Its process id and those of everything below it."""
        try:
            process = psutil.Process(self.pid)
            return [self.pid, *(child.pid for child in process.children(recursive=True))]
        except psutil.NoSuchProcess:
            return []

    def assert_alive(self) -> None:
        """Raise RuntimeError with the end of its log when it has ended."""
        if self._popen.poll() is not None:
            raise RuntimeError(f"{self._popen.args!r} ended:\n{self.log.read_text(errors='replace')[-3000:]}")

    def wait_for(self, words: str, limit: float = 60.0) -> None:
        """Until its log has these words."""
        end = time.monotonic() + limit
        while words not in self.log.read_text(errors="replace"):
            self.assert_alive()
            if time.monotonic() > end:
                raise RuntimeError(f"no {words!r} in {limit:g} s:\n{self.log.read_text(errors='replace')[-3000:]}")
            time.sleep(0.02)

    def kill(self) -> None:
        """Kill the whole family at once."""
        family = self.family()
        for pid in family:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self._popen.wait(10)
        end = time.monotonic() + 10
        while any(psutil.pid_exists(pid) and _alive(pid) for pid in family) and time.monotonic() < end:
            time.sleep(0.01)

    def __enter__(self) -> Running:
        return self

    def __exit__(self, *exc: object) -> None:
        self.kill()


def _alive(pid: int) -> bool:
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def cpu(pids: Iterable[int]) -> float:
    """Seconds on a processor of all threads of these processes, from the scheduler's own nanoseconds."""
    total = 0
    for pid in pids:
        with contextlib.suppress(OSError):
            for task in Path(f"/proc/{pid}/task").iterdir():
                with contextlib.suppress(OSError):
                    total += int((task / "schedstat").read_text().split()[0])
    return total / 1e9


def pss(pids: Iterable[int]) -> int:
    """Bytes of memory of these processes together, what they share counted once."""
    total = 0
    for pid in pids:
        with contextlib.suppress(OSError):
            for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
                if line.startswith("Pss:"):
                    total += int(line.split()[1]) * 1024
    return total


def private(pid: int) -> int:
    """Bytes that only this process has."""
    return int(psutil.Process(pid).memory_full_info().uss)


# --- the sides' projects


class Workshop:
    """A folder with the projects of all sides, and the environment in which each is run."""

    def __init__(self, folder: Path, broker: str, backend: str | None = None) -> None:
        self.folder = folder
        for path in PROJECTS.glob("[!_]*.py"):
            shutil.copy(path, folder / path.name)
        self.set_urls(broker, backend)

    def set_urls(self, broker: str, backend: str | None = None) -> None:
        """Where the sides send and store."""
        self.broker = broker
        self._env = {"BENCH_BROKER": broker, "BENCH_BACKEND": backend or broker}

    def environment(self, side: str, extra: Mapping[str, str] | None = None) -> dict[str, str]:
        """Ours has the source on its path, the peers have not. Compiled modules are kept, as where it is installed."""
        kept = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
        path = f"{SOURCE}{os.pathsep}{self.folder}" if side == "celeriac" else str(self.folder)
        return {**kept, **self._env, "PYTHONPATH": path, "C_FORCE_ROOT": "1", "PYTHONUNBUFFERED": "1", **(extra or {})}

    def python(self, side: str) -> str:
        """The interpreter of a side."""
        return sys.executable if side == "celeriac" else celery_python()

    def start(self, side: str, *words: str, log: str = "worker.log", env: Mapping[str, str] | None = None) -> Running:
        """Start `python <words>` for a side."""
        return Running([self.python(side), *words], self.folder, self.environment(side, env), self.folder / log)

    def run(self, side: str, *words: str, timeout: float = 600.0) -> str:
        """Run `python <words>` to its end; what it printed. Raises RuntimeError."""
        done = subprocess.run(
            [self.python(side), *words], cwd=self.folder, env=self.environment(side),
            capture_output=True, text=True, timeout=timeout,
        )  # fmt: skip
        if done.returncode:
            raise RuntimeError(f"{words} of {side} ended with {done.returncode}:\n{done.stdout}\n{done.stderr}")
        return done.stdout


@contextlib.contextmanager
def workshop(broker: str) -> Iterator[Workshop]:
    """A Workshop in a folder that is removed afterwards."""
    with tempfile.TemporaryDirectory(prefix="celeriac-bench-") as folder:
        yield Workshop(Path(folder), broker)


def until(condition: Callable[[], Any], limit: float, what: str, running: Running | None = None) -> Any:
    """Wait for a condition and return what it said. Raises RuntimeError."""
    end = time.monotonic() + limit
    while not (value := condition()):
        if running is not None:
            running.assert_alive()
        if time.monotonic() > end:
            raise RuntimeError(f"not within {limit:g} s: {what}")
        time.sleep(0.02)
    return value


def machine() -> dict[str, str]:
    """Where this was measured."""
    model = ""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                model = line.partition(":")[2].strip()
                break
    return {
        "processor": f"{len(os.sched_getaffinity(0))} x {model or platform.machine()}",
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
    }


def versions(work: Workshop) -> dict[str, str]:
    """Of the peers, as their own interpreter says."""
    script = (
        "import importlib.metadata as m\n"
        "for name in ('celery', 'kombu', 'redis', 'hiredis', 'dramatiq'):\n"
        "    try: print(name, m.version(name))\n"
        "    except m.PackageNotFoundError: print(name, 'missing')\n"
    )
    return {line.split()[0]: line.split()[1] for line in work.run("celery", "-c", script).splitlines()}
