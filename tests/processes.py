"""Real processes for the tests: celeriac's worker and commands in a folder, and real Celery on the other side."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self
from uuid import uuid4

import psutil

ROOT = Path(__file__).resolve().parent.parent
"""The top of the repository."""
SOURCE = ROOT / "src"
MARK = "CELERIAC_TEST_PROCESS"
"""The environment variable by which what a process started is found again."""
READY = r"\bready\.?\s*$"
"""The line by which celeriac's and Celery's workers say that they consume."""


class Process:
    """A process that a test runs: its output is collected while it runs, and it never outlives the test.

    Leaving the context kills it and everything that it started.
    """

    def __init__(self, words: Sequence[str], *, cwd: Path, env: Mapping[str, str]) -> None:
        self.words = list(words)
        self._lines: list[str] = []
        self._changed = threading.Condition()
        self._closed = False
        self._mark = uuid4().hex
        self._popen = subprocess.Popen(
            self.words, cwd=cwd, env={**env, MARK: self._mark}, text=True, errors="replace",
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self._popen.stdout is not None
        for line in self._popen.stdout:
            with self._changed:
                self._lines.append(line)
                self._changed.notify_all()
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    @property
    def pid(self) -> int:
        """The id of the process that was started; its children are not meant."""
        return self._popen.pid

    @property
    def output(self) -> str:
        """What it and its children have written so far, stdout and stderr together."""
        with self._changed:
            return "".join(self._lines)

    def wait_for(self, pattern: str, timeout: float = 20.0) -> re.Match[str]:
        """Wait until a line matches `pattern` (a regular expression) and return the match. Raises AssertionError with
        the output when the process ends or the time passes before."""
        wanted = re.compile(pattern, re.MULTILINE)
        end = time.monotonic() + timeout
        with self._changed:
            while True:
                if found := wanted.search("".join(self._lines)):
                    return found
                left = end - time.monotonic()
                if self._closed or left <= 0:
                    break
                self._changed.wait(left)
        reason = f"ended with {self._popen.poll()}" if self._closed else f"said nothing like it in {timeout:g} s"
        raise AssertionError(f"{self} {reason}, wanted {pattern!r}:\n{self.output}")

    def wait(self, timeout: float = 20.0) -> int:
        """Wait for its end and return its exit code (negative: the signal). Raises AssertionError with the output."""
        try:
            code = self._popen.wait(timeout)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"{self} did not end in {timeout:g} s:\n{self.output}") from None
        self._reader.join(1.0)
        return code

    def children(self) -> list[psutil.Process]:
        """All processes below it that run now."""
        try:
            return list(psutil.Process(self.pid).children(recursive=True))
        except psutil.NoSuchProcess:
            return []

    def family(self) -> list[psutil.Process]:
        """All living processes that it started, also those whose parent is gone: they carry its mark."""
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error, OSError):
                if process.status() != psutil.STATUS_ZOMBIE and process.environ().get(MARK) == self._mark:
                    found.append(process)
        return found

    def send(self, signum: int) -> None:
        """Send a signal to the process itself."""
        self._popen.send_signal(signum)

    def terminate(self, timeout: float = 20.0) -> int:
        """Ask it to end (SIGTERM, a warm shutdown of a worker) and return its exit code."""
        self.send(signal.SIGTERM)
        return self.wait(timeout)

    def kill9(self) -> None:
        """Kill the process itself, as a crash does. What it started is left to notice by itself."""
        self._popen.kill()
        self._popen.wait(10)

    def freeze(self) -> None:
        """Freeze the process itself (SIGSTOP)."""
        self.send(signal.SIGSTOP)

    def thaw(self) -> None:
        """Let it run on (SIGCONT)."""
        self.send(signal.SIGCONT)

    def close(self) -> None:
        """Kill it with everything that it started, and wait until all are gone."""
        if self._popen.poll() is None:
            self._popen.kill()
        self._popen.wait(10)
        while family := self.family():  # again: one of them may have been about to start another
            for member in family:
                with contextlib.suppress(psutil.NoSuchProcess):
                    member.kill()
            psutil.wait_procs(family, timeout=5)
        self._reader.join(2.0)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        self.close()

    def __str__(self) -> str:
        return " ".join(self.words[:8])


class Project:
    """A folder with Python modules, in which workers and commands of both kinds are started.

    `files` maps names to texts. The same folder serves celeriac and Celery, so that one `tasks.py` that imports
    whichever of the two it is told to can stand on both sides.
    """

    def __init__(self, folder: Path, files: Mapping[str, str], env: Mapping[str, str] | None = None) -> None:
        self.folder = folder
        self.env = dict(env or {})
        for name, text in files.items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)

    def environment(self, extra: Mapping[str, str] | None = None) -> dict[str, str]:
        """The environment of a process of this project: without the CELERY_* settings of whoever runs the tests."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("CELERY_", "CELERIAC_"))}
        kept.pop("NO_COLOR", None)
        path = os.pathsep.join((str(SOURCE), str(self.folder)))
        fixed = {"PYTHONPATH": path, "PYTHONUNBUFFERED": "1", "PYTHONFAULTHANDLER": "1"}
        return {**kept, **fixed, **self.env, **(extra or {})}

    def python(self, *words: str, env: Mapping[str, str] | None = None) -> Process:
        """Start this Python with `words` in the folder."""
        return Process([sys.executable, *words], cwd=self.folder, env=self.environment(env))

    def celeriac(self, *words: str, env: Mapping[str, str] | None = None) -> Process:
        """Start a command of celeriac: `project.celeriac("-A", "tasks", "queues")`."""
        return self.python("-m", "celeriac", *words, env=env)

    def run(self, *words: str, env: Mapping[str, str] | None = None, timeout: float = 20.0) -> tuple[int, str]:
        """Run a command of celeriac to its end: `(exit code, output)`."""
        with self.celeriac(*words, env=env) as process:
            code = process.wait(timeout)
            return code, process.output

    def worker(
        self, *options: str, app: str = "tasks", env: Mapping[str, str] | None = None, ready: float | None = 20.0
    ) -> Process:
        """Start `celeriac -A app worker` and wait until it is ready (`ready=None`: don't wait). `-l INFO` is set unless
        a loglevel is among `options`."""
        level = [] if {"-l", "--loglevel"} & set(options) else ["-l", "INFO"]
        return _ready(self.celeriac("-A", app, "worker", *level, *options, env=env), ready)

    def celery(self, *words: str, env: Mapping[str, str] | None = None) -> Process:
        """Start a command of real Celery: `project.celery("-A", "tasks", "inspect", "ping")`."""
        return self.celery_python("-m", "celery", *words, env=env)

    def celery_python(self, *words: str, env: Mapping[str, str] | None = None) -> Process:
        """Start the Python that has real Celery (and not celeriac) with `words` in the folder."""
        own = {"PYTHONPATH": str(self.folder), "C_FORCE_ROOT": "1"}
        return Process([celery_python(), *words], cwd=self.folder, env=self.environment({**own, **(env or {})}))

    def celery_worker(
        self, *options: str, app: str = "tasks", env: Mapping[str, str] | None = None, ready: float | None = 30.0
    ) -> Process:
        """Start a worker of real Celery and wait until it is ready."""
        level = [] if {"-l", "--loglevel"} & set(options) else ["-l", "INFO"]
        return _ready(self.celery("-A", app, "worker", *level, *options, env=env), ready)


def _ready(process: Process, timeout: float | None) -> Process:
    if timeout is not None:
        try:
            process.wait_for(READY, timeout)
        except BaseException:
            process.close()
            raise
    return process


def celery_says(code: str) -> str:
    """What a piece of code prints under the Python that has real Celery. celeriac's source is on its path: its model
    needs nothing but Python. Raises CalledProcessError when it fails."""
    env = {**os.environ, "PYTHONPATH": str(SOURCE)}
    found = subprocess.run(
        [celery_python(), "-c", code], env=env, stdout=subprocess.PIPE, text=True, timeout=60, check=True
    )
    return found.stdout


def celery_python() -> str:
    """The Python that has real Celery: CELERIAC_CELERY_PYTHON, else `.venv-celery` at the top of the repository. Raises
    AssertionError when there is none."""
    path = os.environ.get("CELERIAC_CELERY_PYTHON") or str(ROOT / ".venv-celery" / "bin" / "python")
    if not Path(path).exists():
        raise AssertionError(
            f"no Python with real Celery at {path}: `make test` makes .venv-celery, or set CELERIAC_CELERY_PYTHON"
        )
    return path
