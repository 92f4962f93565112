"""Demand, not push: a short task never waits behind a long one while somebody is free."""

from __future__ import annotations

import time
from itertools import pairwise
from typing import Any

import pytest

from tests.faults.conftest import MakeSite
from tests.faults.kit import forms, until


@forms("count,seconds", (12, 0.2), (100, 1.0), timeout=400)
@pytest.mark.parametrize(
    ("kind", "taught"),
    [
        pytest.param("sleeps", False, id="fresh"),
        pytest.param("sleeps", True, id="taught"),
        pytest.param("holds-the-gil", True, id="holds-the-gil"),
    ],
)
def test_no_short_task_waits_behind_a_long_one(
    broker: str, make_site: MakeSite, count: int, seconds: float, taught: bool, kind: str, figures: dict[str, Any]
) -> None:
    """One long task and many short ones of the same name on two workers of one seat: all short ones are done while the
    long one runs, in about the time that one worker needs. The same after many short ones taught the workers that this
    task is short, and when the long one holds the GIL in C."""
    site = make_site(broker, lease=30.0)
    name = "hold" if kind == "holds-the-gil" else "work"
    for _ in range(2):
        site.worker("-c", "1")
    if taught:
        for _ in range(200):
            site.send(name, 0.0)
        site.wait_finished(30.0)
    before = len(site.ledger.marks("end"))
    if name == "hold":
        seconds = max(1.0, seconds)  # C's sleep counts in seconds
        count = min(count, 60) if count > 12 else 4
    long = site.send(name, 3600.0)
    began = time.monotonic()
    short = [site.send(name, seconds) for _ in range(count)]
    until(lambda: len(site.ledger.marks("end")) == before + count, count * seconds * 1.5 + 10, lambda: (
        f"{len(site.ledger.marks('end')) - before} of {count} short tasks"
    ))  # fmt: skip
    took = time.monotonic() - began
    figures.update(seconds=round(took, 2), least=round(count * seconds, 2))
    assert took < count * seconds * 1.25 + 2.0
    starts = site.ledger.starts()
    assert len(starts[long]) == 1
    assert all(len(starts[key]) == 1 for key in short)
    gaps = sorted(starts[key][0].time for key in short)
    assert max(after - before for before, after in pairwise(gaps)) < seconds + 1.0


def test_a_free_seat_takes_from_a_busy_one(broker: str, make_site: MakeSite) -> None:
    """In one worker with two seats, too, nothing waits behind a long task."""
    site = make_site(broker, lease=30.0)
    site.worker("-c", "2")
    for _ in range(200):
        site.send("work", 0.0)
    site.wait_finished(30.0)
    site.send("work", 3600.0)
    short = [site.send("work", 0.1) for _ in range(20)]
    site.wait_finished(10.0, short)
