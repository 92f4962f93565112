"""The states of a task, as Celery names and orders them."""

from __future__ import annotations

PENDING = "PENDING"
"""Nothing is known of the task: it waits, or there never was one of this id."""
RECEIVED = "RECEIVED"
STARTED = "STARTED"
SUCCESS = "SUCCESS"
FAILURE = "FAILURE"
REVOKED = "REVOKED"
REJECTED = "REJECTED"
RETRY = "RETRY"
IGNORED = "IGNORED"

READY_STATES = frozenset({SUCCESS, FAILURE, REVOKED})
"""Final: nothing follows."""
UNREADY_STATES = frozenset({PENDING, RECEIVED, STARTED, REJECTED, RETRY})
EXCEPTION_STATES = frozenset({RETRY, FAILURE, REVOKED})
"""Their result is an exception."""
PROPAGATE_STATES = frozenset({FAILURE, REVOKED})
"""`get` raises their result."""
ALL_STATES = frozenset({PENDING, RECEIVED, STARTED, SUCCESS, FAILURE, RETRY, REVOKED})

PRECEDENCE = (SUCCESS, FAILURE, None, REVOKED, STARTED, RECEIVED, REJECTED, RETRY, PENDING)
"""Strongest first; None stands for every state that is not named (custom states)."""
PRECEDENCE_LOOKUP = {state: index for index, state in enumerate(PRECEDENCE)}
NONE_PRECEDENCE = PRECEDENCE_LOOKUP[None]


def precedence(name: str | None) -> int:
    """The place of a state in PRECEDENCE; a lower number is the stronger state."""
    return PRECEDENCE_LOOKUP.get(name, NONE_PRECEDENCE)


class state(str):
    """A state that compares by strength: `state(SUCCESS) > state(STARTED)`."""

    __slots__ = ()

    def __gt__(self, other: str) -> bool:
        return precedence(self) < precedence(other)

    def __ge__(self, other: str) -> bool:
        return precedence(self) <= precedence(other)

    def __lt__(self, other: str) -> bool:
        return precedence(self) > precedence(other)

    def __le__(self, other: str) -> bool:
        return precedence(self) >= precedence(other)
