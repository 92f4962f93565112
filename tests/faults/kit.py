"""A workshop for faults: a project whose tasks write a ledger, workers that are killed at seeded moments, and a checker
that says what is missing and which repeats nothing excuses."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import os
import random
import time
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar
from uuid import uuid4

import psutil
import pytest

from celeriac import Celeriac
from celeriac.model.message import Counts, Envelope, Item
from celeriac.ports import Broker, Place, Reader, Sender
from celeriac.wire.task import read_head
from tests.processes import Process, Project

TASKS = Path(__file__).parent / "project"
QUEUE = "celery"
FINAL = frozenset({"SUCCESS", "FAILURE", "REVOKED"})
T = TypeVar("T")
DYING = 0.5
"""A child that notices its parent's death by itself may still start what it had been handed."""
SPAN = 5.0
"""Seconds beside the lease within which the work of a lost worker has to run again."""


# --- what happened


@dataclass(frozen=True, slots=True)
class Mark:
    """One line of the ledger."""

    what: str
    key: str
    worker: str
    pid: int
    parent: int
    time: float
    """Monotonic seconds; one clock for all processes of the machine."""
    wall: float
    note: str


class Ledger:
    """The file that the tasks append to."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.touch()

    def marks(self, what: str | None = None) -> list[Mark]:
        """All complete lines so far, in the order of their writing."""
        text = self.path.read_text()
        found = []
        for line in text[: text.rfind("\n") + 1].splitlines():
            kind, key, worker, pid, parent, mono, wall, note = line.split(" ", 7)
            if what is None or kind == what:
                found.append(Mark(kind, key, worker, int(pid), int(parent), int(mono) / 1e9, int(wall) / 1e9, note))
        return found

    def of(self, what: str, key: str) -> list[Mark]:
        """The marks of one kind and one task."""
        return [mark for mark in self.marks(what) if mark.key == key]

    def starts(self) -> dict[str, list[Mark]]:
        """Task id -> its starts."""
        found: dict[str, list[Mark]] = defaultdict(list)
        for mark in self.marks("start"):
            found[mark.key].append(mark)
        return found


@dataclass(frozen=True, slots=True)
class Kill:
    """A worker (or one of its children) was killed at this moment."""

    worker: str
    time: float
    committed: frozenset[str]
    """Tasks whose result stood stored when everything of it was dead."""
    pids: frozenset[int] = frozenset()
    """Only these of its processes were killed; empty: all."""


@dataclass(frozen=True, slots=True)
class Findings:
    """What the checker says."""

    missing: list[str]
    """Sent, and no end of it in the ledger."""
    unexcused: list[str]
    """One line for each repeat that no kill excuses."""
    repeats: int
    tasks: int

    def assert_clean(self, context: str = "", unexcused: int = 0) -> None:
        """Raise AssertionError when something is missing, or repeated without an excuse more than so many times."""
        assert (self.missing, self.unexcused[unexcused:]) == ([], []), (
            f"{context}: {len(self.missing)} of {self.tasks} missing {self.missing[:5]}, "
            f"{len(self.unexcused)} repeats without excuse:\n" + "\n".join(self.unexcused[:20])
        )


def check(sent: Iterable[str], marks: Sequence[Mark], kills: Sequence[Kill]) -> Findings:
    """Compare what was sent with what the ledger says.

    A second start is excused only when the worker of the start before it was killed between the two, and the task was
    not yet committed at that moment. Everything else is a repeat that a user may rightly complain about.
    """
    starts: dict[str, list[Mark]] = defaultdict(list)
    ended: set[str] = set()
    for mark in sorted(marks, key=lambda mark: mark.time):
        if mark.what == "start":
            starts[mark.key].append(mark)
        elif mark.what == "end":
            ended.add(mark.key)
    sent = list(sent)
    unexcused: list[str] = []
    repeats = 0
    for key in sent:
        for before, again in zip(starts[key], starts[key][1:], strict=False):
            repeats += 1
            between = [
                kill
                for kill in kills
                if kill.worker == before.worker
                and before.time - DYING <= kill.time <= again.time
                and (not kill.pids or before.pid in kill.pids)
            ]
            if not between:
                unexcused.append(f"{key}: started by {before.worker} and again by {again.worker}; nothing was killed")
            elif all(key in kill.committed for kill in between):
                unexcused.append(f"{key}: started again by {again.worker}; it had been committed by {before.worker}")
    return Findings([key for key in sent if key not in ended], unexcused, repeats, len(sent))


# --- where it happens


def until(condition: Callable[[], T], limit: float, what: str | Callable[[], str], step: float = 0.02) -> T:
    """Wait until `condition` is true and return what it said. Raises AssertionError after `limit` seconds."""
    end = time.monotonic() + limit
    while True:
        if value := condition():
            return value
        if time.monotonic() > end:
            raise AssertionError(f"not within {limit:g} s: {what if isinstance(what, str) else what()}")
        time.sleep(step)


class Site:
    """A project, the broker it stands on, its ledger and its workers. Leaving it kills every worker."""

    def __init__(
        self,
        folder: Path,
        broker: str,
        backend: str | None = None,
        *,
        lease: float = 2.0,
        settings: Mapping[str, Any] | None = None,
        through: str | None = None,
        module: str = "tasks",
    ) -> None:
        """`through`: another URL of the same broker (a proxy) that the workers use; the test goes straight. `module`:
        what workers are started with, one of the files in `project/`."""
        folder.mkdir(parents=True, exist_ok=True)
        self.broker_url = broker
        self.backend_url = backend or broker
        self.lease = lease
        self.module = module
        self.ledger = Ledger(folder / "ledger")
        self.settings = {
            "broker_url": through or broker,
            "result_backend": backend or through or broker,
            "worker_lease_seconds": lease,
            **(settings or {}),
        }
        self.project = Project(
            folder,
            {path.name: path.read_text() for path in TASKS.glob("[!_]*.py")},
            {"FAULT_SETTINGS": json.dumps(self.settings), "FAULT_LEDGER": str(self.ledger.path)},
        )
        self.app = Celeriac("tests", broker=broker, backend=self.backend_url)
        self.sent: list[str] = []
        self.kills: list[Kill] = []
        self.workers: list[Process] = []
        self._names: dict[int, str] = {}
        self._open = contextlib.ExitStack()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        self._open.close()
        for name in ("sender", "reader"):
            if name in self.__dict__:
                self.__dict__[name].close()

    def show(self) -> None:
        """Print what the workers said, and where messages lie: for a test that has failed."""
        for process in self.workers:
            print(f"--- {self.name_of(process)}, process {process.pid}\n{process.output[-3000:]}")
        with contextlib.suppress(Exception):  # whatever the test broke: its own error is the one to show
            print(f"--- {self.counts()}")

    # --- adapters of the test's own

    @cached_property
    def sender(self) -> Sender:
        """Sends blobs as they are."""
        return self.app.wiring.sender

    @cached_property
    def reader(self) -> Reader:
        """Reads stored results."""
        reader = self.app.wiring.reader
        assert reader is not None
        return reader

    def ask(self, question: Callable[[Broker], Any]) -> Any:
        """Run one coroutine against the broker: `site.ask(lambda broker: broker.count("celery"))`."""

        async def run() -> Any:
            broker = self.app.wiring.make_broker()
            try:
                return await question(broker)
            finally:
                await broker.close()

        return asyncio.run(run())

    def counts(self, queue: str = QUEUE) -> Counts:
        """What lies where."""
        counts: Counts = self.ask(lambda broker: broker.count(queue))
        return counts

    def items(self, where: Place, queue: str = QUEUE) -> list[Item]:
        """All entries of a place."""

        async def read(broker: Broker) -> list[Item]:
            found: list[Item] = []
            cursor = ""
            while True:
                page = await broker.browse(where, queue, 1000, cursor)
                found += page.items
                cursor = page.cursor
                if not cursor:
                    return found

        items: list[Item] = self.ask(read)
        return items

    def dead(self, queue: str = QUEUE) -> dict[str, str]:
        """Task id (or the start of the blob where it has none) -> why it is in the dead letter queue."""
        found = {}
        for item in self.items(Place.DEAD, queue):
            try:
                key = read_head(item.blob).id
            except Exception:  # a blob that is not a message is what some tests send
                key = item.blob[:60].decode(errors="replace")
            found[key] = item.reason
        return found

    # --- sending

    def send(self, name: str, *args: Any, id: str | None = None, **options: Any) -> str:
        """Send one task of the project; its id is kept in `sent`."""
        task_id = id or str(uuid4())
        self.app.send_task(f"tasks.{name}", args, task_id=task_id, **options)
        self.sent.append(task_id)
        return task_id

    def send_blob(self, blob: bytes, queue: str = QUEUE) -> None:
        """Put bytes into a queue as they are."""
        name = str(uuid4())
        self.sender.publish([Envelope(name, name, queue, blob)], 5.0)

    # --- results

    def documents(self, ids: Collection[str]) -> dict[str, dict[str, Any]]:
        """Stored result documents, as JSON."""
        return {key: json.loads(text) for key, text in self.reader.fetch(list(ids)).items()}

    def finished(self, ids: Collection[str] | None = None) -> frozenset[str]:
        """Those of `ids` (all that were sent) whose final result is stored."""
        documents = self.documents(self.sent if ids is None else ids)
        return frozenset(key for key, document in documents.items() if document["status"] in FINAL)

    def wait_finished(self, limit: float, ids: Collection[str] | None = None) -> None:
        """Until every task has a final result."""
        wanted = frozenset(self.sent if ids is None else ids)
        until(
            lambda: self.finished(wanted) == wanted, limit,
            lambda: f"results of {len(wanted - self.finished(wanted))} of {len(wanted)} tasks; {self.counts()}", 0.1,
        )  # fmt: skip

    def wait_started(self, key: str, limit: float = 20.0, times: int = 1) -> Mark:
        """Until a task has started so many times; the mark of that start."""
        until(lambda: len(self.ledger.of("start", key)) >= times, limit, f"start {times} of {key}")
        return self.ledger.of("start", key)[times - 1]

    # --- workers

    def worker(self, *options: str, ready: float | None = 20.0, env: Mapping[str, str] | None = None) -> Process:
        """Start a worker that is named in the ledger's marks."""
        name = f"w{len(self.workers)}"
        process = self.project.worker(
            "-n", name, *options, app=self.module, env={"FAULT_WORKER": name, **(env or {})}, ready=ready
        )
        self.workers.append(process)
        self._names[id(process)] = name
        self._open.enter_context(process)
        return process

    def name_of(self, worker: Process) -> str:
        """The name by which the ledger knows a worker."""
        return self._names[id(worker)]

    def kill(self, worker: Process, *, parent_only: bool = False) -> Kill:
        """Kill a worker as the machine would (all its processes at once), or its parent alone: what it leaves behind
        has to notice and end. Returns when nothing of it is alive."""
        below = worker.children()
        worker.kill9()
        if not parent_only:
            for child in below:
                with contextlib.suppress(psutil.NoSuchProcess):
                    child.kill()
        moment = time.monotonic()
        until(
            lambda: not [child for child in below if _runs(child)], 10.0,
            lambda: f"children that outlived it: {[p.pid for p in below if _runs(p)]}\n{worker.output[-2000:]}",
        )  # fmt: skip
        kill = Kill(self.name_of(worker), moment, self.finished())
        self.kills.append(kill)
        return kill

    def check(self) -> Findings:
        """Compare what was sent with the ledger."""
        return check(self.sent, self.ledger.marks(), self.kills)


