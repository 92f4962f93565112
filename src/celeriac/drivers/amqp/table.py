"""Field tables and message properties, to and from bytes. Written as py-amqp writes them, so that a peer sees no
difference; read in every form that RabbitMQ's clients use."""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

from celeriac.errors import DecodeError, EncodeError

DEEPEST = 64
"""How deep tables may be nested in what is read: a bomb ends in an error, not in the interpreter's limit."""

_length = struct.Struct(">I").pack
_int32 = struct.Struct(">ci").pack
_int64 = struct.Struct(">cq").pack
_double = struct.Struct(">cd").pack


def short(text: str) -> bytes:
    """A text of at most 255 bytes. Raises EncodeError."""
    try:
        data = text.encode()
    except UnicodeEncodeError as error:
        raise EncodeError(f"{text!r:.60} can't be written in UTF-8") from error
    if len(data) > 255:
        raise EncodeError(f"{text[:40]!r}... is too long for a name or property in AMQP (255 bytes)")
    return bytes((len(data),)) + data


def table(values: Mapping[str, Any]) -> bytes:
    """A field table with its length. Raises EncodeError for a value that has no form in AMQP."""
    try:
        return _table(values)
    except RecursionError:
        raise EncodeError("a header is nested too deeply for AMQP") from None


def _table(values: Mapping[str, Any]) -> bytes:
    inside = b"".join([short(str(name)) + _value(value) for name, value in values.items()])
    return _length(len(inside)) + inside


def _value(value: Any) -> bytes:
    kind = type(value)
    if kind is str:
        data: bytes = value.encode("utf-8", "surrogatepass")
        return b"S" + _length(len(data)) + data
    if value is None:
        return b"V"
    if kind is bool:
        return b"t\x01" if value else b"t\x00"
    if kind is int:
        if -2147483648 < value < 2147483648:
            return _int32(b"I", value)
        if -(1 << 63) <= value < 1 << 63:
            return _int64(b"l", value)
        raise EncodeError(f"{value} is too large for a header in AMQP (64 bits)")
    if kind is float:
        return _double(b"d", value)
    if isinstance(value, Mapping):
        return b"F" + _table(value)
    if isinstance(value, list | tuple):
        inside = b"".join(map(_value, value))
        return b"A" + _length(len(inside)) + inside
    if isinstance(value, bytes):
        return b"x" + _length(len(value)) + value
    if isinstance(value, datetime):
        return b"T" + struct.pack(">Q", int(value.timestamp()))
    if isinstance(value, Decimal):
        sign, digits, exponent = value.as_tuple()
        scale = -exponent if isinstance(exponent, int) else -1
        number = int("".join(map(str, digits)) or "0") * (-1 if sign else 1)
        if 0 <= scale < 256 and -(1 << 31) <= number < 1 << 31:
            return b"D" + struct.pack(">Bi", scale, number)
    if isinstance(value, bool | int | float | str):  # a subclass, as an enum's member is
        plain: Any = next(kind(value) for kind in (bool, int, float, str) if isinstance(value, kind))
        return _value(plain)
    raise EncodeError(f"a header of type {type(value).__name__} can't be written in AMQP")


_read_length = struct.Struct(">I").unpack_from
_read_int32 = struct.Struct(">i").unpack_from
_read_int64 = struct.Struct(">q").unpack_from
_read_double = struct.Struct(">d").unpack_from
_read_decimal = struct.Struct(">Bi").unpack_from
_SIMPLE: dict[int, tuple[Callable[..., tuple[Any, ...]], int]] = {
    ord(sign): (form.unpack_from, form.size)
    for sign, form in {
        "b": struct.Struct(">b"), "B": struct.Struct(">B"), "s": struct.Struct(">h"), "u": struct.Struct(">H"),
        "U": struct.Struct(">h"), "i": struct.Struct(">I"), "L": struct.Struct(">q"), "f": struct.Struct(">f"),
    }.items()
}  # fmt: skip


def read_table(data: bytes, at: int, depth: int = 0) -> tuple[dict[str, Any], int]:
    """A field table that begins at `at` with its length; where it ends. Raises DecodeError."""
    try:
        return _read_table(data, at, depth)
    except (struct.error, IndexError) as error:
        raise DecodeError(f"a field table is cut off: {error}") from None


_NAMES = {
    name.encode(): name
    for name in (
        "lang", "task", "id", "shadow", "eta", "expires", "group", "group_index", "retries", "timelimit", "root_id",
        "parent_id", "argsrepr", "kwargsrepr", "origin", "ignore_result", "replaced_task_nesting", "stamped_headers",
        "stamps", "x-delivery-count",
    )
}  # fmt: skip
"""The names that most messages have: found faster than made."""


