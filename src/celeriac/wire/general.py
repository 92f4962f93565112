"""Task messages read the general way: any envelope, serializer and protocol, custom headers, tagged values. And the
reasons for a refusal."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated, Any, TypeVar

import msgspec
from msgspec import Meta, field

from celeriac.errors import ContentDisallowed, DecodeError, InvalidTaskError
from celeriac.wire import codec, frame, values
from celeriac.wire.repr import safe_repr
from celeriac.wire.shape import Head, TaskMessage

Name = Annotated[str, Meta(min_length=1)]
Small = Annotated[int, Meta(ge=-(2**31), lt=2**31)]
Count = Annotated[int, Meta(ge=0, lt=2**31)]
Unread = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)
"""What the typed decoders raise."""
Limit = Annotated[int, Meta(ge=0, le=10**10)] | Annotated[float, Meta(ge=0, le=1e10)] | None


class _LooseInfo(msgspec.Struct, gc=False):
    exchange: str | None = None
    routing_key: str | None = None
    redelivered: Any = None


class _LooseProperties(msgspec.Struct, gc=False):
    correlation_id: str | None = None
    reply_to: str | None = None
    delivery_mode: Small | None = None
    expiration: Any = None
    delivery_info: _LooseInfo | None = None
    priority: Small | None = None
    body_encoding: str | None = None
    delivery_tag: str | int | None = None


class _LooseHeaders(msgspec.Struct, gc=False, kw_only=True):
    lang: Any = None
    task: Name
    id: Name
    shadow: str | None = None
    eta: str | None = None
    expires: str | None = None
    group: str | None = None
    group_index: Small | None = None
    retries: Count | None = None
    timelimit: tuple[Limit, Limit] | None = None
    root_id: str | None = None
    parent_id: str | None = None
    argsrepr: str | None = None
    kwargsrepr: str | None = None
    origin: str | None = None
    ignore_result: bool | None = None
    replaced_task_nesting: Small | None = None
    stamped_headers: list[str] | None = None
    stamps: dict[str, Any] | None = None
    compression: str | None = None
    redelivered: Any = None
    losses: Any = field(default=None, name=frame.LOSSES)


PARENT_READS = frozenset({codec.JSON, codec.MSGPACK})
"""What a parent opens, where it must: these can't run code."""
NO_LIMITS = (None, None)
_NO_INFO = _LooseInfo()
_KNOWN_HEADERS = frozenset(_LooseHeaders.__struct_encode_fields__)
_KNOWN_PROPERTIES = frozenset(_LooseProperties.__struct_encode_fields__)
_BODY_FIELDS = _KNOWN_HEADERS - {"compression", "redelivered", frame.LOSSES}
"""Fields that stand in the body of protocol 1."""
_Body = tuple[
    list[Any] | tuple[Any, ...], dict[str, Any], list[Any] | None, list[Any] | None, list[Any] | None, Any,
    dict[str, Any] | None,
]  # fmt: skip
"""args, kwargs, callbacks, errbacks, chain, chord, other embedded fields."""


