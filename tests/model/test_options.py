"""Options of a call: who wins, and what times mean."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from celeriac.model.options import check_arguments, check_limits, check_priority, due, expiry, merge

NOW = datetime(2026, 11, 22, 7, 44, 27, 621389, tzinfo=UTC)
options = st.dictionaries(st.sampled_from("abcd"), st.one_of(st.none(), st.integers(0, 9)))


@given(options, options, options)
def test_the_call_wins(defaults: dict[str, Any], task: dict[str, Any], call: dict[str, Any]) -> None:
    """The call's value goes before the task's, that before the default; a None of the call brings the default back."""
    found = merge(defaults, task, call)
    for key in "abcd":
        said = call[key] if key in call else task.get(key)
        expected = said if said is not None else defaults.get(key)
        assert found.get(key) == expected


def test_merging_changes_nothing() -> None:
    """The three mappings belong to others."""
    task = {"queue": "a"}
    merge({}, task, {"queue": "b"})["queue"] = "c"
    assert task == {"queue": "a"}


@pytest.mark.parametrize("args", ["ab", 5, {1: 2}, (x for x in "ab"), {1, 2}])
def test_args_are_a_list_or_tuple(args: Any) -> None:
    """A text as args would be taken for its letters; it is refused as Celery refuses it."""
    with pytest.raises(TypeError, match="args must be a list or tuple"):
        check_arguments(args, None)


@pytest.mark.parametrize("kwargs", ["ab", 5, [("a", 1)]])
def test_kwargs_are_a_mapping(kwargs: Any) -> None:
    """Anything but a mapping is refused."""
    with pytest.raises(TypeError, match="kwargs must be a mapping"):
        check_arguments((), kwargs)


def test_no_arguments() -> None:
    """None is no arguments."""
    assert check_arguments(None, None) == ((), {})
    assert check_arguments([1], {"a": 2}) == ([1], {"a": 2})


def test_limits() -> None:
    """A soft limit behind the hard one could never be seen; 0 and None are no limit."""
    with pytest.raises(ValueError, match=r"soft_time_limit \(5 s\) must not be greater"):
        check_limits(1, 5)
    for hard, soft in ((5, 1), (5, 5), (None, 5), (0, 5), (5, None)):
        check_limits(hard, soft)


def test_priority() -> None:
    """A priority is a whole number."""
    assert check_priority(3) == 3
    assert check_priority(None) is None
    for wrong in ("3", 3.5, True):
        with pytest.raises(TypeError, match="priority must be an int"):
            check_priority(wrong)


class TestDue:
    """When a call runs."""

    def test_at_once(self) -> None:
        """Neither countdown nor eta, or a countdown of 0."""
        assert due(None, None, NOW) is None
        assert due(0, None, NOW) is None

    @pytest.mark.parametrize("countdown", [10, 1.5, -10, timedelta(seconds=3)])
    def test_countdown_counts_from_now(self, countdown: Any) -> None:
        """A countdown is added to now, in now's zone, and goes before an eta."""
        delta = countdown if isinstance(countdown, timedelta) else timedelta(seconds=countdown)
        assert due(countdown, datetime(2030, 1, 1), NOW) == NOW + delta
        tokyo = NOW.astimezone(ZoneInfo("Asia/Tokyo"))
        found = due(countdown, None, tokyo)
        assert found is not None
        assert found.utcoffset() == timedelta(hours=9)

    def test_the_wire_text_is_celerys(self) -> None:
        """The ISO form of a countdown's moment is what stands in a message."""
        found = due(60, None, NOW)
        assert found is not None
        assert found.isoformat() == "2026-11-22T07:45:27.621389+00:00"

    def test_eta(self) -> None:
        """An aware eta keeps its zone; a naive one is UTC, as every worker reads it; a text is read."""
        zone = timezone(timedelta(hours=3))
        assert due(None, datetime(2030, 1, 1, tzinfo=zone), NOW) == datetime(2030, 1, 1, tzinfo=zone)
        assert due(None, datetime(2030, 1, 1), NOW) == datetime(2030, 1, 1, tzinfo=UTC)
        assert due(None, "2030-01-01T00:00:00Z", NOW) == datetime(2030, 1, 1, tzinfo=UTC)
        assert due(None, "2030-01-01T00:00:00+03:00", NOW) == datetime(2030, 1, 1, tzinfo=zone)

    @pytest.mark.parametrize(("countdown", "eta"), [("5", None), (True, None), (None, 5), ([1], None)])
    def test_wrong_types(self, countdown: Any, eta: Any) -> None:
        """A countdown is a number, an eta a datetime or a text."""
        with pytest.raises(TypeError):
            due(countdown, eta, NOW)

    @pytest.mark.parametrize(
        ("countdown", "eta"), [(1e12, None), (float("nan"), None), (float("inf"), None), (None, "soon")]
    )
    def test_no_dates(self, countdown: Any, eta: Any) -> None:
        """What is no date is told at the call, not in the worker."""
        with pytest.raises(ValueError, match=r"is no (date|ISO)"):
            due(countdown, eta, NOW)


class TestExpiry:
    """When a call is not to run any more."""

    def test_forms(self) -> None:
        """Seconds, a timedelta, a datetime, a text; 0 and less are past at once; None is never."""
        assert expiry(None, NOW) is None
        assert expiry(10, NOW) == NOW + timedelta(seconds=10)
        assert expiry(0, NOW) == NOW
        assert expiry(-10, NOW) == NOW - timedelta(seconds=10)
        assert expiry(timedelta(days=1), NOW) == NOW + timedelta(days=1)
        assert expiry(datetime(2030, 1, 1), NOW) == datetime(2030, 1, 1, tzinfo=UTC)
        assert expiry("2030-01-01T00:00:00", NOW) == datetime(2030, 1, 1, tzinfo=UTC)

    @pytest.mark.parametrize("expires", ["10", "foo", 1e12])
    def test_no_dates(self, expires: Any) -> None:
        """A number as text is no number."""
        with pytest.raises(ValueError, match="is no"):
            expiry(expires, NOW)

    @given(st.floats(-1e6, 1e6))
    def test_every_number_of_seconds(self, value: float) -> None:
        """Expiry is now plus the number, to the microsecond."""
        found = expiry(value, NOW)
        assert found is not None
        assert abs((found - NOW).total_seconds() - value) < 1e-5
