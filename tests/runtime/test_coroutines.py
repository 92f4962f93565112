"""Coroutine tasks: on a thread of their own and many on one loop."""

from __future__ import annotations

import asyncio
import threading
import time
from contextvars import ContextVar
from typing import Any

import pytest

from celeriac.errors import SoftTimeLimitExceeded
from celeriac.model.outcome import Report
from celeriac.runtime.context import current
from celeriac.runtime.job import Job
from celeriac.runtime.limits import exception_of
from celeriac.runtime.run import Ran, Runner
from tests.runtime.fakes import FakeTask, blob, document, runner

VALUE: ContextVar[str] = ContextVar("VALUE", default="clean")


async def add(x: int, y: int) -> int:
    await asyncio.sleep(0)
    return x + y


async def nap(seconds: float) -> str:
    await asyncio.sleep(seconds)
    return "slept"


def opened(made: Runner, data: bytes, seq: int = 1) -> Job:
    job = made.open(seq, data)
    assert isinstance(job, Job)
    return job


async def interrupted(made: Runner, data: bytes, how: str, after: float = 0.02) -> Ran:
    job = opened(made, data)

    def strike() -> None:
        if job.drive is not None:
            job.drive.interrupt(exception_of(how))

    asyncio.get_running_loop().call_later(after, strike)
    return await made.acall(job)


def test_on_a_thread() -> None:
    """A coroutine task runs in an event loop that is kept for the next one."""
    loops: list[Any] = []

    async def task() -> str:
        loops.append(asyncio.get_running_loop())
        request = current.get()
        assert request is not None
        return str(request.id)

    made = runner(task)
    assert document(made.run(1, blob("task", id="a")))["result"] == "a"
    assert document(made.run(2, blob("task", id="b")))["result"] == "b"
    assert loops[0] is loops[1]
    made.close()


def test_a_plain_function_that_returns_a_coroutine() -> None:
    """What a wrapper hides is awaited all the same."""
    task = FakeTask(lambda x: add(x, 1), "t")
    made = runner(task)
    assert document(made.run(1, blob("t", 1)))["result"] == 2
    made.close()


def test_failures_of_coroutines() -> None:
    """The traceback begins with the user's code."""

    async def boom() -> None:
        await asyncio.sleep(0)
        raise KeyError("x")

    made = runner(boom)
    ran = made.run(1, blob("boom"))
    assert isinstance(ran, Report)
    assert ran.state == "FAILURE"
    assert ran.traceback.splitlines()[1].strip().startswith(f'File "{__file__}"')
    made.close()


def test_many_on_one_loop() -> None:
    """Calls overlap; each has its own request and context variables."""

    async def task(n: int) -> list[Any]:
        before = VALUE.get()
        VALUE.set(str(n))
        await asyncio.sleep(0.01)
        request = current.get()
        assert request is not None
        inner = await asyncio.create_task(asyncio.sleep(0, VALUE.get()))
        return [before, VALUE.get(), request.id, inner]

    made = runner(task)

    async def main() -> list[Ran]:
        return await asyncio.gather(*(made.arun(n, blob("task", n, id=f"i{n}")) for n in range(50)))

    began = time.monotonic()
    results = [document(r)["result"] for r in asyncio.run(main())]
    assert results == [["clean", str(n), f"i{n}", str(n)] for n in range(50)]
    assert time.monotonic() - began < 1


def test_structured_concurrency_works() -> None:
    """Timeouts, task groups and cancellation scopes see an asyncio task as ever."""

    async def task() -> list[Any]:
        found: list[Any] = []
        try:
            async with asyncio.timeout(0.01):
                await asyncio.sleep(5)
        except TimeoutError:
            found.append("timeout")
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(nap(5))
                group.create_task(add(1, "x"))  # type: ignore[arg-type]
        except* TypeError:
            found.append("group")
        found.append(await asyncio.wait_for(add(1, 2), 1))
        return found

    made = runner(task)
    assert document(made.run(1, blob("task")))["result"] == ["timeout", "group", 3]
    assert document(asyncio.run(made.arun(1, blob("task"))))["result"] == ["timeout", "group", 3]
    made.close()


def test_a_soft_limit_is_thrown_where_it_waits() -> None:
    """The coroutine sees SoftTimeLimitExceeded, not a cancellation, and may go on waiting afterwards."""

    async def task() -> list[Any]:
        try:
            await asyncio.sleep(5)
        except SoftTimeLimitExceeded:
            async with asyncio.timeout(1):
                await asyncio.sleep(0.01)
            mine = asyncio.current_task()
            assert mine is not None
            return ["caught", mine.cancelling()]
        return []

    made = runner(task)
    assert document(asyncio.run(interrupted(made, blob("task"), "soft")))["result"] == ["caught", 0]


