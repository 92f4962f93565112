"""Children that run several calls at once: threads, asyncio, gevent, eventlet."""

from __future__ import annotations

import importlib.util
import os
import random
import signal
import time
from collections.abc import Iterator
from typing import Any

import pytest

from celeriac.model.outcome import Report
from tests.pools.rig import Child, Rig, rigs

SEATS = 4
KINDS = ["threads", "asyncio", "gevent", "eventlet"]


@pytest.fixture(scope="module", params=KINDS)
def child(request: pytest.FixtureRequest) -> Iterator[Child]:
    kind = request.param
    if kind in ("gevent", "eventlet") and importlib.util.find_spec(kind) is None:
        pytest.skip(f"{kind} is not installed")
    for rig in rigs(kind, SEATS):
        yield rig.child()


def test_every_kind_of_task(child: Child) -> None:
    """Plain functions and coroutines both run, and many of them."""
    frames = [child.call(name, n, 1) for n in range(100) for name in ("add", "aadd")]
    first = child.seq - 199
    child.send(*frames)
    assert [child.outcome(first + n) for n in range(200)] == [n // 2 + 1 for n in range(200)]
    assert child.slots.running() == []
    assert child.outcome(child.run("agather", 5)) == [0, 2, 4, 6, 8]


@pytest.mark.parametrize("task", ["nap", "anap"])
def test_calls_run_at_once(child: Child, task: str) -> None:
    """As many calls as there are seats wait together; one more waits for a seat."""
    began = time.monotonic()
    child.send(*(child.call(task, 0.3) for _ in range(SEATS + 1)))
    last = child.seq
    child.until_running(last - 1)
    assert len(child.slots.running()) == SEATS
    assert [child.outcome(last - n) for n in range(SEATS + 1)] == [0.3] * (SEATS + 1)
    assert 0.55 < time.monotonic() - began < 1.5


def test_quick_ones_pass_slow_ones(child: Child) -> None:
    """A quick call's result does not wait for a slow one."""
    slow = child.run("anap", 0.5)
    quick = child.run("add", 1, 1)
    began = time.monotonic()
    assert child.outcome(quick) == 2
    assert time.monotonic() - began < 0.3
    assert child.outcome(slow) == 0.5


def test_recalled_calls_are_skipped(child: Child) -> None:
    """Calls that wait for a seat can be taken back."""
    child.send(*(child.call("nap", 0.3) for _ in range(SEATS)))
    last = child.seq
    child.until_running(last)
    child.send(child.call("add", 1, 1))
    child.slots.recall(last + 1, last + 1)
    assert child.outcome(last + 1) == "skipped"
    for n in range(SEATS):
        assert child.outcome(last - n) == 0.3
    child.slots.recall(2**64 - 1, 0)


@pytest.mark.parametrize("task", ["slow_steps", "asoft"])
def test_a_soft_limit(child: Child, task: str) -> None:
    """CANCEL soft raises SoftTimeLimitExceeded in that call alone."""
    other = child.run("anap", 0.5)
    seq = child.run(task, 10)
    child.until_running(seq)
    child.cancel(seq, "soft")
    assert child.outcome(seq) == "caught"
    assert child.outcome(other) == 0.5


@pytest.mark.parametrize("task", ["slow_steps", "asoft"])
def test_a_hard_limit(child: Child, task: str) -> None:
    """CANCEL hard ends the call with TimeLimitExceeded, though it catches every Exception."""
    seq = child.run(task, 10, timelimit=(2, 1))
    child.until_running(seq)
    child.cancel(seq, "hard")
    report = child.outcome(seq)
    assert (report.state, report.result) == ("FAILURE", "TimeLimitExceeded(2)")
    assert child.outcome(child.run("add", 1, 1)) == 2


@pytest.mark.parametrize("task", ["slow_steps", "asoft"])
def test_terminate(child: Child, task: str) -> None:
    """CANCEL terminate ends one call as REVOKED."""
    seq = child.run(task, 10)
    child.until_running(seq)
    child.cancel(seq, "terminate")
    report = child.outcome(seq)
    assert (report.state, report.result) == ("REVOKED", "TaskRevokedError('terminated')")


def test_terminate_what_has_not_started(child: Child) -> None:
    """A call that waits for a seat is ended without being run."""
    child.send(*(child.call("nap", 0.3) for _ in range(SEATS)))
    last = child.seq
    child.until_running(last)
    seq = child.run("say", "never")
    time.sleep(0.05)
    child.cancel(seq, "terminate")
    assert child.outcome(seq).state == "REVOKED"
    for n in range(SEATS):
        assert child.outcome(last - n) == 0.3


def test_a_late_cancel_hits_nobody(child: Child) -> None:
    """A CANCEL for a call that has ended harms neither the next one nor the child."""
    for _ in range(30):
        seq = child.run("add", 1, 1)
        assert child.outcome(seq) == 2
        child.cancel(seq, "soft")
        child.cancel(seq, "terminate")
    assert child.outcome(child.run("aadd", 1, 1)) == 2
    assert child.outcome(child.run("agather", 3)) == [0, 2, 4]


@pytest.mark.parametrize("rounds", [50, pytest.param(1000, marks=pytest.mark.full)])
def test_cancels_at_any_moment(child: Child, rounds: int, request: pytest.FixtureRequest) -> None:
    """Whenever a CANCEL strikes (before, in or after its call, while the parent is asked), each call ends in one of
    the ways it may, and the child and its line stay whole."""
    if rounds > 50 and "full" not in str(request.config.option.markexpr):
        pytest.skip("the long form, run by `make prove`")
    dice = random.Random(rounds)
    made: list[tuple[str, tuple[Any, ...]]] = [
        ("nap", (0.002,)), ("anap", (0.002,)), ("ask", ("fetch", 7)), ("aask", ("fetch", 7)), ("add", (1, 1)),
        ("agather", (2,)),
    ]  # fmt: skip
    good = [0.002, 7, 2, [0, 2]]
    for _ in range(rounds):
        calls = [child.run(task, *args) for task, args in dice.choices(made, k=SEATS)]
        for seq in dice.sample(calls, SEATS):
            time.sleep(dice.random() * 0.001)
            child.cancel(seq, dice.choice(["soft", "hard", "terminate"]))
        for seq in calls:
            outcome = child.outcome(seq)
            if not isinstance(outcome, Report):
                assert outcome in good
            elif outcome.state == "FAILURE":
                assert "TimeLimitExceeded" in outcome.result
            else:
                assert outcome.state == "REVOKED"
    assert "INTERNAL ERROR" not in child.rig.output()
    assert child.slots.running() == []


def test_requests_from_many_calls(child: Child) -> None:
    """Tasks of every kind ask the parent at the same time."""
    frames = [child.call(name, "fetch", n) for n in range(30) for name in ("ask", "aask")]
    first = child.seq - 59
    child.send(*frames)
    assert [child.outcome(first + n) for n in range(60)] == [n // 2 for n in range(60)]


def test_contextvars_do_not_leak(child: Child) -> None:
    """What a call sets in a context variable is seen by no other call."""
    child.send(*(child.call(task, "dirty") for _ in range(10) for task in ("leak", "aleak")))
    assert {child.outcome(child.seq - n) for n in range(20)} == {"clean"}


def test_started_is_told(child: Child) -> None:
    """A STARTED document comes while the task runs."""
    seq = child.run("tracked", 0.2)
    assert child.started().state == "STARTED"
    assert child.outcome(seq) == 0.2


def test_signals_of_the_group(child: Child) -> None:
    """Signals for the whole group are the parent's business; SIGUSR1 means nothing here."""
    seq = child.run("anap", 0.2)
    child.until_running(seq)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
        os.kill(child.pid, number)
    assert child.outcome(seq) == 0.2


def test_stop_lets_finish(child: Child) -> None:
    """STOP: everything taken is run, then the child ends with 0."""
    other = child.rig.child()
    other.send(*(other.call(task, 0.1) for _ in range(6) for task in ("nap", "anap")))
    assert other.stop() == 0
    assert [other.outcome(other.seq - n) for n in range(12)] == [0.1] * 12


@pytest.mark.parametrize("task", ["ablock"])
def test_a_blocked_loop_is_named(task: str) -> None:
    """An asyncio child says which task blocks its loop, once."""
    with Rig("asyncio", SEATS) as rig:
        rig.catalogue()
        child = rig.child()
        assert child.outcome(child.run(task, 1.6)) == "blocked"
        lines = [line for line in rig.output().splitlines() if "blocked for" in line]
        assert len(lines) == 1
        assert "by task ablock" in lines[0]
        assert "sample.py" in lines[0]
