"""Rate limits: a token bucket of capacity one per task, as Celery has it (per worker). What is over waits in the
broker's parked list of its task."""

from __future__ import annotations

import time


def per_second(limit: str | float | None) -> float:
    """Tasks per second of `"10/s"`, `"10/m"`, `"10/h"` or a number. 0: no limit. Raises ValueError on other text."""
    if not limit:
        return 0.0
    if isinstance(limit, int | float):
        return float(limit)
    number, _, unit = limit.partition("/")
    return float(number) / {"": 1, "s": 1, "m": 60, "h": 3600}[unit.strip() or ""]


class Buckets:
    """One bucket per limited task."""

    def __init__(self, enabled: bool = True) -> None:
        self._enabled = enabled
        self._next: dict[str, float] = {}
        self._rate: dict[str, str] = {}
        self._promised: dict[str, int] = {}
        self._parked: set[str] = set()

    def know(self, task: str, limit: str) -> None:
        """A limited task was registered; messages of it may lie parked from an earlier run."""
        if self._enabled:
            self._rate[task] = limit
            self._parked.add(task)

    def set(self, task: str, limit: str | None) -> None:
        """Change or lift (None) the limit of a task at run time."""
        per_second(limit)
        self._rate[task] = limit or ""

    def take(self, task: str, limit: str) -> bool:
        """True: it may run now. False: park it."""
        if not self._enabled:
            return True
        rate = per_second(self._rate.setdefault(task, limit))
        if rate <= 0:
            return True
        if self._promised.get(task):
            self._promised[task] -= 1
            return True
        now = time.monotonic()
        if task in self._parked or now < self._next.get(task, 0.0):
            self._parked.add(task)
            return False
        self._next[task] = max(now, self._next.get(task, 0.0)) + 1 / rate
        return True

    def demand(self) -> dict[str, int]:
        """Limit key -> how many parked messages may be claimed now. Their tokens are taken."""
        if not self._parked:
            return {}
        now = time.monotonic()
        wanted = {}
        for task in self._parked:
            rate = per_second(self._rate.get(task))
            if self._promised.get(task):
                continue
            if rate <= 0:
                wanted[task] = 1000
                self._promised[task] = 1000
            elif now >= self._next.get(task, 0.0):
                self._next[task] = max(now, self._next.get(task, 0.0) + 1 / rate)
                self._promised[task] = 1
                wanted[task] = 1
        return wanted

    def claimed(self, wanted: dict[str, int]) -> None:
        """After the claim that carried `wanted` was admitted: promises that brought nothing mean nothing is parked."""
        for task in wanted:
            if self._promised.pop(task, 0):
                self._parked.discard(task)
                if per_second(self._rate.get(task)) > 0:
                    self._next[task] = 0.0

    def next_token(self) -> float | None:
        """Seconds until the next token for a task that has parked messages; None when there is none."""
        if not self._parked:
            return None
        now = time.monotonic()
        return max(0.0, min(self._next.get(task, 0.0) for task in self._parked) - now)
