# mypy: ignore-errors
# pyright: reportMissingImports=false, reportAttributeAccessIssue=false
"""The tasks of the fault tests. Each appends a mark to a ledger when it starts and when it ends, so that a test can say
afterwards what ran, where, when and how often, whatever was killed meanwhile."""

from __future__ import annotations

import asyncio
import ctypes
import json
import os
import signal
import socket
import threading
import time
from typing import Any

from celeriac import Celeriac, group

app = Celeriac("tasks")
app.conf.update(json.loads(os.environ["FAULT_SETTINGS"]))

_LEDGER = os.environ["FAULT_LEDGER"]
_WORKER = os.environ.get("FAULT_WORKER", "-")
_ledger: int | None = None


def mark(what: str, key: str, note: str = "-") -> None:
    """Append one line in one write: lines of many processes don't mix."""
    global _ledger
    if _ledger is None:
        _ledger = os.open(_LEDGER, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    line = f"{what} {key} {_WORKER} {os.getpid()} {os.getppid()} {time.monotonic_ns()} {time.time_ns()} {note}\n"
    os.write(_ledger, line.encode())


def started_before(key: str) -> bool:
    """The ledger already has a start of this key (the one just written not counted)."""
    with open(_LEDGER) as ledger:
        return sum(line.startswith(f"start {key} ") for line in ledger) > 1


def wait_for(path: str, limit: float = 120.0) -> None:
    """Until the file is there."""
    end = time.monotonic() + limit
    while not os.path.exists(path) and time.monotonic() < end:
        time.sleep(0.02)


@app.task(bind=True)
def work(self: Any, seconds: float = 0.0) -> int:
    """Take so long."""
    mark("start", self.request.id)
    if seconds:
        time.sleep(seconds)
    mark("end", self.request.id)
    return os.getpid()


@app.task(bind=True)
async def awork(self: Any, seconds: float = 0.0) -> int:
    """Take so long, as a coroutine."""
    mark("start", self.request.id)
    await asyncio.sleep(seconds)
    mark("end", self.request.id)
    return os.getpid()


@app.task(bind=True, acks_late=False)
def early(self: Any, seconds: float = 0.0) -> int:
    """As `work`, acknowledged before it starts."""
    mark("start", self.request.id)
    if seconds:
        time.sleep(seconds)
    mark("end", self.request.id)
    return os.getpid()


@app.task(bind=True)
def item(self: Any, number: int, seconds: float = 0.0) -> int:
    """A member of a workflow: give the number back."""
    mark("start", self.request.id)
    if seconds:
        time.sleep(seconds)
    mark("end", self.request.id)
    return number


@app.task(bind=True)
def total(self: Any, numbers: list[int]) -> int:
    """The body of a chord: their sum."""
    mark("start", self.request.id)
    mark("end", self.request.id)
    return sum(numbers)


@app.task(bind=True)
def twice(self: Any, number: int) -> int:
    """A step of a chain."""
    mark("start", self.request.id)
    mark("end", self.request.id)
    return 2 * number


@app.task(bind=True)
def adds(self: Any, path: str) -> int:
    """A member that adds four to its chord, in three ways; the first time it then waits for a file."""
    mark("start", self.request.id)
    self.add_to_chord(item.s(10))
    self.add_to_chord(item.s(20) | twice.s(), lazy=True).delay()
    self.add_to_chord(group(item.s(1), item.s(2)))
    mark("added", self.request.id)
    if not started_before(self.request.id):
        wait_for(path)
    mark("end", self.request.id)
    return 100


@app.task(bind=True)
def bad(self: Any, number: int) -> int:
    """A member that fails."""
    mark("start", self.request.id)
    mark("end", self.request.id)
    raise ValueError(f"bad {number}")


@app.task(bind=True)
def told(self: Any, failed_id: str) -> None:
    """An error link that is sent as a task."""
    mark("told", failed_id)


@app.task
def echo(value: Any) -> Any:
    """Give the argument back."""
    return value


@app.task(bind=True)
def gate(self: Any, path: str) -> int:
    """Wait for a file."""
    mark("start", self.request.id)
    wait_for(path)
    mark("end", self.request.id)
    return os.getpid()


@app.task(bind=True)
def gate_of_worker(self: Any, folder: str) -> int:
    """Wait for the file that is named after the worker that runs this: `door0` for w0."""
    mark("start", self.request.id)
    wait_for(f"{folder}/door{_WORKER.removeprefix('w')}")
    mark("end", self.request.id)
    return os.getpid()


@app.task(bind=True)
def hold(self: Any, seconds: float) -> int:
    """Sit in C for so long without giving up the GIL."""
    mark("start", self.request.id)
    sleep = ctypes.PyDLL(None).sleep
    end = time.monotonic() + seconds
    while (left := end - time.monotonic()) > 0:
        sleep(max(1, round(left)))
    mark("end", self.request.id)
    return os.getpid()


@app.task(bind=True)
def first_long(self: Any, path: str) -> int:
    """Sleep until killed the first time; be quick when it starts again. With a file: until that is there."""
    mark("start", self.request.id)
    if not started_before(self.request.id):
        wait_for(path)
    mark("end", self.request.id)
    return os.getpid()


@app.task(bind=True)
async def afirst_long(self: Any, path: str) -> int:
    """As `first_long`, as a coroutine."""
    mark("start", self.request.id)
    if not started_before(self.request.id):
        end = time.monotonic() + 120
        while not os.path.exists(path) and time.monotonic() < end:
            await asyncio.sleep(0.02)
    mark("end", self.request.id)
    return os.getpid()


def sockets() -> list[str]:
    """Where this process is connected to, or which database it has open."""
    found = []
    for name in os.listdir("/proc/self/fd"):
        try:
            target = os.readlink(f"/proc/self/fd/{name}")
        except OSError:
            continue
        if ".db" in target:
            found.append(target)
        elif target.startswith("socket:"):
            peer = socket.socket(fileno=os.dup(int(name)))
            with peer:
                if peer.family in (socket.AF_INET, socket.AF_INET6):
                    found.append(str(peer.getpeername()))
    return found


def ask_from_inside(task: Any, number: int) -> Any:
    """What a task may ask for while it runs."""
    from celeriac import allow_join_result

    task.update_state(state="PROGRESS", meta={"number": number})
    with allow_join_result():
        return echo.delay(number).get(timeout=30)


@app.task(bind=True)
def inside(self: Any, threads: int) -> Any:
    """Ask from so many threads at once."""
    from celeriac import allow_join_result

    mark("start", self.request.id)
    task_id = self.request.id
    found: list[Any] = []

    def ask(number: int) -> None:
        with allow_join_result():
            found.append(echo.delay(number).get(timeout=60))

    workers = [threading.Thread(target=ask, args=(number,)) for number in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    own = ask_from_inside(self, threads)
    mark("end", task_id)
    return [sorted(found), own, sockets()]


@app.task(bind=True)
async def ainside(self: Any, count: int) -> Any:
    """Ask from so many coroutines at once."""
    from celeriac import allow_join_result

    async def ask(number: int) -> Any:
        result = await echo.adelay(number)
        return await result.aget(timeout=60)

    with allow_join_result():
        found = await asyncio.gather(*(ask(number) for number in range(count)))
    return [sorted(found), sockets()]


@app.task(bind=True)
def waits_for_itself(self: Any) -> Any:
    """Wait for another task where there may be no room for it."""
    from celeriac import allow_join_result

    with allow_join_result():
        return echo.delay(1).get(timeout=30)


@app.task(bind=True, max_retries=1)
def retries_quietly(self: Any) -> int:
    """Ask to be run again without raising."""
    mark("start", self.request.id, str(self.request.retries))
    if not self.request.retries:
        self.retry(countdown=0.1, throw=False)
    return int(self.request.retries)


@app.task
def revokes(first: str, second: str) -> None:
    """Revoke a task, and another one also if it runs."""
    app.AsyncResult(first).revoke()
    app.control.revoke(second, terminate=True)


@app.task
async def arevokes(first: str, second: str) -> None:
    """As `revokes`, as a coroutine."""
    await app.control.arevoke(first)
    await app.control.arevoke(second, terminate=True)


@app.task(bind=True)
def progress(self: Any, path: str) -> None:
    """Say how far it is, then wait for a file."""
    self.update_state(state="PROGRESS", meta={"done": 7})
    wait_for(path)


@app.task(bind=True)
def again(self: Any, countdown: float) -> int:
    """Ask once to be run again later."""
    mark("start", self.request.id, str(self.request.retries))
    if not self.request.retries:
        raise self.retry(countdown=countdown)
    mark("end", self.request.id)
    return os.getpid()


class Told(app.Task):  # type: ignore[misc]
    """Marks the calls of its handlers."""

    def on_failure(self, exc: BaseException, task_id: str, args: Any, kwargs: Any, einfo: Any) -> None:
        """Mark that the failure was told."""
        mark("on_failure", task_id, type(exc).__name__)


@app.task(bind=True, base=Told)
def poison(self: Any) -> None:
    """Kill the process that runs it."""
    mark("start", self.request.id)
    os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(10)


@app.task(bind=True)
def note(self: Any, *args: Any) -> None:
    """A link: mark that it ran, with its first argument."""
    mark("note", self.request.id, str(args[0] if args else "-")[:40].replace(" ", "_"))


@app.task
def errback(request: Any, exc: Any, traceback: Any) -> None:
    """A link_error in the three-argument form: mark whose it was."""
    mark("errback", request.id, type(exc).__name__)


@app.task(bind=True)
def big(self: Any, size: int) -> str:
    """Return so many characters."""
    mark("start", self.request.id)
    result = "x" * size
    mark("end", self.request.id)
    return result
