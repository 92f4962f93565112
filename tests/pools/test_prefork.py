"""A prefork child: one call at a time, in order."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest

from celeriac.errors import SoftTimeLimitExceeded
from celeriac.pools.frames import Down, Up, frame
from tests.pools.rig import ROOT, Child, Rig, gone, rigs
from tests.runtime.fakes import blob


@pytest.fixture(scope="module")
def rig() -> Iterator[Rig]:
    yield from rigs()


@pytest.fixture
def child(rig: Rig) -> Child:
    return rig.child()


@pytest.fixture(scope="module")
def shared(rig: Rig) -> Child:
    return rig.child()


def test_calls_run_in_order(shared: Child) -> None:
    """Many calls in one write come back in their order, each with its result."""
    frames = [shared.call("add", n, 1) for n in range(500)]
    first = shared.seq - 499
    shared.send(*frames)
    assert [shared.outcome(first + n) for n in range(500)] == [n + 1 for n in range(500)]
    assert shared.slots.running() == []


def test_a_slow_call_keeps_no_report_back(shared: Child) -> None:
    """What is finished is told before a slow call starts, though both came together."""
    frames = [shared.call("add", 1, 2), shared.call("nap", 0.5)]
    quick, slow = shared.seq - 1, shared.seq
    shared.send(*frames)
    began = time.monotonic()
    assert shared.outcome(quick) == 3
    assert time.monotonic() - began < 0.3
    assert shared.outcome(slow) == 0.5


def test_a_signal_fetches_reports(shared: Child) -> None:
    """A task that was always quick and is slow once: SIGUSR1 that aims at nobody makes the child tell what it has."""
    for _ in range(60):
        shared.outcome(shared.run("nap", 0))
    frames = [shared.call("add", 1, 2), shared.call("nap", 1)]
    quick, slow = shared.seq - 1, shared.seq
    shared.send(*frames)
    shared.until_running(slow)
    shared.slots.aim(0)
    began = time.monotonic()
    os.kill(shared.pid, signal.SIGUSR1)
    assert shared.outcome(quick) == 3
    assert time.monotonic() - began < 0.4
    assert shared.outcome(slow) == 1


def test_recalled_calls_are_skipped(shared: Child) -> None:
    """A call in the recalled range is not started and is said to be skipped."""
    frames = [shared.call("nap", 0.3), shared.call("add", 1, 1), shared.call("add", 2, 2)]
    seq = shared.seq
    shared.send(*frames)
    shared.until_running(seq - 2)
    shared.slots.recall(seq - 1, seq)
    assert shared.outcome(seq - 2) == 0.3
    assert shared.outcome(seq - 1) == "skipped"
    assert shared.outcome(seq) == "skipped"
    # what ran before is still on record, or the parent would take a finished call back with the others
    assert shared.slots.last_started() == seq - 2
    shared.slots.recall(2**64 - 1, 0)
    assert shared.outcome(shared.run("add", 3, 3)) == 6


def test_a_soft_limit_is_raised_in_the_task(shared: Child) -> None:
    """SIGUSR1 that aims at the running call raises SoftTimeLimitExceeded there, in a blocking call too."""
    seq = shared.run("soft", 10)
    shared.until_running(seq)
    shared.aim(seq)
    assert shared.outcome(seq) == "caught"
    seq = shared.run("nap", 10)
    shared.until_running(seq)
    shared.aim(seq)
    report = shared.outcome(seq)
    assert report.state == "FAILURE"
    assert SoftTimeLimitExceeded.__name__ in report.traceback


def test_a_soft_limit_for_another_call_hits_nobody(shared: Child) -> None:
    """A signal that arrives when its call has ended harms neither the next one nor the child."""
    seq = shared.run("nap", 0.2)
    shared.until_running(seq)
    shared.aim(seq - 1)
    assert shared.outcome(seq) == 0.2
    for _ in range(20):
        os.kill(shared.pid, signal.SIGUSR1)
        assert shared.outcome(shared.run("add", 1, 1)) == 2


def test_a_soft_limit_in_a_coroutine(shared: Child) -> None:
    """A coroutine task gets the exception where it waits, and its loop is good for the next one."""
    for _ in range(3):
        seq = shared.run("asoft", 10)
        shared.until_running(seq)
        shared.aim(seq)
        assert shared.outcome(seq) == "caught"
    assert shared.outcome(shared.run("aadd", 1, 2)) == 3
    assert shared.outcome(shared.run("agather", 5)) == [0, 2, 4, 6, 8]


def test_a_soft_limit_while_the_parent_is_asked(shared: Child) -> None:
    """A task that waits for the parent is interrupted, and the line stays good."""
    seq = shared.run("ask_softly", 10)
    shared.until_running(seq)
    shared.aim(seq)
    assert shared.outcome(seq) == "caught, then again"


def test_soft_limits_at_any_moment(shared: Child) -> None:
    """Wherever the signal strikes (in the task, before it, after it, while the parent is asked), each call ends in one
    of two ways, and the child and its line stay whole."""
    dice = random.Random(11)
    ends = {"ran": 0, "struck": 0}
    for number in range(400):
        task, args = (("nap", (0.001,)), ("ask", ("fetch", number)), ("anap", (0.001,)), ("add", (1, 1)))[number % 4]
        seq = shared.run(task, *args)
        shared.slots.aim(seq)
        time.sleep(dice.random() * 0.0015)
        os.kill(shared.pid, signal.SIGUSR1)
        outcome = shared.outcome(seq)
        if getattr(outcome, "state", "") == "FAILURE":
            assert "SoftTimeLimitExceeded" in outcome.result, outcome
            ends["struck"] += 1
        else:
            assert outcome == {"nap": 0.001, "ask": number, "anap": 0.001, "add": 2}[task]
            ends["ran"] += 1
    assert min(ends.values()) > 10, ends
    assert "INTERNAL ERROR" not in shared.rig.output()


def test_requests_are_answered(shared: Child) -> None:
    """Tasks reach the parent, blocking and from coroutines."""
    assert shared.outcome(shared.run("ask", "fetch", ["a"])) == ["a"]
    assert shared.outcome(shared.run("aask", "fetch", ["b"])) == ["b"]


def test_contextvars_do_not_leak(shared: Child) -> None:
    """What a task sets in a context variable is gone for the next one."""
    for task in ("leak", "aleak"):
        assert shared.outcome(shared.run(task, "dirty")) == "clean"
        assert shared.outcome(shared.run(task, "dirty")) == "clean"


def test_started_comes_before_the_task(shared: Child) -> None:
    """With track_started the document is there while the task runs."""
    seq = shared.run("tracked", 0.3)
    store = shared.started()
    assert store.state == "STARTED"
    assert msgspec.json.decode(store.document)["result"] == {"pid": shared.pid, "hostname": "w@test"}
    assert shared.outcome(seq) == 0.3


def test_ends_and_replays(shared: Child) -> None:
    """END and REPLAY frames are carried out in their order."""
    shared.seq += 2
    end = frame(Down.END, msgspec.msgpack.encode((shared.seq - 1, blob("add", 1, 2), "revoked", "")))
    done = b'{"status": "SUCCESS", "result": 3, "traceback": null, "children": [], "task_id": "x"}'
    link: list[Any] = [
        {"task": "add", "args": [4], "kwargs": {}, "options": {}, "subtask_type": None, "immutable": False}
    ]
    message = blob("add", 1, 2, callbacks=link)
    replay = frame(Down.REPLAY, msgspec.msgpack.encode((shared.seq, message, done)))
    shared.send(end, replay)
    assert shared.outcome(shared.seq - 1).state == "REVOKED"
    report = shared.outcome(shared.seq)
    assert (report.state, report.store, len(report.publish)) == ("SUCCESS", None, 1)


def test_what_a_child_sees_of_itself(rig: Rig, child: Child) -> None:
    """One thread, no input, only its own sockets; processes that a task starts or forks obey SIGTERM."""
    facts = child.outcome(child.run("facts", id="the-id"))
    assert facts["request"] == "the-id"
    assert facts["threads"] == ["MainThread"]
    assert facts["stdin"] == "/dev/null"
    assert facts["sockets"] == 2
    assert facts["forked"] == -signal.SIGTERM
    assert facts["started"] == -signal.SIGTERM
    assert facts["init"] == str(child.pid)


def test_signals_of_the_group_are_the_parents_business(shared: Child) -> None:
    """A child outlives what a terminal or a supervisor sends to the whole group."""
    seq = shared.run("nap", 0.3)
    shared.until_running(seq)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGQUIT, signal.SIGHUP):
        os.kill(shared.pid, number)
    assert shared.outcome(seq) == 0.3


def test_output_comes_at_once(rig: Rig, shared: Child) -> None:
    """Prints, raw writes and log lines of tasks are on stderr when the task has ended."""
    shared.outcome(shared.run("say", "hello"))
    shared.outcome(shared.run("log_it", "careful"))
    output = rig.output()
    assert "\nraw hello\n" in f"\n{output}"
    assert "hello\n" in output.replace("raw hello\n", "")
    assert "WARNING careful\n" in output


def test_stop_lets_finish(rig: Rig, child: Child) -> None:
    """STOP: what was taken is run, the shutdown hook is called, the exit code is 0."""
    seq = child.run("nap", 0.2)
    assert child.stop() == 0
    assert child.outcome(seq) == 0.2
    assert "sample shuts down" in rig.output()


def test_an_exit_is_told_with_its_status(rig: Rig, child: Child) -> None:
    """The parent hears of a crash with its status, and finds in the slots what ran."""
    seq = child.run("die", 7)
    _, index, pid, status = rig.hear("exited")
    assert (index, pid) == (child.index, child.pid)
    assert os.waitstatus_to_exitcode(status) == 7
    assert [found for found, _ in child.slots.running()] == [seq]


def test_sys_exit_is_a_failure_not_an_end(shared: Child) -> None:
    """A task that raises SystemExit fails; the child lives on."""
    report = shared.outcome(shared.run("leave", 3))
    assert report.state == "FAILURE"
    assert "SystemExit" in report.result
    assert shared.outcome(shared.run("pid")) == shared.pid


def test_a_busy_child_ends_with_the_template() -> None:
    """When the template is killed, its children end, whatever they do."""
    with Rig() as rig:
        rig.catalogue()
        child = rig.child()
        child.run("spin", 60)
        child.until_running(child.seq)
        rig.process.kill()
        assert gone(child.pid)


def test_everything_ends_with_the_control_socket() -> None:
    """When the parent is gone, the template ends with code 0 and its busy children with it."""
    with Rig() as rig:
        rig.catalogue()
        child = rig.child()
        child.run("nap", 60)
        child.until_running(child.seq)
        rig.control.close()
        assert rig.process.wait(5) == 0
        assert gone(child.pid)


def test_an_idle_child_ends_with_its_pipe(rig: Rig, child: Child) -> None:
    """A closed work pair ends an idle child."""
    child.close()
    assert rig.hear("exited")[3] == 0


def test_a_child_imports_no_event_loop() -> None:
    """What a prefork child imports does not pull asyncio in: every child would pay for it."""
    code = (
        "import sys, multiprocessing, celeriac.pools.template, celeriac.pools.prefork, celeriac.runtime.run;"
        "sys.exit('asyncio' in sys.modules)"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    assert subprocess.run([sys.executable, "-c", code], env=environment, check=False).returncode == 0


def test_frame_kinds() -> None:
    """The numbers that hot code keeps are those of the enumerations."""
    assert (int(Down.RUN), int(Up.DONE), int(Up.REPORT)) == (1, 1, 2)
