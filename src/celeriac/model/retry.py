"""When a task runs again after an error, and whether. Randomness is given."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from itertools import count
from typing import Any

import msgspec

from celeriac.errors import Ignore, Reject, Retry

_DOUBLINGS = 60
"""Beyond every calendar, and far from the end of floats."""


def may_retry(retries: int, max_retries: int | None) -> bool:
    """True when a task that has been retried so often may be retried once more. None: for ever."""
    return max_retries is None or retries < max_retries


def backoff(
    retries: int,
    factor: float = 1.0,
    maximum: float | None = 600.0,
    random: Callable[[], float] | None = None,
) -> float:
    """Seconds until the next retry: `factor` doubled with each retry so far, at most `maximum`.

    `random` (numbers of [0, 1)) spreads it evenly over [0, delay], so that those which failed together don't come
    back together; None: no jitter. Fractions count."""
    delay = factor * 2.0 ** min(max(retries, 0), _DOUBLINGS)
    if maximum is not None:
        delay = min(delay, maximum)
    delay = max(delay, 0.0)
    return delay * random() if random is not None else delay


def backoff_factor(retry_backoff: float | bool | None) -> float | None:
    """What a task's `retry_backoff` means: False, None and 0 are no back-off, True is a factor of 1 second."""
    if retry_backoff is True:
        return 1.0
    return float(retry_backoff) if retry_backoff else None


class AutoRetry(msgspec.Struct, frozen=True):
    """A task's `autoretry_for` and what belongs to it."""

    autoretry_for: tuple[type[BaseException], ...] = ()
    dont_autoretry_for: tuple[type[BaseException], ...] = ()
    retry_kwargs: Mapping[str, Any] = {}
    retry_backoff: float | bool = False
    retry_backoff_max: float = 600.0
    retry_jitter: bool = True

    def applies_to(self, exc: BaseException) -> bool:
        """True when this error is to be answered with a retry. Never for Retry, Ignore and Reject."""
        return (
            isinstance(exc, self.autoretry_for)
            and not isinstance(exc, (Retry, Ignore, Reject))
            and not isinstance(exc, self.dont_autoretry_for)
        )

    def arguments(self, retries: int, random: Callable[[], float]) -> dict[str, Any]:
        """The arguments of `Task.retry`: `retry_kwargs`, with the back-off as countdown where there is one."""
        given = dict(self.retry_kwargs)
        factor = backoff_factor(self.retry_backoff)
        if factor is not None:
            given["countdown"] = backoff(retries, factor, self.retry_backoff_max, random if self.retry_jitter else None)
        return given


def pauses(policy: Mapping[str, Any] | None) -> Iterator[float]:
    """Seconds to wait before each retry of sending, by a retry policy: interval_start, then interval_step more each
    time, at most interval_max; max_retries of them (None: without end). What is missing is Celery's default."""
    given = {**PUBLISH_POLICY, **(policy or {})}
    limit = given["max_retries"]
    start, step, most = given["interval_start"], given["interval_step"], given["interval_max"]
    for done in count():
        if limit is not None and done >= limit:
            return
        yield max(0.0, min(start + step * done, most))


PUBLISH_POLICY: Mapping[str, Any] = {"max_retries": 3, "interval_start": 0, "interval_step": 0.2, "interval_max": 1}
"""Celery's `task_publish_retry_policy`."""
