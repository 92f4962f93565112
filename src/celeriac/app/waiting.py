"""Waiting for stored results, whoever asks for how many."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator
from typing import Any

from celeriac.app.results import Results
from celeriac.errors import TimeoutError
from celeriac.wire.record import Record


def too_late(what: str, timeout: float | None) -> TimeoutError:
    """The error of a result that did not come."""
    return TimeoutError(f"no result of {what} within {timeout:g} s" if timeout is not None else f"no result of {what}")


def wait(
    backend: Results,
    ids: list[str],
    timeout: float | None,
    interval: float = 0.5,
    on_interval: Callable[[], Any] | None = None,
) -> Generator[Record, None, None]:
    """The records of these ids as they are and as they change. Raises TimeoutError."""
    reader = backend.reader
    end = None if timeout is None else time.monotonic() + timeout
    while True:
        left = None if end is None else max(0.0, end - time.monotonic())
        once = left if on_interval is None else interval if left is None else min(left, interval)
        with reader.watch(ids, once) as changes:
            for task_id, document in changes:
                yield backend.read(task_id, document)
        if on_interval is None or (end is not None and time.monotonic() >= end):
            raise too_late(ids[0] if len(ids) == 1 else f"{ids[0]} and {len(ids) - 1} more", timeout)
        on_interval()
