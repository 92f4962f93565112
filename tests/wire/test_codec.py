"""Laws of serializers and compression."""

from __future__ import annotations

import bz2
import contextlib
import gzip
import io
import lzma
import os
import pickle
import zlib
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from celeriac import errors
from celeriac.errors import ContentDisallowed, DecodeError, EncodeError, ImproperlyConfigured
from celeriac.wire import codec

ALL = codec.accept_set(["json", "pickle", "yaml", "msgpack"])
TEXT = st.text(st.characters(codec="utf-8"))
SIMPLE = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False) | TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4),
    max_leaves=10,
)
BODY = b"spam and eggs " * 50


@pytest.mark.parametrize("serializer", ["json", "pickle", "msgpack"])
@given(value=SIMPLE)
def test_what_is_encoded_is_decoded(serializer: str, value: Any) -> None:
    """Every serializer gives back what it got."""
    content_type, content_encoding, data = codec.encode(value, serializer)
    assert codec.decode(data, content_type, content_encoding, ALL) == value


def test_yaml() -> None:
    """YAML is safe YAML: no objects, both ways."""
    content_type, content_encoding, data = codec.encode({"a": [1, None, "ä"]}, "yaml")
    assert (content_type, content_encoding) == ("application/x-yaml", "utf-8")
    assert codec.decode(data, content_type, content_encoding, ALL) == {"a": [1, None, "ä"]}
    with pytest.raises(DecodeError):
        codec.decode(b"!!python/object/apply:os.system [true]", content_type, content_encoding, ALL)
    with pytest.raises(EncodeError):
        codec.encode(object(), "yaml")


def test_bytes_and_text_go_as_they_are() -> None:
    """Serializer raw, and content types that nobody registered."""
    assert codec.encode(b"\xff", "raw") == ("application/data", "binary", b"\xff")
    assert codec.encode("ä", "raw") == ("application/data", "utf-8", "ä".encode())
    with pytest.raises(EncodeError):
        codec.encode("\ud800", "raw")
    with pytest.raises(EncodeError):
        codec.encode(5, "raw")
    assert codec.decode(b"\xff", "application/data", "binary", frozenset()) == b"\xff"
    assert codec.decode("ä".encode(), "application/data", "utf-8", frozenset()) == "ä"
    assert codec.decode("ä".encode("latin-1"), "text/plain", "latin-1", frozenset({"text/plain"})) == "ä"
    assert codec.decode(b"x", None, None, frozenset()) == "x"
    for data, encoding in ((b"\xff", "utf-8"), (b"x", "no-such-encoding"), (b"x", "\0")):
        with pytest.raises(DecodeError):
            codec.decode(data, "application/data", encoding, frozenset())


def test_what_is_not_accepted_is_not_read() -> None:
    """Neither are pickles where nothing was said."""
    hit: list[int] = []

    class Bomb:
        def __reduce__(self) -> Any:
            return (hit.append, (1,))

    data = pickle.dumps([1])
    for accept in (frozenset(), codec.accept_set(["json", "yaml", "msgpack"]), None):
        with pytest.raises(ContentDisallowed, match="pickle"):
            codec.decode(data, codec.PICKLE, "binary", accept)
    with pytest.raises(ContentDisallowed):
        codec.decode(b"1", codec.JSON, "utf-8", frozenset())
    with pytest.raises(ContentDisallowed):
        codec.decode(b"1", "text/plain", "utf-8", ALL)
    assert codec.decode(data, codec.PICKLE, "binary", ALL) == [1]
    assert not hit


def test_names_and_content_types() -> None:
    """The accept list takes both; a name that nobody registered is a mistake in the settings."""
    assert codec.accept_set(["json", "application/x-yaml"]) == {codec.JSON, codec.YAML}
    assert codec.accept_set(["text/plain"]) == {"text/plain"}
    with pytest.raises(ImproperlyConfigured, match="jsn"):
        codec.accept_set(["jsn"])
    with pytest.raises(ImproperlyConfigured):
        codec.encode(1, "jsn")
    with pytest.raises(ImproperlyConfigured):
        codec.content_type_of("jsn")


def test_registering() -> None:
    """A serializer of the application's own; what it raises comes out as an error of ours."""
    codec.register("upper", lambda text: text.upper(), lambda data: data.decode().lower(), "application/upper", "ascii")
    try:
        content_type, content_encoding, data = codec.encode("abc", "upper")
        assert (content_type, content_encoding, data) == ("application/upper", "ascii", b"ABC")
        accept = codec.accept_set(["upper"])
        assert codec.decode(data, content_type, content_encoding, accept) == "abc"
        with pytest.raises(EncodeError):
            codec.encode(5, "upper")
        with pytest.raises(DecodeError):
            codec.decode(b"\xff", content_type, content_encoding, accept)
    finally:
        codec.unregister("upper")
    with pytest.raises(ImproperlyConfigured):
        codec.accept_set(["upper"])
    with pytest.raises(ImproperlyConfigured):
        codec.unregister("upper")


def test_msgpack_has_the_types_of_msgpack() -> None:
    """What msgspec could write and a peer could not read is refused; subclasses become what they are of."""

    class Text(str):
        __slots__ = ()

    class Struct(msgspec.Struct):
        a: int

    assert codec.encode({"a": (1, Text("b"), bytearray(b"c"))}, "msgpack")[2] == b"\x81\xa1a\x93\x01\xa1b\xc4\x01c"
    for value in ({1}, object(), Struct(1), 2**70, "\ud800", 1j):
        with pytest.raises(EncodeError):
            codec.encode(value, "msgpack")


