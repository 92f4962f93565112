"""A worker that is told to stop loses nothing and makes nobody wait."""

from __future__ import annotations

import signal
import time

import pytest

from tests.faults.conftest import MakeSite
from tests.faults.kit import Site, until

POOLS = pytest.mark.parametrize("pool", ["prefork", "threads", "asyncio"])


@POOLS
def test_a_warm_shutdown_finishes_what_runs(site: Site, pool: str) -> None:
    """TERM: what runs ends and is committed, what waits is given back at once, uncounted, and the exit code is 0."""
    worker = site.worker("-P", pool, "-c", "2", "--prefetch-multiplier", "4")
    for _ in range(10):
        site.send("work", 0.8)
    until(lambda: len(site.ledger.starts()) == 2, 20.0, "two run")
    worker.send(signal.SIGTERM)
    until(lambda: site.counts().in_flight <= 2, 1.0, lambda: f"the others are given back at once: {site.counts()}")
    assert worker.wait(10.0) == 0
    assert len(site.finished()) == len(site.ledger.starts()) == 2
    assert site.counts().ready == 8
    site.worker("-P", "threads", "-c", "8")
    site.wait_finished(10.0)
    assert all(len(starts) == 1 for starts in site.ledger.starts().values())


@POOLS
def test_a_cold_shutdown_gives_back_what_runs(site: Site, pool: str) -> None:
    """QUIT: what runs is ended and given back at once; another worker starts it without waiting for a lease, and it is
    not counted as lost."""
    worker = site.worker("-P", pool, "-c", "2")
    tasks = [site.send("first_long", "never") for _ in range(2)]
    until(lambda: len(site.ledger.starts()) == 2, 20.0, "both run")
    began = time.monotonic()
    worker.send(signal.SIGQUIT)
    assert worker.wait(10.0) >= 0
    assert time.monotonic() - began < 5.0
    assert site.counts().ready == 2
    site.worker("-c", "2")
    site.wait_finished(5.0)
    assert all(len(site.ledger.of("start", task)) == 2 for task in tasks)
    assert not site.dead()


def test_interrupting_twice_is_a_cold_shutdown(site: Site) -> None:
    """INT is a warm shutdown, a second one a cold one."""
    worker = site.worker("-c", "1")
    task = site.send("first_long", "never")
    site.wait_started(task)
    worker.send(signal.SIGINT)
    until(lambda: "Warm shutdown" in worker.output, 5.0, "warm")
    time.sleep(0.5)
    assert worker.children(), "it waits for its task"
    worker.send(signal.SIGINT)
    worker.wait(10.0)
    assert site.counts().ready == 1


def test_rolling_restarts_under_load(broker: str, make_site: MakeSite) -> None:
    """Workers are replaced one after the other under load: each task runs exactly once."""
    site = make_site(broker, lease=30.0)
    worker = site.worker("-c", "2")
    for _ in range(4):
        for _ in range(40):
            site.send("work", 0.02)
        following = site.worker("-c", "2")
        assert worker.terminate() == 0
        worker = following
    site.wait_finished(20.0)
    assert all(len(starts) == 1 for starts in site.ledger.starts().values())
    assert len(site.ledger.starts()) == 160
