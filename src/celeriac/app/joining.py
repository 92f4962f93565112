"""Whether a task may wait for another one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from celeriac.runtime.context import current

JOIN_BLOCKS = (
    "result.get() inside a task makes it wait for another task, and when all workers wait so none is left to run it;"
    " let the second task follow by link or chain, or allow it with allow_join_result() or disable_sync_subtasks=False"
)

_join_allowed: ContextVar[bool | None] = ContextVar("celeriac.join_allowed", default=None)


def task_join_will_block() -> bool:
    """True inside a task that a worker runs, unless `allow_join_result` is in force."""
    allowed = _join_allowed.get()
    if allowed is not None:
        return not allowed
    request = current.get()
    return request is not None and not request.called_directly and not request.is_eager


def assert_will_not_block() -> None:
    """Raise RuntimeError where waiting for a result could stop a worker."""
    if task_join_will_block():
        raise RuntimeError(JOIN_BLOCKS)


@contextmanager
def allow_join_result() -> Iterator[None]:
    """Allow `get` inside a task."""
    token = _join_allowed.set(True)
    try:
        yield
    finally:
        _join_allowed.reset(token)


@contextmanager
def denied_join_result() -> Iterator[None]:
    """Forbid `get`, as inside a task."""
    token = _join_allowed.set(False)
    try:
        yield
    finally:
        _join_allowed.reset(token)
