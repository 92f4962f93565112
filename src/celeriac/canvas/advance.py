"""What follows from the outcome of a task: links, error links, the next step of a chain, a retry. Pure.

Ids are those on the wire, else what `name(edge, index)` gives: the caller derives it from the run, so that a run that
is repeated names the same ones.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Protocol

from celeriac.canvas import tree
from celeriac.canvas.expand import Expansion, Name, Opened, expand
from celeriac.canvas.tree import Signature
from celeriac.errors import InvalidTaskError

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
    reply_to: str
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
    chords: list[Opened] = field(default_factory=list)
    """Chords whose members are among the steps."""


def after_success(
    message: Finished,
    result: Any,
    *,
    now: float,
    name: Name,
    priority: int | None = None,
    errors_in_header: bool = False,
) -> Follow:
    """Links, then the next step of the chain; each gets `result` as its first argument unless it is immutable.

    `priority` is given to those that have none of their own. `errors_in_header`: error links of a chord's body are
    those of its header too. Raises InvalidTaskError for what can't be planned."""
    follow = Follow()
    plan = _planner(follow, message, (result,), now, name, priority, errors_in_header)
    for index, signature in enumerate(message.callbacks or ()):
        plan(signature, f"link.{index}", ())
    if message.chain:
        plan(message.chain[-1], "chain", message.chain[:-1])
    return follow


def after_chord(
    message: Finished,
    body: Signature,
    results: list[Any],
    *,
    now: float,
    name: Name,
    priority: int | None = None,
    errors_in_header: bool = False,
) -> Follow:
    """The body of a chord that `message` completed, applied to the results of its members."""
    follow = Follow()
    _planner(follow, message, (results,), now, name, priority, errors_in_header)(body, "body", ())
    return follow


def error_link(message: Finished, signature: Any, index: int, *, now: float, name: Name) -> Follow:
    """An error link that is sent as a task: it gets the id of the failed task as its first argument."""
    follow = Follow()
    _planner(follow, message, (message.id,), now, name, None, False)(signature, f"errback.{index}", ())
    return follow


def _planner(
    follow: Follow,
    message: Finished,
    args: tuple[Any, ...],
    now: float,
    name: Name,
    priority: int | None,
    errors_in_header: bool,
) -> Callable[[Any, str, Sequence[Any]], None]:
    defaults = {"reply_to": message.reply_to} if message.reply_to else None

    def plan(signature: Any, edge: str, chain: Sequence[Any]) -> None:
        found = expand(
            signature, args, name=name, edge=edge, root_id=message.root_id or message.id, parent_id=message.id,
            priority=priority, chain=chain, defaults=defaults, errors_in_header=errors_in_header,
        )  # fmt: skip
        follow.steps += steps(found, edge, now)
        follow.children.append(found.result.as_tuple())
        follow.chords += found.chords

    return plan


def steps(found: Expansion, edge: str, now: float) -> list[Step]:
    """The messages of an expansion. Raises InvalidTaskError for options that can't be read."""
    made = []
    for call in found.calls:
        fields: dict[str, Any] = {"task": call.task, "args": call.args, "kwargs": call.kwargs}
        _apply(fields, call.options, now, None)
        made.append(Step(fields, _sending(call.options), edge, call.index))
    return made


def fails_with(signatures: Sequence[Any]) -> list[dict[str, Any]]:
    """Options of every task that will not run because one before it failed: steps of a chain or the body of a chord,
    whatever shape they have. Those with a `chord` end as members of one."""
    found: list[dict[str, Any]] = []
    for signature in signatures:
        try:
            found += (tree.options(single) for single in tree.singles(signature))
        except (InvalidTaskError, RecursionError):
            continue  # it could not have been run either
    return found


def first_errors(signature: Signature) -> list[tuple[str, list[Any]]]:
    """`(id, error links)` of the tasks with which a signature would have begun. Error links of what a chain begins with
    are told of the chain, unless that is a task: then the chain is no more than its steps, as in Celery."""
    what = tree.kind(signature)
    own = tree.options(signature)
    if what == tree.CHAIN:
        first = tree.tasks(signature)[0]
        found = first_errors(first)
        whole = own.get("task_id")
        return [(whole, found[0][1])] if whole and len(found) == 1 and tree.kind(first) else found
    if what == tree.GROUP:
        return [each for member in tree.tasks(signature) for each in first_errors(member)]
    if what == tree.CHORD:
        return first_errors(tree.keywords(signature)["body"])
    return [(own.get("task_id", ""), tree.listed(own.get("link_error"), "link_error"))]


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
            fields[name] = [value] if isinstance(value, Mapping) else list(tree.sequence(value, option))
    hard, soft = options.get("time_limit"), options.get("soft_time_limit")
    if hard is not None or soft is not None:
        old_hard, old_soft = [*(old.timelimit if old is not None else ()), None, None][:2]
        fields["timelimit"] = (old_hard if hard is None else hard, old_soft if soft is None else soft)
    if options.get("expires") is not None:
        fields["expires"] = _moment(options["expires"], now, "expires")[0]
    if isinstance(options.get("priority"), int):
        fields["priority"] = options["priority"]
    stamped = list(tree.sequence(options.get("stamped_headers"), "stamped_headers"))
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
