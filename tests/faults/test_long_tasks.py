"""The lease belongs to the worker, not to the task: length does not matter, and who lost it overwrites nothing."""

from __future__ import annotations

import contextlib
from typing import Any

import psutil
import pytest

from tests.faults.conftest import MakeSite
from tests.faults.kit import forms, until
from tests.processes import Process
from tests.servers import redis_server


@forms("lease,seconds,held", (1.0, 3.5, 3.0), (5.0, 60.0, 15.0), timeout=200)
@pytest.mark.parametrize("pool", ["prefork", "threads", "asyncio", "solo"])
def test_a_task_longer_than_the_lease_runs_once(
    broker: str, make_site: MakeSite, pool: str, lease: float, seconds: float, held: float
) -> None:
    """A task that lasts many leases, and one that holds the GIL in C for several, run once, with a second worker
    standing by."""
    site = make_site(broker, lease=lease)
    options = () if pool == "solo" else ("-c", "2")
    site.worker("-P", pool, *options)
    first = site.send("awork" if pool == "asyncio" else "work", seconds)
    site.wait_started(first)
    second = site.send("hold", held)
    site.worker("-P", pool, *options)
    site.wait_finished(seconds + held + 20)
    assert {key: len(starts) for key, starts in site.ledger.starts().items()} == {first: 1, second: 1}
    assert {document["status"] for document in site.documents(site.sent).values()} == {"SUCCESS"}


def _freeze(worker: Process, whole: bool) -> list[psutil.Process]:
    frozen = [psutil.Process(worker.pid), *(worker.children() if whole else [])]
    for process in frozen:
        process.suspend()
    return frozen


@pytest.mark.parametrize("whole", [pytest.param(True, id="whole"), pytest.param(False, id="parent")])
@pytest.mark.parametrize(
    ("stores", "still_running"),
    [
        pytest.param("same", False, id="same-finished"),
        pytest.param("same", True, id="same-running"),
        pytest.param("second", False, id="second-finished"),
        pytest.param("second", True, id="second-running", marks=pytest.mark.full),
    ],
)
def test_a_stopped_worker_cannot_overwrite_a_result(
    broker: str, make_site: MakeSite, whole: bool, still_running: bool, stores: str, figures: dict[str, Any]
) -> None:
    """A worker is stopped past its lease; another one takes its task. When the first goes on, its result is refused:
    the same with results in a second server, and when its child had finished meanwhile."""
    with contextlib.ExitStack() as stack:
        backend = stack.enter_context(redis_server()).url if stores == "second" else None
        site = make_site(broker, backend, lease=1.0)
        doors = [site.ledger.path.with_name(f"door{number}") for number in range(2)]
        stale = site.worker("-c", "1")
        # Each worker's run waits for the file of its own name.
        task = site.send("gate_of_worker", str(site.ledger.path.parent))
        first = site.wait_started(task)
        frozen = _freeze(stale, whole)
        doors[0].touch()
        fresh = site.worker("-c", "1")
        second = site.wait_started(task, 1.0 + 10, times=2)
        assert second.worker == site.name_of(fresh)
        if not still_running:
            doors[1].touch()
            site.wait_finished(10.0)
        for process in frozen:
            process.resume()
        until(lambda: len(site.ledger.of("end", task)) >= (1 if still_running else 2), 10.0, "the stale one ends")
        until(lambda: "lease" in stale.output, 10.0, lambda: f"the stale one says so: {stale.output}")
        doors[1].touch()
        site.wait_finished(10.0)
        # both work on: what the stale one had to say has been said by then
        after = [site.send("work", 0.2) for _ in range(4)]
        site.wait_finished(20.0, after)
        assert site.documents([task])[task]["result"] == second.pid != first.pid
        assert not site.dead()

