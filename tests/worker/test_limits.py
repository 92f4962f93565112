"""Laws of rate limits: a bucket of one token per task, and parked messages in their order."""

from __future__ import annotations

import pytest

from celeriac.worker.limits import Buckets, per_second


@pytest.mark.parametrize(
    ("text", "rate"), [("10/s", 10), ("60/m", 1), ("3600/h", 1), ("5", 5), (2.5, 2.5), (None, 0), ("", 0), (0, 0)]
)
def test_rates(text: str | float | None, rate: float) -> None:
    """Celery's spellings of a rate."""
    assert per_second(text) == rate


@pytest.mark.parametrize("text", ["ten/s", "10/d", "/"])
def test_bad_rates(text: str) -> None:
    """Other text is refused."""
    with pytest.raises((ValueError, KeyError)):
        per_second(text)


def test_one_token_then_park() -> None:
    """The first runs, the next is parked until a token is there, then claimed from the parked list."""
    buckets = Buckets()
    assert buckets.take("t", "20/s")
    assert not buckets.take("t", "20/s")
    wait = buckets.next_token()
    assert wait is not None
    assert 0 < wait <= 0.05
    import time

    time.sleep(wait + 0.005)
    wanted = buckets.demand()
    assert wanted == {"t": 1}
    assert buckets.take("t", "20/s")
    buckets.claimed(wanted)
    assert not buckets.take("t", "20/s")


def test_nothing_parked_frees_the_token() -> None:
    """A claim that finds nothing parked gives the token back, so the next message runs at once."""
    buckets = Buckets()
    buckets.know("t", "1/h")
    wanted = buckets.demand()
    assert wanted == {"t": 1}
    buckets.claimed(wanted)
    assert buckets.demand() == {}
    assert buckets.take("t", "1/h")


def test_disabled() -> None:
    """worker_disable_rate_limits: everything runs."""
    buckets = Buckets(enabled=False)
    assert all(buckets.take("t", "1/h") for _ in range(10))
    assert buckets.demand() == {}
