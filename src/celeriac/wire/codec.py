"""Serializers: values to bytes and back, under kombu's names and content types; compression beside them.

What is not in the accept list is refused unread.
"""

from __future__ import annotations

import codecs
import io
import os
import pickle
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import msgspec

from celeriac import errors
from celeriac.errors import ContentDisallowed, DecodeError, EncodeError, ImproperlyConfigured
from celeriac.wire import values
from celeriac.wire.compression import BROTLI, BZIP2, GZIP, LIMIT, LZMA, ZSTD, compress, compression_type, decompress

__all__ = [
    "BROTLI", "BZIP2", "GZIP", "JSON", "LIMIT", "LZMA", "MSGPACK", "PICKLE", "TRUSTED", "YAML", "ZSTD", "Serializer",
    "accept_set", "compress", "compression_type", "content_type_of", "decode", "decompress", "encode", "register",
    "unregister",
]  # fmt: skip

JSON = "application/json"
PICKLE = "application/x-python-serialize"
YAML = "application/x-yaml"
MSGPACK = "application/x-msgpack"
TRUSTED = frozenset({"application/data", "application/text"})
"""Content types that are bytes or text as they are: always accepted."""


class Serializer(NamedTuple):
    """One entry of the registry."""

    content_type: str
    content_encoding: str
    encode: Callable[[Any], str | bytes] | None


_serializers: dict[str, Serializer] = {}
_decoders: dict[str, Callable[[bytes], Any]] = {}


def register(
    name: str,
    encode: Callable[[Any], str | bytes] | None,
    decode: Callable[[bytes], Any] | None,
    content_type: str,
    content_encoding: str = "utf-8",
) -> None:
    """Make a serializer known under a name, for this process. Without `encode` it can only read, without `decode` only
    write. Whatever they raise comes out as EncodeError or DecodeError."""
    _serializers[name] = Serializer(content_type, content_encoding, encode)
    if decode is not None:
        _decoders[content_type] = decode


def unregister(name: str) -> None:
    """Forget a serializer. Raises ImproperlyConfigured for a name that is not known."""
    entry = _serializers.pop(name, None)
    if entry is None:
        raise ImproperlyConfigured(f"no serializer is called {name!r}; known are {_names()}")
    _decoders.pop(entry.content_type, None)


def _names() -> str:
    return ", ".join(sorted(_serializers))


def content_type_of(serializer: str) -> str:
    """The content type of a serializer's name. Raises ImproperlyConfigured."""
    entry = _serializers.get(serializer)
    if entry is None:
        raise ImproperlyConfigured(f"no serializer is called {serializer!r}; known are {_names()}")
    return entry.content_type


def accept_set(names: Iterable[str]) -> frozenset[str]:
    """Content types of a list that may hold names and content types. Raises ImproperlyConfigured on unknown names."""
    return frozenset(name if "/" in name else content_type_of(name) for name in names)


def encode(value: Any, serializer: str = "json") -> tuple[str, str, bytes]:
    """Content type, content encoding, bytes. Raises EncodeError when the value can't be written, ImproperlyConfigured
    when the serializer is unknown or its library is missing."""
    if serializer == "json":
        return JSON, "utf-8", values.dumps(value).encode()
    if serializer == "raw":
        return _encode_raw(value)
    entry = _serializers.get(serializer)
    if entry is None or entry.encode is None:
        raise ImproperlyConfigured(f"no serializer {serializer!r} is installed; known are {_names()}")
    try:
        data = entry.encode(value)
        return entry.content_type, entry.content_encoding, data.encode() if isinstance(data, str) else data
    except (EncodeError, ImproperlyConfigured):
        raise
    except RecursionError:
        raise EncodeError(f"the value is nested too deeply for {serializer}, or contains itself") from None
    except Exception as exc:
        raise EncodeError(str(exc) or repr(exc)) from exc


def decode(
    data: bytes, content_type: str | None, content_encoding: str | None, accept: frozenset[str] | None = None
) -> Any:
    """The value of bytes of a content type. `accept` holds content types (`accept_set`); None accepts all but pickle.

    Raises ContentDisallowed for a content type that is not accepted, DecodeError for bytes that can't be read. A
    content type that nobody registered is text in its content encoding, or bytes where that is binary.
    """
    content_type = content_type or "application/data"
    if content_type not in TRUSTED and (content_type == PICKLE if accept is None else content_type not in accept):
        raise ContentDisallowed(f"Refusing to deserialize disallowed content of type {_describe(content_type)}")
    if content_type == JSON:
        return values.loads(data) if data else data
    decoder = _decoders.get(content_type)
    try:
        if decoder is not None:
            return decoder(data) if data else data
        encoding = (content_encoding or "utf-8").lower()
        return data if encoding in ("binary", "ascii-8bit") else codecs.decode(data, encoding)
    except (DecodeError, ImproperlyConfigured):
        raise
    except RecursionError:
        raise DecodeError(f"content of type {content_type} is nested too deeply") from None
    except Exception as exc:
        raise DecodeError(f"can't read content of type {content_type[:100]}: {str(exc)[:300] or exc!r}") from exc