@pytest.mark.parametrize(("how", "state"), [("soft", "FAILURE"), ("hard", "FAILURE"), ("terminate", "REVOKED")])
def test_interruptions_that_nobody_catches(how: str, state: str) -> None:
    """Each has its outcome, and `except Exception` does not stop the hard ones."""

    async def task() -> None:
        try:
            await asyncio.sleep(5)
        except Exception:
            if how == "soft":
                raise

    ran = asyncio.run(interrupted(runner(task), blob("task", timelimit=(9, 8)), how))
    assert isinstance(ran, Report)
    assert ran.state == state
    assert ("TimeLimitExceeded(9)" in ran.result) == (how == "hard")


def test_an_interruption_inside_a_timeout() -> None:
    """`asyncio.timeout` and a task group don't take the limit for their own cancellation."""

    async def task() -> str:
        try:
            async with asyncio.timeout(5), asyncio.TaskGroup() as group:
                group.create_task(asyncio.sleep(0))
                await asyncio.sleep(5)
        except* SoftTimeLimitExceeded:
            pass
        return "caught"

    assert document(asyncio.run(interrupted(runner(task), blob("task"), "soft")))["result"] == "caught"


@pytest.mark.parametrize(("how", "result"), [("hard", "TimeLimitExceeded(9)"), ("terminate", "TaskRevokedError")])
def test_a_task_group_does_not_hide_who_ended_the_call(how: str, result: str) -> None:
    """What strikes inside a group comes out wrapped."""

    async def task() -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(asyncio.sleep(5))
            await asyncio.sleep(5)

    ran = asyncio.run(interrupted(runner(task), blob("task", timelimit=(9, 8)), how))
    assert isinstance(ran, Report)
    assert ran.result.startswith(result)


def test_an_interruption_that_comes_too_late() -> None:
    """The call has its result; whoever awaited it is not cancelled."""
    made = runner(FakeTask(nap, "nap"))

    async def main() -> list[Any]:
        found = []
        for _ in range(50):
            job = opened(made, blob("nap", 0))
            task = asyncio.ensure_future(made.acall(job))
            await asyncio.sleep(0)
            if job.drive is not None:
                job.drive.interrupt(exception_of("soft"))
            ran = await task
            found.append("late" if isinstance(ran, tuple) else ran.state)
            await asyncio.sleep(0)
        return found

    assert set(asyncio.run(main())) <= {"late", "FAILURE"}


def test_a_task_that_cancels_itself_fails() -> None:
    """A CancelledError of the task's own is a failure, and the loop goes on."""

    async def task() -> None:
        mine = asyncio.current_task()
        assert mine is not None
        mine.cancel()
        await asyncio.sleep(1)

    made = runner(task, add)
    for _ in range(2):
        ran = made.run(1, blob("task"))
        assert isinstance(ran, Report)
        assert ran.state == "FAILURE"
    assert document(made.run(1, blob("add", 1, 2)))["result"] == 3
    made.close()


def test_interrupt_from_another_thread() -> None:
    """`Runner.interrupt` reaches a coroutine that waits on another thread's loop, and only the call that is meant."""
    made = runner(FakeTask(nap, "nap"))
    found: list[Ran] = []
    thread = threading.Thread(target=lambda: found.append(made.run(7, blob("nap", 5))))
    thread.start()
    end = time.monotonic() + 5
    while made.interrupt(8, SoftTimeLimitExceeded()) or not made.interrupt(7, SoftTimeLimitExceeded()):
        assert time.monotonic() < end
        time.sleep(0.005)
    thread.join(5)
    (ran,) = found
    assert isinstance(ran, Report)
    assert "SoftTimeLimitExceeded" in ran.result
    made.close()


def test_handlers_of_coroutine_tasks_may_be_coroutines() -> None:
    """before_start is awaited before the task, the others before the report is given."""
    heard: list[str] = []

    def handler(name: str) -> Any:
        async def note(*args: Any) -> None:
            await asyncio.sleep(0)
            heard.append(name)

        return note

    names = ("before_start", "on_success", "after_return")
    task = FakeTask(add, **{name: handler(name) for name in names})
    asyncio.run(runner(task).arun(1, blob("add", 1, 2)))
    assert heard == list(names)
