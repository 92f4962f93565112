"""How a call becomes a message and reaches the broker: options, route, fields, envelopes, sending by a deadline."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any, NamedTuple

import msgspec

from celeriac import telemetry
from celeriac.app.transaction import outlet
from celeriac.errors import OperationalError, QueueNotFound
from celeriac.model import options as calls
from celeriac.model.message import Envelope
from celeriac.model.retry import pauses
from celeriac.model.routing import Destination
from celeriac.runtime.context import Context, current
from celeriac.wire import codec, frame
from celeriac.wire.ids import follow_up_id, new_id
from celeriac.wire.repr import safe_repr
from celeriac.wire.task import TaskMessage, pack

NOT_SENT = frozenset(
    {
        "producer", "publisher", "connection", "router", "result_cls", "event_dispatcher", "add_to_parent",
        "route_name", "task_type", "declare", "confirm_timeout", "chord_size", "retry", "retry_policy", "timeout",
        "mandatory", "immediate", "exchange_type",
    }
)  # fmt: skip
"""Options that say how to send; they are not part of the message."""
SENDING = frozenset(
    {
        "queue", "exchange", "exchange_type", "routing_key", "serializer", "compression", "priority", "delivery_mode",
    }
)  # fmt: skip
"""Options of a task that say where and how its messages go."""
_MODES: dict[Any, int] = {"transient": 1, "persistent": 2}
_before, _after, _sent = telemetry.before_task_publish, telemetry.after_task_publish, telemetry.task_sent


class Manner(NamedTuple):
    """What the settings say of sending."""

    inherits_priority: bool
    retry: bool
    policy: Any
    timeout: float
    levels: int
    protocol: int
    delivery_mode: Any
    tells_sent: bool


def manner(app: Any) -> Manner:
    """What the settings say of sending; looked up once, as long as they stay."""
    found: Manner = app.per_settings("manner", lambda: _manner(app.conf))
    return found


def _manner(conf: Any) -> Manner:
    return Manner(
        conf["task_inherit_parent_priority"], conf["task_publish_retry"], conf["task_publish_retry_policy"],
        conf["task_publish_timeout"], conf["task_repr_maxlevels"], conf["task_protocol"],
        conf["task_default_delivery_mode"], conf["task_send_sent_event"],
    )  # fmt: skip


class Outgoing(msgspec.Struct):
    """One call on its way."""

    message: TaskMessage
    envelopes: tuple[Envelope, ...]
    """One for each queue that gets a copy."""
    destination: Destination
    timeout: float
    """Seconds that sending may take in all."""
    pauses: Iterator[float]
    """Seconds before each further try; none when it is not to be tried again."""
    told: tuple[Any, dict[str, Any]] | None = None
    """Body and headers, for `after_task_publish`; only where somebody listens."""


def worker_request() -> Context | None:
    """The request of the task that a worker (or eager mode) runs here; a task called as a function inside it does not
    count."""
    request = current.get()
    while request is not None and request.called_directly:
        request = request.__dict__.get("outer")
    return request


def trail(request: Context, result: Any) -> None:
    """Record a result as a child of a run, if its task wants that."""
    task = request.instance
    if task is None or getattr(task, "trail", True):
        request.children.append(result)


def prepare(
    app: Any,
    name: str,
    args: Sequence[Any] | None,
    kwargs: Mapping[str, Any] | None,
    given: Mapping[str, Any],
    task: Any = None,
) -> Outgoing:
    """Everything that is to be known before anything is sent. `given` are options of `apply_async`; a None in them
    takes back what the task says. Raises TypeError, ValueError, EncodeError, QueueNotFound."""
    args, kwargs = calls.check_arguments(args, kwargs)
    how = manner(app)
    said = calls.merge({}, app.task_options(task) if task is not None else {}, given)
    router = given.get("router") or app.router
    route_name = said.pop("route_name", None) or name
    target, said = router.destination(said, route_name, args, kwargs, task)
    said = {**app.call_defaults(), **said}
    hard, soft = said.get("time_limit"), said.get("soft_time_limit")
    calls.check_limits(hard, soft)
    request = worker_request()
    if request is not None:
        said.setdefault("root_id", request.root_id or request.id)
        said.setdefault("parent_id", request.id)
        if how.inherits_priority and given.get("priority") is None:
            info = request.delivery_info or {}
            if info.get("priority") is not None:
                said["priority"] = info["priority"]
    priority = calls.check_priority(said.pop("priority", None)) or 0
    serializer = said.pop("serializer", None) or "json"
    compression = said.pop("compression", None)
    policy = said.get("retry_policy") or how.policy
    wants_retry = said.get("retry", how.retry)
    timeout = said.get("timeout") or how.timeout
    message, due = _message(app, name, args, kwargs, said, target)
    envelopes = seal(app, message, target, serializer, compression, priority, due)
    waits = pauses(policy) if wants_retry else iter(())
    outgoing = Outgoing(message, envelopes, target, timeout, waits)
    if _before.receivers or _after.receivers:
        _tell_before(outgoing, serializer, policy)
    return outgoing


def _message(
    app: Any, name: str, args: Any, kwargs: Any, said: dict[str, Any], target: Destination
) -> tuple[TaskMessage, float | None]:
    """The message, and when it is due in Unix seconds. What is left in `said` becomes message properties."""
    take = said.pop
    due = expires = None
    expires_given = take("expires", None)
    eta, countdown = take("eta", None), take("countdown", None)
    properties: dict[str, Any] = {}
    if eta or countdown or expires_given is not None:
        now: datetime = app.now()
        due = calls.due(countdown, eta, now)
        expires = calls.expiry(expires_given, now)
        if expires is not None:
            left = max(0, int((expires - now).total_seconds() * 1000 + 0.5))
            properties["expiration"] = str(left)
    stamped = take("stamped_headers", None)
    names: list[str] = [stamped] if isinstance(stamped, str) else list(stamped or ())
    stamps = {key: take(key) for key in names if key in said}
    task_id = take("task_id", None) or new_id()
    levels = manner(app).levels
    argsrepr, kwargsrepr = take("argsrepr", None), take("kwargsrepr", None)
    if levels != 3:
        argsrepr = safe_repr(args, 1024, levels) if argsrepr is None else argsrepr
        kwargsrepr = safe_repr(kwargs, 1024, levels) if kwargsrepr is None else kwargsrepr
    message = TaskMessage(
        task_id,
        name,
        args,
        dict(kwargs),
        many(take("link", None)) or None,
        many(take("link_error", None)) or None,
        take("chain", None),
        take("chord", None),
        retries=take("retries", None) or 0,
        eta=None if due is None else due.isoformat(),
        expires=None if expires is None else expires.isoformat(),
        timelimit=(take("time_limit", None), take("soft_time_limit", None)),
        group=take("group_id", None),
        group_index=take("group_index", None),
        root_id=take("root_id", None) or task_id,
        parent_id=take("parent_id", None),
        argsrepr=argsrepr,
        kwargsrepr=kwargsrepr,
        origin=take("origin", None) or app.origin,
        shadow=take("shadow", None),
        ignore_result=take("ignore_result", None),
        replaced_task_nesting=take("replaced_task_nesting", None) or 0,
        stamped_headers=names or None,
        stamps=stamps or None,
        headers=take("headers", None),
        reply_to=take("reply_to", None) or app.thread_oid,
        delivery_mode=_mode(app, take("delivery_mode", None), target),
    )
    for key, value in said.items():
        if key not in NOT_SENT:
            properties[key] = value
    message.properties = properties or None
    return message, None if due is None else due.timestamp()


def many(signatures: Any) -> list[Any]:
    """Signatures of an option that holds one, several or none."""
    if not signatures:
        return []
    return [signatures] if isinstance(signatures, Mapping) else list(signatures)


def seal(
    app: Any,
    message: TaskMessage,
    target: Destination,
    serializer: str,
    compression: str | None,
    priority: int,
    due: float | None,
    publish_id: str | None = None,
) -> tuple[Envelope, ...]:
    """The envelopes of a message. Raises QueueNotFound when it would reach no queue."""
    if not target.queues:
        raise QueueNotFound(
            f"no queue that this app knows is bound to exchange {target.exchange!r} with routing key"
            f" {target.routing_key!r}: name one in task_queues"
        )
    return tuple(
        pack(
            message,
            queue=queue,
            exchange=target.exchange,
            routing_key=target.routing_key,
            serializer=serializer,
            compression=compression,
            publish_id=publish_id if index == 0 or not publish_id else follow_up_id(publish_id, 0, "copy", index),
            priority=priority,
            not_before=due if due is not None and app.schedules_directly else None,
            protocol=manner(app).protocol,
        )
        for index, queue in enumerate(target.queues)
    )


def pack_follow_up(
    app: Any, message: TaskMessage, options: Mapping[str, Any], due: float | None, publish_id: str | None = None
) -> tuple[Envelope, ...]:
    """The envelopes of a message that follows from a run. One that is new (it has no origin yet) gets what its task
    says of every call; a retry has all that."""
    task = app.known_task(message.task)
    own = app.task_options(task) if task is not None else {}
    target, said = app.router.destination(
        calls.merge({}, {key: value for key, value in own.items() if key in SENDING}, options),
        message.task, message.args, message.kwargs, task,
    )  # fmt: skip
    said = {**app.call_defaults(), **said}
    if not message.origin:
        message.origin, message.reply_to = app.origin, message.reply_to or app.thread_oid
        message.ignore_result = bool(message.ignore_result or own.get("ignore_result"))
        if not any(message.timelimit):
            message.timelimit = (own.get("time_limit"), own.get("soft_time_limit"))
        if message.expires is None and own.get("expires") is not None:
            expires = calls.expiry(own["expires"], app.now())
            message.expires = None if expires is None else expires.isoformat()
        message.delivery_mode = _mode(app, said.get("delivery_mode"), target)
    if due is None and message.eta:
        due = calls.moment(message.eta, "eta").timestamp()
    priority = calls.check_priority(said.get("priority")) or 0
    serializer = said.get("serializer") or "json"
    envelopes = seal(app, message, target, serializer, said.get("compression"), priority, due, publish_id)
    outgoing = Outgoing(message, envelopes, target, 0.0, iter(()))
    if _before.receivers:
        _tell_before(outgoing, serializer, manner(app).policy)
    return outgoing.envelopes


def _mode(app: Any, given: Any, target: Destination) -> int:
    mode: Any = given if given is not None else target.delivery_mode or manner(app).delivery_mode
    found: Any = _MODES.get(mode)
    return int(mode if found is None else found)


# Signals


def _tell_before(outgoing: Outgoing, serializer: str, policy: Any) -> None:
    """Send before_task_publish; a listener may change headers, properties and body."""
    message, target = outgoing.message, outgoing.destination
    first = outgoing.envelopes[0]
    parts = frame.unpack(first.blob)
    headers, properties = parts.headers, parts.properties
    tail = {name: properties.pop(name) for name in ("delivery_info", "body_encoding", "delivery_tag")}
    embed = {
        "callbacks": message.callbacks, "errbacks": message.errbacks, "chain": message.chain, "chord": message.chord,
    }  # fmt: skip
    body = (message.args, message.kwargs, embed)
    outgoing.told = (body, headers)
    if not _before.receivers:
        return
    _before.send(
        message.task,
        body=body,
        exchange=target.exchange,
        routing_key=target.routing_key,
        headers=headers,
        properties=properties,
        declare=[] if target.queue is None else [target.queue],
        retry_policy=policy,
    )
    if "task" not in headers:  # protocol 1: the fields stand in the body
        content = parts.body
    else:
        content = codec.encode(body, serializer)[2]
        if headers.get("compression"):
            content = codec.compress(content, headers["compression"])[0]
    outgoing.envelopes = tuple(
        msgspec.structs.replace(
            envelope,
            blob=frame.pack(
                headers, content, {**properties, **tail, "delivery_tag": envelope.publish_id}, parts.content_type,
                parts.content_encoding,
            ),
        )
        for envelope in outgoing.envelopes
    )  # fmt: skip


def tell_after(app: Any, outgoing: Outgoing) -> None:
    """Say that a message is safe: after_task_publish, task_sent, and the task-sent event where it is wanted."""
    message, target = outgoing.message, outgoing.destination
    if _after.receivers and outgoing.told is not None:
        body, headers = outgoing.told
        _after.send(
            message.task, body=body, headers=headers, exchange=target.exchange, routing_key=target.routing_key
        )
    if _sent.receivers:
        _sent.send(
            message.task, task_id=message.id, task=message.task, args=message.args, kwargs=message.kwargs,
            eta=message.eta, taskset=message.group,
        )  # fmt: skip
    if manner(app).tells_sent:
        app.control.tell_sent(message, outgoing.envelopes[0])


# Sending


def send(app: Any, outgoing: Outgoing) -> None:
    """Hand a call to the broker, and tell of it. On return it is safe. Raises OperationalError."""
    publish(app.sender, outgoing.envelopes, outgoing.timeout, outgoing.pauses)
    tell_after(app, outgoing)


def publish(sender: Any, envelopes: Sequence[Envelope], timeout: float, waits: Iterable[float]) -> None:
    """Hand over envelopes within `timeout` seconds in all, after each pause once more. Raises OperationalError."""
    end = time.monotonic() + timeout
    try:
        sender.publish(envelopes, timeout)
    except OperationalError as error:
        again(sender, envelopes, end, waits, error)


def again(
    sender: Any, envelopes: Sequence[Envelope], end: float, waits: Iterable[float], error: OperationalError
) -> None:
    """What follows a first try that failed: further ones, until `end` (monotonic seconds). Raises the last error."""
    for pause in waits:
        if time.monotonic() + pause >= end:
            break
        time.sleep(pause)
        try:
            sender.publish(envelopes, max(0.001, end - time.monotonic()))
            return
        except OperationalError as another:
            error = another
    raise error


async def asend(app: Any, outgoing: Outgoing) -> None:
    """`send` for coroutines."""
    await apublish(app, outgoing.envelopes, outgoing.timeout, outgoing.pauses)
    tell_after(app, outgoing)


async def apublish(app: Any, envelopes: Sequence[Envelope], timeout: float, waits: Iterable[float]) -> None:
    """`publish` for coroutines."""
    import asyncio

    if (within := outlet(app)) is not None:
        await within.apublish(envelopes)
        return
    end = time.monotonic() + timeout
    tries = iter(waits)
    while True:
        left = max(0.001, end - time.monotonic())
        try:
            if app.wiring.in_child:
                await app.sender.apublish(envelopes, left)
                return
            broker = await app.wiring.broker_here()
            try:
                async with asyncio.timeout(left):
                    await broker.publish(envelopes)
                return
            except TimeoutError:
                raise OperationalError(f"{broker.describe()} did not take the message within {timeout:g} s") from None
        except OperationalError:
            pause = next(tries, None)
            if pause is None or time.monotonic() + pause >= end:
                raise
        await asyncio.sleep(pause)
