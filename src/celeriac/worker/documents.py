"""What the parent needs to know of a stored document: its state, and nothing else."""

from __future__ import annotations

import msgspec

READY_STATES = frozenset({"SUCCESS", "FAILURE", "REVOKED"})


class _Status(msgspec.Struct):
    status: str = ""


_STATUS = msgspec.json.Decoder(_Status)


def status(document: bytes) -> str:
    """The state that a document says; empty when it is in a format that only the app can read."""
    try:
        return _STATUS.decode(document).status
    except (msgspec.DecodeError, RecursionError):
        return ""


def final(document: bytes) -> bool:
    """False only for a document that surely says an unfinished state."""
    state = status(document)
    return not state or state in READY_STATES
