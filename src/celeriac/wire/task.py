"""Task messages: Celery's protocol 2, protocol 1 and the hybrid of both, read and written.

`read_head` is for a worker's parent: it leaves the body shut. `unpack` is for where the task runs.
"""

from __future__ import annotations

from binascii import b2a_base64
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Annotated, Any, TypeVar

import msgspec
from msgspec import Meta, field

from celeriac.errors import ContentDisallowed, DecodeError, EncodeError, InvalidTaskError
from celeriac.model.message import Envelope
from celeriac.wire import codec, frame, values
from celeriac.wire.ids import follow_up_id, new_id
from celeriac.wire.repr import safe_repr
from celeriac.wire.values import escape

__all__ = [
    "Head",
    "TaskMessage",
    "Template",
    "follow_up_id",
    "new_id",
    "pack",
    "read_head",
    "safe_repr",
    "unpack",
]

Limit = int | float | None
Small = Annotated[int, Meta(ge=-(2**31), lt=2**31)]
Count = Annotated[int, Meta(ge=0, lt=2**31)]


class Head(msgspec.Struct, frozen=True, gc=False):
    """What a worker's parent knows of a message: everything but arguments, links and custom headers."""

    id: str
    task: str
    retries: int = 0
    eta: float | None = None
    """Unix seconds. A naive date is read as UTC."""
    expires: float | None = None
    """Unix seconds. A naive date is read as UTC."""
    timelimit: tuple[Limit, Limit] | None = None
    """(hard, soft) in seconds. None when neither is given."""
    group: str | None = None
    root_id: str | None = None
    parent_id: str | None = None
    stamps: dict[str, Any] | None = None
    """None when there are none."""
    stamped_headers: list[str] | None = None
    argsrepr: str = ""
    kwargsrepr: str = ""
    reply_to: str = ""
    correlation_id: str = ""
    priority: int = 0
    """Celery's number, uninterpreted."""
    content_type: str | None = None
    content_encoding: str | None = None
    ignore_result: bool | None = None
    """None: the task's own option decides."""
    shadow: str | None = None
    origin: str = ""
    losses: tuple[int, int] | None = None
    """(child, worker): how often each was lost while this message was running. None when never."""
    redelivered: bool = False
    protocol: int = 2
    exchange: str = ""
    routing_key: str = ""
    delivery_tag: str = ""
    eta_text: str | None = None
    expires_text: str | None = None


class TaskMessage(msgspec.Struct, gc=False):
    """A whole task message, of whatever protocol it came in."""

    id: str
    task: str
    args: list[Any] | tuple[Any, ...] = ()
    kwargs: dict[str, Any] = field(default_factory=dict)
    callbacks: list[Any] | None = None
    errbacks: list[Any] | None = None
    chain: list[Any] | None = None
    """The steps that follow, the next one last."""
    chord: Any = None
    """The body signature of the chord whose member this is."""
    embed_extra: dict[str, Any] | None = None
    """What else stood beside the four fields above."""
    retries: int = 0
    eta: str | None = None
    """ISO 8601."""
    expires: str | None = None
    """ISO 8601."""
    timelimit: tuple[Limit, Limit] | list[Limit] = (None, None)
    """hard, soft: seconds."""
    group: str | None = None
    group_index: int | None = None
    root_id: str | None = None
    """None: the task's own id."""
    parent_id: str | None = None
    argsrepr: str | None = None
    """None: `pack` makes it."""
    kwargsrepr: str | None = None
    origin: str = ""
    shadow: str | None = None
    ignore_result: bool | None = False
    """None: the message does not say, the task's own option decides."""
    replaced_task_nesting: int = 0
    stamped_headers: list[str] | None = None
    stamps: dict[str, Any] | None = None
    headers: dict[str, Any] | None = None
    """Custom headers only."""
    properties: dict[str, Any] | None = None
    """Message properties beyond those that have a field here, e.g. `expiration`, `MessageGroupId`."""
    content_type: str | None = None
    content_encoding: str | None = None
    queue: str = ""
    exchange: str = ""
    routing_key: str = ""
    priority: int = 0
    reply_to: str = ""
    correlation_id: str = ""
    """Empty: the task's id."""
    delivery_mode: int = 2
    redelivered: bool = False
    losses: tuple[int, int] | None = None
    """(child, worker), see `Head.losses`."""
    delivery_tag: str = ""
    compression: str | None = None
    """Header value of the compression that the body came in."""
    protocol: int = 2


