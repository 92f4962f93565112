"""What follows from the outcome of a task: links, error links, the next step of a chain, a retry. Pure.

Ids are those on the wire, else what `name(edge, index)` gives: the caller derives it from the run, so that a run that
is repeated names the same ones. Chords are refused with InvalidTaskError.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Protocol

from celeriac.errors import InvalidTaskError

Signature = Mapping[str, Any]
Name = Callable[[str, int], str]
"""`(edge, index)` -> the id of what follows from this run by that edge."""

SENDING = frozenset(
    {
        "queue", "exchange", "exchange_type", "routing_key", "serializer", "compression", "priority", "delivery_mode",
        "declare", "mandatory", "immediate", "confirm_timeout", "timeout",
    }
)  # fmt: skip
"""Options that say how a message is sent; the packer reads them."""
FIELDS = {
    "task_id": "id", "group_id": "group", "group_index": "group_index", "root_id": "root_id", "parent_id": "parent_id",
    "shadow": "shadow", "ignore_result": "ignore_result", "origin": "origin", "chain": "chain", "chord": "chord",
    "headers": "headers", "argsrepr": "argsrepr", "kwargsrepr": "kwargsrepr", "reply_to": "reply_to",
    "replaced_task_nesting": "replaced_task_nesting",
}  # fmt: skip
"""Options that are fields of the message under another or the same name."""
READ = frozenset(
    {"eta", "countdown", "expires", "link", "link_error", "time_limit", "soft_time_limit", "stamped_headers", "stamps"}
)
DROPPED = frozenset(
    {
        "retry", "retry_policy", "producer", "publisher", "connection", "router", "result_cls", "event_dispatcher",
        "add_to_parent", "route_name", "task_type", "chord_size", "retries",
    }
)  # fmt: skip
"""Options that mean nothing for a message on its way."""


class Finished(Protocol):
    """The message of the run from which things follow, as far as it is asked (`wire.task.TaskMessage`)."""

    id: str
    task: str
    root_id: str | None
    callbacks: list[Any] | None
    errbacks: list[Any] | None
    chain: list[Any] | None
    chord: Any
    retries: int
    timelimit: Any
    exchange: str
    routing_key: str
    priority: int
    stamps: dict[str, Any] | None
    properties: dict[str, Any] | None


@dataclass(slots=True)
class Step:
    """One message that follows."""

    fields: dict[str, Any]
    """Fields of `wire.task.TaskMessage`; for a retry only those that change."""
    options: dict[str, Any]
    """How to send it: queue, exchange, routing_key, serializer, compression, priority ... as far as it was said."""
    edge: str
    """Which edge of the canvas it stands for; with the index it names the step among all that follow from a run."""
    index: int = 0


@dataclass(slots=True)
class Follow:
    """What follows from an outcome."""

    steps: list[Step] = field(default_factory=list)
    children: list[Any] = field(default_factory=list)
    """Result tuples for the `children` of the finished task's document."""


@dataclass(slots=True)
class _Origin:
    """The run from which things follow."""

    id: str
    root_id: str
    priority: int | None
    now: float
    name: Name


def after_success(message: Finished, result: Any, *, now: float, name: Name, priority: int | None = None) -> Follow:
    """Links, then the next step of the chain; each gets `result` as its first argument unless it is immutable.

    `priority` is given to those that have none of their own. Raises InvalidTaskError for what can't be planned.
    """
    if message.chord is not None:
        raise unsupported_chord()
    origin = _Origin(message.id, message.root_id or message.id, priority, now, name)
    follow = Follow()
    for index, signature in enumerate(message.callbacks or ()):
        _plan(follow, origin, signature, (result,), f"link.{index}", 0, [])
    if message.chain:
        _plan(follow, origin, message.chain[-1], (result,), "chain", 0, list(message.chain[:-1]))
    return follow


def unsupported_chord() -> InvalidTaskError:
    """What a member of a chord fails with; better before it runs than after."""
    return InvalidTaskError("chords are not supported yet: this task is a member of one")


def error_link(message: Finished, signature: Any, index: int, *, now: float, name: Name) -> Follow:
    """An error link that is sent as a task: it gets the id of the failed task as its first argument."""
    origin = _Origin(message.id, message.root_id or message.id, None, now, name)
    follow = Follow()
    _plan(follow, origin, signature, (message.id,), f"errback.{index}", 0, [])
    return follow


def later_ids(message: Finished) -> list[tuple[str, str | None]]:
    """`(id, group id)` of the chain's later steps, the next one first; they fail with the task before them."""
    found = []
    for signature in reversed(message.chain or ()):
        options = signature.get("options") if isinstance(signature, Mapping) else None
        if isinstance(options, Mapping) and isinstance(options.get("task_id"), str):
            found.append((options["task_id"], options.get("group_id")))
    return found


