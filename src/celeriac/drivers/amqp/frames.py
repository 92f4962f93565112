"""Frames and methods of AMQP 0-9-1. The standard has not changed since 2008; only what is used here is spoken."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from enum import IntEnum
from typing import Any, NamedTuple

from celeriac.drivers.amqp.table import read_table, short, table

GREETING = b"AMQP\x00\x00\x09\x01"
METHOD, HEADER, BODY, HEARTBEAT = 1, 2, 3, 8
END = 0xCE
SMALLEST_FRAME = 4096


class M(IntEnum):
    """Methods, `class << 16 | method`."""

    START = 10 << 16 | 10
    START_OK = 10 << 16 | 11
    TUNE = 10 << 16 | 30
    TUNE_OK = 10 << 16 | 31
    OPEN = 10 << 16 | 40
    OPEN_OK = 10 << 16 | 41
    CLOSE = 10 << 16 | 50
    CLOSE_OK = 10 << 16 | 51
    BLOCKED = 10 << 16 | 60
    UNBLOCKED = 10 << 16 | 61
    CHANNEL_OPEN = 20 << 16 | 10
    CHANNEL_OPEN_OK = 20 << 16 | 11
    FLOW = 20 << 16 | 20
    FLOW_OK = 20 << 16 | 21
    CHANNEL_CLOSE = 20 << 16 | 40
    CHANNEL_CLOSE_OK = 20 << 16 | 41
    EXCHANGE_DECLARE = 40 << 16 | 10
    EXCHANGE_DECLARE_OK = 40 << 16 | 11
    EXCHANGE_BIND = 40 << 16 | 30
    EXCHANGE_BIND_OK = 40 << 16 | 31
    QUEUE_DECLARE = 50 << 16 | 10
    QUEUE_DECLARE_OK = 50 << 16 | 11
    QUEUE_BIND = 50 << 16 | 20
    QUEUE_BIND_OK = 50 << 16 | 21
    PURGE = 50 << 16 | 30
    PURGE_OK = 50 << 16 | 31
    QOS = 60 << 16 | 10
    QOS_OK = 60 << 16 | 11
    CONSUME = 60 << 16 | 20
    CONSUME_OK = 60 << 16 | 21
    CANCEL = 60 << 16 | 30
    CANCEL_OK = 60 << 16 | 31
    PUBLISH = 60 << 16 | 40
    RETURN = 60 << 16 | 50
    DELIVER = 60 << 16 | 60
    GET = 60 << 16 | 70
    GET_OK = 60 << 16 | 71
    GET_EMPTY = 60 << 16 | 72
    ACK = 60 << 16 | 80
    REJECT = 60 << 16 | 90
    NACK = 60 << 16 | 120
    CONFIRM = 85 << 16 | 10
    CONFIRM_OK = 85 << 16 | 11


_frame = struct.Struct(">BHI").pack
_method = struct.Struct(">BHII").pack
_content = struct.Struct(">BHIHHQ").pack
HEARTBEAT_FRAME = _frame(HEARTBEAT, 0, 0) + b"\xce"


def method(channel: int, which: M, arguments: bytes = b"") -> bytes:
    """A method's frame."""
    return _method(METHOD, channel, 4 + len(arguments), which) + arguments + b"\xce"


def content(channel: int, header: bytes, body: bytes, largest: int) -> bytes:
    """Header and body frames of a message. `header`: its properties; `largest`: bytes of a frame."""
    parts = [_content(HEADER, channel, 12 + len(header), 60, 0, len(body)), header, b"\xce"]
    piece = largest - 8
    for start in range(0, len(body), piece):
        part = body[start : start + piece] if len(body) > piece else body
        parts += (_frame(BODY, channel, len(part)), part, b"\xce")
    return b"".join(parts)


def _bits(*flags: bool) -> bytes:
    return bytes((sum(1 << n for n, flag in enumerate(flags) if flag),))


# What clients say. Each gives the arguments of its method.


def exchange_declare(
    name: str, kind: str, *, durable: bool, auto_delete: bool = False, passive: bool = False, internal: bool = False,
    arguments: Mapping[str, Any] | None = None,
) -> bytes:  # fmt: skip
    """Of EXCHANGE_DECLARE."""
    flags = _bits(passive, durable, auto_delete, internal, False)
    return b"\x00\x00" + short(name) + short(kind) + flags + table(arguments or {})


def queue_declare(
    name: str, *, durable: bool = True, exclusive: bool = False, auto_delete: bool = False, passive: bool = False,
    arguments: Mapping[str, Any] | None = None,
) -> bytes:  # fmt: skip
    """Of QUEUE_DECLARE."""
    return b"\x00\x00" + short(name) + _bits(passive, durable, exclusive, auto_delete, False) + table(arguments or {})


