"""kombu's one-blob envelope, as Redis, SQS and SQL carry it: a JSON map with the body in base64."""

from __future__ import annotations

import binascii
from collections.abc import Mapping
from typing import Any

import msgspec

from celeriac.errors import DecodeError
from celeriac.wire.repr import safe_repr
from celeriac.wire.values import dumps, escape, loads

LOSSES = "x-celeriac-losses"
"""Header with the loss counters: [child, worker]."""


class Parts(msgspec.Struct):
    """What is in an envelope."""

    headers: dict[str, Any]
    properties: dict[str, Any]
    body: bytes
    content_type: str | None = None
    content_encoding: str | None = None


def pack(
    headers: Mapping[str, Any],
    body: bytes,
    properties: Mapping[str, Any],
    content_type: str | None,
    content_encoding: str | None,
) -> bytes:
    """An envelope. `properties` are written in their order; `body_encoding` is added where they have none, before
    `delivery_tag`. Raises EncodeError for values that JSON can't hold."""
    if "body_encoding" not in properties:
        properties = dict(properties)
        tag = {"delivery_tag": properties.pop("delivery_tag")} if "delivery_tag" in properties else {}
        properties |= {"body_encoding": "base64", **tag}
    return (
        f'{{"body": "{binascii.b2a_base64(body, newline=False).decode()}", "content-encoding": '
        f'{dumps(content_encoding)}, "content-type": {dumps(content_type)}, "headers": {dumps(dict(headers))}, '
        f'"properties": {dumps(dict(properties))}}}'
    ).encode()


def unpack(blob: bytes) -> Parts:
    """Open an envelope. Raises DecodeError for anything else."""
    outer = loads(blob)
    if not isinstance(outer, dict):
        raise DecodeError(f"not a message envelope but {_kind(outer)}")
    headers = _map(outer, "headers")
    properties = _map(outer, "properties")
    return Parts(
        headers,
        properties,
        _open_body(outer.get("body"), properties.get("body_encoding")),
        _text(outer, "content-type"),
        _text(outer, "content-encoding"),
    )


def _kind(value: Any) -> str:
    return type(value).__name__


def _map(outer: dict[str, Any], name: str) -> dict[str, Any]:
    value = outer.get(name)
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise DecodeError(f"{name} of the envelope must be a map, not {_kind(value)}")
    return value


def _text(outer: dict[str, Any], name: str) -> str | None:
    value = outer.get(name)
    if value is not None and not isinstance(value, str):
        raise DecodeError(f"{name} of the envelope must be text, not {_kind(value)}")
    return value


def _open_body(body: Any, encoding: Any) -> bytes:
    if isinstance(body, bytes):  # a tagged value
        return body
    if not isinstance(body, str):
        raise DecodeError(f"body of the envelope must be text, not {_kind(body)}")
    if encoding is not None and not isinstance(encoding, str):
        raise DecodeError(f"body_encoding must be text, not {_kind(encoding)}")
    try:
        if encoding and encoding.lower() == "base64":
            return binascii.a2b_base64("".join(body.split()), strict_mode=True)
        if not encoding or encoding.lower() == "utf-8":
            return body.encode("utf-8", "surrogatepass")
    except (ValueError, UnicodeError) as exc:
        raise DecodeError(f"bad {encoding or 'text'} in the body of the envelope: {exc}") from None
    raise DecodeError(f"unknown body_encoding {safe_repr(encoding, 60)}")


Raws = dict[str, msgspec.Raw]
_raws = msgspec.json.Decoder(Raws).decode


def _split(data: bytes | msgspec.Raw, what: str) -> Raws:
    """A JSON map with its values unread, so that they can be written back to the byte."""
    try:
        return _raws(data)
    except RecursionError:
        raise DecodeError(f"{what} is nested too deeply") from None
    except (msgspec.MsgspecError, ValueError):
        pass  # the stdlib reads more (lone surrogates, NaN); then the values are written anew
    found = loads(bytes(data))
    if not isinstance(found, dict):
        raise DecodeError(f"{what} must be a map, not {_kind(found)}")
    return {name: msgspec.Raw(dumps(value).encode()) for name, value in found.items()}


def _split_part(outer: Raws, name: str) -> Raws:
    """A part of the envelope that may be missing or null."""
    part = outer.get(name)
    return {} if part is None or bytes(part) == b"null" else _split(part, f"{name} of the envelope")


def _join(parts: Raws) -> msgspec.Raw:
    inside = b", ".join([escape(name).encode() + b": " + bytes(value) for name, value in parts.items()])
    return msgspec.Raw(b"{" + inside + b"}")


def with_headers(blob: bytes, /, **headers: Any) -> bytes:
    """The same envelope with some headers set; everything else is kept to the byte. Raises DecodeError, EncodeError."""
    outer = _split(blob, "the envelope")
    inner = _split_part(outer, "headers")
    for name, value in headers.items():
        inner[name] = msgspec.Raw(dumps(value).encode())
    outer["headers"] = _join(inner)
    return bytes(_join(outer))


def with_losses(blob: bytes, child: int, worker: int) -> bytes:
    """The same envelope with its loss counters set and marked as redelivered, as kombu marks it; everything else is
    kept to the byte. Raises DecodeError."""
    outer = _split(blob, "the envelope")
    headers = _split_part(outer, "headers")
    headers["redelivered"] = _TRUE
    headers[LOSSES] = msgspec.Raw(b"[%d, %d]" % (child, worker))
    outer["headers"] = _join(headers)
    properties = _split_part(outer, "properties")
    info = _split_part(properties, "delivery_info")
    info["redelivered"] = _TRUE
    properties["delivery_info"] = _join(info)
    outer["properties"] = _join(properties)
    return bytes(_join(outer))


_TRUE = msgspec.Raw(b"true")


def losses(blob: bytes) -> tuple[int, int]:
    """The loss counters (child, worker) of an envelope; zeros where it has none. Raises DecodeError for what is no
    envelope."""
    headers = _split_part(_split(blob, "the envelope"), "headers")
    raw = headers.get(LOSSES)
    return (0, 0) if raw is None else read_losses(loads(bytes(raw))) or (0, 0)


def read_losses(value: Any) -> tuple[int, int] | None:
    """The loss counters in the value of their header, None where there are none or the value is no such thing."""
    if isinstance(value, list) and len(value) == 2 and all(type(n) is int and 0 <= n < 1 << 31 for n in value):
        return value[0], value[1]
    return None
