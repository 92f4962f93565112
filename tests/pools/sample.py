"""A program for children of the pools' tests, and its tasks."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import random
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from typing import Any

from celeriac.errors import SoftTimeLimitExceeded
from celeriac.model.outcome import Catalogue, TaskTraits
from celeriac.pools.link import Link
from celeriac.runtime.context import current
from celeriac.runtime.run import Runner, RunSettings
from celeriac.wire.task import new_id
from tests.runtime.fakes import FakeTask, plain_pack, tasks

LINK: Link | None = None
LEAK: ContextVar[str] = ContextVar("LEAK", default="clean")


def add(x: int, y: int) -> int:
    return x + y


def pid() -> int:
    return os.getpid()


def note(path: str, text: str, seconds: float = 0.0) -> None:
    """Leave a line in a file, then sleep."""
    with open(path, "a") as file:
        file.write(text + "\n")
    time.sleep(seconds)


def nap(seconds: float) -> float:
    time.sleep(seconds)
    return seconds


def spin(seconds: float) -> str:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        sum(range(1000))
    return "spun"


def soft(seconds: float) -> str:
    """Catches its soft limit."""
    try:
        time.sleep(seconds)
    except SoftTimeLimitExceeded:
        return "caught"
    return "slept"


def slow_steps(seconds: float) -> str:
    """Many short waits: a thread can be struck between them."""
    end = time.monotonic() + seconds
    try:
        while time.monotonic() < end:
            time.sleep(0.005)
    except SoftTimeLimitExceeded:
        return "caught"
    return "slept"


def ask(op: str, args: Any, timeout: float = 5.0) -> Any:
    assert LINK is not None
    return LINK.ask(op, args, timeout)


def ask_softly(timeout: float) -> str:
    assert LINK is not None
    try:
        LINK.ask("fetch", "never", timeout)
    except SoftTimeLimitExceeded:
        return f"caught, then {LINK.ask('fetch', 'again', 5)}"
    return "answered"


async def aadd(x: int, y: int) -> int:
    await asyncio.sleep(0)
    return x + y


async def anap(seconds: float) -> float:
    await asyncio.sleep(seconds)
    return seconds


async def asoft(seconds: float) -> str:
    try:
        await asyncio.sleep(seconds)
    except SoftTimeLimitExceeded:
        await asyncio.sleep(0.01)
        return "caught"
    return "slept"


async def ablock(seconds: float) -> str:
    time.sleep(seconds)
    return "blocked"


async def aask(op: str, args: Any) -> Any:
    assert LINK is not None
    return await LINK.aask(op, args, 5)


async def agather(n: int) -> list[int]:
    async with asyncio.TaskGroup() as group:
        made = [group.create_task(aadd(i, i)) for i in range(n)]
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(0.01):
            await asyncio.sleep(5)
    return [m.result() for m in made]


def leak(value: str) -> str:
    before = LEAK.get()
    LEAK.set(value)
    return before


async def aleak(value: str) -> str:
    before = LEAK.get()
    LEAK.set(value)
    await asyncio.sleep(0.001)
    assert LEAK.get() == value
    return before


def say(text: str) -> None:
    print(text)
    os.write(1, f"raw {text}\n".encode())


def log_it(text: str) -> None:
    logging.getLogger("mine").warning("%s", text)


def draw() -> list[Any]:
    return [random.random(), new_id()]


def die(code: int) -> None:
    os._exit(code)


def leave(code: int) -> None:
    sys.exit(code)


def facts() -> dict[str, Any]:
    """What a child sees of itself."""
    import signal

    request = current.get()
    fork = os.fork()
    if not fork:
        signal.pause()
        os._exit(0)
    time.sleep(0.01)
    os.kill(fork, signal.SIGTERM)
    _, status = os.waitpid(fork, 0)
    started = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(30)"])
    started.terminate()
    return {
        "request": request.id if request is not None else None,
        "threads": [t.name for t in threading.enumerate()],
        "stdin": os.readlink("/proc/self/fd/0"),
        "sockets": sum("socket" in os.readlink(f"/proc/self/fd/{n}") for n in _fds()),
        "forked": os.waitstatus_to_exitcode(status),
        "started": started.wait(10),
        "init": os.environ.get("SAMPLE_INIT"),
        "argv": sys.argv,
    }


def _fds() -> list[str]:
    found = []
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            os.readlink(f"/proc/self/fd/{name}")
            found.append(name)
    return found


class SampleProgram:
    """Keeps pools.program.Program."""

    def __init__(self, spec: Mapping[str, Any]) -> None:
        self._spec = spec
        functions: list[Callable[..., Any]] = [
            add, pid, note, nap, spin, soft, slow_steps, ask, ask_softly, aadd, anap, asoft, ablock, aask, agather,
            leak, aleak, say, log_it, draw, die, leave, facts,
        ]  # fmt: skip
        self._tasks = tasks(*functions, FakeTask(nap, "tracked", track_started=True))

    def catalogue(self) -> Catalogue:
        return Catalogue(tuple(TaskTraits(t.name, is_async=t.is_async) for t in self._tasks.values()))

    def runner(self, link: Link) -> Runner:
        global LINK
        LINK = link
        return Runner(self._tasks, RunSettings(hostname="w@test"), plain_pack)

    def on_process_init(self) -> None:
        os.environ["SAMPLE_INIT"] = str(os.getpid())
        if self._spec.get("late"):
            self._tasks["late"] = FakeTask(add, "late")
        if (path := self._spec.get("slow_once")) and not os.path.exists(path):
            open(path, "x").close()
            time.sleep(600)
        if self._spec.get("broken_init"):
            raise RuntimeError("no init today")

    def on_process_shutdown(self) -> None:
        print("sample shuts down")


def load(spec: dict[str, Any]) -> SampleProgram:
    """The loader."""
    if spec.get("broken"):
        raise RuntimeError("no such app")
    if spec.get("exits"):
        sys.exit("gone")
    if spec.get("thread"):
        threading.Thread(target=time.sleep, args=(60,), name="busybody", daemon=True).start()
    logging.basicConfig(stream=sys.stderr, level=spec.get("level", logging.WARNING), format="%(levelname)s %(message)s")
    return SampleProgram(spec)