# What is on the wire. Fields stand in the order in which Celery writes them, because msgspec looks there first.


class _Info(msgspec.Struct, gc=False):
    exchange: str | None = None
    routing_key: str | None = None
    redelivered: Any = None


class _Properties(msgspec.Struct, gc=False):
    correlation_id: str | None = None
    reply_to: str | None = None
    delivery_mode: Small | None = None
    expiration: Any = None
    delivery_info: _Info | None = None
    priority: Small | None = None
    body_encoding: str | None = None
    delivery_tag: str | int | None = None


class _Headers(msgspec.Struct, gc=False, kw_only=True):
    lang: Any = None
    task: str
    id: str
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
    ignore_result: bool | None = False
    """None: the message does not say, the task's own option decides."""
    replaced_task_nesting: Small | None = None
    stamped_headers: list[str] | None = None
    stamps: dict[str, Any] | None = None
    compression: str | None = None
    redelivered: Any = None
    losses: Any = field(default=None, name=frame.LOSSES)


class _Shut(msgspec.Struct, gc=False, kw_only=True):
    """An envelope whose body is not looked at."""

    content_encoding: str | None = field(default=None, name="content-encoding")
    content_type: str | None = field(default=None, name="content-type")
    headers: _Headers
    properties: _Properties | None = None


class _KnownProperties(_Properties, gc=False, forbid_unknown_fields=True):
    """No other properties: what is not here has to be read as a map."""


class _KnownHeaders(_Headers, gc=False, kw_only=True, forbid_unknown_fields=True):
    """No custom headers."""


class _Open(msgspec.Struct, gc=False, kw_only=True):
    """A plain envelope: known headers and properties only, a body in base64."""

    body: bytes
    content_encoding: str | None = field(default=None, name="content-encoding")
    content_type: str | None = field(default=None, name="content-type")
    headers: _KnownHeaders
    properties: _KnownProperties


class _Embed(msgspec.Struct, gc=False, forbid_unknown_fields=True):
    callbacks: list[Any] | None = None
    errbacks: list[Any] | None = None
    chain: list[Any] | None = None
    chord: dict[str, Any] | None = None


_Body = tuple[
    list[Any] | tuple[Any, ...], dict[str, Any], list[Any] | None, list[Any] | None, list[Any] | None, Any,
    dict[str, Any] | None,
]  # fmt: skip
"""args, kwargs, callbacks, errbacks, chain, chord, other embedded fields."""
_decode_shut = msgspec.json.Decoder(_Shut).decode
_decode_open = msgspec.json.Decoder(_Open).decode
_decode_body = msgspec.json.Decoder(tuple[list[Any], dict[str, Any], _Embed]).decode
_NO_PROPERTIES = _Properties()
_NO_INFO = _Info()
_BODY_IS_MAP = b'{"body": "eyJ'
"""How a blob begins whose body is a JSON map: base64 of `{"`."""
_KNOWN_HEADERS = frozenset(_Headers.__struct_encode_fields__)
_KNOWN_PROPERTIES = frozenset(_Properties.__struct_encode_fields__)
_CLIENT_SIDE = frozenset({"content_type", "content_encoding"})


def read_head(blob: bytes) -> Head:
    """Read everything but the body. Only where that is Celery's protocol 1, whose fields all stand in the body, the
    body is opened, if it is JSON or msgpack. Raises InvalidTaskError, whose text says what is wrong."""
    try:
        outer = _decode_shut(blob)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return _Reading(blob, _PARENT_READS).head()
    headers = outer.headers
    if blob.startswith(_BODY_IS_MAP) or (headers.stamps and blob.find(values.TAG) >= 0):
        return _Reading(blob, _PARENT_READS).head()
    return _head(headers, outer.properties or _NO_PROPERTIES, outer.content_type, outer.content_encoding, 2)


