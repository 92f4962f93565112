"""Frames on the pipes between parent and child: `u32 length | u8 kind | payload`, little-endian. No I/O here.

Two AF_UNIX stream pairs per child. The *work* pair carries calls down and reports up. The *side* pair carries
numbered requests of running tasks up and their answers down, so that an answer never sits behind queued calls.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from enum import IntEnum

VERSION = 1
MAX_FRAME = 1 << 30
HEADER = struct.Struct("<IB")
"""Length of kind and payload together, kind."""
SEQ = struct.Struct("<Q")
DONE = struct.Struct("<IBQBf")
"""Header of a DONE frame: length, kind, seq, flags, runtime in seconds. The result document follows, if flagged."""
HAS_DOCUMENT = 1


class Down(IntEnum):
    """Kinds from parent to child, on the work pair."""

    RUN = 1
    """`u64 seq | blob`: run this message."""
    END = 2
    """msgpack `[seq, blob, why, detail]`: don't run it, end it. `why`: revoked, terminated, expired, unregistered,
    lost, timeout, rejected; `detail`: text for the exception. The child calls hooks and errbacks and reports. Or
    `joined`: this message, which has been run, completed a chord; `detail`: `[body, entries, structure, group, member]`
    (the message may be empty); the report says what follows from the chord."""
    REPLAY = 3
    """msgpack `[seq, blob, document]`: SUCCESS stands stored already; only say what follows from it."""
    CANCEL = 4
    """msgpack `[seq, how]`: soft, hard or terminate. Only for children that run several calls at once."""
    STOP = 5
    """Take no more; exit 0 when what was taken is done."""


class Up(IntEnum):
    """Kinds from child to parent, on the work pair."""

    DONE = 1
    """See `DONE`: SUCCESS, acknowledge, nothing to publish."""
    REPORT = 2
    """msgpack `model.outcome.Report`."""
    SKIPPED = 3
    """`u64 seq`: the call was recalled before it started."""
    READY = 4
    """msgpack `[version, pid]`: the child waits for calls."""
    STARTED = 5
    """msgpack `Store`: a STARTED document (track_started); stored with the next cycle."""
    EVENTS = 6
    """msgpack list of event maps (custom events of tasks)."""
    CATALOGUE = 7
    """msgpack `Catalogue`: tasks that were registered later."""


class Ask(IntEnum):
    """Requests on the side pair. Frame payload: `u64 number | msgpack arguments`."""

    PUBLISH = 1
    """list of Envelope -> nil."""
    FETCH = 2
    """list of ids -> map id -> document."""
    WATCH = 3
    """`[ids, timeout]` -> map id -> document of those that are ready (SUCCESS, FAILURE, REVOKED), as soon as there is
    one; empty when the time has passed."""
    STORE = 4
    """list of Store -> nil."""
    FORGET = 5
    GROUP_SAVE = 6
    """`[id, document, expires]` -> nil."""
    GROUP_FETCH = 7
    """id -> document or nil."""
    GROUP_FORGET = 8
    BROADCAST = 9
    """`[exchange, routing key, payload]` -> nil."""
    CANCEL = 10
    """`[entries, seconds]` -> nil: the broker keeps these entries of its cancel list for so long."""
    CHORD_OPEN = 11
    """list of Chord -> nil."""
    CHORD_ADD = 12
    """group id -> nil."""
    CLEAN_UP = 13
    """nil -> nil: delete results that have expired, where the store does not do it by itself."""
    INQUIRE = 14
    """`[request, exchange, serializer, timeout, limit]` -> list of `[answers, clock]` of workers."""


class Answer(IntEnum):
    """Kinds of answers on the side pair. Frame payload: `u64 number | msgpack value`."""

    OK = 1
    ERROR = 2
    """msgpack `[error class name in celeriac.errors, text]`."""


def frame(kind: int, payload: bytes) -> bytes:
    """One frame."""
    return HEADER.pack(len(payload) + 1, kind) + payload


def run_frame(seq: int, blob: bytes) -> bytes:
    """A RUN frame."""
    return HEADER.pack(len(blob) + 9, Down.RUN) + SEQ.pack(seq) + blob


class Splitter:
    """Cuts a byte stream into frames. Keeps what is not complete yet."""

    __slots__ = ("_buffer",)

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> Iterator[tuple[int, bytes]]:
        """Yield `(kind, payload)` for each frame that `data` completes. Raises ValueError on a length no peer sends."""
        buffer = self._buffer
        buffer += data
        position, end = 0, len(buffer)
        try:
            while end - position >= 5:
                length, kind = HEADER.unpack_from(buffer, position)
                if not 1 <= length <= MAX_FRAME:
                    raise ValueError(f"frame of {length} bytes")
                if end - position < 4 + length:
                    break
                payload = bytes(memoryview(buffer)[position + 5 : position + 4 + length])
                position += 4 + length
                yield kind, payload
        finally:
            if position:
                del buffer[:position]
