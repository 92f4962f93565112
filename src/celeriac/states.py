"""The states of a task by their public name; see `celeriac.model.states`."""

from celeriac.model.states import (
    ALL_STATES,
    EXCEPTION_STATES,
    FAILURE,
    IGNORED,
    PENDING,
    PRECEDENCE,
    PROPAGATE_STATES,
    READY_STATES,
    RECEIVED,
    REJECTED,
    RETRY,
    REVOKED,
    STARTED,
    SUCCESS,
    UNREADY_STATES,
    precedence,
    state,
)

__all__ = [
    "ALL_STATES", "EXCEPTION_STATES", "FAILURE", "IGNORED", "PENDING", "PRECEDENCE", "PROPAGATE_STATES",
    "READY_STATES", "RECEIVED", "REJECTED", "RETRY", "REVOKED", "STARTED", "SUCCESS", "UNREADY_STATES",
    "precedence", "state",
]