def _head(
    headers: _Headers, properties: _Properties, content_type: str | None, content_encoding: str | None, protocol: int
) -> Head:
    info = properties.delivery_info or _NO_INFO
    eta, expires, timelimit, tag = headers.eta, headers.expires, headers.timelimit, properties.delivery_tag
    if timelimit is not None and timelimit[0] is None and timelimit[1] is None:
        timelimit = None
    return Head(
        headers.id,
        headers.task,
        headers.retries or 0,
        None if eta is None else _unix("eta", eta),
        None if expires is None else _unix("expires", expires),
        timelimit,
        headers.group,
        headers.root_id,
        headers.parent_id,
        headers.stamps or None,
        headers.stamped_headers,
        headers.argsrepr or "",
        headers.kwargsrepr or "",
        properties.reply_to or "",
        properties.correlation_id or "",
        properties.priority or 0,
        content_type,
        content_encoding,
        headers.ignore_result,
        headers.shadow,
        headers.origin or "",
        None if headers.losses is None else frame.read_losses(headers.losses),
        headers.redelivered is True or info.redelivered is True,
        protocol,
        info.exchange or "",
        info.routing_key or "",
        tag if type(tag) is str else "" if tag is None else str(tag),
        eta,
        expires,
    )


def _unix(what: str, text: str) -> float:
    try:
        moment = datetime.fromisoformat(text)
        return (moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)).timestamp()
    except (ValueError, OverflowError) as exc:
        raise InvalidTaskError(f"invalid {what} {text[:80]!r}: {exc}") from None


def unpack(blob: bytes, accept: frozenset[str]) -> TaskMessage:
    """Read a whole message. `accept` holds content types (`codec.accept_set`).

    Raises ContentDisallowed for a content type that is not among them, DecodeError for a body that its serializer can't
    read, InvalidTaskError for everything else that is no task message.
    """
    try:
        outer = _decode_open(blob)
        body = outer.body
        headers = outer.headers
        properties = outer.properties
        if (
            outer.content_type != codec.JSON
            or properties.body_encoding != "base64"
            or headers.compression
            or headers.stamps
            or codec.JSON not in accept
            or body.find(values.TAG) >= 0
        ):
            return _Reading(blob, accept).message()
        args, kwargs, embed = _decode_body(body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return _Reading(blob, accept).message()
    parts = args, kwargs, embed.callbacks, embed.errbacks, embed.chain, embed.chord, None
    return _message(headers, properties, outer.content_type, outer.content_encoding, 2, parts, None, None)


def _message(
    headers: _Headers,
    properties: _Properties,
    content_type: str | None,
    content_encoding: str | None,
    protocol: int,
    body: _Body,
    custom: dict[str, Any] | None,
    extra: dict[str, Any] | None,
) -> TaskMessage:
    args, kwargs, callbacks, errbacks, chain, chord, embed_extra = body
    info = properties.delivery_info or _NO_INFO
    exchange, routing_key, tag = info.exchange or "", info.routing_key or "", properties.delivery_tag
    if properties.expiration is not None:
        extra = {"expiration": properties.expiration, **(extra or {})}
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
        headers.timelimit or (None, None),
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
        custom,
        extra,
        content_type,
        content_encoding,
        "" if exchange else routing_key,
        exchange,
        routing_key,
        properties.priority or 0,
        properties.reply_to or "",
        properties.correlation_id or "",
        2 if properties.delivery_mode is None else properties.delivery_mode,
        headers.redelivered is True or info.redelivered is True,
        None if headers.losses is None else frame.read_losses(headers.losses),
        tag if type(tag) is str else "" if tag is None else str(tag),
        headers.compression,
        protocol,
    )


# The general way: any envelope, serializer and protocol, custom headers, tagged values. And the reasons for a refusal.

