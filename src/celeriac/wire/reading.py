"""Task messages, read. `read_head` is for a worker's parent and leaves the body shut; `unpack` is for where tasks run.

A message of a plain kind, that is nearly every one, is decoded into typed structs in one go. Whatever those refuse is
read again the general way (`_Reading`), which takes all that Celery takes, and says what is wrong with the rest.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated, Any, Literal, TypeVar

import msgspec
from msgspec import Meta, field

from celeriac.errors import ContentDisallowed, DecodeError, InvalidTaskError
from celeriac.wire import codec, frame, values
from celeriac.wire.repr import safe_repr
from celeriac.wire.shape import Head, TaskMessage

Name = Annotated[str, Meta(min_length=1)]
Small = Annotated[int, Meta(ge=-(2**31), lt=2**31)]
Count = Annotated[int, Meta(ge=0, lt=2**31)]
Limit = Annotated[int, Meta(ge=0, le=10**10)] | Annotated[float, Meta(ge=0, le=1e10)] | None
Unread = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)
"""What the typed decoders raise."""


# A message as Celery 5 writes it. Fields stand in its order, because msgspec looks there first. Fields without a
# default must be there: where they are not, it is a hybrid, or an unusual client, and is read the general way.


class _Info(msgspec.Struct, gc=False):
    exchange: str
    routing_key: str


class _MarkedInfo(_Info, gc=False):
    redelivered: Any = None


class _PlainInfo(_Info, gc=False, forbid_unknown_fields=True):
    """Not redelivered."""


class _Headers(msgspec.Struct, gc=False, kw_only=True):
    lang: Any = None
    task: Name
    id: Name
    shadow: str | None = None
    eta: str | None
    expires: str | None
    group: str | None
    group_index: Small | None = None
    retries: Count
    timelimit: tuple[Limit, Limit]
    root_id: str | None
    parent_id: str | None
    argsrepr: str
    kwargsrepr: str
    origin: str
    ignore_result: bool | None = None
    replaced_task_nesting: Small = 0
    stamped_headers: list[str] | None = None
    stamps: dict[str, Any] | None = None


class _MarkedHeaders(_Headers, gc=False, kw_only=True):
    redelivered: Any = None
    losses: Any = field(default=None, name=frame.LOSSES)


class _PlainHeaders(_Headers, gc=False, kw_only=True, forbid_unknown_fields=True):
    """No custom headers, no marks, no compression."""


class _MarkedProperties(msgspec.Struct, gc=False):
    correlation_id: str
    reply_to: str
    delivery_info: _MarkedInfo
    priority: Small
    delivery_tag: str


class _PlainProperties(msgspec.Struct, gc=False, kw_only=True, forbid_unknown_fields=True):
    correlation_id: str
    reply_to: str
    delivery_mode: Small
    expiration: str | None = None
    delivery_info: _PlainInfo
    priority: Small
    body_encoding: Literal["base64"]
    delivery_tag: str


class _Shut(msgspec.Struct, gc=False, kw_only=True):
    content_encoding: str | None = field(default=None, name="content-encoding")
    content_type: str | None = field(default=None, name="content-type")
    headers: _MarkedHeaders
    properties: _MarkedProperties


class _Open(msgspec.Struct, gc=False):
    body: bytes
    content_encoding: Literal["utf-8"] = field(name="content-encoding")
    content_type: Literal["application/json"] = field(name="content-type")
    headers: _PlainHeaders
    properties: _PlainProperties


class _Embed(msgspec.Struct, gc=False, forbid_unknown_fields=True):
    callbacks: list[dict[str, Any]] | None = None
    errbacks: list[dict[str, Any]] | None = None
    chain: list[dict[str, Any]] | None = None
    chord: dict[str, Any] | None = None


_decode_shut = msgspec.json.Decoder(_Shut).decode
_decode_open = msgspec.json.Decoder(_Open).decode
_decode_body = msgspec.json.Decoder(tuple[list[Any], dict[str, Any], _Embed]).decode
_NO_LIMITS = (None, None)
_TAG = values.TAG
_JSON = codec.JSON


def read_head(blob: bytes) -> Head:
    """Read everything but the body. Only where that is Celery's protocol 1, whose fields all stand in the body, the
    body is opened, if it is JSON or msgpack. Raises InvalidTaskError, whose text says what is wrong."""
    try:
        outer = _decode_shut(blob)
    except Unread:
        return _Reading(blob, _PARENT_READS).head()
    headers = outer.headers
    stamps = headers.stamps
    if stamps and blob.find(_TAG) >= 0:
        return _Reading(blob, _PARENT_READS).head()
    properties = outer.properties
    info = properties.delivery_info
    eta, expires, timelimit, losses = headers.eta, headers.expires, headers.timelimit, headers.losses
    return Head(
        headers.id,
        headers.task,
        headers.retries,
        None if eta is None else _unix("eta", eta),
        None if expires is None else _unix("expires", expires),
        None if timelimit == _NO_LIMITS else timelimit,
        headers.group,
        headers.root_id,
        headers.parent_id,
        stamps or None,
        headers.stamped_headers,
        headers.argsrepr,
        headers.kwargsrepr,
        properties.reply_to,
        properties.correlation_id,
        properties.priority,
        outer.content_type,
        outer.content_encoding,
        headers.ignore_result,
        headers.shadow,
        headers.origin,
        None if losses is None else frame.read_losses(losses),
        headers.redelivered is True or info.redelivered is True,
        2,
        info.exchange,
        info.routing_key,
        properties.delivery_tag,
        eta,
        expires,
    )


def _unix(what: str, text: str) -> float:
    try:
        moment = datetime.fromisoformat(text)
        return (moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)).timestamp()
    except (ValueError, OverflowError):
        raise InvalidTaskError(f"invalid {what}, not an ISO 8601 date: {text[:80]!r}") from None


def unpack(blob: bytes, accept: frozenset[str]) -> TaskMessage:
    """Read a whole message. `accept` holds content types (`codec.accept_set`).

    Raises ContentDisallowed for a content type that is not among them, DecodeError for a body that its serializer can't
    read, InvalidTaskError for everything else that is no task message.
    """
    try:
        outer = _decode_open(blob)
        body = outer.body
        headers = outer.headers
        if body.find(_TAG) >= 0 or headers.stamps or _JSON not in accept:
            return _Reading(blob, accept).message()
        args, kwargs, embed = _decode_body(body)
    except Unread:
        return _Reading(blob, accept).message()
    properties = outer.properties
    info = properties.delivery_info
    exchange, routing_key, expiration = info.exchange, info.routing_key, properties.expiration
    return TaskMessage(
        headers.id,
        headers.task,
        args,
        kwargs,
        embed.callbacks,
        embed.errbacks,
        embed.chain,
        embed.chord,
        None,
        headers.retries,
        headers.eta,
        headers.expires,
        headers.timelimit,
        headers.group,
        headers.group_index,
        headers.root_id,
        headers.parent_id,
        headers.argsrepr,
        headers.kwargsrepr,
        headers.origin,
        headers.shadow,
        headers.ignore_result,
        headers.replaced_task_nesting,
        headers.stamped_headers,
        headers.stamps,
        None,
        None if expiration is None else {"expiration": expiration},
        _JSON,
        "utf-8",
        "" if exchange else routing_key,
        exchange,
        routing_key,
        properties.priority,
        properties.reply_to,
        properties.correlation_id,
        properties.delivery_mode,
        False,
        None,
        properties.delivery_tag,
    )


# The general way: any envelope, serializer and protocol, custom headers, tagged values. And the reasons for a refusal.


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


_PARENT_READS = frozenset({codec.JSON, codec.MSGPACK})
_KNOWN_HEADERS = frozenset(_LooseHeaders.__struct_encode_fields__)
_KNOWN_PROPERTIES = frozenset(_LooseProperties.__struct_encode_fields__)
_BODY_FIELDS = _KNOWN_HEADERS - {"compression", "redelivered", frame.LOSSES}
"""Fields that stand in the body of protocol 1."""
_Body = tuple[
    list[Any] | tuple[Any, ...], dict[str, Any], list[Any] | None, list[Any] | None, list[Any] | None, Any,
    dict[str, Any] | None,
]  # fmt: skip
"""args, kwargs, callbacks, errbacks, chain, chord, other embedded fields."""


class _Reading:
    """A message that is being read the general way."""

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
        body = parts.body
        compression = parts.headers.get("compression")
        if compression:
            if not isinstance(compression, str):
                raise InvalidTaskError(f"header compression must be text, not {type(compression).__name__}")
            body = codec.decompress(body, compression)
        return codec.decode(body, parts.content_type, parts.content_encoding, self._accept)

    def _open_protocol_1(self) -> dict[str, Any]:
        try:
            found = self._content()
        except ContentDisallowed as exc:
            if self._accept is _PARENT_READS:
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
        info = properties.delivery_info or _LooseInfo()
        eta, expires, timelimit = headers.eta, headers.expires, headers.timelimit
        return Head(
            id=headers.id,
            task=headers.task,
            retries=headers.retries or 0,
            eta=None if eta is None else _unix("eta", eta),
            expires=None if expires is None else _unix("expires", expires),
            timelimit=None if timelimit == _NO_LIMITS else timelimit,
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
        parts, headers, properties = self._parts, self._headers, self._properties
        info = properties.delivery_info or _LooseInfo()
        exchange, routing_key = info.exchange or "", info.routing_key or ""
        args, kwargs, callbacks, errbacks, chain, chord, embed_extra = self._body or _check_body(self._content())
        extra = {name: value for name, value in parts.properties.items() if name not in _KNOWN_PROPERTIES}
        if properties.expiration is not None:
            extra["expiration"] = properties.expiration
        return TaskMessage(
            id=headers.id,
            task=headers.task,
            args=args,
            kwargs=kwargs,
            callbacks=callbacks,
            errbacks=errbacks,
            chain=chain,
            chord=chord,
            embed_extra=embed_extra,
            retries=headers.retries or 0,
            eta=headers.eta,
            expires=headers.expires,
            timelimit=headers.timelimit or _NO_LIMITS,
            group=headers.group,
            group_index=headers.group_index,
            root_id=headers.root_id,
            parent_id=headers.parent_id,
            argsrepr=headers.argsrepr,
            kwargsrepr=headers.kwargsrepr,
            origin=headers.origin or "",
            shadow=headers.shadow,
            ignore_result=headers.ignore_result,
            replaced_task_nesting=headers.replaced_task_nesting or 0,
            stamped_headers=headers.stamped_headers,
            stamps=headers.stamps,
            headers={name: value for name, value in parts.headers.items() if name not in _KNOWN_HEADERS} or None,
            properties=extra or None,
            content_type=parts.content_type,
            content_encoding=parts.content_encoding,
            queue="" if exchange else routing_key,
            exchange=exchange,
            routing_key=routing_key,
            priority=properties.priority or 0,
            reply_to=properties.reply_to or "",
            correlation_id=properties.correlation_id or "",
            delivery_mode=2 if properties.delivery_mode is None else properties.delivery_mode,
            redelivered=headers.redelivered is True or info.redelivered is True,
            losses=frame.read_losses(headers.losses),
            delivery_tag=_tag(properties),
            compression=headers.compression,
            protocol=self._protocol,
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
