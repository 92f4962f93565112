"""Laws of result documents. That they are Celery's is shown by the golden files."""

from __future__ import annotations

import contextlib
import json
import pickle
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from celeriac.errors import ContentDisallowed, DecodeError, EncodeError, ImproperlyConfigured
from celeriac.wire import codec, record, values
from celeriac.wire.record import Record

ALL = codec.accept_set(["json", "pickle", "yaml", "msgpack"])
TEXT = st.text(st.characters(codec="utf-8"), max_size=10)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**60), 2**60) | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=8,
)
SOME = TEXT.filter(bool)
DATE = "2026-01-02T03:04:05+00:00"


@given(
    st.builds(
        Record,
        id=SOME,
        status=st.sampled_from(["SUCCESS", "STARTED", "FAILURE", "RETRY", "REVOKED", "PROGRESS"]),
        result=VALUES,
        traceback=st.none() | TEXT,
        children=st.none() | st.lists(st.just([["c", None], None]), max_size=2),
        date_done=st.none() | st.just(DATE),
        parent_id=st.none() | SOME,
        group_id=st.none() | SOME,
    ),
    st.booleans(),
    st.sampled_from(["json", "msgpack", "pickle"]),
    st.sampled_from([None, "gzip", "bzip2"]),
)
def test_what_is_written_is_read(kept: Record, extended: bool, serializer: str, compression: str | None) -> None:
    """Every field comes back, by every serializer, compressed or not."""
    more = None
    if extended:
        more = record.extended_fields("t", [1], {"k": 2}, "w@host", 3, "q", ["a"], {"a": 5})
        kept.name, kept.args, kept.kwargs, kept.worker, kept.retries, kept.queue = "t", [1], {"k": 2}, "w@host", 3, "q"
        kept.stamps = {"a": 5}
    data = record.document(
        kept.id,
        kept.status,
        kept.result,
        traceback=kept.traceback,
        children=kept.children,
        date_done=kept.date_done,
        parent_id=kept.parent_id,
        group_id=kept.group_id,
        extended=more,
        serializer=serializer,
        compression=compression,
    )
    assert record.read(data, serializer, ALL) == kept


@given(VALUES, TEXT, st.none() | TEXT, st.none() | TEXT, st.booleans())
def test_the_quick_document_is_the_same(
    result: Any, task_id: str, parent_id: str | None, group_id: str | None, extended: bool
) -> None:
    """`success` and `document` give the same bytes."""
    more = record.extended_fields("t", (1,), {}, "w", 0, "q") if extended else None
    text = values.dumps(result)
    expected = record.document(
        task_id, "SUCCESS", result, date_done=DATE, parent_id=parent_id, group_id=group_id, extended=more
    )
    for quick in (text, text.encode()):
        assert record.success(task_id, quick, DATE, "[]", parent_id, group_id, more) == expected


def test_values_that_cannot_be_stored() -> None:
    """EncodeError, whatever the serializer."""
    for serializer in ("json", "msgpack", "pickle", "yaml"):
        with pytest.raises(EncodeError):
            record.document("i", "SUCCESS", lambda: 0, serializer=serializer)


def test_exceptions_are_described() -> None:
    """As a map, or as themselves with pickle; what pickle can't carry becomes what is nearest."""

    class Local(ValueError):
        pass

    assert record.read(record.document("i", "FAILURE", KeyError("a"))).result == {
        "exc_type": "KeyError",
        "exc_message": ["a"],
        "exc_module": "builtins",
    }
    found = record.read(record.document("i", "FAILURE", Local("a"), serializer="pickle"), "pickle", ALL).result
    assert (type(found), found.args) == (ValueError, ("a",))


def test_foreign_documents() -> None:
    """Missing fields, further fields, a date that is one, null stamps."""
    assert record.read(b'{"status": "SUCCESS"}') == Record("", "SUCCESS")
    assert record.read(b'{"status": "SUCCESS", "result": 5, "more": 1, "task_id": "i"}') == Record("i", "SUCCESS", 5)
    assert record.read(b'{"status": "S", "stamped_headers": null}').stamps is None
    tagged = values.dumps({"status": "S", "date_done": datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)}).encode()
    assert record.read(tagged).date_done == DATE
    assert record.read(pickle.dumps({"status": "S", "children": [(("c", None), None)]}), "pickle", ALL).children == [
        (("c", None), None)
    ]


