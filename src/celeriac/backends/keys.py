"""Stores of keys and values: the names of documents, as Celery's, and what they say."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import msgspec

from celeriac.errors import BackendGetMetaError, CeleryError
from celeriac.wire import record


class Keys:
    """The names of keys. `global_keyprefix` gets a `_` behind it unless it ends in one of `:_-.`, as Celery does."""

    def __init__(self, options: Mapping[str, Any]) -> None:
        prefix = str(options.get("global_keyprefix") or "")
        self.prefix = prefix if not prefix or prefix[-1] in ":_-." else prefix + "_"
        self.task = f"{self.prefix}celery-task-meta-"
        self.group = f"{self.prefix}celery-taskset-meta-"
        self.chord = f"{self.prefix}celeriac-chord-"


def lost_entry(member: str, serializer: str) -> bytes:
    """What a chord has of a member (`task id:index`) whose entry is not there any more: a failure, so that it ends."""
    error = BackendGetMetaError("the result store has lost what this member of a chord gave")
    return record.entry(member.rpartition(":")[0], "FAILURE", error, serializer)


class _Status(msgspec.Struct):
    status: str = ""


_status = msgspec.json.Decoder(_Status).decode
_STATE = re.compile(rb"status[^A-Za-z]{1,12}SUCCESS")


def is_success(document: bytes) -> bool:
    """Does a document tell of a SUCCESS?"""
    try:
        plain = record.decompress(document)
    except CeleryError:
        return False
    if plain[:1] == b"{":
        try:
            return _status(plain).status == "SUCCESS"
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            pass
    return _STATE.search(plain[:256]) is not None or b"\nstatus: SUCCESS\n" in plain