def test_depth() -> None:
    """Nesting bombs end in errors of ours, in every serializer."""
    circle: list[Any] = []
    circle.append(circle)
    for serializer in ("json", "msgpack"):
        with pytest.raises(EncodeError):
            codec.encode(circle, serializer)
    for data, content_type in (
        (b"[" * 10_000, codec.JSON),
        (b"\x91" * 10_000, codec.MSGPACK),
        (b"[" * 2000, codec.YAML),
        (b"garbage", codec.PICKLE),
        (b"\xc1", codec.MSGPACK),
        (b"\x91", codec.MSGPACK),
        (b"a: b: c", codec.YAML),
    ):
        with pytest.raises(DecodeError):
            codec.decode(data, content_type, None, ALL)


def test_empty_data() -> None:
    """An empty body stays empty, as with kombu."""
    for content_type in ALL:
        assert codec.decode(b"", content_type, None, ALL) == b""


def test_pickles_of_celery_need_no_celery() -> None:
    """Celery's exceptions become ours, its signatures maps; other classes are looked up as always."""
    data = pickle.dumps(errors.TaskRevokedError("revoked"), 0).replace(b"celeriac.errors", b"celery.exceptions")
    found = codec.decode(data, codec.PICKLE, None, ALL)
    assert type(found) is errors.TaskRevokedError
    assert found.args == ("revoked",)
    data = pickle.dumps(errors.TimeLimitExceeded(5), 0).replace(b"celeriac.errors", b"billiard.exceptions")
    assert type(codec.decode(data, codec.PICKLE, None, ALL)) is errors.TimeLimitExceeded
    with pytest.raises(DecodeError):
        codec.decode(b"ccelery.nosuch\nThing\n.", codec.PICKLE, None, ALL)
    with pytest.raises(DecodeError):
        codec.decode(b"ccelery.exceptions\nos\n.", codec.PICKLE, None, ALL)


METHODS = ["gzip", "zlib", "bzip2", "bzip", "lzma", "xz", "brotli", "zstd", "zstandard"]


def compress(method: str, data: bytes) -> tuple[bytes, str]:
    try:
        return codec.compress(data, method)
    except ImproperlyConfigured as exc:
        pytest.skip(str(exc))


@pytest.mark.parametrize("method", METHODS)
def test_compression(method: str) -> None:
    """What is compressed is unfolded, up to the limit and no byte more."""
    for data in (b"", b"x", BODY, os.urandom(5000)):
        packed, header = compress(method, data)
        assert header == codec.compression_type(method)
        assert codec.decompress(packed, header) == data
        assert codec.decompress(packed, method, limit=len(data)) == data
        if data:
            with pytest.raises(DecodeError, match="more than"):
                codec.decompress(packed, header, limit=len(data) - 1)


@pytest.mark.parametrize("method", METHODS)
def test_damaged_data(method: str) -> None:
    """Data that ends too early, or is none, is refused."""
    packed, header = compress(method, BODY)
    for bad in (b"", b"garbage", packed[:-1], packed[: len(packed) // 2], packed[:1]):
        with pytest.raises(DecodeError):
            codec.decompress(bad, header)


@pytest.mark.parametrize("method", METHODS)
def test_bombs(method: str) -> None:
    """A small message that unfolds to 20 MB is refused."""
    packed, header = compress(method, b"\0" * (20 << 20))
    with pytest.raises(DecodeError, match="more than 100000 bytes"):
        codec.decompress(packed, header, limit=100_000)


def test_forms_that_other_writers_use() -> None:
    """Real gzip, streams one after another, the old lzma container, padding behind a stream."""
    out = io.BytesIO()
    with gzip.GzipFile(fileobj=out, mode="wb") as file:
        file.write(BODY)
    assert codec.decompress(out.getvalue(), codec.GZIP) == BODY
    assert codec.decompress(bz2.compress(b"a") + bz2.compress(b"b"), codec.BZIP2) == b"ab"
    assert codec.decompress(lzma.compress(b"a") + lzma.compress(b"b"), codec.LZMA) == b"ab"
    assert codec.decompress(lzma.compress(BODY, lzma.FORMAT_ALONE), codec.LZMA) == BODY
    assert codec.decompress(bz2.compress(b"a") + b"\0\0\0\0", codec.BZIP2) == b"a"
    assert codec.compress(BODY, "gzip")[0] == zlib.compress(BODY)


def test_unknown_compression() -> None:
    """A mistake of the settings where it is written, bad data where it is read."""
    with pytest.raises(ImproperlyConfigured, match="zip"):
        codec.compress(b"", "zip")
    for header in ("zip", "", "\0"):
        with pytest.raises(DecodeError, match="unknown compression"):
            codec.decompress(b"", header)


@pytest.mark.parametrize("header", [codec.GZIP, codec.BZIP2, codec.LZMA])
@given(data=st.binary(max_size=100))
def test_any_bytes_unfold_or_are_refused(header: str, data: bytes) -> None:
    """No other error than DecodeError comes out of data."""
    for candidate in (data, codec.compress(BODY, header)[0][:20] + data):
        with contextlib.suppress(DecodeError):
            codec.decompress(candidate, header, limit=10_000)
