"""Between our blobs (kombu's envelopes) and AMQP messages. Pure.

What a peer sees is Celery's: headers as a table, the body as it is. Bytes that are no envelope travel as a body of a
content type of their own, and come out as they went in.
"""

from __future__ import annotations

import hashlib
import re
from binascii import b2a_base64
from collections.abc import Mapping
from typing import Any

import msgspec

from celeriac.drivers.amqp import frames
from celeriac.drivers.amqp.machine import Event
from celeriac.drivers.amqp.table import PROPERTIES, properties, read_properties
from celeriac.errors import DecodeError, EncodeError
from celeriac.wire import frame
from celeriac.wire.values import dumps, escape

RAW = "application/x-celeriac-blob"
"""Content type of bytes that are no envelope."""
DUE = "x-celeriac-due"
"""Unix seconds before which the message is not to be delivered."""
FROM = "x-celeriac-from"
"""[exchange, routing key] by which a message came that now lies in a queue of ours."""
TO = "x-celeriac-to"
"""The queue that a waiting message is meant for."""
REASON = "x-celeriac-reason"
"""Why it is dead."""
COPY = "x-celeriac-copy"
"""Names a copy that its maker is to recognise."""
AGAIN = "x-celeriac-again"
"""This copy was made of a message that had been delivered before."""
PRIVATE = frozenset({DUE, FROM, TO, REASON, COPY, AGAIN})
_LADDER = re.compile(r"(?:[01]\.){20,28}")
"""What stands before the routing key of a message that came over a ladder of delays."""

HELD = "celeriac.1.held."
"""Begins the names of the queues in which workers hold what they run."""
OURS = "celeriac.1."


def encode(blob: bytes, priority: int | None = None, private: Mapping[str, Any] | None = None) -> tuple[bytes, bytes]:
    """Properties and body of a blob, with private headers. Raises EncodeError for what AMQP can't carry."""
    found: dict[str, Any]
    try:
        if not blob:
            raise DecodeError("empty")
        parts = frame.unpack(blob)
    except DecodeError:
        found = {"content_type": RAW, "delivery_mode": 2, "priority": priority or 0}
        headers: dict[str, Any] = {}
        body = blob
    else:
        found = {name: value for name, value in parts.properties.items() if name in PROPERTIES}
        if priority is not None:
            found["priority"] = priority
        found.setdefault("delivery_mode", 2)
        # AMQP's own delivery tag is another one with each delivery: this names the message and all that follows
        name = parts.properties.get("delivery_tag")
        if isinstance(name, str) and name.isascii() and 0 < len(name) < 256:
            found.setdefault("message_id", name)
        if parts.headers.get("expires") is not None:
            # RabbitMQ would drop it unseen; a worker gives it an end, which a chord or a caller waits for
            found.pop("expiration", None)
        found["content_type"], found["content_encoding"] = parts.content_type, parts.content_encoding
        headers, body = parts.headers, parts.body
    found["headers"] = {**headers, **private} if private else headers
    return _fitting(properties(found)), body


def _fitting(header: bytes) -> bytes:
    if len(header) > LARGEST_HEADER:
        raise EncodeError(f"the headers of a message have {len(header)} bytes; AMQP takes {LARGEST_HEADER}")
    return header


LARGEST_HEADER = 130_000
"""Bytes of a message's properties: they have to fit into one frame, of which a server takes 128 KiB."""


