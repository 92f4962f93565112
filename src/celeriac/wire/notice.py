"""Events and remote control: what travels by fanout, and the answers to it."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from celeriac.errors import DecodeError
from celeriac.wire import codec, frame
from celeriac.wire.ids import new_id

EVENTS = "celeryev"
"""The exchange of events."""
CONTROL = "celery.pidbox"
"""The exchange of requests, where `control_exchange` is "celery"."""
REPLIES = "reply.celery.pidbox"
"""The exchange of replies, where `control_exchange` is "celery"."""


def _blob(
    body: Any, headers: Mapping[str, Any], serializer: str, delivery_mode: int, exchange: str, routing_key: str,
    tag: str | None,
) -> bytes:  # fmt: skip
    content_type, content_encoding, data = codec.encode(body, serializer)
    properties = {
        "delivery_mode": delivery_mode,
        "delivery_info": {"exchange": exchange, "routing_key": routing_key},
        "priority": 0,
        "body_encoding": "base64",
        "delivery_tag": tag or new_id(),
    }
    return frame.pack(headers, data, properties, content_type, content_encoding)


def _open(blob: bytes, accept: frozenset[str] | None) -> tuple[Any, dict[str, Any]]:
    parts = frame.unpack(blob)
    return codec.decode(parts.body, parts.content_type, parts.content_encoding, accept), parts.headers


def _number(value: Any) -> float:
    return value if isinstance(value, int | float) and not isinstance(value, bool) else 0


# Events


def event_routing_key(kind: str) -> str:
    """`worker-heartbeat` -> `worker.heartbeat`."""
    return kind.replace("-", ".")


def write_event(
    event: Mapping[str, Any],
    *,
    hostname: str,
    exchange: str = EVENTS,
    serializer: str = "json",
    delivery_tag: str | None = None,
) -> bytes:
    """The blob of one event, a map with `type`, `timestamp`, `hostname`, `utcoffset`, `pid`, `clock` and what belongs
    to its type. Goes out with the routing key of its type."""
    key = event_routing_key(str(event.get("type", "")))
    return _blob(dict(event), {"hostname": hostname}, serializer, 1, exchange, key, delivery_tag)


def write_events(
    events: Sequence[Mapping[str, Any]],
    *,
    hostname: str,
    group: str = "task",
    exchange: str = EVENTS,
    serializer: str = "json",
    delivery_tag: str | None = None,
) -> bytes:
    """The blob of several events of one group. Goes out with routing key `<group>.multi`."""
    body = [dict(event) for event in events]
    return _blob(body, {"hostname": hostname}, serializer, 1, exchange, f"{group}.multi", delivery_tag)


def read_events(blob: bytes, accept: frozenset[str] | None = None) -> list[dict[str, Any]]:
    """The events in a blob, one or many. Raises DecodeError, ContentDisallowed."""
    body, _ = _open(blob, accept)
    events = [body] if isinstance(body, dict) else body
    if not isinstance(events, list | tuple):
        raise DecodeError(f"an event must be a map or a list of maps, not {type(body).__name__}")
    for event in events:
        if not isinstance(event, dict) or not isinstance(event.get("type"), str):
            raise DecodeError("an event must be a map with the text `type`")
    return list(events)


# Remote control


class Request(msgspec.Struct):
    """A request to workers."""

    method: str
    arguments: dict[str, Any] = {}
    destination: list[str] | None = None
    """Node names; None: see `meant_for`."""
    pattern: str | None = None
    matcher: str | None = None
    """How `pattern` is read: glob or pcre."""
    ticket: str | None = None
    """Names the answers to this request. None: no answer is wanted."""
    reply_exchange: str = REPLIES
    reply_routing_key: str = ""
    """The asker's id; its queue is `<id>.reply.celery.pidbox`."""
    clock: int = 0
    expires: float = 0
    """Unix seconds; 0: never."""

    @property
    def reply_queue(self) -> str:
        """Where the answer goes on brokers without bindings of their own."""
        return f"{self.reply_routing_key}.{self.reply_exchange}"

    def meant_for(self, node: str) -> bool:
        """A list of nodes decides, else pattern and matcher do, else everybody is meant. Raises DecodeError for a
        matcher that is not known or a pattern that is none."""
        if self.destination:
            return node in self.destination
        if not self.pattern or not self.matcher:
            return True
        if self.matcher == "glob":
            return fnmatch.fnmatch(node, self.pattern)
        if self.matcher == "pcre":
            try:
                return re.match(self.pattern, node) is not None
            except (re.error, RecursionError, OverflowError) as exc:
                raise DecodeError(f"bad pattern {self.pattern!r}: {exc}") from None
        raise DecodeError(f"unknown matcher {self.matcher!r}: it is glob or pcre")