def retry(message: Finished, signature: Any, *, now: float) -> tuple[Step, float | None]:
    """What changes in the message for a retry, and the Unix time before which it is not to run (None: at once).

    `signature` is that of the Retry exception; what it does not say stays as it is in `message`.
    """
    signature = signature if isinstance(signature, Mapping) else {}
    options = dict(signature.get("options") or {})
    options.pop("task_id", None)
    if options.get("parent_id") == message.id:
        # a task is not its own parent: who walks up would walk for ever
        del options["parent_id"]
    fields: dict[str, Any] = {
        "retries": message.retries + 1, "eta": None, "losses": None, "redelivered": False, "delivery_tag": "",
        "protocol": 2, "compression": None,
    }  # fmt: skip
    if "args" in signature:
        fields["args"] = list(signature["args"] or ())
        fields["argsrepr"] = None
    if "kwargs" in signature:
        fields["kwargs"] = dict(signature["kwargs"] or {})
        fields["kwargsrepr"] = None
    due = _apply(fields, options, now, message)
    sending = _sending(options)
    if not sending.keys() & {"queue", "exchange", "routing_key"}:
        # back to where it came from: the default exchange names the queue by its routing key
        if message.exchange:
            sending["exchange"] = message.exchange
            sending["routing_key"] = message.routing_key
        elif message.routing_key:
            sending["queue"] = message.routing_key
    sending.setdefault("priority", message.priority)
    return Step(fields, sending, "retry"), due


def stays(message: Finished, step: Step) -> bool:
    """Whether a retry goes back to the queue that the message came from."""
    options = step.options
    if "queue" in options:
        return not message.exchange and bool(options["queue"] == message.routing_key)
    same_exchange = options.get("exchange", "") == message.exchange
    return bool(same_exchange and options.get("routing_key", "") == message.routing_key)


def _plan(
    follow: Follow, origin: _Origin, signature: Any, prefix: tuple[Any, ...], edge: str, index: int, rest: list[Any]
) -> None:
    """Plan one signature of any kind; `rest` are the chain's steps behind it, the next one last."""
    if not isinstance(signature, Mapping) or not isinstance(signature.get("task"), str):
        raise InvalidTaskError(f"not a signature: {type(signature).__name__}")
    kind = signature.get("subtask_type")
    if kind == "chain":
        _plan_chain(follow, origin, signature, prefix, edge, index, rest)
    elif kind == "group":
        _plan_group(follow, origin, signature, prefix, edge, rest)
    elif kind in ("chord", "chunks"):
        raise InvalidTaskError(f"a {kind} that follows from a task is not supported yet")
    else:
        step = _single(origin, signature, prefix, edge, index, rest)
        follow.steps.append(step)
        follow.children.append([[step.fields["id"], None], None])


def _plan_chain(
    follow: Follow,
    origin: _Origin,
    signature: Signature,
    prefix: tuple[Any, ...],
    edge: str,
    index: int,
    rest: list[Any],
) -> None:
    tasks = _tasks(signature)
    options = signature.get("options") or {}
    if options.get("chord") is not None:
        raise InvalidTaskError("a chain that is a member of a chord is not supported yet")
    # what is said of the chain as a whole (links, error links, its id) belongs to its last step
    of_whole = {k: v for k, v in options.items() if v is not None}
    tasks[-1] = {**tasks[-1], "options": {**_mapping(tasks[-1].get("options"), "options"), **of_whole}}
    tasks[1:] = [_named(task, origin, f"{edge} step {number}", index) for number, task in enumerate(tasks[1:], 1)]
    inner = Follow()
    _plan(inner, origin, tasks[0], prefix, edge, index, [*rest, *reversed(tasks[1:])])
    follow.steps += inner.steps
    child = inner.children[-1]
    for task in tasks[1:]:
        # the result of a chain is that of its last step, whose parents are the others
        child = [[task["options"]["task_id"], child], None] if "task_id" in task["options"] else child
    follow.children.append(child)


def _named(signature: Signature, origin: _Origin, edge: str, index: int) -> Signature:
    """A later step of a chain, with an id: it is known before the step is sent."""
    options = _mapping(signature.get("options"), "options")
    if signature.get("subtask_type") in ("chain", "group", "chord", "chunks") or isinstance(
        options.get("task_id"), str
    ):
        return {**signature, "options": options}
    return {**signature, "options": {**options, "task_id": origin.name(edge, index)}}


def _plan_group(
    follow: Follow, origin: _Origin, signature: Signature, prefix: tuple[Any, ...], edge: str, rest: list[Any]
) -> None:
    if rest:
        raise InvalidTaskError("a group with steps behind it is a chord, which is not supported yet")
    options = signature.get("options") or {}
    group_id = options.get("task_id") or options.get("group_id") or origin.name(f"{edge} group", 0)
    members: list[Any] = []
    for index, member in enumerate(_tasks(signature)):
        if member.get("subtask_type") in ("group", "chord", "chunks"):
            raise InvalidTaskError("a group inside a group that follows from a task is not supported yet")
        inner = Follow()
        given = {**_sending(options), **(member.get("options") or {}), "group_id": group_id, "group_index": index}
        _plan(inner, origin, {**member, "options": given}, prefix, f"{edge} member", index, [])
        follow.steps += inner.steps
        members += inner.children
    follow.children.append([[group_id, None], members])


