"""The pool as the worker uses it: real children, and what becomes of calls when things break."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from celeriac.model.outcome import Catalogue, Report
from celeriac.pools import watch
from celeriac.pools.frames import Ask
from celeriac.pools.handle import Call
from celeriac.pools.processes import Pool
from tests.pools.rig import ROOT
from tests.runtime.fakes import blob


class Told:
    """Remembers what the pool says."""

    def __init__(self) -> None:
        self.done: dict[str, bytes | None] = {}
        self.reports: dict[str, Report] = {}
        self.lost: list[tuple[str, str]] = []
        self.surplus: list[str] = []
        self.repeated: list[str] = []
        self.broken: list[str] = []
        self.resubmits = False
        self.pool: Pool

    def on_done(self, call: Call, document: bytes | None, runtime: float) -> None:
        if call.owner in self.done:
            self.repeated.append(call.owner)
        self.done[call.owner] = document

    def on_report(self, call: Call, report: Report) -> None:
        if call.owner in self.reports:
            self.repeated.append(call.owner)
        self.reports[call.owner] = report

    def on_lost(self, call: Call, reason: str) -> None:
        self.lost.append((call.owner, reason))

    def on_surplus(self, calls: list[Call]) -> None:
        self.surplus += [c.owner for c in calls]
        if self.resubmits:
            # as the worker does, by way of the broker
            for one in calls:
                self.pool.submit(one)

    def on_started(self, call: Call) -> None: ...

    def on_store(self, payload: bytes) -> None: ...

    def on_events(self, events: list[dict[str, Any]]) -> None: ...

    def on_catalogue(self, catalogue: Catalogue) -> None: ...

    def on_progress(self) -> None:
        self.pool.feed()

    def on_broken(self, text: str) -> None:
        self.broken.append(text)

    async def ask(self, op: Ask, args: Any) -> Any:
        return [op, args]

    @property
    def ended(self) -> int:
        return len(self.done) + len(self.reports) + len(self.lost)


@contextlib.asynccontextmanager
async def running(
    kind: str = "prefork", processes: int = 2, seats: int = 1, spec: dict[str, Any] | None = None, **options: Any
) -> AsyncIterator[Told]:
    os.environ["PYTHONPATH"] = f"{ROOT}:{ROOT / 'src'}"
    told = Told()
    told.pool = Pool(
        told, kind=kind, processes=processes, seats=seats, loader="tests.pools.sample:load", spec=spec or {},
        **options
    )
    await told.pool.start()
    try:
        yield told
    finally:
        await told.pool.stop(0)
    assert not told.repeated


async def until(condition: Callable[[], Any], seconds: float = 15.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not come about"
        await asyncio.sleep(0.005)


def call(task: str, *args: Any, owner: str = "", **fields: Any) -> Call:
    return Call(blob(task, *args), task, owner or task, **fields)


def submit(told: Told, *calls: Call) -> None:
    for one in calls:
        told.pool.submit(one)
    told.pool.feed()


@pytest.mark.parametrize(("kind", "processes", "seats"), [("prefork", 2, 1), ("threads", 1, 4), ("asyncio", 1, 50)])
def test_many_calls_each_once(kind: str, processes: int, seats: int) -> None:
    """Each call ends exactly once, whatever runs it."""

    async def main() -> None:
        async with running(kind, processes, seats) as told:
            told.resubmits = True
            submit(told, *[call("add", i, i, owner=f"c{i}") for i in range(2000)])
            await until(lambda: told.ended == 2000)
            assert len(told.done) == 2000
            document = told.done["c21"]
            assert document is not None
            assert b'"result": 42' in document

    asyncio.run(main())


def test_killed_child_is_attributed_and_replaced() -> None:
    """The call that ran is told as lost, with the signal; the others run on; a new child takes the place."""

    async def main() -> None:
        async with running(processes=1) as told:
            submit(told, call("die", 9, owner="bad"), *[call("add", 1, 1, owner=f"n{i}") for i in range(20)])
            await until(lambda: len(told.done) == 20)
            assert told.lost == [("bad", "exitcode 9")]
            began = time.monotonic()
            submit(told, call("nap", 30, owner="nap"))
            await until(lambda: told.pool.running())
            os.kill(told.pool.running()[0][2], signal.SIGKILL)
            await until(lambda: len(told.lost) == 2)
            assert told.lost[1] == ("nap", "signal 9 (SIGKILL)")
            submit(told, call("add", 2, 2, owner="after"))
            await until(lambda: "after" in told.done)
            assert time.monotonic() - began < 2.0

    asyncio.run(main())


@pytest.mark.parametrize(("kind", "seats"), [("prefork", 1), ("threads", 4), ("asyncio", 4)])
def test_time_limits_in_every_pool(kind: str, seats: int) -> None:
    """A soft limit can be caught; a hard limit ends the call within a second and a half."""

    async def main() -> None:
        async with running(kind, 2 if seats == 1 else 1, seats) as told:
            slow = "asoft" if kind == "asyncio" else "slow_steps"
            nap = "anap" if kind == "asyncio" else "nap" if kind == "prefork" else "slow_steps"
            submit(told, call(slow, 30.0, owner="soft", soft=0.2), call(nap, 20.0, owner="hard", hard=0.3))
            await until(lambda: told.ended >= 2, 5.0)
            assert b"caught" in (told.done.get("soft") or b"")
            assert told.reports["hard"].state == "FAILURE"
            assert "TimeLimitExceeded" in told.reports["hard"].result
            submit(told, call("add", 1, 1, owner="after"))
            await until(lambda: "after" in told.done)

    asyncio.run(main())


def test_hard_limit_that_can_not_be_cancelled_spares_neighbours() -> None:
    """A thread that hangs in C is given up with its child; neighbours get their grace and end."""

    async def main() -> None:
        async with running("threads", 1, 3) as told:
            submit(told, call("nap", 60.0, owner="hangs", hard=0.2), call("slow_steps", 3.0, owner="neighbour"))
            await until(lambda: "hangs" in told.reports, 6.0)
            submit(told, call("add", 1, 1, owner="next"))
            await until(lambda: "next" in told.done, 6.0)
            await until(lambda: "neighbour" in told.done, 6.0)
            assert told.lost == []

    asyncio.run(main())


def test_neighbours_of_a_killer_are_suspects_and_run_alone() -> None:
    """In a child of many seats all that ran are told as lost; run alone, only the killer is lost again."""

    async def main() -> None:
        async with running("threads", 1, 8) as told:
            names = [f"n{i}" for i in range(5)]
            submit(told, *[call("nap", 0.5, owner=n) for n in names])
            await until(lambda: len(told.pool.running()) == 5)
            submit(told, call("die", 1, owner="killer"))
            await until(lambda: len(told.lost) == 6)
            assert {owner for owner, _ in told.lost} == {*names, "killer"}
            submit(
                told,
                call("die", 1, owner="killer", alone=True),
                *[call("nap", 0.1, owner=n, alone=True) for n in names],
            )
            await until(lambda: len(told.done) == 5 and len(told.lost) == 7)
            assert told.lost[-1][0] == "killer"

    asyncio.run(main())


def test_short_calls_never_wait_behind_a_long_one() -> None:
    """A child that has learned that a task is short gets it ahead; when one is long, the rest goes elsewhere."""

    async def main() -> None:
        async with running(processes=2) as told:
            submit(told, *[call("nap", 0.0, owner=f"warm{i}") for i in range(300)])
            await until(lambda: len(told.done) == 300)
            submit(told, call("nap", 3.0, owner="long"), *[call("nap", 0.0, owner=f"s{i}") for i in range(200)])
            began = time.monotonic()
            await until(lambda: len(told.done) + len(told.surplus) == 500, 2.5)
            assert time.monotonic() - began < 1.0
            assert told.surplus == []

    asyncio.run(main())


def test_unstarted_calls_are_given_back_when_all_are_stuck() -> None:
    """When every child sits on a long call, what waits is offered to other workers."""

    async def main() -> None:
        async with running(processes=1) as told:
            submit(told, *[call("nap", 0.0, owner=f"warm{i}") for i in range(100)])
            await until(lambda: len(told.done) == 100)
            submit(told, call("nap", 3.0, owner="long"), *[call("nap", 0.0, owner=f"s{i}") for i in range(50)])
            await until(lambda: len(told.surplus) + len(told.done) == 150, 1.5)
            assert len(told.surplus) == 50

    asyncio.run(main())


def test_terminate_ends_one_call() -> None:
    """A terminated call ends as REVOKED; others are not touched."""

    async def main() -> None:
        async with running(processes=2) as told:
            submit(told, call("nap", 30.0, owner="x"), call("nap", 0.5, owner="y"))
            await until(lambda: len(told.pool.running()) == 2)
            assert told.pool.cancel(lambda c: c.owner == "x", "terminated", "SIGTERM", signal.SIGTERM) == 1
            await until(lambda: "x" in told.reports and "y" in told.done)
            assert told.reports["x"].state == "REVOKED"

    asyncio.run(main())


def test_lost_template_is_replaced() -> None:
    """kill -9 of the template takes the children along; calls run again, uncounted."""

    async def main() -> None:
        async with running(processes=2) as told:
            submit(told, call("nap", 0.3, owner="a"), call("nap", 0.3, owner="b"))
            await until(lambda: len(told.pool.running()) == 2)
            os.kill(told.pool._forge.pid, signal.SIGKILL)
            await until(lambda: len(told.done) == 2)
            assert told.lost == []

    asyncio.run(main())


def test_requests_of_tasks_are_answered() -> None:
    """What a running task asks for reaches the listener, and the answer the task."""

    async def main() -> None:
        async with running(processes=1) as told:
            submit(told, call("ask", "fetch", ["i"], owner="a"))
            await until(lambda: "a" in told.done)
            assert b'["i"]' in (told.done["a"] or b"")

    asyncio.run(main())


def test_child_is_replaced_after_so_many_calls() -> None:
    """max_tasks: a fresh process after so many calls, and no call lost on the way."""

    async def main() -> None:
        async with running(processes=1, max_tasks=5) as told:
            for i in range(20):
                submit(told, call("pid", owner=f"p{i}"))
                await until(lambda i=i: f"p{i}" in told.done)  # type: ignore[misc]
            assert len(set(told.done.values()) - {None}) >= 4

    asyncio.run(main())


def test_app_that_can_not_be_imported() -> None:
    """The text of the import error reaches whoever starts the worker."""
    from celeriac.errors import ImproperlyConfigured

    async def main() -> None:
        pool = Pool(Told(), kind="prefork", processes=1, seats=1, loader="no_such_module:load", spec={})
        with pytest.raises(ImproperlyConfigured, match="no_such_module"):
            await pool.start()
        await pool.stop(0)

    asyncio.run(main())


def test_calls_that_come_during_a_recall_run_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A child that goes on while calls are taken back from it gets new ones only when that is done: none of them is
    taken for one of those, and run twice."""
    monkeypatch.setattr(watch, "RECALL_SECONDS", 0.15)
    path = tmp_path / "notes"

    def note(name: str, seconds: float = 0.0) -> Call:
        return call("note", str(path), name, seconds, owner=name)

    async def main() -> None:
        async with running(processes=1) as told:
            told.resubmits = True
            submit(told, *[note(f"taught{i}") for i in range(100)])
            await until(lambda: told.ended == 100)
            submit(told, note("long", 0.1), *[note(f"behind{i}") for i in range(3)])
            await until(lambda: any(child.recalling for child in told.pool.children.values()))
            await until(lambda: "long" in told.done)
            assert any(child.recalling for child in told.pool.children.values())
            submit(told, note("next", 0.2), *[note(f"then{i}") for i in range(3)])
            await until(lambda: told.ended == 108)

    asyncio.run(main())
    names = path.read_text().split()
    assert sorted(names) == sorted(set(names))


def test_a_child_that_is_not_ready_in_time_is_replaced(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A child that hangs while it starts is killed after the limit, also when nothing else runs; another takes its
    place."""

    async def main() -> None:
        spec = {"slow_once": str(tmp_path / "slow")}
        async with running(processes=1, spec=spec, start_limit=0.5) as told:
            await until(lambda: any(child.ready for child in told.pool.children.values()))
            submit(told, call("add", 1, 2))
            await until(lambda: "add" in told.done)
            assert not told.broken

    asyncio.run(main())
    assert [line for line in caplog.messages if "was not ready after 0.5 s" in line] != []