def write_request(
    request: Request, *, exchange: str = CONTROL, serializer: str = "json", delivery_tag: str | None = None
) -> bytes:
    """The blob of a request."""
    body: dict[str, Any] = {
        "method": request.method,
        "arguments": request.arguments,
        "destination": request.destination,
        "pattern": request.pattern,
        "matcher": request.matcher,
    }
    if request.ticket:
        body["ticket"] = request.ticket
        body["reply_to"] = {"exchange": request.reply_exchange, "routing_key": request.reply_routing_key}
    headers = {"clock": request.clock, "expires": request.expires}
    return _blob(body, headers, serializer, 2, exchange, "", delivery_tag)


def read_request(blob: bytes, accept: frozenset[str] | None = None) -> Request:
    """The request in a blob. Raises DecodeError, ContentDisallowed."""
    body, headers = _open(blob, accept)
    if not isinstance(body, dict):
        raise DecodeError(f"a request must be a map, not {type(body).__name__}")
    reply_to = body.get("reply_to") or {}
    if not isinstance(reply_to, dict):
        raise DecodeError("reply_to of a request must be a map")
    destination = body.get("destination")
    if isinstance(destination, str):
        destination = [destination]
    arguments = body.get("arguments") or {}
    if not isinstance(arguments, dict) or not all(isinstance(name, str) for name in arguments):
        raise DecodeError("arguments of a request must be a map with text for names")
    try:
        request = msgspec.convert(
            {
                "method": body.get("method"),
                "destination": destination,
                "pattern": body.get("pattern"),
                "matcher": body.get("matcher"),
                "ticket": body.get("ticket"),
                "reply_exchange": reply_to.get("exchange") or "",
                "reply_routing_key": reply_to.get("routing_key") or "",
            },
            Request,
        )
    except (msgspec.MsgspecError, ValueError, RecursionError) as exc:
        raise DecodeError(f"not a request: {exc}") from None
    request.arguments = arguments
    request.clock, request.expires = _clock(headers), _number(headers.get("expires"))
    return request


def _clock(headers: Mapping[str, Any]) -> int:
    clock = headers.get("clock")
    return clock if type(clock) is int and 0 <= clock < 1 << 62 else 0


class Reply(msgspec.Struct):
    """Answers to a request, by node name."""

    answers: dict[str, Any]
    ticket: str | None = None
    clock: int = 0
    expires: float = 0
    """Unix seconds; 0: never."""


def write_reply(
    reply: Reply,
    *,
    exchange: str = REPLIES,
    routing_key: str,
    serializer: str = "json",
    delivery_tag: str | None = None,
) -> bytes:
    """The blob of an answer. `routing_key` is the asker's id (`Request.reply_routing_key`)."""
    headers = {"ticket": reply.ticket, "clock": reply.clock}
    return _blob(reply.answers, headers, serializer, 1, exchange, routing_key, delivery_tag)


def read_reply(blob: bytes, accept: frozenset[str] | None = None) -> Reply:
    """The answer in a blob. Raises DecodeError, ContentDisallowed."""
    body, headers = _open(blob, accept)
    if not isinstance(body, dict) or not all(isinstance(node, str) for node in body):
        raise DecodeError("an answer must be a map with node names")
    ticket = headers.get("ticket")
    return Reply(body, ticket if isinstance(ticket, str) else None, _clock(headers), _number(headers.get("expires")))
