"""Workers that die at a chosen step, inside this process: real workers on real stores, whose ports are wrapped. At the
n-th point one is dead: nothing that it still asks for is carried out, nothing is given back, its memory is gone."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar, cast
from uuid import uuid4

import msgspec

from celeriac import Celeriac, chord
from celeriac.app.program import Program
from celeriac.canvas import tree
from celeriac.model.message import Ack, Chord, Completion, Dead, Demand, Envelope, Receipt, Store, Turn, Verdict
from celeriac.ports import Broker, Consumer, ResultBackend
from celeriac.testing.history import Event, What
from celeriac.wire.task import read_head
from celeriac.worker.config import WorkerConfig
from celeriac.worker.documents import READY_STATES
from celeriac.worker.worker import Worker

LEASE = 1.5
SPAN = 5.0
"""Seconds beside the lease within which a workflow has to end."""
QUEUE = "celery"
T = TypeVar("T")


class Recorder:
    """Writes down what happens in one run, from all of its workers and its caller."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self._lock = threading.Lock()

    def add(self, what: What, id: str = "", worker: str = "", **more: Any) -> None:
        with self._lock:
            self.events.append(Event(what, id, worker, **more))

    def opened(self, chords: Sequence[Chord]) -> None:
        for each in chords:
            members = tuple(name.rpartition(":")[0] for name in each.members)
            for task_id, task in _firsts(json.loads(each.body)):
                self.add(What.OPENED, task_id, turn=turn_of(task, 0), members=members)

    def published(self, envelopes: Sequence[Envelope], worker: str = "") -> None:
        for envelope in envelopes:
            head = read_head(envelope.blob)
            self.add(What.PUBLISHED, head.id, worker, turn=turn_of(head.task, head.retries))

    def stored(self, store: Store, worker: str) -> None:
        if store.state not in READY_STATES or (store.guard and self.ends().get(store.id) == "SUCCESS"):
            return
        document = json.loads(store.document)
        result = document["result"]
        self.add(What.ENDED, store.id, worker, value=(store.state, result["exc_type"] if _failed(store) else result))

    def ends(self) -> dict[str, str]:
        """Task id -> the state that was stored last."""
        return {event.id: event.value[0] for event in self.events if event.what is What.ENDED}

    def runs(self, task_id: str) -> int:
        """How often a task has started."""
        return sum(event.what is What.STARTED and event.id == task_id for event in self.events)


def _firsts(body: dict[str, Any]) -> list[tuple[str, str]]:
    """Ids and names of the tasks with which a body begins."""
    match tree.kind(body):
        case tree.CHAIN:
            return _firsts(tree.tasks(body)[0])
        case tree.GROUP:
            return [first for member in tree.tasks(body) for first in _firsts(member)]
        case tree.CHORD:
            return _firsts(dict(tree.header(body)))
        case _:
            return [(tree.options(body)["task_id"], body["task"])]


def _failed(store: Store) -> bool:
    return store.state != "SUCCESS"


class Life:
    """One worker's: it ends at a point, the first being 0, or never (None)."""

    def __init__(self, name: str, recorder: Recorder, dies_at: int | None) -> None:
        self.name = name
        self.recorder = recorder
        self.points: list[str] = []
        """Those that were passed, and that at which it died."""
        self.dead = False
        self.died = asyncio.Event()
        self._dies_at = dies_at
        self._under_way = 0

    async def step(self, name: str, act: Callable[[], Awaitable[T]], tell: Callable[[T], None] = lambda _: None) -> T:
        """Carry out something that changes a store, between two points."""
        await self._point(f"before {name}")
        found = await self.act(act, tell)
        await self._point(f"after {name}")
        return found

    async def act(self, act: Callable[[], Awaitable[T]], tell: Callable[[T], None] = lambda _: None) -> T:
        """As `step`, without points: what only reads."""
        if self.dead:
            await asyncio.Event().wait()
        self._under_way += 1
        try:
            found = await act()
            tell(found)
        finally:
            self._under_way -= 1
        if self.dead:
            await asyncio.Event().wait()
        return found

    async def _point(self, name: str) -> None:
        if not self.dead:
            self.points.append(name)
            if len(self.points) - 1 != self._dies_at:
                return
            self.die()
        await asyncio.Event().wait()

    async def claimed(self) -> None:
        """A point behind a cycle that has only claimed."""
        await self._point("after claiming")

    def die(self) -> None:
        self.dead = True
        self.recorder.add(What.KILLED, worker=self.name)
        self.died.set()

    async def still(self) -> None:
        """Until what was under way when it died is over: it had been sent to a server."""
        end = time.monotonic() + SPAN
        while self._under_way and time.monotonic() < end:
            await asyncio.sleep(0.005)


