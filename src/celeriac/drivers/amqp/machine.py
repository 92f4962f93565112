"""What comes over a connection, taken apart: whole methods and whole messages out of any pieces of bytes. No I/O."""

from __future__ import annotations

import struct
from typing import NamedTuple

from celeriac.drivers.amqp.frames import BODY, END, HEADER, HEARTBEAT, METHOD, M

_head = struct.Struct(">BHI").unpack_from
_which = struct.Struct(">I").unpack_from
_size = struct.Struct(">Q").unpack_from
_WITH_CONTENT = frozenset({M.DELIVER, M.GET_OK, M.RETURN})


class Garbled(Exception):
    """What came is not AMQP 0-9-1."""


class Event(NamedTuple):
    """A method, with its message if it carries one."""

    channel: int
    which: int
    arguments: bytes
    header: bytes = b""
    """The message's properties."""
    body: bytes = b""


class _Half:
    """A message of which not everything has come."""

    __slots__ = ("arguments", "body", "header", "left", "which")

    def __init__(self, which: int, arguments: bytes) -> None:
        self.which = which
        self.arguments = arguments
        self.header: bytes | None = None
        self.left = 0
        self.body: list[bytes] = []


class Machine:
    """Takes bytes as they come."""

    def __init__(self) -> None:
        self._need = 0
        """Bytes without which there is nothing to be read."""
        self._pieces: list[bytes] = []
        self._have = 0
        self._halves: dict[int, _Half] = {}

    def feed(self, data: bytes) -> list[Event]:
        """The events that are complete with these bytes. Raises Garbled."""
        if self._have:
            self._pieces.append(data)
            self._have += len(data)
            if self._have < self._need:
                return []
            data = b"".join(self._pieces)
            self._pieces, self._have = [], 0
        events: list[Event] = []
        at, end = 0, len(data)
        halves = self._halves
        while end - at >= 7:
            kind, channel, size = _head(data, at)
            if end - at < size + 8:
                if size > 1 << 28 or kind not in (METHOD, HEADER, BODY, HEARTBEAT):
                    raise Garbled(self._quote(data[at:]))
                self._need = size + 8
                break
            at += 7
            stop = at + size
            if data[stop] != END:
                raise Garbled(self._quote(data[at - 7 :]))
            if kind == METHOD:
                (which,) = _which(data, at)
                arguments = data[at + 4 : stop]
                if which in _WITH_CONTENT:
                    halves[channel] = _Half(which, arguments)
                else:
                    events.append(Event(channel, which, arguments))
            elif kind == HEADER:
                half = halves.get(channel)
                if half is None:
                    raise Garbled("a message's header came unasked")
                (half.left,) = _size(data, at + 4)
                half.header = data[at + 12 : stop]
                if not half.left:
                    events.append(Event(channel, half.which, half.arguments, half.header))
                    del halves[channel]
            elif kind == BODY:
                half = halves.get(channel)
                if half is None or half.header is None:
                    raise Garbled("a message's body came unasked")
                half.left -= size
                part = data[at:stop]
                if half.left <= 0:
                    body = b"".join([*half.body, part]) if half.body else part
                    events.append(Event(channel, half.which, half.arguments, half.header, body))
                    del halves[channel]
                else:
                    half.body.append(part)
            elif kind != HEARTBEAT:
                raise Garbled(self._quote(data[at - 7 :]))
            at = stop + 1
        else:
            self._need = 7
        if at < end:
            rest = data[at:] if at else data
            self._pieces, self._have = [rest], len(rest)
        return events

    @staticmethod
    def _quote(data: bytes) -> str:
        if data.startswith(b"AMQP"):
            return f"it speaks AMQP {'.'.join(map(str, data[5:8]))}, not 0.9.1"
        return f"not AMQP: {data[:16]!r}"
