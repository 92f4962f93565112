"""Task messages, written as a Celery peer writes them."""

from __future__ import annotations

from binascii import b2a_base64
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from celeriac.errors import EncodeError
from celeriac.model.message import Envelope
from celeriac.wire import codec, frame, values
from celeriac.wire.ids import new_id
from celeriac.wire.repr import safe_repr
from celeriac.wire.shape import TaskMessage
from celeriac.wire.values import escape


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


_NOTHING: dict[str, Any] = {}
_EMBED = ', {"callbacks": null, "errbacks": null, "chain": null, "chord": '


class Template:
    """The messages of one task with one set of options, ready but for ids and arguments. `pack` gives the same bytes as
    the function `pack` does for a message with these fields, several times faster. Safe for threads."""

    __slots__ = ("_levels", "_limit", "_plain", "_texts")

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
        """`message` gives every field but those that the method `pack` takes, correlation_id and the two reprs. It may
        carry no links, chain or chord. JSON without compression only."""
        if message.callbacks or message.errbacks or message.chain or message.chord or message.embed_extra:
            raise ValueError("a template has no links, chain or chord")
        marks = [new_id() for _ in range(8)]
        task_id, root, parent, arguments, keywords, tag, group, index = marks
        sample = msgspec.structs.replace(
            message, id=task_id, root_id=root, parent_id=parent, argsrepr=arguments, kwargsrepr=keywords, args=(),
            kwargs={}, correlation_id="", group=group, group_index=index,
        )  # fmt: skip
        blob = pack(
            sample, queue=queue, exchange=exchange, routing_key=routing_key, priority=priority, publish_id=tag
        ).blob.decode()
        # In the order of Celery's fields: body, id, group and index, root, parent, args, kwargs, correlation id, tag.
        body_end = blob.index('", "content-encoding"')
        texts = ['{"body": "']
        rest = blob[body_end:]
        for mark in (task_id, group, index, root, parent, arguments, keywords, task_id, tag):
            before, _, rest = rest.partition(f'"{mark}"')
            texts.append(before)
        self._texts = (*texts, rest)
        start, t_id, t_group, t_index, t_root, t_parent, t_args, t_kwargs, t_correlation, t_tag = texts
        self._plain = (
            start, t_id, f"{t_group}null{t_index}null{t_root}", f"{t_parent}null{t_args}",
            f'{t_kwargs}"{{}}"{t_correlation}', t_tag, rest,
        )  # fmt: skip
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
        group: str | None = None,
        group_index: int | None = None,
        chord: str = "",
    ) -> bytes:
        """The blob of one message; `chord` is the JSON text of a body. Raises EncodeError when an argument can't be
        serialized."""
        if not (kwargs or chord or root_id) and group is None and group_index is None and parent_id is None:
            return self._pack_plainly(task_id, publish_id, args)
        start, t_id, t_group, t_index, t_root, t_parent, t_args, t_kwargs, t_correlation, t_tag, end = self._texts
        content = f"{values.dumps((args, kwargs))[:-1]}{_EMBED}{chord or 'null'}}}]"
        body = b2a_base64(content.encode(), newline=False).decode()
        quoted = escape(task_id)
        root = escape(root_id) if root_id else quoted
        parent = escape(parent_id) if parent_id is not None else "null"
        limit, levels = self._limit, self._levels
        positional = escape(safe_repr(args, limit, levels))
        grouped = "null" if group is None else escape(group)
        indexed = "null" if group_index is None else group_index
        keyword = escape(safe_repr(kwargs, limit, levels)) if kwargs else '"{}"'
        return (
            f"{start}{body}{t_id}{quoted}{t_group}{grouped}{t_index}{indexed}{t_root}{root}{t_parent}{parent}{t_args}"
            f"{positional}{t_kwargs}{keyword}{t_correlation}{quoted}{t_tag}{escape(publish_id)}{end}"
        ).encode()

    def _pack_plainly(self, task_id: str, publish_id: str, args: Sequence[Any]) -> bytes:
        """What most calls are: not made by a task, no named arguments, no group. Fewer texts are put together."""
        start, t_id, t_root, t_args, t_correlation, t_tag, end = self._plain
        content = f"{values.dumps((args, _NOTHING))[:-1]}{_EMBED}null}}]"
        body = b2a_base64(content.encode(), newline=False).decode()
        quoted = escape(task_id)
        positional = escape(safe_repr(args, self._limit, self._levels))
        return (
            f"{start}{body}{t_id}{quoted}{t_root}{quoted}{t_args}{positional}{t_correlation}{quoted}{t_tag}"
            f"{escape(publish_id)}{end}"
        ).encode()