def _describe(content_type: str) -> str:
    for name, entry in _serializers.items():
        if entry.content_type == content_type:
            return f"{name} ({content_type})"
    return content_type[:100]


def _encode_raw(value: Any) -> tuple[str, str, bytes]:
    if isinstance(value, str):
        try:
            return "application/data", "utf-8", value.encode()
        except UnicodeEncodeError as exc:
            raise EncodeError(str(exc)) from exc
    if isinstance(value, bytes | bytearray | memoryview):
        return "application/data", "binary", bytes(value)
    raise EncodeError(f"serializer raw takes bytes and str, not {type(value).__name__}")


# pickle


class _Pickler(pickle.Pickler):
    """Writes what a peer can read that does not have celeriac: a signature is the dict that it is on the wire."""

    def reducer_override(self, obj: Any, /) -> Any:
        if isinstance(obj, dict) and hasattr(type(obj), "__json__"):
            return dict, (dict(obj),)
        return NotImplemented


def _dump_pickle(value: Any) -> bytes:
    out = io.BytesIO()
    _Pickler(out, protocol=int(os.environ.get("PICKLE_PROTOCOL", 4))).dump(value)
    return out.getvalue()


def _adopt_signature(*args: Any, **kwargs: Any) -> Any:
    """Stands in for Celery's signature functions and classes in pickles: a signature is a dict on the wire."""
    return dict(args[0]) if args and isinstance(args[0], dict) else dict(kwargs)


def _adopt_wrapped(module: str, name: str, args: Any, text: str | None = None) -> Exception:
    """Stands in for the wrapper in which Celery stores an exception that can't be pickled."""
    cls = type(str(name).replace("\0", "") or "Exception", (Exception,), {"__module__": str(module)})
    found: Exception = cls(*args)
    return found


class _Unpickler(pickle.Unpickler):
    """Reads what Celery pickled without importing Celery: exceptions become ours, signatures dicts."""

    def find_class(self, module_name: str, global_name: str, /) -> Any:
        if module_name in _FOREIGN:
            found = getattr(errors, global_name, None)
            if isinstance(found, type) and errors.FOREIGN_MODULES.get(found) == module_name:
                return found
        if module_name == "celery.canvas":
            return _adopt_signature
        if (module_name, global_name) == ("celery.utils.serialization", "UnpickleableExceptionWrapper"):
            return _adopt_wrapped
        return super().find_class(module_name, global_name)


_FOREIGN = frozenset(errors.FOREIGN_MODULES.values())
_FOREIGN_MARKS = (b"celery", b"billiard", b"kombu")


def _load_pickle(data: bytes) -> Any:
    if any(mark in data for mark in _FOREIGN_MARKS):
        return _Unpickler(io.BytesIO(data)).load()
    return pickle.loads(data)


# msgpack: msgspec would also write dates, UUIDs, sets and dataclasses, in forms that a peer can't read back.

_pack = msgspec.msgpack.Encoder().encode
_unpack = msgspec.msgpack.Decoder().decode


def _plain(value: Any) -> Any:
    """The value in the types that msgpack itself has."""
    kind = type(value)
    if value is None or kind in (bool, int, float, str, bytes):
        return value
    if isinstance(value, dict):
        return {_plain(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        return float(value)
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, bytes | bytearray | memoryview):
        return bytes(value)
    raise TypeError(f"can not serialize {kind.__name__!r} object")


def _dump_msgpack(value: Any) -> bytes:
    return _pack(_plain(value))


# YAML is looked up at its first use.


def _yaml() -> Any:
    try:
        import yaml
    except ImportError:
        raise ImproperlyConfigured("serializer yaml needs PyYAML: pip install 'celeriac[yaml]'") from None
    return yaml


def _dump_yaml(value: Any) -> str:
    text: str = _yaml().safe_dump(value)
    return text


def _load_yaml(data: bytes) -> Any:
    return _yaml().safe_load(data)


register("json", values.dumps, values.loads, JSON)
register("pickle", _dump_pickle, _load_pickle, PICKLE, "binary")
register("yaml", _dump_yaml, _load_yaml, YAML)
register("msgpack", _dump_msgpack, _unpack, MSGPACK, "binary")
