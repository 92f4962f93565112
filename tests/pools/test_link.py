"""The child's line to the parent."""

from __future__ import annotations

import asyncio
import os
import random
import threading
import time
from typing import Any

import pytest

from celeriac.errors import BackendStoreError, OperationalError, SoftTimeLimitExceeded
from celeriac.pools.frames import Ask
from celeriac.pools.link import Link
from celeriac.pools.shield import protect, unprotect
from tests.pools.parentside import SideParent, until


def echo(op: Ask, args: Any) -> Any:
    return args


def test_a_request_is_answered() -> None:
    """The answer of the parent is what `ask` returns."""
    parent = SideParent(echo)
    link = Link(parent.child)
    assert link.ask("fetch", ["a", b"\x00\xff", 3]) == ["a", b"\x00\xff", 3]
    assert parent.seen == [(Ask.FETCH, ["a", b"\x00\xff", 3])]
    parent.close()


def test_fifty_threads_and_two_loops_at_once() -> None:
    """Every asker gets its own answer, whoever reads it, in whatever order the answers come."""
    dice = random.Random(7)
    parent = SideParent(echo, delay=lambda n: dice.choice([0.0, 0.0, 0.001, 0.01]))
    link = Link(parent.child)
    wrong: list[Any] = []

    def ask(name: int) -> None:
        for i in range(20):
            if link.ask("fetch", [name, i], 20) != [name, i]:
                wrong.append((name, i))

    async def aask(name: int) -> None:
        for i in range(20):
            if await link.aask("fetch", [name, i], 20) != [name, i]:
                wrong.append((name, i))

    async def many(first: int) -> None:
        await asyncio.gather(*(aask(first + n) for n in range(20)))

    threads = [threading.Thread(target=ask, args=(n,)) for n in range(50)]
    threads += [threading.Thread(target=lambda n=n: asyncio.run(many(n))) for n in (100, 200)]
    began = time.monotonic()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
        assert not thread.is_alive()
    assert not wrong
    assert time.monotonic() - began < 15
    parent.close()


def test_a_leading_thread_wakes_when_a_loop_reads_its_answer() -> None:
    """A thread and a loop wait on one socket; neither sleeps over its own answer."""
    parent = SideParent(echo, delay=lambda n: 0.002)
    link = Link(parent.child)
    stop = threading.Event()

    async def busy() -> None:
        while not stop.is_set():
            await link.aask("fetch", "loop", 5)

    loop_thread = threading.Thread(target=lambda: asyncio.run(busy()))
    loop_thread.start()
    try:
        for i in range(200):
            began = time.monotonic()
            assert link.ask("fetch", i, 5) == i
            assert time.monotonic() - began < 1
    finally:
        stop.set()
        loop_thread.join(5)
    assert not loop_thread.is_alive()
    parent.close()


def test_a_blocking_ask_on_the_loops_own_thread() -> None:
    """A coroutine that calls the blocking form while others wait asynchronously does not deadlock."""
    parent = SideParent(echo, delay=lambda n: 0.005)
    link = Link(parent.child)

    async def main() -> None:
        others = [asyncio.create_task(link.aask("fetch", n, 5)) for n in range(5)]
        await asyncio.sleep(0)
        assert link.ask("fetch", "now", 5) == "now"
        assert await asyncio.gather(*others) == list(range(5))

    asyncio.run(main())
    parent.close()


def test_a_deadline_is_for_one_request() -> None:
    """One request is given up in time; the others, also one that waits behind it, get their answers."""
    parent = SideParent(echo, delay=lambda n: 60.0 if n == 1 else 0.2)
    link = Link(parent.child)
    results: list[Any] = []

    def follow() -> None:
        until(lambda: parent.seen)
        results.append(link.ask("fetch", "two", 5))

    follower = threading.Thread(target=follow)

    follower.start()
    began = time.monotonic()
    with pytest.raises(OperationalError, match=r"fetch.*0\.1 s"):
        link.ask("fetch", "one", 0.1)
    assert 0.09 < time.monotonic() - began < 1
    follower.join(5)
    assert results == ["two"]
    parent.close()


