"""Laws of JSON values: kombu's text, and back."""

from __future__ import annotations

import contextlib
import json
import threading
from datetime import date, datetime, time
from decimal import Decimal
from enum import Enum, IntEnum, StrEnum
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from celeriac.errors import DecodeError, EncodeError
from celeriac.wire import values

PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)
TAGGED = st.recursive(
    st.none()
    | st.integers()
    | st.text()
    | st.binary()
    | st.datetimes()
    | st.dates()
    | st.times()
    | st.uuids()
    | st.decimals(allow_nan=False),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)


@given(PLAIN)
def test_the_text_is_that_of_the_stdlib(value: Any) -> None:
    """Without tagged values the text is what `json.dumps` gives."""
    assert values.dumps(value) == json.dumps(value)


@given(TAGGED)
def test_what_is_written_is_read(value: Any) -> None:
    """Tagged types come back as they were."""
    assert values.loads(values.dumps(value).encode()) == value


@given(PLAIN)
def test_the_fast_reader_agrees_with_the_stdlib(value: Any) -> None:
    """Bytes are read by msgspec, str by the stdlib; nobody can tell."""
    text = json.dumps(value, ensure_ascii=False)
    try:
        data = text.encode()
    except UnicodeEncodeError:
        data = json.dumps(value).encode()
    assert json.dumps(values.loads(data)) == json.dumps(value) == json.dumps(values.loads(data.decode()))


@settings(max_examples=300)
@given(st.binary(max_size=60) | st.text(alphabet='[]{}",:0123456789.eE+-\\u truefalsn_"', max_size=60))
def test_any_bytes_are_read_or_refused(data: bytes | str) -> None:
    """Whatever comes in, a value comes out or DecodeError."""
    with contextlib.suppress(DecodeError):
        values.loads(data)


def test_buffers() -> None:
    """Any buffer is read."""
    for data in (b'{"a": 1}', bytearray(b'{"a": 1}'), memoryview(b'{"a": 1}'), '{"a": 1}'):
        assert values.loads(data) == {"a": 1}


class Number(IntEnum):
    ONE = 1


class Word(StrEnum):
    A = "a"


class Thing(Enum):
    A = "a"


class Speaks:
    def __json__(self) -> Any:
        return {"speaks": [date(2026, 1, 2)]}


def test_subclasses_and_own_words() -> None:
    """Enums of int and str are values; `__json__` is asked first; other objects are refused."""
    assert values.dumps([Number.ONE, Word.A]) == '[1, "a"]'
    assert values.dumps(Word.A) == '"a"'
    assert values.dumps(Number.ONE) == "1"
    assert values.dumps(Speaks()) == '{"speaks": [{"__type__": "date", "__value__": "2026-01-02"}]}'
    for value in (Thing.A, {1}, object(), {(1, 2): 3}, {b"a": 1}, lambda: 0, 1j):
        with pytest.raises(EncodeError):
            values.dumps(value)


def test_circles_and_depth_end_in_errors_of_ours() -> None:
    """A value that contains itself, or is nested 100,000 deep, is refused, both ways."""
    circle: list[Any] = []
    circle.append(circle)
    with pytest.raises(EncodeError, match="deeply"):
        values.dumps(circle)
    deep: Any = []
    for _ in range(100_000):
        deep = [deep]
    with pytest.raises(EncodeError, match="deeply"):
        values.dumps(deep)
    for data in (b"[" * 100_000, b"[" * 10_000 + b"]" * 10_000, b'{"a":' * 100_000, "[" * 100_000):
        with pytest.raises(DecodeError, match="deeply"):
            values.loads(data)
    while deep:
        deep = deep[0]


@pytest.mark.parametrize(
    "text",
    [
        '{"__type__": "nosuch", "__value__": 1}',
        '{"__type__": [], "__value__": 1}',
        '{"__type__": null, "__value__": 1}',
        '{"__type__": "datetime", "__value__": 1}',
        '{"__type__": "datetime", "__value__": "yesterday"}',
        '{"__type__": "date", "__value__": {}}',
        '{"__type__": "time", "__value__": "25:00"}',
        '{"__type__": "decimal", "__value__": "x"}',
        '{"__type__": "decimal", "__value__": null}',
        '{"__type__": "uuid", "__value__": {"hex": "0"}}',
        '{"__type__": "uuid", "__value__": {"nosuch": 1}}',
        '{"__type__": "uuid", "__value__": 5}',
        '{"__type__": "base64", "__value__": "abc"}',
        '{"__type__": "base64", "__value__": 1}',
        '{"__type__": "bytes", "__value__": "\\ud800"}',
        '{"__type__": "bytes", "__value__": []}',
        "1" * 5000,
        "",
        "\ufeff1",
        "[1",
        '"\x01"',
    ],
)
def test_bad_texts_are_refused(text: str) -> None:
    """Bad tagged values and bad JSON raise DecodeError."""
    for data in (text, text.encode()):
        with pytest.raises(DecodeError):
            values.loads(data)


def test_old_forms_are_read() -> None:
    """A uuid as plain hex, a map with more keys than a tag has."""
    assert values.loads('{"__type__": "uuid", "__value__": "00000000000000000000000000000005"}') == UUID(int=5)
    assert values.loads(b'{"__type__": "date", "__value__": "2026-01-02", "x": 1}') == {
        "__type__": "date",
        "__value__": "2026-01-02",
        "x": 1,
    }


def test_huge_int_is_refused() -> None:
    """An int that Python itself won't print is an EncodeError."""
    with pytest.raises(EncodeError):
        values.dumps(10**5000)
    with pytest.raises(EncodeError):
        values.dumps([10**5000])


class Point:
    def __init__(self, x: int) -> None:
        self.x = x

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Point) and other.x == self.x

    __hash__ = None  # type: ignore[assignment]


def test_registered_types(monkeypatch: pytest.MonkeyPatch) -> None:
    """An application teaches JSON its types, tagged or bare; those known before are asked first."""
    monkeypatch.setattr(values, "_encoders", dict(values._encoders))
    monkeypatch.setattr(values, "_decoders", dict(values._decoders))
    values.register_type(Point, "point", lambda point: [point.x], lambda found: Point(*found))
    values.register_type(complex, None, str)
    assert values.dumps(Point(3)) == '{"__type__": "point", "__value__": [3]}'
    assert values.loads(values.dumps([Point(3)]).encode()) == [Point(3)]
    assert values.dumps(1j) == '"1j"'

    class Day(date):
        pass

    values.register_type(Day, "day", lambda day: 1)
    assert values.dumps(Day(2026, 1, 2)) == '{"__type__": "date", "__value__": "2026-01-02"}'


def test_one_encoder_serves_all_threads() -> None:
    """The encoder is shared: values of different threads don't mix, and an error leaves nothing behind."""
    failures: list[str] = []

    def work(number: int) -> None:
        shared = [number]
        for _ in range(200):
            if values.dumps({"a": shared, "b": shared, "t": time(1)}) != (
                f'{{"a": [{number}], "b": [{number}], "t": {{"__type__": "time", "__value__": "01:00:00"}}}}'
            ):
                failures.append("mixed")
            with pytest.raises(EncodeError):
                values.dumps([shared, {1}])

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert not failures


def test_datetime_is_no_date() -> None:
    """Each is tagged as what it is."""
    assert values.loads(values.dumps([datetime(2026, 1, 2), date(2026, 1, 2), Decimal("1.50")])) == [
        datetime(2026, 1, 2),
        date(2026, 1, 2),
        Decimal("1.50"),
    ]
