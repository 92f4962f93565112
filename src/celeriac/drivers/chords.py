"""How long things of chords last, in every store. Pure."""

from __future__ import annotations

UNOPENED_SECONDS = 86_400.0
"""How long the counted members of a chord are kept that nobody has opened yet."""


def done_seconds(hold: float) -> float:
    """How long a chord is known as done, so that late members are ignored. So long as with Celery."""
    return max(300.0, 2 * hold)


def hold_seconds(lease: float) -> float:
    """How long a chord is held that a worker's cycle has completed: it is carried on by the next one or so."""
    return max(2.0, lease / 2)
