"""Values as kombu's JSON text: stdlib separators, ASCII, tagged objects `{"__type__": T, "__value__": V}`.

Written by the stdlib's C encoder, because the text has to be the same as a peer's to the byte. Read by msgspec where
that gives the same value as the stdlib, which is several times slower.
"""

from __future__ import annotations

import base64
import json
import json.encoder
import sys
from collections.abc import Callable
from datetime import date, datetime, time
from decimal import Decimal
from typing import Any, TypeVar
from uuid import UUID

import msgspec

from celeriac.errors import DecodeError, EncodeError
from celeriac.wire.repr import safe_repr

T = TypeVar("T")

TAG = b'"__type__"'
"""A text without these bytes holds no tagged value."""

_encoders: dict[type, tuple[str | None, Callable[[Any], Any]]] = {}
_decoders: dict[str, Callable[[Any], Any]] = {}


def register_type(
    cls: type[T],
    marker: str | None,
    encoder: Callable[[T], Any],
    decoder: Callable[[Any], T] = lambda value: value,
) -> None:
    """Teach JSON one more type, for this process. Instances become `{"__type__": marker, "__value__": encoder(x)}` and
    back; with `marker=None` what `encoder` returns stands bare and stays what it is. First registered, first asked."""
    _encoders[cls] = (marker, encoder)
    if marker is not None:
        _decoders[marker] = decoder


def _reduce(value: Any) -> Any:
    """What stands for a value that JSON doesn't know."""
    reducer = getattr(value, "__json__", None)
    if reducer is not None:
        return reducer()
    django = sys.modules.get("django.utils.functional")
    if django is not None and isinstance(value, django.Promise):
        return str(value)
    for cls, (marker, encoder) in _encoders.items():
        if isinstance(value, cls):
            plain = encoder(value)
            return plain if marker is None else {"__type__": marker, "__value__": plain}
    if isinstance(value, bytes):
        try:
            return {"__type__": "bytes", "__value__": value.decode()}
        except UnicodeDecodeError:
            return {"__type__": "base64", "__value__": base64.b64encode(value).decode()}
    raise TypeError(f"Object of type {type(value).__name__} is not JSON serializable")


def _restore(found: dict[str, Any]) -> Any:
    """The tagged value in a map, or the map itself."""
    if len(found) != 2 or "__type__" not in found or "__value__" not in found:
        return found
    decoder = _decoders.get(found["__type__"])
    if decoder is None:
        raise ValueError(f"unknown __type__ {safe_repr(found['__type__'], 60)}")
    return decoder(found["__value__"])


def _uuid(value: Any) -> UUID:
    return UUID(**value) if isinstance(value, dict) else UUID(value)


# datetime stands before date, because it is one.
register_type(datetime, "datetime", datetime.isoformat, datetime.fromisoformat)
register_type(date, "date", date.isoformat, lambda text: datetime.fromisoformat(text).date())
register_type(time, "time", time.isoformat, time.fromisoformat)
register_type(Decimal, "decimal", str, Decimal)
register_type(UUID, "uuid", lambda value: {"hex": value.hex}, _uuid)
_decoders["bytes"] = lambda text: text.encode()
_decoders["base64"] = base64.b64decode

escape: Callable[[str], str] = json.encoder.encode_basestring_ascii
"""A str as a JSON string, quotes included."""
_int_text = int.__repr__


def _float_text(value: float) -> str:
    if value != value:
        return "NaN"
    if value in (float("inf"), float("-inf")):
        return "Infinity" if value > 0 else "-Infinity"
    return float.__repr__(value)


def _make_encoder() -> Callable[[Any, int], Any]:
    """The stdlib's C encoder, made once: `json.dumps` makes one for each call. It gets no table of seen containers,
    for a table would be shared by threads and be left dirty by an error; a circle ends in a RecursionError instead."""
    make: Any = json.encoder.c_make_encoder  # type: ignore[attr-defined]
    encode: Callable[[Any, int], Any] = make(None, _reduce, escape, None, ": ", ", ", False, False, True)
    if "".join(encode({"a": [1, "b"]}, 0)) != '{"a": [1, "b"]}':
        raise TypeError("the C encoder speaks otherwise")
    return encode


try:
    _encode = _make_encoder()
except (AttributeError, TypeError):  # an interpreter without the C encoder, or with another signature
    _python_encoder = json.JSONEncoder(default=_reduce)

    def _encode(o: Any, _level: int, /) -> Any:
        return (_python_encoder.encode(o),)


def dumps(value: Any) -> str:
    """The JSON text of a value, to the byte what kombu writes. Raises EncodeError."""
    kind = type(value)
    if kind is str:
        return escape(value)
    if value is None:
        return "null"
    if value is True:
        return "true"
    if value is False:
        return "false"
    try:
        if kind is int:
            return _int_text(value)
        if kind is float:
            return _float_text(value)
        return "".join(_encode(value, 0))
    except RecursionError:
        raise EncodeError("the value is nested too deeply for JSON, or contains itself") from None
    except Exception as exc:
        raise EncodeError(str(exc) or repr(exc)) from exc


_fast = msgspec.json.Decoder().decode
_slow = json.JSONDecoder(object_hook=_restore).decode


def loads(data: bytes | bytearray | memoryview | str) -> Any:
    """The value of a JSON text, tagged values restored. Raises DecodeError, on nesting bombs too."""
    try:
        if isinstance(data, str):
            return _slow(data)
        if not isinstance(data, bytes):
            data = bytes(data)
        if data.find(TAG) < 0:
            try:
                return _fast(data)
            except (msgspec.MsgspecError, UnicodeDecodeError):
                pass  # NaN, lone surrogates, 1e999: the stdlib takes them, so a peer may have written them
        return _slow(data.decode())
    except RecursionError:
        raise DecodeError("JSON is nested too deeply") from None
    except Exception as exc:
        raise DecodeError(f"not JSON: {str(exc)[:300]}") from exc