class Reading:
    """A message that is being read the most general way. Raises InvalidTaskError with the reason for what is no task
    message, ContentDisallowed and DecodeError for a body that may not or can't be read."""

    __slots__ = ("_accept", "_body", "_headers", "_parts", "_properties", "_protocol")

    def __init__(self, blob: bytes, accept: frozenset[str]) -> None:
        try:
            self._parts = parts = frame.unpack(blob)
        except DecodeError as exc:
            raise InvalidTaskError(f"not a task message: {exc}") from None
        self._accept = accept
        self._body: Any = None
        self._protocol = 2
        found: dict[str, Any] = {}
        if "task" not in parts.headers:
            self._protocol = 1
            found = self._open_protocol_1()
        elif _is_map(parts.body, parts.content_type):
            found = self._open_hybrid()
        found.update((name, value) for name, value in parts.headers.items() if name in _KNOWN_HEADERS)
        for name in ("eta", "expires"):
            if isinstance(found.get(name), datetime):
                found[name] = found[name].isoformat()
        if isinstance(found.get("timelimit"), list) and not found["timelimit"]:
            found["timelimit"] = None
        self._headers: _LooseHeaders = _convert(found, _LooseHeaders, "header")
        known = {name: value for name, value in parts.properties.items() if name in _KNOWN_PROPERTIES}
        self._properties = _convert(known, _LooseProperties, "property")

    def _content(self) -> Any:
        """The decoded body."""
        parts = self._parts
        kind = parts.content_type, parts.content_encoding
        return _read_content(parts.body, parts.headers.get("compression"), kind, self._accept)

    def _open_protocol_1(self) -> dict[str, Any]:
        try:
            found = self._content()
        except ContentDisallowed as exc:
            if self._accept is PARENT_READS:
                raise InvalidTaskError(
                    f"no header `task`, and a body of protocol 1 is read in JSON or msgpack only: {exc}"
                ) from None
            raise
        except DecodeError as exc:
            raise InvalidTaskError(f"neither protocol 2 (no header `task`) nor protocol 1: {exc}") from None
        if not isinstance(found, dict) or "task" not in found:
            raise InvalidTaskError(
                "unknown protocol: no header `task` (protocol 2), no body that is a map with `task` (protocol 1)"
            )
        if "taskset" in found:
            found = {**found, "group": found["taskset"]}
        return self._take_map(found)

    def _open_hybrid(self) -> dict[str, Any]:
        """Fields of protocol 1 in the body, of protocol 2 in the headers; the headers win."""
        try:
            found = self._content()
        except DecodeError:
            return {}  # told when the body is asked for
        if not isinstance(found, dict) or "args" not in found:
            return {}
        return self._take_map(found)

    def _take_map(self, found: dict[str, Any]) -> dict[str, Any]:
        embed = {name: found.get(name) for name in ("callbacks", "errbacks", "chord")}
        self._body = _check_body([found.get("args", ()), found.get("kwargs", {}), embed])
        headers = {name: value for name, value in found.items() if name in _BODY_FIELDS}
        for name, index in (("argsrepr", 0), ("kwargsrepr", 1)):
            if not isinstance(headers.get(name), str):
                headers[name] = safe_repr(self._body[index])
        return headers

    def head(self) -> Head:
        """What `read_head` gives."""
        headers, properties = self._headers, self._properties
        info = properties.delivery_info or _NO_INFO
        eta, expires, timelimit = headers.eta, headers.expires, headers.timelimit
        return Head(
            id=headers.id,
            task=headers.task,
            retries=headers.retries or 0,
            eta=None if eta is None else unix("eta", eta),
            expires=None if expires is None else unix("expires", expires),
            timelimit=None if timelimit == NO_LIMITS else timelimit,
            group=headers.group,
            root_id=headers.root_id,
            parent_id=headers.parent_id,
            stamps=headers.stamps or None,
            stamped_headers=headers.stamped_headers,
            argsrepr=headers.argsrepr or "",
            kwargsrepr=headers.kwargsrepr or "",
            reply_to=properties.reply_to or "",
            correlation_id=properties.correlation_id or "",
            priority=properties.priority or 0,
            content_type=self._parts.content_type,
            content_encoding=self._parts.content_encoding,
            ignore_result=headers.ignore_result,
            shadow=headers.shadow,
            origin=headers.origin or "",
            losses=frame.read_losses(headers.losses),
            redelivered=headers.redelivered is True or info.redelivered is True,
            protocol=self._protocol,
            exchange=info.exchange or "",
            routing_key=info.routing_key or "",
            delivery_tag=_tag(properties),
            eta_text=eta,
            expires_text=expires,
        )

    def message(self) -> TaskMessage:
        """What `unpack` gives."""
        parts = self._parts
        body = self._body or _check_body(self._content())
        kind = parts.content_type, parts.content_encoding
        return _build(self._headers, self._properties, kind, self._protocol, body, parts.headers, parts.properties)


class _Envelope(msgspec.Struct, gc=False):
    body: bytes
    headers: _LooseHeaders
    properties: _LooseProperties
    content_type: str | None = field(default=None, name="content-type")
    content_encoding: str | None = field(default=None, name="content-encoding")


class _Maps(msgspec.Struct, gc=False):
    headers: dict[str, Any]
    properties: dict[str, Any]


_decode_envelope = msgspec.json.Decoder(_Envelope).decode
_decode_maps = msgspec.json.Decoder(_Maps).decode


def unpack_any(blob: bytes, accept: frozenset[str]) -> TaskMessage:
    """What `unpack` gives, for messages that are not plain. Custom headers, tagged arguments, other serializers and
    compression are usual enough for a way of their own, without a second look at each field."""
    try:
        outer, maps = _decode_envelope(blob), _decode_maps(blob)
    except Unread:
        return Reading(blob, accept).message()
    if outer.properties.body_encoding != "base64" or blob.find(values.TAG) >= 0:
        return Reading(blob, accept).message()
    kind = outer.content_type, outer.content_encoding
    found = _read_content(outer.body, outer.headers.compression, kind, accept)
    if isinstance(found, dict):
        return Reading(blob, accept).message()
    return _build(outer.headers, outer.properties, kind, 2, _check_body(found), maps.headers, maps.properties)


def _read_content(body: bytes, compression: Any, kind: tuple[str | None, str | None], accept: frozenset[str]) -> Any:
    """The value of a body."""
    if compression:
        if not isinstance(compression, str):
            raise InvalidTaskError(f"header compression must be text, not {type(compression).__name__}")
        body = codec.decompress(body, compression)
    return codec.decode(body, *kind, accept)