def bind(target: str, source: str, routing_key: str, arguments: Mapping[str, Any] | None = None) -> bytes:
    """Of QUEUE_BIND and EXCHANGE_BIND: `target` is a queue, or an exchange."""
    return b"\x00\x00" + short(target) + short(source) + short(routing_key) + b"\x00" + table(arguments or {})


def purge(name: str) -> bytes:
    """Of PURGE."""
    return b"\x00\x00" + short(name) + b"\x00"


def qos(prefetch: int) -> bytes:
    """Of QOS: for each consumer that is made on the channel from now on."""
    return struct.pack(">IHB", 0, min(prefetch, 65535), 0)


def consume(
    queue: str, tag: str, *, no_ack: bool = False, exclusive: bool = False, arguments: Mapping[str, Any] | None = None
) -> bytes:
    """Of CONSUME."""
    return b"\x00\x00" + short(queue) + short(tag) + _bits(False, no_ack, exclusive, False) + table(arguments or {})


def cancel(tag: str) -> bytes:
    """Of CANCEL."""
    return short(tag) + b"\x00"


def get(queue: str, *, no_ack: bool = False) -> bytes:
    """Of GET."""
    return b"\x00\x00" + short(queue) + _bits(no_ack)


def publish(exchange: str, routing_key: str, *, mandatory: bool) -> bytes:
    """Of PUBLISH."""
    return b"\x00\x00" + short(exchange) + short(routing_key) + _bits(mandatory, False)


_ack = struct.Struct(">BHIIQBB").pack


def ack(channel: int, tag: int, multiple: bool = False) -> bytes:
    """The frame of an ACK."""
    return _ack(METHOD, channel, 13, M.ACK, tag, multiple, END)


def nack(channel: int, tag: int, *, multiple: bool = False, requeue: bool = True) -> bytes:
    """The frame of a NACK."""
    return _ack(METHOD, channel, 13, M.NACK, tag, multiple | requeue << 1, END)


def reject(channel: int, tag: int, *, requeue: bool) -> bytes:
    """The frame of a REJECT."""
    return _ack(METHOD, channel, 13, M.REJECT, tag, requeue, END)


def read_short(data: bytes, at: int) -> tuple[str, int]:
    """A short text, and where it ends."""
    end = at + 1 + data[at]
    return data[at + 1 : end].decode("utf-8", "surrogateescape"), end


class Closed(NamedTuple):
    """Why the other side closes a connection or channel."""

    code: int
    text: str


def read_close(arguments: bytes) -> Closed:
    """Of CLOSE and CHANNEL_CLOSE."""
    (code,) = struct.unpack_from(">H", arguments, 0)
    return Closed(code, read_short(arguments, 2)[0])


class Declared(NamedTuple):
    """What QUEUE_DECLARE_OK says."""

    name: str
    messages: int
    """Ready ones."""
    consumers: int


def read_declared(arguments: bytes) -> Declared:
    """Of QUEUE_DECLARE_OK."""
    name, at = read_short(arguments, 0)
    return Declared(name, *struct.unpack_from(">II", arguments, at))


class Returned(NamedTuple):
    """A message that reached no queue."""

    code: int
    text: str
    exchange: str
    routing_key: str


def read_returned(arguments: bytes) -> Returned:
    """Of RETURN."""
    (code,) = struct.unpack_from(">H", arguments, 0)
    text, at = read_short(arguments, 2)
    exchange, at = read_short(arguments, at)
    return Returned(code, text, exchange, read_short(arguments, at)[0])


class Start(NamedTuple):
    """How a server introduces itself."""

    properties: dict[str, Any]
    mechanisms: list[str]

    @property
    def version(self) -> tuple[int, ...]:
        """Of the server; empty where it does not say."""
        text = str(self.properties.get("version") or "").partition("-")[0].partition("+")[0]
        return tuple(int(part) for part in text.split(".") if part.isdigit())


def read_start(arguments: bytes) -> Start:
    """Of START."""
    properties, at = read_table(arguments, 2)
    (size,) = struct.unpack_from(">I", arguments, at)
    return Start(properties, arguments[at + 4 : at + 4 + size].decode().split())


CAPABILITIES = {
    "product": "celeriac",
    "capabilities": {
        "publisher_confirms": True, "exchange_exchange_bindings": True, "basic.nack": True,
        "consumer_cancel_notify": True, "connection.blocked": True, "authentication_failure_close": True,
    },
}  # fmt: skip


def start_ok(name: str, mechanism: str, response: bytes) -> bytes:
    """Of START_OK. `name`: what the server's operators see of this connection."""
    told = {**CAPABILITIES, "connection_name": name}
    return table(told) + short(mechanism) + struct.pack(">I", len(response)) + response + short("en_US")