class MortalConsumer:
    """A consumer whose worker may die."""

    def __init__(self, inner: Consumer, life: Life) -> None:
        self.inner = inner
        self._life = life
        self._names: dict[Receipt, tuple[str, str]] = {}

    @property
    def ahead(self) -> bool:
        return self.inner.ahead

    async def cycle(self, finished: Sequence[Completion], want: Demand) -> Turn:
        def tell(turn: Turn) -> None:
            for completion, verdict in zip(finished, turn.verdicts, strict=True):
                self._settled(completion, verdict)
            for delivery in turn.deliveries:
                head = read_head(delivery.blob)
                self._names[delivery.receipt] = head.id, turn_of(head.task, head.retries)
                self._tell(What.CLAIMED, delivery.receipt)

        if finished:
            return await self._life.step(f"cycle of {_shown(finished)}", lambda: self.inner.cycle(finished, want), tell)
        turn = await self._life.act(lambda: self.inner.cycle(finished, want), tell)
        if turn.deliveries:
            await self._life.claimed()
        return turn

    def _settled(self, completion: Completion, verdict: Verdict) -> None:
        recorder, name = self._life.recorder, self._life.name
        if not verdict.ok:
            return
        if completion.store is not None:
            recorder.stored(completion.store, name)
        recorder.opened(completion.chords)
        recorder.published(completion.publish, name)
        if completion.receipt is not None and not verdict.complete:
            over = isinstance(completion.settlement, Ack | Dead)
            self._tell(What.SETTLED if over else What.GIVEN_BACK, completion.receipt)

    def _tell(self, what: What, receipt: Receipt) -> None:
        task_id, turn = self._names[receipt]
        self._life.recorder.add(what, task_id, self._life.name, turn=turn)

    def __getattr__(self, name: str) -> Any:
        return _unless_dead(self.inner, name, self._life)


def turn_of(task: str, retries: int) -> str:
    """What tells the messages of one task id apart."""
    return f"{task}/{retries}"


def _shown(finished: Sequence[Completion]) -> str:
    found = []
    for each in finished:
        parts = {
            "store": each.store, "open": each.chords, "publish": each.publish, "count": each.parts, "fire": each.fire,
            "settle": each.receipt,
        }  # fmt: skip
        found.append("+".join(name for name, part in parts.items() if part) or "nothing")
    return ", ".join(found)


def _unless_dead(inner: Any, name: str, life: Life) -> Any:
    found = getattr(inner, name)
    if name == "close" or not asyncio.iscoroutinefunction(found):
        return found

    async def call(*args: Any, **options: Any) -> Any:
        return await life.act(lambda: found(*args, **options))

    return call


class MortalBroker:
    """A broker whose worker may die."""

    def __init__(self, inner: Broker, life: Life) -> None:
        self.inner = inner
        self.capabilities = msgspec.structs.replace(inner.capabilities, fanout=False)
        self._life = life

    async def publish(self, envelopes: Sequence[Envelope]) -> None:
        life = self._life
        await life.step(
            "publish", lambda: self.inner.publish(envelopes), lambda _: life.recorder.published(envelopes, life.name)
        )

    @asynccontextmanager
    async def subscribe(self, queues: Sequence[str], *, epoch: str, lease: float) -> AsyncIterator[Consumer]:
        async with self.inner.subscribe(queues, epoch=epoch, lease=lease) as consumer:
            yield cast(Consumer, MortalConsumer(consumer, self._life))

    async def same_server(self, backend: Any) -> bool:
        return await self.inner.same_server(backend.inner)

    def __getattr__(self, name: str) -> Any:
        return _unless_dead(self.inner, name, self._life)


