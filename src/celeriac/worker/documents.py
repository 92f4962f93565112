"""What the parent needs to know of a stored document: its state, and now and then what a chord keeps of it."""

from __future__ import annotations

import msgspec

from celeriac.errors import CeleryError
from celeriac.wire import record

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


def entry_of(task_id: str, document: bytes, serializer: str, compression: str | None) -> bytes | None:
    """What a chord keeps of a member that has ended with this document; None as long as it has not, and where reading
    it would run code (pickle)."""
    if serializer == "pickle":
        return None
    try:
        found = record.read(document, serializer)
        if found.status not in READY_STATES:
            return None
        return record.entry(task_id, found.status, found.result, serializer, compression)
    except CeleryError:
        return None
