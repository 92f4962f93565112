"""Shared memory between parent and children: who runs what since when, and which calls are recalled.

One file-backed map for the pool; a fixed block per child. Each word has one writer, so no lock is needed: seats are
written by the child, the recall range by the parent.

A recall takes unstarted calls back from a child, also from one that holds the GIL in C. The parent writes the range,
waits a moment (1 ms: far longer than a store needs to become visible), then reads the seats. The child writes the
seat *before* it reads the range, so a call that the parent sees as unstarted after the wait will be skipped.
"""

from __future__ import annotations

import mmap
import struct

NEVER = 2**64 - 1
_RANGE = struct.Struct("<QQ")
_WORD = struct.Struct("<Q")
_SEAT = struct.Struct("<QQ")
_HEAD = 64


def block_size(seats: int) -> int:
    """Bytes of one child's block."""
    return _HEAD + seats * _SEAT.size


class Slots:
    """One child's block in the map."""

    __slots__ = ("_base", "_map", "_started", "seats")

    def __init__(self, memory: mmap.mmap, index: int, seats: int) -> None:
        self._map = memory
        self.seats = seats
        self._base = index * block_size(seats)
        self._started = [0] * seats

    def reset(self) -> None:
        """Empty the block, before a new child gets it."""
        self._map[self._base : self._base + block_size(self.seats)] = bytes(block_size(self.seats))
        _RANGE.pack_into(self._map, self._base, NEVER, 0)

    def start(self, seat: int, seq: int, now: int) -> bool:
        """Child: call `seq` starts on `seat` at `now` (monotonic ns). False: it was recalled, don't run it."""
        base = self._base
        _SEAT.pack_into(self._map, base + _HEAD + seat * 16, seq, now)
        first, last = _RANGE.unpack_from(self._map, base)
        if first <= seq <= last:
            # what this seat started before stays on record: the parent may not have read its report yet
            _SEAT.pack_into(self._map, base + _HEAD + seat * 16, self._started[seat], 0)
            return False
        self._started[seat] = seq
        return True

    def stop(self, seat: int) -> None:
        """Child: the seat is free."""
        _WORD.pack_into(self._map, self._base + _HEAD + seat * 16 + 8, 0)

    def running(self) -> list[tuple[int, int]]:
        """Parent: `(seq, since in monotonic ns)` of every call that runs now."""
        data = self._map[self._base + _HEAD : self._base + block_size(self.seats)]
        return [(seq, since) for seq, since in _SEAT.iter_unpack(data) if since]

    def last_started(self) -> int:
        """Parent: the highest seq that any seat has started."""
        data = self._map[self._base + _HEAD : self._base + block_size(self.seats)]
        seqs: list[int] = [seq for seq, _ in _SEAT.iter_unpack(data)]
        return max(seqs)

    def recall(self, first: int, last: int) -> None:
        """Parent: calls first..last are not to be started. Written so that a half-written range recalls nothing."""
        _WORD.pack_into(self._map, self._base, NEVER)
        _WORD.pack_into(self._map, self._base + 8, last)
        _WORD.pack_into(self._map, self._base, first)

    def aim(self, seq: int) -> None:
        """Parent: the next SIGUSR1 is meant for this call, and for no other that may have started meanwhile."""
        _WORD.pack_into(self._map, self._base + 16, seq)

    def aimed(self) -> int:
        """Child, in its SIGUSR1 handler: the call that the signal is meant for; ignore it if that does not run."""
        seq: int = _WORD.unpack_from(self._map, self._base + 16)[0]
        return seq
