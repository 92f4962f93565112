# mypy: ignore-errors
# pyright: reportMissingImports=false, reportAttributeAccessIssue=false
"""Pairs of tasks that differ in one option."""

from __future__ import annotations

import os
import signal
import time
from typing import Any

from tasks import app, errback, mark, note, started_before

KILLED = {"acks_late": True, "reject_on_worker_lost": True}


@app.task(ignore_result=True)
def result_ignored() -> int:
    """No result is kept."""
    return 1


@app.task(ignore_result=False)
def result_kept() -> int:
    """The result is kept."""
    return 1


def _die_once(task: Any) -> int:
    mark("start", task.request.id)
    if not started_before(task.request.id):
        os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(10)
    return 1


@app.task(bind=True, acks_late=False)
def early_dies(self: Any) -> int:
    """Acknowledged when its process dies."""
    return _die_once(self)


@app.task(bind=True, acks_late=True, reject_on_worker_lost=True)
def late_dies(self: Any) -> int:
    """Not acknowledged when its process dies."""
    return _die_once(self)


@app.task(bind=True, acks_late=True, reject_on_worker_lost=False)
def late_dies_for_good(self: Any) -> int:
    """Late, but a lost process is a failure."""
    return _die_once(self)


def _slow_once(task: Any) -> int:
    mark("start", task.request.id)
    if not started_before(task.request.id):
        time.sleep(10)
    return 1


@app.task(bind=True, time_limit=0.5, acks_on_timeout=True)
def limited(self: Any) -> int:
    """A hard limit is a failure."""
    return _slow_once(self)


@app.task(bind=True, time_limit=0.5, acks_on_timeout=False)
def limited_again(self: Any) -> int:
    """A hard limit rejects: it runs again."""
    return _slow_once(self)


@app.task(time_limit=1.0)
def hard() -> int:
    """Longer than its limit."""
    time.sleep(2.0)
    return 1


@app.task
def not_hard() -> int:
    """As `hard`, without a limit."""
    time.sleep(2.0)
    return 1


@app.task(soft_time_limit=1.0)
def soft() -> int:
    """Longer than its soft limit."""
    time.sleep(2.0)
    return 1


@app.task(bind=True, rate_limit="4/s")
def rated(self: Any) -> None:
    """Four a second."""
    mark("start", self.request.id)


@app.task(bind=True)
def unrated(self: Any) -> None:
    """As many as there are."""
    mark("start", self.request.id)


@app.task(bind=True, max_retries=1, default_retry_delay=0.1)
def one_retry(self: Any) -> None:
    """Two starts."""
    mark("start", self.request.id)
    raise self.retry(exc=ValueError("again"))


@app.task(bind=True, max_retries=3, default_retry_delay=0.1)
def three_retries(self: Any) -> None:
    """Four starts."""
    mark("start", self.request.id)
    raise self.retry(exc=ValueError("again"))


@app.task(bind=True, max_retries=1, default_retry_delay=1.5)
def slow_retry(self: Any) -> None:
    """Two starts, 1.5 s apart."""
    mark("start", self.request.id)
    raise self.retry(exc=ValueError("again"))


@app.task(serializer="json")
def by_json(value: Any) -> Any:
    """Arguments as JSON."""
    return value


@app.task(serializer="msgpack")
def by_msgpack(value: Any) -> Any:
    """Arguments as msgpack."""
    return value


@app.task(compression="zlib")
def compressed(value: Any) -> Any:
    """A compressed body."""
    return value


@app.task(priority=9)
def last() -> None:
    """Served last on Redis."""


@app.task(priority=0)
def first() -> None:
    """Served first on Redis."""


@app.task(queue="elsewhere")
def elsewhere() -> None:
    """In a queue of its own."""


@app.task(delivery_mode=1)
def transient() -> None:
    """Not kept by the broker, if it knows how."""


@app.task(expires=0.2)
def expiring() -> int:
    """Not worth running later."""
    return 1


@app.task(ignore_result=True, store_errors_even_if_ignored=True)
def error_kept() -> None:
    """No result, but errors."""
    raise ValueError("kept")


@app.task(ignore_result=True, store_errors_even_if_ignored=False)
def error_ignored() -> None:
    """Neither."""
    raise ValueError("ignored")


@app.task(bind=True, track_started=True)
def tracked(self: Any) -> None:
    """STARTED is stored."""
    mark("start", self.request.id)
    time.sleep(1.5)


@app.task(bind=True, track_started=False)
def untracked(self: Any) -> None:
    """STARTED is not stored."""
    mark("start", self.request.id)
    time.sleep(1.5)


@app.task(throws=(KeyError,))
def throws_expected() -> None:
    """An error that is no news."""
    raise KeyError("expected here")


@app.task(throws=(KeyError,))
def throws_other() -> None:
    """An error that is."""
    raise ValueError("unexpected here")


@app.task(bind=True, autoretry_for=(LookupError,), dont_autoretry_for=(IndexError,), retry_kwargs={"max_retries": 2},
          default_retry_delay=0.1)  # fmt: skip
def auto(self: Any, what: str) -> None:
    """Retried for KeyError; not for IndexError or ValueError."""
    mark("start", self.request.id)
    raise {"key": KeyError, "index": IndexError, "value": ValueError}[what]("again")


@app.task(bind=True, autoretry_for=(LookupError,), max_retries=2, retry_backoff=0.5, retry_jitter=False)
def backing_off(self: Any) -> None:
    """Retried after 0.5 s, then after 1 s."""
    mark("start", self.request.id)
    raise KeyError("again")


@app.task(resultrepr_maxsize=30)
def short_repr() -> str:
    """Its result is cut in the log."""
    return "s" * 500


@app.task
def long_repr() -> str:
    """Its result is not."""
    return "l" * 500


@app.task(typing=True)
def typed(one: int) -> int:
    """Arguments are checked when it is sent."""
    return one


@app.task(typing=False)
def untyped(one: int) -> int:
    """Arguments are checked when it runs."""
    return one


@app.task(link=note.s(), link_error=errback.s())
def linked(fails: bool) -> str:
    """Its links are its own."""
    if fails:
        raise ValueError("linked")
    return "linked"


@app.task
def unlinked(fails: bool) -> str:
    """No links."""
    return "unlinked"