def _build(
    headers: _LooseHeaders,
    properties: _LooseProperties,
    kind: tuple[str | None, str | None],
    protocol: int,
    body: _Body,
    all_headers: dict[str, Any],
    all_properties: dict[str, Any],
) -> TaskMessage:
    info = properties.delivery_info or _NO_INFO
    exchange, routing_key = info.exchange or "", info.routing_key or ""
    args, kwargs, callbacks, errbacks, chain, chord, embed_extra = body
    extra = {name: value for name, value in all_properties.items() if name not in _KNOWN_PROPERTIES}
    if properties.expiration is not None:
        extra["expiration"] = properties.expiration
    return TaskMessage(
        headers.id,
        headers.task,
        args,
        kwargs,
        callbacks,
        errbacks,
        chain,
        chord,
        embed_extra,
        headers.retries or 0,
        headers.eta,
        headers.expires,
        headers.timelimit or NO_LIMITS,
        headers.group,
        headers.group_index,
        headers.root_id,
        headers.parent_id,
        headers.argsrepr,
        headers.kwargsrepr,
        headers.origin or "",
        headers.shadow,
        headers.ignore_result,
        headers.replaced_task_nesting or 0,
        headers.stamped_headers,
        headers.stamps,
        {name: value for name, value in all_headers.items() if name not in _KNOWN_HEADERS} or None,
        extra or None,
        kind[0],
        kind[1],
        "" if exchange else routing_key,
        exchange,
        routing_key,
        properties.priority or 0,
        properties.reply_to or "",
        properties.correlation_id or "",
        2 if properties.delivery_mode is None else properties.delivery_mode,
        headers.redelivered is True or info.redelivered is True,
        frame.read_losses(headers.losses),
        _tag(properties),
        headers.compression,
        protocol,
    )


def _tag(properties: _LooseProperties) -> str:
    tag = properties.delivery_tag
    return tag if isinstance(tag, str) else "" if tag is None else str(tag)


def _is_map(body: bytes, content_type: str | None) -> bool:
    """Whether a body looks like a map, by its first byte."""
    first = body[:1]
    if content_type == codec.JSON:
        return first == b"{"
    return content_type == codec.MSGPACK and first != b"" and (0x80 <= first[0] <= 0x8F or first[0] in (0xDE, 0xDF))


S = TypeVar("S", bound=msgspec.Struct)


def _convert(found: dict[str, Any], shape: type[S], what: str) -> S:
    try:
        result = msgspec.convert(found, shape)
    except (msgspec.MsgspecError, ValueError) as exc:
        raise InvalidTaskError(f"not a task message, a {what} has the wrong type: {exc}") from None
    except RecursionError:
        raise InvalidTaskError(f"not a task message: a {what} is nested too deeply") from None
    for name in result.__struct_fields__:
        value = getattr(result, name)
        if type(value) is str and not value.isascii():
            try:
                value.encode()
            except UnicodeEncodeError:  # a lone surrogate: nothing could store or log it
                setattr(result, name, value.encode("utf-8", "backslashreplace").decode())
    return result


def _check_body(body: Any) -> _Body:
    if not isinstance(body, list | tuple) or len(body) != 3:
        raise InvalidTaskError(f"the body is not [args, kwargs, embed] but {_describe(body)}")
    args, kwargs, embed = body
    if not isinstance(args, list | tuple):
        raise InvalidTaskError(f"task arguments must be a list, not {_describe(args)}")
    if not isinstance(kwargs, dict):
        raise InvalidTaskError(f"task keyword arguments must be a mapping, not {_describe(kwargs)}")
    for name in kwargs:
        if not isinstance(name, str):
            raise InvalidTaskError(f"names of task keyword arguments must be text, not {_describe(name)}")
    if embed is None:
        embed = {}
    if not isinstance(embed, dict):
        raise InvalidTaskError(f"the third part of the body must be a mapping, not {_describe(embed)}")
    chord = embed.get("chord")
    if chord is not None and not isinstance(chord, dict):
        raise InvalidTaskError(f"chord must be a signature, not {_describe(chord)}")
    extra = {name: value for name, value in embed.items() if name not in _EMBED}
    return (
        args, kwargs, _signatures(embed, "callbacks"), _signatures(embed, "errbacks"), _signatures(embed, "chain"),
        chord, extra or None,
    )  # fmt: skip


_EMBED = frozenset({"callbacks", "errbacks", "chain", "chord"})


def _signatures(embed: dict[str, Any], name: str) -> list[Any] | None:
    found = embed.get(name)
    if found is None:
        return None
    if isinstance(found, dict):
        return [found]
    if not isinstance(found, list | tuple) or not all(isinstance(item, dict) for item in found):
        raise InvalidTaskError(f"{name} must be a list of signatures, not {_describe(found)}")
    return list(found)


def _describe(value: Any) -> str:
    return f"{type(value).__name__} {safe_repr(value, 60)}"


def unix(what: str, text: str) -> float:
    """Unix seconds of an ISO 8601 date; a naive one is UTC. Raises InvalidTaskError with `what` it is the date of."""
    try:
        moment = datetime.fromisoformat(text)
        return (moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)).timestamp()
    except (ValueError, OverflowError):
        raise InvalidTaskError(f"invalid {what}, not an ISO 8601 date: {text[:80]!r}") from None