def test_an_async_deadline() -> None:
    """The coroutine form gives up in time too."""
    parent = SideParent(echo, delay=lambda n: 60.0)
    link = Link(parent.child)

    async def main() -> None:
        with pytest.raises(OperationalError, match="did not answer"):
            await link.aask("fetch", "one", 0.05)

    asyncio.run(main())
    parent.close()


def test_errors_keep_their_class() -> None:
    """An error of the parent is raised as the class that celeriac or Python knows, others as OperationalError."""

    def fail(op: Ask, args: Any) -> Any:
        raise {"store": BackendStoreError, "value": ValueError, "slow": TimeoutError, "odd": BlockingIOError}[args](
            args
        )

    parent = SideParent(fail)
    link = Link(parent.child)
    for args, cls in (("store", BackendStoreError), ("value", ValueError), ("slow", OperationalError)):
        with pytest.raises(cls, match=args):
            link.ask("fetch", args)
    with pytest.raises(OperationalError, match="BlockingIOError: odd"):
        link.ask("fetch", "odd")
    parent.close()


def test_a_lost_parent_fails_all() -> None:
    """When the parent is gone, everybody who waits hears it, and everybody who asks later."""
    parent = SideParent(echo, delay=lambda n: 60.0)
    link = Link(parent.child)
    heard: list[BaseException] = []

    def ask() -> None:
        try:
            link.ask("fetch", 1, 10)
        except OperationalError as error:
            heard.append(error)

    threads = [threading.Thread(target=ask) for _ in range(5)]
    for thread in threads:
        thread.start()
    until(lambda: len(parent.seen) == 5)
    parent.close()
    for thread in threads:
        thread.join(5)
    assert len(heard) == 5
    with pytest.raises(OperationalError, match="gone"):
        link.ask("fetch", 1)


def test_large_requests_in_both_directions() -> None:
    """Messages far above the socket's buffers travel while others ask."""
    parent = SideParent(echo)
    link = Link(parent.child)
    blob = os.urandom(3_000_000)
    results: list[bool] = []
    threads = [threading.Thread(target=lambda: results.append(link.ask("fetch", blob, 20) == blob)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for i in range(20):
        assert link.ask("fetch", i, 20) == i
    for thread in threads:
        thread.join(20)
    assert results == [True] * 4
    parent.close()


def test_a_fork_has_no_line() -> None:
    """A process that a task forked is told so, and harms nobody."""
    parent = SideParent(echo)
    link = Link(parent.child)
    pid = os.fork()
    if not pid:
        try:
            link.ask("fetch", 1, 1)
            os._exit(1)
        except OperationalError as error:
            os._exit(0 if "forked" in str(error) else 2)
    assert os.waitpid(pid, 0)[1] == 0
    assert link.ask("fetch", 1, 5) == 1
    parent.close()


def test_a_kept_interruption_strikes_a_waiting_thread() -> None:
    """A thread that can't be interrupted in its wait looks up and raises what was meant for it; the line stays good."""
    parent = SideParent(echo, delay=lambda n: 60.0 if n == 1 else 0.0)
    link = Link(parent.child)
    caught: list[BaseException] = []
    shields: list[Any] = []

    def work() -> None:
        shields.append(protect(sliced=True))
        try:
            link.ask("fetch", 1, 10)
        except SoftTimeLimitExceeded as error:
            caught.append(error)
        unprotect()

    thread = threading.Thread(target=work)
    thread.start()
    until(lambda: parent.seen and shields[0].depth)
    assert shields[0].strike(SoftTimeLimitExceeded()) is False
    thread.join(5)
    assert len(caught) == 1
    assert link.ask("fetch", 2, 5) == 2
    parent.close()