BAD = [
    b"", b"garbage", b"[]", b"5", b"null", b"{}", b'{"status": 5}', b'{"status": null}', b'{"status": "S"',
    b'{"status": "S", "traceback": 5}', b'{"status": "S", "children": 5}', b'{"status": "S", "date_done": 5}',
    b'{"status": "S", "parent_id": 5}', b'{"status": "S", "group_id": []}', b'{"status": "S", "task_id": 5}',
    b'{"status": "S", "retries": "x"}', b'{"status": "S", "name": 5}', b'{"status": "S", "worker": 5}',
    b'{"status": "S", "queue": 5}', b'{"status": "S", "stamped_headers": 5}',
    b'{"status": "S", "stamped_headers": [[]]}', b'{"status": "S", "result": {"__type__": "x", "__value__": 1}}',
    b'{"status": "S", "result": ' + b"[" * 2000, b"\x00" + b"\xff" * 10,
    record.COMPRESSED, record.COMPRESSED + b"zip\0x", record.COMPRESSED + b"\xff\0x",
    record.COMPRESSED + b"application/x-gzip\0x", record.COMPRESSED + b"application/x-gzip",
]  # fmt: skip


@pytest.mark.parametrize("data", BAD)
def test_what_is_no_document_is_refused(data: bytes) -> None:
    """DecodeError, whatever the serializer."""
    for serializer in ("json", "msgpack", "pickle", "yaml"):
        if serializer == "json":
            with pytest.raises(DecodeError):
                record.read(data, serializer)
        with contextlib.suppress(DecodeError):
            record.read(data, serializer)
        with contextlib.suppress(DecodeError):
            record.read_group(data, serializer)


def test_what_is_not_accepted_is_not_read() -> None:
    """The accept list of results."""
    data = record.document("i", "SUCCESS", 5)
    for accept in (frozenset(), codec.accept_set(["pickle"])):
        with pytest.raises(ContentDisallowed):
            record.read(data, "json", accept)
        with pytest.raises(ContentDisallowed):
            record.read_group(data, "json", accept)
    with pytest.raises(ImproperlyConfigured):
        record.read(data, "nosuch")


def test_compressed_form() -> None:
    """The mark says how it was compressed; a plain document stays as it is; bombs are refused."""
    data = record.document("i", "SUCCESS", "x" * 1000)
    for method in ("gzip", "bzip2", "lzma"):
        packed = record.compress(data, method)
        assert packed.startswith(b"\0celery-compressed\0" + codec.compression_type(method).encode() + b"\0")
        assert record.decompress(packed) == data
        with pytest.raises(DecodeError, match="more than"):
            record.decompress(packed, limit=500)
    assert record.decompress(data) is data
    with pytest.raises(ImproperlyConfigured):
        record.document("i", "SUCCESS", 1, compression="zip")


def test_groups() -> None:
    """A group's tuple comes back as lists, by any serializer and compression."""
    result = (("g", None), [(("a", None), None)])
    for serializer in ("json", "msgpack", "yaml"):
        for compression in (None, "gzip"):
            data = record.group_document(result, serializer, compression)
            assert record.read_group(data, serializer) == [["g", None], [[["a", None], None]]]
    for data in (b"{}", b'{"result": 5}', b"[]", b""):
        with pytest.raises(DecodeError):
            record.read_group(data)


@given(st.data())
def test_mutated_documents(data: st.DataObject) -> None:
    """A document with some bytes changed is read or refused."""
    plain = record.document("i", "FAILURE", KeyError("a", 1), date_done=DATE, children=[])
    document = bytearray(data.draw(st.sampled_from([plain, record.compress(plain, "gzip")])))
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(document) - 1))
        document[at : at + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=3))
    with contextlib.suppress(DecodeError):
        read = record.read(bytes(document))
        assert isinstance(read.status, str)
    with contextlib.suppress(DecodeError):
        record.read_group(bytes(document))


def test_huge_result() -> None:
    """A result of 10 MB comes back."""
    data = record.success("i", json.dumps("x" * (10 << 20)), DATE)
    assert len(record.read(data).result) == 10 << 20