def _read_table(data: bytes, at: int, depth: int) -> tuple[dict[str, Any], int]:
    if depth > DEEPEST:
        raise DecodeError("a field table is nested too deeply")
    (size,) = _read_length(data, at)
    at += 4
    end = at + size
    if end > len(data):
        raise DecodeError("a field table is cut off")
    found: dict[str, Any] = {}
    while at < end:
        begin = at + 1
        at = begin + data[at]
        raw = data[begin:at]
        name = _NAMES.get(raw) or raw.decode("utf-8", "surrogateescape")
        kind = data[at]
        if kind == 86:  # V, and below S: nearly all that messages hold, spared the call
            found[name] = None
            at += 1
        elif kind == 83:
            begin = at + 5
            at = begin + int.from_bytes(data[at + 1 : begin], "big")
            found[name] = str(data[begin:at], "utf-8", "surrogateescape")
        else:
            found[name], at = _read_value(data, at, depth)
    return found, at


def _read_value(data: bytes, at: int, depth: int) -> tuple[Any, int]:
    kind = data[at]
    at += 1
    if kind == 83:  # S
        (size,) = _read_length(data, at)
        at += 4
        return data[at : at + size].decode("utf-8", "surrogateescape"), at + size
    if kind == 86:  # V
        return None, at
    if kind == 73:  # I
        return _read_int32(data, at)[0], at + 4
    if kind == 116:  # t
        return data[at] != 0, at + 1
    if kind == 70:  # F
        return _read_table(data, at, depth + 1)
    if kind == 65:  # A
        if depth > DEEPEST:
            raise DecodeError("a field table is nested too deeply")
        (size,) = _read_length(data, at)
        at += 4
        end = at + size
        items = []
        while at < end:
            item, at = _read_value(data, at, depth + 1)
            items.append(item)
        return items, at
    if kind == 108:  # l
        return _read_int64(data, at)[0], at + 8
    if kind == 100:  # d
        return _read_double(data, at)[0], at + 8
    if kind == 120:  # x
        (size,) = _read_length(data, at)
        return data[at + 4 : at + 4 + size], at + 4 + size
    if kind == 84:  # T
        (seconds,) = _read_int64(data, at)
        try:
            return datetime.fromtimestamp(seconds, UTC), at + 8
        except (OverflowError, ValueError, OSError):
            return seconds, at + 8
    if kind == 68:  # D
        scale, number = _read_decimal(data, at)
        return Decimal(number).scaleb(-scale), at + 5
    simple = _SIMPLE.get(kind)
    if simple is None:
        raise DecodeError(f"a field table holds a value of the unknown kind {chr(kind)!r}")
    read, size = simple
    return read(data, at)[0], at + size


# Properties, in the order of their flags.
_TEXTS = frozenset({
    "content_type", "content_encoding", "correlation_id", "reply_to", "expiration", "message_id", "type", "user_id",
    "app_id", "cluster_id",
})  # fmt: skip
_ORDER = (
    ("content_type", 1 << 15), ("content_encoding", 1 << 14), ("headers", 1 << 13), ("delivery_mode", 1 << 12),
    ("priority", 1 << 11), ("correlation_id", 1 << 10), ("reply_to", 1 << 9), ("expiration", 1 << 8),
    ("message_id", 1 << 7), ("timestamp", 1 << 6), ("type", 1 << 5), ("user_id", 1 << 4), ("app_id", 1 << 3),
    ("cluster_id", 1 << 2),
)  # fmt: skip
PROPERTIES = frozenset(name for name, _ in _ORDER)


def properties(values: Mapping[str, Any]) -> bytes:
    """Flags and values of those properties that AMQP knows; the others are left out. Raises EncodeError."""
    flags = 0
    parts = []
    for name, flag in _ORDER:
        value = values.get(name)
        if value is None:
            continue
        flags |= flag
        if name == "headers":
            parts.append(table(value))
        elif name in _TEXTS:
            parts.append(short(str(value)))
        elif name == "timestamp":
            parts.append(struct.pack(">Q", int(value.timestamp() if isinstance(value, datetime) else value)))
        elif isinstance(value, int) and 0 <= value < 256:
            parts.append(bytes((value,)))
        else:
            raise EncodeError(f"{name} must be a number from 0 to 255 in AMQP, not {value!r}")
    return struct.pack(">H", flags) + b"".join(parts)


def read_properties(data: bytes, at: int = 0) -> dict[str, Any]:
    """What `properties` wrote. Raises DecodeError."""
    try:
        (flags,) = struct.unpack_from(">H", data, at)
        at += 2
        found: dict[str, Any] = {}
        for name, flag in _ORDER:
            if not flags & flag:
                continue
            if name in _TEXTS:
                length = data[at]
                at += 1 + length
                found[name] = data[at - length : at].decode("utf-8", "surrogateescape")
            elif name == "headers":
                found[name], at = _read_table(data, at, 0)
            elif name == "timestamp":
                (found[name],) = struct.unpack_from(">Q", data, at)
                at += 8
            else:
                found[name] = data[at]
                at += 1
        return found
    except (struct.error, IndexError) as error:
        raise DecodeError(f"message properties are cut off: {error}") from None
