"""Options of a call: which of them win, and what they mean at a given moment."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

TASK_OPTIONS = (
    "queue", "exchange", "exchange_type", "routing_key", "priority", "expires", "serializer", "delivery_mode",
    "compression", "time_limit", "soft_time_limit", "immediate", "mandatory", "ignore_result",
)  # fmt: skip
"""Attributes of a task that are options of its calls."""


def merge(defaults: Mapping[str, Any], task: Mapping[str, Any], call: Mapping[str, Any]) -> dict[str, Any]:
    """The options of a call: what the call says, else the task, else the settings.

    A None in the call takes the task's value back, so that the setting's holds; None is never an answer."""
    said = {**task, **call} if task else call
    return {**defaults, **{key: value for key, value in said.items() if value is not None}}


def check_arguments(args: Any, kwargs: Any) -> tuple[list[Any] | tuple[Any, ...], Mapping[str, Any]]:
    """Arguments as a message can carry them; None is none. Raises TypeError for anything but a list or tuple, and a
    mapping with texts as keys."""
    if args is None:
        args = ()
    elif not isinstance(args, list | tuple):
        raise TypeError(f"args must be a list or tuple, not {type(args).__name__}")
    if kwargs is None:
        kwargs = {}
    elif not isinstance(kwargs, Mapping):
        raise TypeError(f"kwargs must be a mapping, not {type(kwargs).__name__}")
    return args, kwargs


def check_limits(time_limit: float | None, soft_time_limit: float | None) -> None:
    """Raises ValueError for a soft limit that comes after the hard one. 0 and None are no limit."""
    if time_limit and soft_time_limit and soft_time_limit > time_limit:
        raise ValueError(f"soft_time_limit ({soft_time_limit} s) must not be greater than time_limit ({time_limit} s)")


def check_priority(priority: Any) -> int | None:
    """A priority as a message can carry it. Raises TypeError."""
    if priority is None or (isinstance(priority, int) and not isinstance(priority, bool)):
        return priority
    raise TypeError(f"priority must be an int, not {priority!r}")


def due(countdown: float | timedelta | None, eta: datetime | str | None, now: datetime) -> datetime | None:
    """When a call is to run, or None for at once. A countdown (seconds; 0 is none) goes before an eta. A naive eta
    is UTC, as every worker reads it. Raises TypeError and ValueError."""
    if countdown:
        return after(countdown, now, "countdown")
    if eta is None or eta == "":
        return None
    return moment(eta, "eta")


def expiry(expires: float | timedelta | datetime | str | None, now: datetime) -> datetime | None:
    """When a call is not to run any more; None: never. A number is seconds from now; 0 or less: expired at once.
    Raises TypeError and ValueError."""
    if expires is None:
        return None
    if isinstance(expires, datetime | str):
        return moment(expires, "expires")
    return after(expires, now, "expires")


def after(seconds: float | timedelta, now: datetime, name: str) -> datetime:
    """So many seconds from now, in the zone of `now`. Raises TypeError, and ValueError where a calendar ends."""
    if isinstance(seconds, bool) or not isinstance(seconds, int | float | timedelta):
        raise TypeError(f"{name} must be a number of seconds, not {seconds!r}")
    try:
        return now + (seconds if isinstance(seconds, timedelta) else timedelta(seconds=seconds))
    except (OverflowError, ValueError):
        raise ValueError(f"{name} of {seconds!r} seconds is no date") from None


def moment(value: datetime | str, name: str) -> datetime:
    """A date and time of a datetime or an ISO text, aware; naive ones are UTC. Raises TypeError and ValueError."""
    if isinstance(value, str):
        try:
            value = datetime.fromisoformat(value)
        except ValueError:
            raise ValueError(f"{name} {value!r} is no ISO 8601 date and time") from None
    elif not isinstance(value, datetime):
        raise TypeError(f"{name} must be a datetime or an ISO 8601 text, not {value!r}")
    return value if value.tzinfo is not None else value.replace(tzinfo=UTC)