def _tasks(signature: Signature) -> list[Any]:
    kwargs = signature.get("kwargs")
    tasks = kwargs.get("tasks") if isinstance(kwargs, Mapping) else None
    if not isinstance(tasks, Sequence) or isinstance(tasks, str | bytes) or not tasks:
        raise InvalidTaskError(f"a {signature.get('subtask_type')} without tasks")
    for task in tasks:
        if not isinstance(task, Mapping):
            raise InvalidTaskError(f"not a signature: {type(task).__name__}")
    return list(tasks)


def _single(
    origin: _Origin, signature: Signature, prefix: tuple[Any, ...], edge: str, index: int, rest: list[Any]
) -> Step:
    options = dict(_mapping(signature.get("options"), "options"))
    if options.get("chord") is not None:
        raise InvalidTaskError("a member of a chord that follows from a task is not supported yet")
    args = list(_sequence(signature.get("args"), "args"))
    task_id = options.get("task_id")
    if not isinstance(task_id, str) or not task_id:
        task_id = options["task_id"] = origin.name(edge, index)
    options["chain"] = [*rest, *_sequence(options.get("chain"), "chain")] or None
    options["root_id"] = origin.root_id
    options["parent_id"] = origin.id
    if origin.priority is not None and options.get("priority") is None:
        options["priority"] = origin.priority
    fields = {
        "task": signature["task"],
        "args": args if signature.get("immutable") else [*prefix, *args],
        "kwargs": dict(_mapping(signature.get("kwargs"), "kwargs")),
    }
    _apply(fields, options, origin.now, None)
    return Step(fields, _sending(options), edge, index)


def _sending(options: Mapping[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in options.items() if k in SENDING and v is not None}


def _apply(fields: dict[str, Any], options: dict[str, Any], now: float, old: Finished | None) -> float | None:
    """Write options into fields of a message. Returns when it is due, in Unix seconds."""
    for option, name in FIELDS.items():
        value = options.get(option)
        if value is not None:
            fields[name] = value
    for option, name in (("link", "callbacks"), ("link_error", "errbacks")):
        value = options.get(option)
        if value is not None:
            fields[name] = [value] if isinstance(value, Mapping) else list(_sequence(value, option))
    hard, soft = options.get("time_limit"), options.get("soft_time_limit")
    if hard is not None or soft is not None:
        old_hard, old_soft = [*(old.timelimit if old is not None else ()), None, None][:2]
        fields["timelimit"] = (old_hard if hard is None else hard, old_soft if soft is None else soft)
    if options.get("expires") is not None:
        fields["expires"] = _moment(options["expires"], now, "expires")[0]
    if isinstance(options.get("priority"), int):
        fields["priority"] = options["priority"]
    stamped = list(_sequence(options.get("stamped_headers"), "stamped_headers"))
    if stamped:
        stamps = old.stamps if old is not None and old.stamps else {}
        fields["stamped_headers"] = stamped
        fields["stamps"] = {**stamps, **{k: options[k] for k in stamped if k in options}}
    known = SENDING | FIELDS.keys() | READ | DROPPED | set(stamped)
    extra = {k: v for k, v in options.items() if k not in known and v is not None}
    if extra:
        fields["properties"] = {**((old.properties if old is not None else None) or {}), **extra}
    if options.get("eta") is not None:
        fields["eta"], due = _moment(options["eta"], None, "eta")
    elif options.get("countdown"):
        fields["eta"], due = _moment(options["countdown"], now, "countdown")
    else:
        return None
    return due


def _moment(value: Any, now: float | None, what: str) -> tuple[str, float]:
    """ISO text and Unix seconds of a datetime, an ISO text, or (where `now` is given) of seconds from now."""
    try:
        if isinstance(value, str):
            value = datetime.fromisoformat(value)
        if isinstance(value, datetime):
            moment = value if value.tzinfo is not None else value.replace(tzinfo=UTC)
        elif now is not None:
            moment = datetime.fromtimestamp(now + float(value), UTC)
        else:
            raise TypeError(f"{type(value).__name__} is not a time")
        return moment.isoformat(), moment.timestamp()
    except (ValueError, TypeError, OverflowError, OSError) as error:
        raise InvalidTaskError(f"{what} can't be read: {error}") from None


def _mapping(value: Any, what: str) -> Mapping[str, Any]:
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise InvalidTaskError(f"{what} of a signature must be a mapping, not {type(value).__name__}")
    return value


def _sequence(value: Any, what: str) -> Sequence[Any]:
    if value is None:
        return ()
    if not isinstance(value, Sequence) or isinstance(value, str | bytes):
        raise InvalidTaskError(f"{what} of a signature must be a list, not {type(value).__name__}")
    return value
