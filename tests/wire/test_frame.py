"""Laws of the envelope."""

from __future__ import annotations

import contextlib
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from celeriac.errors import DecodeError, EncodeError
from celeriac.wire import frame
from tests.wire.messages import message, seal

NAMES = st.text(max_size=8)
MAPS = st.dictionaries(NAMES, st.none() | st.integers() | st.text() | st.lists(st.integers(), max_size=3), max_size=5)


@given(MAPS, st.binary(), MAPS, st.text(), st.text())
def test_what_is_packed_is_unpacked(
    headers: dict[str, Any], body: bytes, properties: dict[str, Any], content_type: str, content_encoding: str
) -> None:
    """Any headers, properties and body come back."""
    properties.pop("body_encoding", None)
    parts = frame.unpack(frame.pack(headers, body, properties, content_type, content_encoding))
    assert parts.properties.pop("body_encoding") == "base64"
    assert parts == frame.Parts(headers, properties, body, content_type, content_encoding)


@given(MAPS, MAPS, st.binary(), st.integers(0, 9), st.integers(0, 9))
def test_losses_change_nothing_else(
    headers: dict[str, Any], properties: dict[str, Any], body: bytes, child: int, worker: int
) -> None:
    """The counters are set and read; the rest of the message is what it was."""
    properties.pop("body_encoding", None)
    properties.pop("delivery_info", None)
    blob = frame.pack(headers, body, properties, "application/json", "utf-8")
    assert frame.losses(blob) == (0, 0)
    marked = frame.with_losses(blob, child, worker)
    assert frame.losses(marked) == (child, worker)
    assert frame.with_losses(frame.with_losses(blob, 7, 7), child, worker) == marked
    before, after = frame.unpack(blob), frame.unpack(marked)
    assert after.headers == before.headers | {"redelivered": True, frame.LOSSES: [child, worker]}
    assert after.properties == before.properties | {"delivery_info": {"redelivered": True}}
    assert after.body == before.body


def test_foreign_spelling_is_kept_to_the_byte() -> None:
    """Values that another writer spelled otherwise stay as they are."""
    blob = (
        b'{"headers":{"a":  [1,2 ,3], "n": 1.00, "u":"\xc3\xa4\\u00e4"},"body":"eA==",\n'
        b' "properties":{"delivery_info":{"exchange":  ""}, "x": 1e2}}'
    )
    marked = frame.with_losses(blob, 1, 0)
    for piece in (b"[1,2 ,3]", b"1.00", b'"\xc3\xa4\\u00e4"', b'"exchange": ""', b"1e2"):
        assert piece in marked
    changed = frame.with_headers(blob, a=5, new={"k": None})
    assert b'"a": 5' in changed
    assert b'"new": {"k": null}' in changed
    assert b"1e2" in changed
    assert b'"exchange":  ""' in changed


def test_values_that_only_the_stdlib_reads() -> None:
    """Lone surrogates, NaN and tagged values survive."""
    for text in ('"\\ud800"', "NaN", '{"__type__": "date", "__value__": "2026-01-02"}'):
        blob = seal(message()).replace(b'"gen1@host"', text.encode())
        assert f'"origin": {text}'.encode() in frame.with_losses(blob, 1, 1)
        assert frame.losses(frame.with_losses(blob, 1, 2)) == (1, 2)


def test_missing_parts_are_made() -> None:
    """Headers, properties and delivery info may be missing or null."""
    for blob in (b"{}", b'{"headers": null, "properties": null}', b'{"properties": {"delivery_info": null}}'):
        marked = json.loads(frame.with_losses(blob, 1, 2))
        assert marked["headers"] == {"redelivered": True, frame.LOSSES: [1, 2]}
        assert marked["properties"]["delivery_info"] == {"redelivered": True}


def test_bad_counters_count_as_none() -> None:
    """A peer's header of that name can do no harm."""
    for value in (None, 5, "x", [1], [1, 2, 3], ["1", "2"], [-1, 0], [1.5, 2], [True, 1], [2**70, 0], {"a": 1}):
        sealed = message()
        sealed["headers"][frame.LOSSES] = value
        assert frame.losses(seal(sealed)) == (0, 0)


def test_bodies_that_are_not_base64() -> None:
    """Option body_encoding may be utf-8 or nothing."""
    for encoding in (None, "utf-8", "UTF-8"):
        blob = json.dumps({"body": '[1, "ä"]', "properties": {"body_encoding": encoding}}).encode()
        assert frame.unpack(blob).body == '[1, "ä"]'.encode()
    blob = json.dumps({"body": "eH\n h4\r\n", "properties": {"body_encoding": "Base64"}}).encode()
    assert frame.unpack(blob).body == b"xxx"


BAD = [
    b"", b"garbage", b"[]", b"5", b"null", b'"x"', b"{", b'{"body": "eA=="', b"\xff\xfe", b"\x00", b"\x80\x04.",
    b'{"body": 5}', b"{}", b'{"body": null}', b'{"body": ["x"]}',
    b'{"body": "x", "headers": []}', b'{"body": "x", "headers": "x"}', b'{"body": "x", "properties": 5}',
    b'{"body": "x", "content-type": 5}', b'{"body": "x", "content-encoding": []}',
    b'{"body": "x", "properties": {"body_encoding": 5}}', b'{"body": "x", "properties": {"body_encoding": "rot13"}}',
    b'{"body": "!", "properties": {"body_encoding": "base64"}}',
    b'{"body": "eA=", "properties": {"body_encoding": "base64"}}',
    b'{"body": "\\ud800", "properties": {"body_encoding": "base64"}}',
    b'{"headers": ' + b"[" * 10_000,
    b'{"body": "x", "headers": {"a": ' + b"[" * 10_000 + b"]" * 10_000 + b"}}",
]  # fmt: skip


@pytest.mark.parametrize("blob", BAD)
def test_what_is_no_envelope_is_refused(blob: bytes) -> None:
    """Every function of the room raises DecodeError, or makes do; never anything else."""
    with pytest.raises(DecodeError):
        frame.unpack(blob)
    for call in (frame.losses, lambda b: frame.with_losses(b, 1, 1), lambda b: frame.with_headers(b, a=1)):
        with contextlib.suppress(DecodeError):
            call(blob)


def test_headers_that_json_has_not() -> None:
    """Bad values of our own are EncodeErrors; any name is a name."""
    with pytest.raises(EncodeError):
        frame.with_headers(b"{}", a={1})
    with pytest.raises(EncodeError):
        frame.pack({"a": object()}, b"", {}, None, None)
    assert json.loads(frame.with_headers(b"{}", blob=1, **{"x-y": 2})) == {"headers": {"blob": 1, "x-y": 2}}


@given(st.data())
def test_mutated_envelopes(data: st.DataObject) -> None:
    """A message with some bytes changed, cut out or doubled is read or refused."""
    blob = bytearray(seal(message()))
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(blob) - 1))
        blob[at : at + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=3))
    for call in (
        frame.unpack,
        frame.losses,
        lambda b: frame.with_losses(b, 1, 1),
        lambda b: frame.with_headers(b, a=1),
    ):
        with contextlib.suppress(DecodeError):
            call(bytes(blob))