class MortalBackend:
    """A result backend whose worker may die."""

    def __init__(self, inner: ResultBackend, life: Life) -> None:
        self.inner = inner
        self._life = life

    async def store(self, stores: Sequence[Store], deadline: float | None = None) -> Sequence[Verdict]:
        def tell(verdicts: Sequence[Verdict]) -> None:
            for store, verdict in zip(stores, verdicts, strict=True):
                if verdict.ok:
                    self._life.recorder.stored(store, self._life.name)

        return await self._life.step("store", lambda: self.inner.store(stores, deadline), tell)

    async def open_chords(self, chords: Sequence[Chord]) -> None:
        recorder = self._life.recorder
        await self._life.step("open", lambda: self.inner.open_chords(chords), lambda _: recorder.opened(chords))

    def __getattr__(self, name: str) -> Any:
        if name in ("count", "fire", "hold", "chord", "fetch"):
            found = getattr(self.inner, name)

            async def call(*args: Any) -> Any:
                return await self._life.step(name, lambda: found(*args))

            return call
        return _unless_dead(self.inner, name, self._life)


# --- tasks


def make_app(settings: dict[str, Any], life: Life | None = None) -> Celeriac:
    """The tasks of the workflows; with a life, as its worker runs them."""
    app = Celeriac("flows", set_as_current=False)
    app.conf.update(settings)

    def start(task: Any, **more: Any) -> int:
        """Tell of it. Which run of this task it is, the first being 0: later ones give something else."""
        assert life is not None
        before = life.recorder.runs(task.request.id)
        if not life.dead:
            turn = turn_of(task.name, task.request.retries)
            life.recorder.add(What.STARTED, task.request.id, life.name, turn=turn, **more)
        return before

    @app.task(bind=True, name="item")
    def item(self: Any, number: int) -> int:
        return number + 1000 * start(self)

    @app.task(bind=True, name="twice")
    def twice(self: Any, value: int) -> int:
        return value * 2 + 1000 * start(self)

    @app.task(bind=True, name="total")
    def total(self: Any, values: list[Any]) -> int:
        start(self, value=_flat(values))
        return sum(_flat(values))

    @app.task(bind=True, name="bad")
    def bad(self: Any) -> None:
        start(self)
        raise ValueError("bad")

    @app.task(bind=True, name="told")
    def told(self: Any, task_id: str) -> None:
        start(self, about=task_id)

    @app.task(bind=True, name="swap")
    def swap(self: Any) -> None:
        start(self)
        members = [self.app.signature("item", (number,)) for number in (1, 2)]
        self.replace(chord(members, self.app.signature("total"), app=self.app))

    return app


def _flat(value: Any) -> list[Any]:
    return [each for one in value for each in _flat(one)] if isinstance(value, list) else [value]


_lives: dict[str, tuple[Life, dict[str, Any]]] = {}


def load(spec: dict[str, Any]) -> Program:
    """The loader of the workers."""
    life, settings = _lives[spec["life"]]
    return Program(make_app(settings, life), {"hostname": life.name})


# --- one run


@dataclass(frozen=True, slots=True)
class Sent:
    """A workflow that is on its way."""

    wanted: dict[str, str]
    """Ids of results -> the states with which they have to end."""
    links: list[str] = field(default_factory=list)
    """Ids of tasks with an error link that is to be called if they fail."""


Flow = Callable[[Celeriac], Sent]


@dataclass(frozen=True, slots=True)
class Played:
    """What became of one run."""

    events: list[Event]
    sent: Sent
    points: list[list[str]]
    """Of each worker."""
    seconds: float
    """From the last death (or the beginning) until everything had ended."""
    died: int
    left: str
    """What had not ended in time; empty: nothing."""
    repeats: bool
    """The broker takes a message twice that is published twice."""


@contextmanager
def _registered(life: Life, settings: dict[str, Any]) -> Iterator[str]:
    key = uuid4().hex
    _lives[key] = life, settings
    try:
        yield key
    finally:
        del _lives[key]


