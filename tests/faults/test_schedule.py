"""Tasks for later lie in the broker: a worker's memory does not grow, they can be counted, listed and cancelled, and
none is lost, early or late, whatever is killed meanwhile."""

from __future__ import annotations

import random
import time
from datetime import UTC, datetime
from typing import Any
from uuid import uuid4

import psutil

from celeriac.ports import Place
from celeriac.wire.task import read_head
from tests.faults.conftest import MakeSite
from tests.faults.kit import Site, forms, until
from tests.processes import Process


def _memory(worker: Process) -> int:
    """Bytes of resident memory of a worker's parent, without what it shares with files."""
    return int(psutil.Process(worker.pid).memory_full_info().uss)


@forms("count", 1_500, 100_000, timeout=900)
def test_tasks_of_an_hour_ahead_cost_a_worker_nothing(site: Site, count: int, figures: dict[str, Any]) -> None:
    """Many tasks with countdown=3600: the worker's memory grows by less than 10 MB; they are counted, listed and
    cancelled, and the queue goes on serving others."""
    worker = site.worker("-c", "1")
    for _ in range(20):
        site.send("work")
    site.wait_finished(20.0)
    before = _memory(worker)
    ids = [str(uuid4()) for _ in range(count)]
    for key in ids:
        site.app.send_task("tasks.work", (), task_id=key, countdown=3600)
    until(lambda: site.counts().scheduled == count, 30 + count / 1000, lambda: f"scheduled: {site.counts()}", 0.2)
    now = site.send("work")
    site.wait_finished(5.0, [now])
    grown = _memory(worker) - before
    figures.update(tasks=count, grown_mb=round(grown / 1e6, 1))
    assert grown < 10e6
    assert site.counts().ready == site.counts().in_flight == 0
    listed = {read_head(item.blob).id: item for item in site.items(Place.SCHEDULED)}
    assert listed.keys() == set(ids)
    assert all(3000 < (item.due or 0) - time.time() <= 3600 for item in listed.values())
    half = [listed[key].id for key in ids[: count // 2]]

    async def cancel(broker: Any) -> int:
        batches = [half[at : at + 1000] for at in range(0, len(half), 1000)]
        return sum([await broker.remove(Place.SCHEDULED, "celery", batch) for batch in batches])

    assert site.ask(cancel) == count // 2
    assert site.counts().scheduled == count - count // 2
    assert site.ledger.starts().keys() == set(site.sent)


@forms("count,first,span,lease", (300, 4.0, 4.5, 1.0), (100_000, 60.0, 60.0, 2.0), timeout=900)
def test_due_tasks_are_neither_lost_nor_early_nor_late(
    broker: str, make_site: MakeSite, count: int, first: float, span: float, lease: float, seed: int,
    figures: dict[str, Any],
) -> None:  # fmt: skip
    """Tasks due one after the other with a kill -9 between: none lost, none early, and outside the recovery p99 of the
    lateness is below 1 s."""
    site = make_site(broker, lease=lease)
    chance = random.Random(seed)
    workers = [site.worker("-c", "2") for _ in range(2)]
    began = time.time()
    begin = began + max(first, count / 500)  # all are sent before the first is due
    due = {str(uuid4()): begin + chance.uniform(0.0, span) for _ in range(count)}
    for key, when in due.items():
        site.send("work", id=key, eta=datetime.fromtimestamp(when, UTC))
    assert time.time() < begin, "sending took too long for this machine"
    time.sleep(max(0.0, begin + span * 0.4 - time.time()))
    killed = time.time()
    site.kill(workers[0])
    site.worker("-c", "2")
    recovered = time.time() + lease + 2.0
    site.wait_finished(span + lease + 30 + count / 1000)
    site.check().assert_clean(f"seed {seed}")
    late = []
    for key, starts in site.ledger.starts().items():
        assert starts[0].wall >= due[key] - 0.005, f"{key} ran {due[key] - starts[0].wall:.3f} s early"
        if not killed - 1.0 <= due[key] <= recovered:
            late.append(starts[0].wall - due[key])
    late.sort()
    p50, p99 = late[len(late) // 2], late[len(late) * 99 // 100]
    figures.update(tasks=count, measured=len(late), p50=round(p50, 3), p99=round(p99, 3))
    assert len(late) > count / 10
    assert p99 < 1.0


def test_retry_delays_survive_the_worker(broker: str, make_site: MakeSite) -> None:
    """A task that asked to be retried later is in the schedule: another worker runs it when it is due."""
    site = make_site(broker, lease=1.0)
    worker = site.worker("-c", "1")
    task = site.send("again", 3.0)
    first = site.wait_started(task)
    until(lambda: site.counts().scheduled == 1, 3.0, lambda: f"it is scheduled: {site.counts()}")
    site.kill(worker)
    site.worker("-c", "1")
    second = site.wait_started(task, 10.0, times=2)
    assert 2.9 <= second.wall - first.wall <= 5.0
    site.wait_finished(5.0)


def test_a_scheduled_task_that_is_revoked_never_runs(site: Site) -> None:
    """A durable revoke with no worker alive reaches a task that is scheduled and one that is ready."""
    later = site.send("work", countdown=1.0)
    ready = site.send("work")
    other = site.send("work")
    site.app.control.revoke([later, ready])
    site.worker("-c", "1")
    site.wait_finished(10.0)
    assert site.ledger.starts().keys() == {other}
    assert {site.documents([key])[key]["status"] for key in (later, ready)} == {"REVOKED"}
