"""Frames, tables and properties of AMQP, without a server."""

from __future__ import annotations

import struct
from contextlib import suppress
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from celeriac.drivers.amqp import frames
from celeriac.drivers.amqp.frames import HEARTBEAT_FRAME, M
from celeriac.drivers.amqp.machine import Garbled, Machine
from celeriac.drivers.amqp.table import properties, read_properties, read_table, short, table
from celeriac.errors import DecodeError, EncodeError

TEXT = st.text(st.characters(codec="utf-8"), max_size=40)
SCALARS = (
    st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False) | TEXT
    | st.binary(max_size=40) | st.datetimes(datetime(1970, 1, 2), datetime(2200, 1, 1)).map(
        lambda moment: moment.replace(microsecond=0, tzinfo=UTC)
    ) | st.decimals(-1000, 1000, places=3)
)  # fmt: skip
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4), max_leaves=12
)


@given(st.dictionaries(TEXT, VALUES, max_size=6))
def test_a_table_comes_back(values: dict[str, Any]) -> None:
    """Every value that AMQP has a form for is read as it was written, and nothing behind the table is touched."""
    data = table(values)
    assert read_table(b"xx" + data + b"behind", 2) == (values, len(data) + 2)


def test_what_py_amqp_writes_is_read() -> None:
    """All kinds of numbers that clients write."""
    parts = {
        "t": b"\x01", "b": b"\xff", "B": b"\xff", "s": b"\xff\xfe", "u": b"\xff\xfe", "I": b"\xff\xff\xff\xfe",
        "i": b"\xff\xff\xff\xfe", "l": b"\xff" * 7 + b"\xfe", "L": b"\xff" * 7 + b"\xfe", "f": struct.pack(">f", 0.5),
        "d": struct.pack(">d", 0.5), "D": b"\x02\x00\x00\x00\x7b", "V": b"",
    }  # fmt: skip
    inside = b"".join(short(kind) + kind.encode() + value for kind, value in parts.items())
    found, _ = read_table(struct.pack(">I", len(inside)) + inside, 0)
    assert found == {
        "t": True, "b": -1, "B": 255, "s": -2, "u": 65534, "I": -2, "i": 2**32 - 2, "l": -2, "L": -2, "f": 0.5,
        "d": 0.5, "D": Decimal("1.23"), "V": None,
    }  # fmt: skip


@given(st.binary(max_size=60))
def test_any_bytes_are_a_table_or_an_error(data: bytes) -> None:
    """Nothing else is ever raised, and nesting bombs end."""
    for read in (lambda: read_table(data, 0), lambda: read_properties(data)):
        with suppress(DecodeError):
            read()


def test_a_bomb_of_tables() -> None:
    """Deep nesting is an error on both ways."""
    value: dict[str, Any] = {}
    for _ in range(100):
        value = {"x": value}
    with pytest.raises(DecodeError, match="too deeply"):
        read_table(table(value), 0)
    for _ in range(100_000):
        value = {"x": value}
    with pytest.raises(EncodeError, match="too deeply"):
        table(value)


@pytest.mark.parametrize("value", [object(), 1 << 64, {1, 2}, Decimal("1e400")])
def test_what_amqp_cannot_carry(value: Any) -> None:
    """One clear error."""
    with pytest.raises(EncodeError):
        table({"x": value})


def test_properties_come_back() -> None:
    """All of them; others are left out."""
    values: dict[str, Any] = {
        "content_type": "a/b", "content_encoding": "utf-8", "headers": {"x": [1, None]}, "delivery_mode": 2,
        "priority": 9, "correlation_id": "c", "reply_to": "r", "expiration": "60000", "message_id": "m",
        "timestamp": 1700000000, "type": "t", "user_id": "u", "app_id": "a", "cluster_id": "k",
    }  # fmt: skip
    assert read_properties(properties({**values, "delivery_info": {}, "unknown": 1})) == values
    assert read_properties(properties({})) == {}
    with pytest.raises(EncodeError, match="priority must be a number"):
        properties({"priority": 300})
    with pytest.raises(EncodeError, match="too long"):
        short("x" * 256)


@given(st.lists(st.binary(max_size=9000), min_size=1, max_size=4), st.lists(st.integers(1, 5000), max_size=40))
def test_any_pieces_give_the_same_events(bodies: list[bytes], sizes: list[int]) -> None:
    """A stream is taken apart the same way wherever it was cut, with heartbeats between."""
    stream = b""
    for number, body in enumerate(bodies):
        deliver = b"\x01c" + struct.pack(">Q", number) + b"\x00\x00\x01q"
        stream += frames.method(1, M.DELIVER, deliver) + HEARTBEAT_FRAME
        stream += frames.content(1, properties({"priority": 1}), body, 4096) + frames.method(2, M.QOS_OK)
    machine, events, at = Machine(), [], 0
    for size in [*sizes, len(stream)]:
        events += machine.feed(stream[at : at + size])
        at += size
    assert [(event.channel, event.which) for event in events] == [(1, M.DELIVER), (2, M.QOS_OK)] * len(bodies)
    assert [event.body for event in events[::2]] == bodies


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"HTTP/1.1 400 Bad", "not AMQP"), (b"AMQP\x00\x01\x00\x00", "it speaks AMQP"), (b"-ERR unknown", "not AMQP"),
        (b"\x15\x03\x03\x00\x02\x02\x46\x00\x00\x00", "not AMQP"), (frames.method(1, M.QOS_OK)[:-1] + b"x", "not AMQP"),
        (frames.content(1, b"\x00\x00", b"", 4096), "unasked"),
    ],
)  # fmt: skip
def test_what_is_no_amqp(data: bytes, words: str) -> None:
    """It is said at once, not after waiting for gigabytes."""
    with pytest.raises(Garbled, match=words):
        Machine().feed(data)
