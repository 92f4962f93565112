"""Retries: how long to wait, and when to give up."""

from __future__ import annotations

import itertools
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from celeriac.errors import Ignore, Reject, Retry
from celeriac.model.retry import AutoRetry, backoff, backoff_factor, may_retry, pauses

retries = st.integers(0, 10_000)
factors = st.floats(0, 1e6)
maxima = st.one_of(st.none(), st.floats(0, 1e6))
unit = st.floats(0, 1, exclude_max=True)


@given(retries, st.one_of(st.none(), st.integers(0, 10_000)))
def test_retries_are_counted(done: int, allowed: int | None) -> None:
    """A task runs at most max_retries times more; None is for ever."""
    assert may_retry(done, allowed) is (allowed is None or done + 1 <= allowed)


def test_three_retries_are_three() -> None:
    """max_retries = 3 lets the task run four times in all; 0 never lets it retry."""
    assert [may_retry(done, 3) for done in range(5)] == [True, True, True, False, False]
    assert not may_retry(0, 0)


def test_the_delay_doubles_up_to_the_maximum() -> None:
    """The figures of Celery: 1, 2, 4 ... and no more than the maximum."""
    assert [backoff(done) for done in range(12)] == [1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 600, 600]


@pytest.mark.parametrize(("factor", "delay"), [(0.5, 4), (1.5, 12), (0, 0), (-1, 0)])
def test_fractions_count(factor: float, delay: float) -> None:
    """A factor need not be a whole number; it never leads to a negative delay."""
    assert backoff(3, factor) == delay


@given(retries, factors, maxima)
def test_the_delay_never_shrinks(done: int, factor: float, maximum: float | None) -> None:
    """Without jitter each delay is at least as long as the one before, and within the maximum."""
    delay = backoff(done, factor, maximum)
    assert 0 <= delay <= backoff(done + 1, factor, maximum)
    assert maximum is None or delay <= maximum


@given(retries, factors, st.floats(0, 1e6), unit)
def test_jitter_stays_within_the_delay(done: int, factor: float, maximum: float, number: float) -> None:
    """Jitter only makes a delay shorter, in proportion to the random number."""
    whole = backoff(done, factor, maximum)
    assert backoff(done, factor, maximum, lambda: number) == whole * number <= whole


def test_jitter_spreads_evenly() -> None:
    """With a real random source delays are spread over the whole of [0, delay]."""
    source = random.Random(7)
    found = [backoff(4, 1, 600, source.random) for _ in range(2000)]
    assert 0 <= min(found) < 0.5
    assert 15.5 < max(found) <= 16
    assert 7.5 < sum(found) / len(found) < 8.5


def test_a_huge_count_is_no_error() -> None:
    """A number of retries beyond any float is the maximum."""
    assert backoff(10**6) == 600


@pytest.mark.parametrize(
    ("setting", "factor"), [(False, None), (None, None), (0, None), (True, 1.0), (3, 3.0), (0.5, 0.5)]
)
def test_what_retry_backoff_means(setting: float | bool | None, factor: float | None) -> None:
    """False and 0 are no back-off, True is one second, a number is itself."""
    assert backoff_factor(setting) == factor


class TestAutoRetry:
    """autoretry_for and what belongs to it."""

    def test_applies_to_listed_errors(self) -> None:
        """Listed classes and their subclasses, but not those that are excepted."""
        policy = AutoRetry((OSError,), (FileNotFoundError,))
        assert policy.applies_to(ConnectionError())
        assert not policy.applies_to(FileNotFoundError())
        assert not policy.applies_to(ValueError())

    @pytest.mark.parametrize("exc", [Retry(), Ignore(), Reject()])
    def test_never_catches_what_a_task_says(self, exc: BaseException) -> None:
        """Retry, Ignore and Reject are no failures, even when every exception is listed."""
        assert not AutoRetry((Exception,)).applies_to(exc)

    def test_arguments(self) -> None:
        """retry_kwargs as given; a back-off becomes the countdown."""
        assert AutoRetry(retry_kwargs={"max_retries": 5}).arguments(2, lambda: 0.5) == {"max_retries": 5}
        policy = AutoRetry(retry_kwargs={"max_retries": 5, "countdown": 1}, retry_backoff=True)
        assert policy.arguments(3, lambda: 0.5) == {"max_retries": 5, "countdown": 4.0}
        exact = AutoRetry(retry_backoff=2, retry_backoff_max=10, retry_jitter=False)
        assert [exact.arguments(done, lambda: 0.5)["countdown"] for done in range(4)] == [2, 4, 8, 10]

    def test_retry_kwargs_stay_as_they_are(self) -> None:
        """The mapping belongs to the task class: it is copied, not changed."""
        given_kwargs: dict[str, object] = {}
        AutoRetry(retry_kwargs=given_kwargs, retry_backoff=True).arguments(0, lambda: 0.5)
        assert given_kwargs == {}


def test_pauses_of_a_publish_policy() -> None:
    """Celery's policy: at once, then 0.2 s more each time."""
    assert list(pauses(None)) == [0, 0.2, 0.4]
    assert list(pauses({"max_retries": 4, "interval_start": 0.5, "interval_step": 1, "interval_max": 2})) == [
        0.5, 1.5, 2, 2,
    ]  # fmt: skip
    assert list(pauses({"max_retries": 0})) == []
    assert list(itertools.islice(pauses({"max_retries": None}), 7))[-1] == 1
