"""Task messages, read. `read_head` is for a worker's parent and leaves the body shut; `unpack` is for where tasks run.

A message of a plain kind, that is nearly every one, is decoded into typed structs in one go. Whatever those refuse is
read again the general way, which takes all that Celery takes, and says what is wrong with the rest.
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec
from msgspec import field

from celeriac.wire import codec, frame, values
from celeriac.wire.general import NO_LIMITS, PARENT_READS, Count, Limit, Name, Reading, Small, Unread, unix, unpack_any
from celeriac.wire.shape import Head, TaskMessage

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
_TAG = values.TAG
_JSON = codec.JSON


def read_head(blob: bytes) -> Head:
    """Read everything but the body. Only where that is Celery's protocol 1, whose fields all stand in the body, the
    body is opened, if it is JSON or msgpack. Raises InvalidTaskError, whose text says what is wrong."""
    try:
        outer = _decode_shut(blob)
    except Unread:
        return Reading(blob, PARENT_READS).head()
    headers = outer.headers
    stamps = headers.stamps
    if stamps and blob.find(_TAG) >= 0:
        return Reading(blob, PARENT_READS).head()
    properties = outer.properties
    info = properties.delivery_info
    eta, expires, timelimit, losses = headers.eta, headers.expires, headers.timelimit, headers.losses
    return Head(
        headers.id,
        headers.task,
        headers.retries,
        None if eta is None else unix("eta", eta),
        None if expires is None else unix("expires", expires),
        None if timelimit == NO_LIMITS else timelimit,
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
            return unpack_any(blob, accept)
        args, kwargs, embed = _decode_body(body)
    except Unread:
        return unpack_any(blob, accept)
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