_PARENT_READS = frozenset({codec.JSON, codec.MSGPACK})
_KNOWN_HEADERS = frozenset(_Headers.__struct_encode_fields__)
_KNOWN_PROPERTIES = frozenset(_Properties.__struct_encode_fields__)
_BODY_FIELDS = _KNOWN_HEADERS - {"compression", "redelivered", frame.LOSSES}
"""Fields that stand in the body of protocol 1."""


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
        self._headers = _convert(found, _Headers, "header")
        known = {name: value for name, value in parts.properties.items() if name in _KNOWN_PROPERTIES}
        self._properties = _convert(known, _Properties, "property")

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
        except ContentDisallowed:
            return {}  # refused when the body is asked for
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
        parts = self._parts
        return _head(self._headers, self._properties, parts.content_type, parts.content_encoding, self._protocol)

    def message(self) -> TaskMessage:
        parts = self._parts
        body = _check_body(self._content()) if self._body is None else self._body
        custom = {name: value for name, value in parts.headers.items() if name not in _KNOWN_HEADERS}
        extra = {name: value for name, value in parts.properties.items() if name not in _KNOWN_PROPERTIES}
        return _message(
            self._headers, self._properties, parts.content_type, parts.content_encoding, self._protocol,
            body, custom or None, extra or None,
        )  # fmt: skip


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


# Writing


def pack(
    message: TaskMessage,
    *,
    queue: str,
    exchange: str = "",
    routing_key: str | None = None,
    serializer: str = "json",
    compression: str | None = None,
    publish_id: str | None = None,
    priority: int = 0,
    not_before: float | None = None,
    protocol: int = 2,
) -> Envelope:
    """The message as a Celery peer writes it, to the byte. `routing_key=None` is the queue's name (with the default
    exchange). Loss counters, redelivery marks, queue, exchange and priority of `message` are not taken over: this is a
    new message. Raises EncodeError when a value can't be serialized."""
    if publish_id is None:
        publish_id = new_id()
    if routing_key is None:
        routing_key = queue
    if protocol == 1:
        headers, content = _protocol_1(message)
    elif protocol == 2:
        headers, content = _protocol_2(message)
    else:
        raise EncodeError(f"unknown task protocol {protocol!r}: it is 1 or 2")
    if message.headers:
        headers.update(message.headers)
    content_type, content_encoding, body = codec.encode(content, serializer)
    if compression:
        body, headers["compression"] = codec.compress(body, compression)
    properties: dict[str, Any] = {
        "correlation_id": message.correlation_id or message.id,
        "reply_to": message.reply_to,
        **(message.properties or {}),
    }
    expiration = properties.pop("expiration", None)
    properties["delivery_mode"] = message.delivery_mode
    if expiration is not None:
        properties["expiration"] = expiration
    properties["delivery_info"] = {"exchange": exchange, "routing_key": routing_key}
    properties["priority"] = priority
    properties["body_encoding"] = "base64"
    properties["delivery_tag"] = publish_id
    blob = frame.pack(headers, body, properties, content_type, content_encoding)
    return Envelope(message.id, publish_id, queue, blob, priority, not_before, exchange, routing_key)


def _protocol_2(message: TaskMessage) -> tuple[dict[str, Any], Any]:
    args, kwargs = message.args, message.kwargs
    headers: dict[str, Any] = {
        "lang": "py",
        "task": message.task,
        "id": message.id,
        "shadow": message.shadow,
        "eta": message.eta,
        "expires": message.expires,
        "group": message.group,
        "group_index": message.group_index,
        "retries": message.retries,
        "timelimit": message.timelimit,
        "root_id": message.root_id or message.id,
        "parent_id": message.parent_id,
        "argsrepr": safe_repr(args) if message.argsrepr is None else message.argsrepr,
        "kwargsrepr": safe_repr(kwargs) if message.kwargsrepr is None else message.kwargsrepr,
        "origin": message.origin,
        "ignore_result": message.ignore_result,
        "replaced_task_nesting": message.replaced_task_nesting,
        "stamped_headers": message.stamped_headers,
        "stamps": message.stamps or {},
    }
    embed = {
        "callbacks": message.callbacks,
        "errbacks": message.errbacks,
        "chain": message.chain,
        "chord": message.chord,
    }
    if message.embed_extra:
        embed.update(message.embed_extra)
    return headers, (args, kwargs, embed)


