"""What becomes of a claimed message, by its head alone. Pure: no clock, no socket."""

from __future__ import annotations

from collections.abc import Set
from dataclasses import dataclass

from celeriac.model.outcome import TaskTraits
from celeriac.model.revoking import is_cancelled
from celeriac.wire.task import Head

UNKNOWN_HEADER = "x-celeriac-unknown"
"""`[first seen (Unix seconds), tries]`: how long a message with an unknown task name has been going round."""
FIRST_UNKNOWN_DELAY = 0.5
LONGEST_UNKNOWN_DELAY = 60.0


@dataclass(frozen=True, slots=True)
class Run:
    """Run it. `alone`: a child was lost while it ran; in a child of its own."""

    soft: float | None
    hard: float | None
    alone: bool = False
    early: bool = False
    """Acknowledge before the child sees it."""


@dataclass(frozen=True, slots=True)
class Wait:
    """Into the schedule until `until`; `headers` are set on the message."""

    until: float
    headers: dict[str, object] | None = None
    offer: bool = False
    """Not into the schedule but back to the head, without claiming in the same step: whoever else waits at the queue
    (a Celery worker that knows the task) gets it first."""


@dataclass(frozen=True, slots=True)
class End:
    """Don't run it. `why` as in `pools.frames.Down.END`."""

    why: str
    detail: str = ""


Decision = Run | Wait | End


@dataclass(frozen=True, slots=True)
class Limits:
    """The worker's own defaults and caps."""

    soft: float | None = None
    hard: float | None = None
    child_losses: int = 3
    worker_losses: int = 10
    unknown_patience: float = 600.0


def decide(
    head: Head, traits: TaskTraits | None, now: float, cancelled: Set[str], limits: Limits, unknown: tuple[float, int]
) -> Decision:
    """Say what becomes of the message. `unknown` is the value of UNKNOWN_HEADER, (0, 0) when it has none."""
    if cancelled and is_cancelled(cancelled, head.id, head.stamped_headers, head.stamps):
        return End("revoked")
    if head.expires is not None and head.expires <= now:
        return End("expired")
    child_losses, worker_losses = head.losses or (0, 0)
    if child_losses >= limits.child_losses:
        return End("lost", f"Worker exited prematurely {child_losses} times while it ran this task")
    if worker_losses >= limits.worker_losses:
        return End("lost", f"{worker_losses} workers were lost while they ran this task")
    if head.eta is not None and head.eta > now:
        return Wait(head.eta)
    if traits is None:
        first, tries = unknown
        first = first or now
        headers: dict[str, object] = {UNKNOWN_HEADER: [first, tries + 1]}
        if tries % 2 == 0:
            return Wait(now, headers, offer=True)
        delay = min(LONGEST_UNKNOWN_DELAY, FIRST_UNKNOWN_DELAY * 2.0 ** min(tries // 2, 20))
        if now + delay > first + limits.unknown_patience:
            return End("unregistered")
        return Wait(now + delay, headers)
    hard, soft = head.timelimit or (None, None)
    return Run(
        soft=_first(soft, traits.soft_time_limit, limits.soft),
        hard=_first(hard, traits.time_limit, limits.hard),
        alone=child_losses > 0,
        early=not traits.acks_late,
    )


def _first(*values: float | None) -> float | None:
    """The first limit that was given; 0 means none was (as Celery reads it)."""
    for value in values:
        if value:
            return value
    return None