async def play(settings: dict[str, Any], flow: Flow, deaths: Sequence[int] = (), lease: float = LEASE) -> Played:
    """Send a workflow, and let one worker after the other carry it on: each of them but the last dies at its point."""
    recorder = Recorder()
    caller = make_app(settings)
    caller.wiring._sender = cast(Any, _Telling(caller.sender, publish=recorder.published))
    caller.wiring._reader = cast(Any, _Telling(caller.reader, open_chords=recorder.opened))
    lives = [Life(f"w{n}", recorder, at) for n, at in enumerate([*deaths, None])]
    broker, backend = caller.broker(), caller.make_backend()
    assert backend is not None
    try:
        sent = flow(caller)
        began = time.monotonic()
        died, left = 0, "nothing was tried"
        for life in lives:
            with _registered(life, settings) as key:
                worker = Worker(_config(caller, life, key, lease))
                running = asyncio.create_task(worker.run())
                over = asyncio.create_task(_until_over(broker, backend, recorder, sent, lease))
                death = asyncio.create_task(life.died.wait())
                await asyncio.wait([running, over, death], return_when=asyncio.FIRST_COMPLETED)
                if life.dead:
                    await life.still()
                for task in (running, death) if over.done() else (running, death, over):
                    task.cancel()
                await asyncio.gather(running, death, over, return_exceptions=True)
            if not life.dead:
                left = over.result() if over.done() and not over.cancelled() else "the worker has ended"
                break
            died, began = died + 1, time.monotonic()
        documents = await backend.fetch([*recorder.ends()])
        for task_id, document in documents.items():
            state = json.loads(document)["status"]
            if recorder.ends()[task_id] != state:
                left += f" {task_id} stands as {state}, and was last stored as {recorder.ends()[task_id]}"
        return Played(
            recorder.events, sent, [life.points for life in lives], time.monotonic() - began, died, left,
            not broker.capabilities.lease,
        )  # fmt: skip
    finally:
        await broker.close()
        await backend.close()
        caller.close()


class _Telling:
    """A sender or reader that tells of what it has done."""

    def __init__(self, inner: Any, **tell: Callable[[Any], None]) -> None:
        self._inner = inner
        self._tell = tell

    def __getattr__(self, name: str) -> Any:
        found, tell = getattr(self._inner, name), self._tell.get(name)
        if tell is None:
            return found

        def call(first: Any, *args: Any) -> Any:
            answer = found(first, *args)
            tell(first)
            return answer

        return call


def _config(app: Celeriac, life: Life, key: str, lease: float) -> WorkerConfig:
    def backend() -> ResultBackend:
        inner = app.make_backend()
        assert inner is not None
        return cast(ResultBackend, MortalBackend(inner, life))

    return WorkerConfig(
        hostname=life.name, queues=(QUEUE,), make_broker=lambda: cast(Broker, MortalBroker(app.broker(), life)),
        make_backend=backend, loader=f"{__name__}:load", spec={"life": key}, pool="solo", in_process=True, lease=lease,
        remote_control=False, heartbeat=None,
    )  # fmt: skip


async def _until_over(broker: Broker, backend: ResultBackend, recorder: Recorder, sent: Sent, lease: float) -> str:
    """Until all has ended, no message is left and no chord is open. Gives what is left after the lease and SPAN. Where
    the machine was busy with something else, the worker stood still too: then it declares nobody dead for a lease."""
    last = time.monotonic()
    end = last + lease + SPAN
    while True:
        stood, last = time.monotonic() - last, time.monotonic()
        if stood > lease / 4:
            end += stood + lease
        ends = recorder.ends()
        published = [event.id for event in recorder.events if event.what is What.PUBLISHED]
        waiting = [one for one in (*sent.wanted, *published) if one not in ends]
        counts = await broker.count(QUEUE)
        chords = await backend.standing(0.0, 10)
        messages = counts.ready + counts.scheduled + counts.in_flight + counts.parked
        if not (waiting or messages or chords):
            return f"dead letters: {counts.dead}" if counts.dead else ""
        if time.monotonic() > end:
            return f"results {waiting}, {counts}, chords {[(c.group, c.size, len(c.counted), c.held) for c in chords]}"
        await asyncio.sleep(0.03)