class Message:
    """One delivered message."""

    __slots__ = (
        "body", "count", "exchange", "generation", "headers", "held", "private", "properties", "queue", "redelivered",
        "routing_key", "since", "size", "tag", "worker_lost",
    )  # fmt: skip

    def __init__(self, queue: str, tag: int, redelivered: bool, exchange: str, key: str, header: bytes, body: bytes):
        """`header`: the properties as bytes."""
        self.queue = queue
        """The queue it is meant for (it may lie in one of ours)."""
        self.tag = tag
        self.generation = 0
        self.since = 0.0
        """Monotonic time of its delivery."""
        self.held = False
        """It lies in our queue for what we run."""
        self.body = body
        self.size = len(header) + len(body)
        try:
            found: dict[str, Any] = read_properties(header)
        except DecodeError:  # nobody could read it: it goes to the dead letters as it is
            found = {"content_type": RAW}
        self.properties = found
        self.headers: dict[str, Any] = found.pop("headers", None) or {}
        self.redelivered = redelivered
        """By the server: it was with somebody before."""
        self.worker_lost = False
        """It lay in the queue of a worker that was lost while it ran it."""
        count = self.headers.pop("x-delivery-count", 0)
        self.count = count if isinstance(count, int) else 0
        """How often a quorum queue has delivered it before."""
        self.headers.pop("x-acquired-count", None)
        self.private: dict[str, Any] = {}
        if not self.headers.keys().isdisjoint(PRIVATE):
            self.private = {name: self.headers.pop(name) for name in PRIVATE if name in self.headers}
        if "x-death" in self.headers:
            self._look_at_death()
        came = self.private.get(FROM)
        if isinstance(came, list) and len(came) == 2:
            exchange, key = str(came[0]), str(came[1])
        elif key[:2] in ("0.", "1."):
            key = _LADDER.sub("", key, count=1)
        self.exchange, self.routing_key = exchange, key

    def _look_at_death(self) -> None:
        deaths = self.headers["x-death"]
        last = deaths[0] if isinstance(deaths, list) and deaths and isinstance(deaths[0], dict) else {}
        queue = str(last.get("queue", ""))
        self.worker_lost = queue.startswith(HELD)
        if queue.startswith((OURS, "celery_delayed_")):
            for name in [name for name in self.headers if name == "x-death" or name.startswith(_DEATHS)]:
                del self.headers[name]

    @property
    def priority(self) -> int:
        """Celery's number."""
        value = self.properties.get("priority", 0)
        return value if isinstance(value, int) else 0

    @property
    def due(self) -> float:
        """Unix seconds; 0: now."""
        value = self.private.get(DUE)
        return float(value) if isinstance(value, int | float) else 0.0

    @property
    def again(self) -> bool:
        """Somebody may have run it, or begun to."""
        return self.redelivered or self.worker_lost or AGAIN in self.private

    @property
    def identity(self) -> tuple[str, str, str]:
        """The same when it is delivered again."""
        return self.queue, str(self.properties.get("correlation_id", "")), str(self.headers.get("retries", ""))

    @property
    def digest(self) -> str:
        """Names the message among others in its queue."""
        text = repr((self.properties, sorted(self.headers.items(), key=str), self.private)).encode(errors="replace")
        return hashlib.blake2b(text + self.body, digest_size=16).hexdigest()

    def blob(self) -> bytes:
        """As the rest of the house reads it."""
        found = self.properties
        if found.get("content_type") == RAW:
            return self.body
        info = f'{{"exchange": {escape(self.exchange)}, "routing_key": {escape(self.routing_key)}'
        info += ', "redelivered": true}' if self.again else "}"
        get = found.get
        extra = "".join([f"{escape(name)}: {dumps(value)}, " for name, value in found.items() if name not in _USUAL])
        return (
            f'{{"body": "{b2a_base64(self.body, newline=False).decode()}", "content-encoding": '
            f'{dumps(get("content_encoding"))}, "content-type": {dumps(get("content_type"))}, '
            f'"headers": {_text(self.headers)}, "properties": {{"correlation_id": {dumps(get("correlation_id", ""))}, '
            f'"reply_to": {dumps(get("reply_to", ""))}, "delivery_mode": {get("delivery_mode", 2)}, {extra}'
            f'"delivery_info": {info}, "priority": {get("priority", 0)}, "body_encoding": "base64", '
            f'"delivery_tag": {dumps(get("message_id", ""))}}}}}'
        ).encode()

    def copy(
        self, private: Mapping[str, Any] | None = None, losses: tuple[int, int] | None = None
    ) -> tuple[bytes, bytes]:
        """Properties and body of a copy, with other private headers and loss counters."""
        headers = {**self.headers, **private} if private else dict(self.headers)
        if losses is not None:
            headers[frame.LOSSES] = list(losses)
        return _fitting(properties({"delivery_mode": 2, **self.properties, "headers": headers})), self.body

    def marks(self) -> dict[str, Any]:
        """Private headers of a copy that goes back to the queue it came from."""
        found: dict[str, Any] = {FROM: self.came_from} if self.exchange else {}
        if self.again:
            found[AGAIN] = True
        return found

    @property
    def came_from(self) -> list[str]:
        """Value of FROM for copies."""
        return [self.exchange, self.routing_key]


def _text(headers: dict[str, Any]) -> str:
    """As JSON. What is the same in both is written by the faster one."""
    if all(map(_is_plain, headers.values())):
        try:
            return _encode(headers).decode()
        except (UnicodeEncodeError, RecursionError):
            pass
    return dumps(headers)


def _is_plain(value: Any) -> bool:
    kind = type(value)
    if kind is list:
        return all(map(_is_plain, value))
    return kind in _PLAIN or (kind is dict and all(map(_is_plain, value.values())))


_PLAIN = frozenset({str, int, bool, type(None)})
_encode = msgspec.json.Encoder().encode

_DEATHS = ("x-first-death-", "x-last-death-")
_USUAL = frozenset({
    "content_type", "content_encoding", "correlation_id", "reply_to", "delivery_mode", "priority", "message_id",
})  # fmt: skip


def delivered(event: Event, queue: str) -> Message:
    """The message of a DELIVER event. Raises DecodeError."""
    arguments = event.arguments
    at = 1 + arguments[0]
    tag = int.from_bytes(arguments[at : at + 8], "big")
    exchange, end = frames.read_short(arguments, at + 9)
    key, _ = frames.read_short(arguments, end)
    return Message(queue, tag, bool(arguments[at + 8] & 1), exchange, key, event.header, event.body)


def got(event: Event, queue: str) -> tuple[Message, int]:
    """The message of a GET_OK event, and how many are left in its queue. Raises DecodeError."""
    arguments = event.arguments
    exchange, at = frames.read_short(arguments, 9)
    key, at = frames.read_short(arguments, at)
    left = int.from_bytes(arguments[at : at + 4], "big")
    tag = int.from_bytes(arguments[:8], "big")
    return Message(queue, tag, bool(arguments[8] & 1), exchange, key, event.header, event.body), left