def _runs(process: psutil.Process) -> bool:
    try:
        return bool(process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def forms(names: str, short: Any, full: Any, timeout: int = 120) -> pytest.MarkDecorator:
    """One test in two sizes: `short` in every run, `full` when asked for, with `timeout` seconds for it."""
    marks = [pytest.mark.full, pytest.mark.timeout(timeout)]
    values = [(short, "short", []), (full, "full", marks)]
    if isinstance(short, tuple):
        return pytest.mark.parametrize(names, [pytest.param(*value, id=id, marks=mark) for value, id, mark in values])
    return pytest.mark.parametrize(names, [pytest.param(value, id=id, marks=mark) for value, id, mark in values])


def age(start: float) -> float:
    """Seconds since a monotonic moment."""
    return time.monotonic() - start


# --- messages, made by hand: independent of the code that is tested


def message(task_id: str, task: Any = "tasks.work", args: Any = (), **changes: Any) -> dict[str, Any]:
    """A task message of Celery's protocol 2 in kombu's envelope. `changes` replace headers."""
    headers = {
        "lang": "py", "task": task, "id": task_id, "shadow": None, "eta": None, "expires": None, "group": None,
        "group_index": None, "retries": 0, "timelimit": [None, None], "root_id": task_id, "parent_id": None,
        "argsrepr": "()", "kwargsrepr": "{}", "origin": "gen1@test", "ignore_result": False,
        "replaced_task_nesting": 0, "stamped_headers": None, "stamps": {},
    }  # fmt: skip
    body = json.dumps([list(args), {}, {"callbacks": None, "errbacks": None, "chain": None, "chord": None}])
    return {
        "body": base64.b64encode(body.encode()).decode(),
        "content-encoding": "utf-8",
        "content-type": "application/json",
        "headers": {**headers, **changes},
        "properties": {
            "correlation_id": task_id, "reply_to": str(uuid4()), "delivery_mode": 2,
            "delivery_info": {"exchange": "", "routing_key": QUEUE}, "priority": 0, "body_encoding": "base64",
            "delivery_tag": str(uuid4()),
        },
    }  # fmt: skip


# --- storms


@dataclass(frozen=True, slots=True)
class Storm:
    """So many rounds of sending, waiting for a random moment and killing a worker."""

    rounds: int
    each: int
    """Tasks sent in a round."""
    lease: float
    pause: float
    """A worker lives at most so many seconds of a round."""
    workers: int = 1
    task: str = "work"
    lengths: tuple[float, ...] = (0.0, 0.0, 0.0, 0.01, 0.05, 0.3)
    options: tuple[str, ...] = ("-c", "2")

    def run(self, site: Site, seed: int, figures: dict[str, Any]) -> Findings:
        """Blow over `site`, let everything settle, and check. What was measured goes to `figures`."""
        chance = random.Random(seed)
        workers = [site.worker(*self.options) for _ in range(self.workers)]
        for number in range(self.rounds):
            for _ in range(self.each):
                site.send(self.task, chance.choice(self.lengths))
            time.sleep(chance.uniform(0.0, self.pause))
            victim = workers.pop(chance.randrange(len(workers)))
            site.kill(victim, parent_only=chance.random() < 0.3)
            # now and then the next one is killed while it is still starting
            workers.append(site.worker(*self.options, ready=None if chance.random() < 0.2 else 20.0))
            if number % 20 == 19:
                print(f"storm: round {number + 1}, {len(site.finished())} of {len(site.sent)} done")
        last = time.monotonic()
        if self.task != "early":
            site.wait_finished(self.lease + SPAN + 0.02 * len(site.sent) + 10)
        else:
            until(
                lambda: (left := site.counts()).ready + left.in_flight + left.scheduled == 0,
                self.lease + SPAN + 0.02 * len(site.sent) + 10, lambda: f"nothing left in it: {site.counts()}", 0.2,
            )  # fmt: skip
        findings = site.check()
        figures.update(
            rounds=self.rounds, tasks=len(site.sent), repeats=findings.repeats, missing=len(findings.missing),
            unexcused=len(findings.unexcused), settled=round(age(last), 1),
        )  # fmt: skip
        return findings


def environment_seed(short: int) -> int:
    """The seed of CELERIAC_SEED, else `short`; 0 means: any (and the test prints it)."""
    given = int(os.environ.get("CELERIAC_SEED", short))
    return given or random.SystemRandom().randrange(1, 1 << 31)