def _protocol_1(message: TaskMessage) -> tuple[dict[str, Any], Any]:
    if message.chain:
        raise EncodeError("task protocol 1 has no place for a chain: its steps have to be links")
    return {}, {
        "task": message.task,
        "id": message.id,
        "args": message.args,
        "kwargs": message.kwargs,
        "group": message.group,
        "group_index": message.group_index,
        "retries": message.retries,
        "eta": message.eta,
        "expires": message.expires,
        "utc": True,
        "callbacks": message.callbacks,
        "errbacks": message.errbacks,
        "timelimit": message.timelimit,
        "taskset": message.group,
        "chord": message.chord,
    }


_EMPTY_EMBED = ', {"callbacks": null, "errbacks": null, "chain": null, "chord": null}]'


class Template:
    """The messages of one task with one set of options, ready but for ids and arguments. `pack` gives the same bytes as
    the function `pack` does for a message with these fields, several times faster. Safe for threads."""

    __slots__ = ("_levels", "_limit", "_texts")

    def __init__(
        self,
        message: TaskMessage,
        *,
        queue: str,
        exchange: str = "",
        routing_key: str | None = None,
        priority: int = 0,
        repr_limit: int = 1024,
        repr_levels: int = 3,
    ) -> None:
        """`message` gives every field but id, args, kwargs, root_id, parent_id, correlation_id and the two reprs. It
        may carry no links, chain or chord: those want `pack`. JSON without compression only."""
        if message.callbacks or message.errbacks or message.chain or message.chord or message.embed_extra:
            raise ValueError("a template has no links, chain or chord")
        marks = [new_id() for _ in range(6)]
        task_id, root, parent, arguments, keywords, tag = marks
        sample = msgspec.structs.replace(
            message, id=task_id, root_id=root, parent_id=parent, argsrepr=arguments, kwargsrepr=keywords, args=(),
            kwargs={}, correlation_id="",
        )  # fmt: skip
        blob = pack(
            sample, queue=queue, exchange=exchange, routing_key=routing_key, priority=priority, publish_id=tag
        ).blob.decode()
        # In the order of Celery's fields: body, id, root, parent, args, kwargs, correlation id, delivery tag.
        body_end = blob.index('", "content-encoding"')
        texts = ['{"body": "']
        rest = blob[body_end:]
        for mark in (task_id, root, parent, arguments, keywords, task_id, tag):
            before, _, rest = rest.partition(f'"{mark}"')
            texts.append(before)
        self._texts = (*texts, rest)
        self._limit = repr_limit
        self._levels = repr_levels

    def pack(
        self,
        task_id: str,
        publish_id: str,
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        root_id: str | None = None,
        parent_id: str | None = None,
    ) -> bytes:
        """The blob of one message. Raises EncodeError when an argument can't be serialized."""
        start, t_id, t_root, t_parent, t_args, t_kwargs, t_correlation, t_tag, end = self._texts
        body = values.dumps((args, kwargs))[:-1] + _EMPTY_EMBED
        quoted = escape(task_id)
        limit, levels = self._limit, self._levels
        return (
            start
            + b2a_base64(body.encode(), newline=False).decode()
            + t_id
            + quoted
            + t_root
            + (escape(root_id) if root_id else quoted)
            + t_parent
            + (escape(parent_id) if parent_id is not None else "null")
            + t_args
            + escape(safe_repr(args, limit, levels))
            + t_kwargs
            + ('"{}"' if not kwargs else escape(safe_repr(kwargs, limit, levels)))
            + t_correlation
            + quoted
            + t_tag
            + escape(publish_id)
            + end
        ).encode()
