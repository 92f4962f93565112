"""Many calls of one task, sent together."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

from celeriac.app import publish
from celeriac.app.plan import Plan
from celeriac.errors import OperationalError
from celeriac.model.message import Envelope
from celeriac.wire.ids import new_id

PIECE = 1000
"""Calls that are handed to the broker together."""

_Call = tuple[Sequence[Any], Mapping[str, Any]]


def envelope(
    plan: Plan,
    request: Any,
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    task_id: str | None = None,
    group: str | None = None,
    group_index: int | None = None,
    chord: str = "",
) -> Envelope:
    """The message of one call by the direct path. `request`: that of the task that calls, or None; `chord`: the JSON
    text of a body. Where no id is given, the delivery tag is the task id, for both are new."""
    assert plan.pack is not None
    tag = new_id()
    if task_id is None:
        task_id = tag
    if request is None:
        blob = plan.pack(task_id, tag, args, kwargs, None, None, group, group_index, chord)
    else:
        root = request.root_id or request.id
        blob = plan.pack(task_id, tag, args, kwargs, root, request.id, group, group_index, chord)
    return Envelope(task_id, tag, plan.queue, blob, plan.priority, None, plan.exchange, plan.routing_key)


def handle(task: Any, plan: Plan, request: Any, task_id: str) -> Any:
    """The result of a call that was sent by the direct path."""
    result = plan.result(task_id, None, task.name)
    if plan.ignored:
        result._ignored = True
    if request is not None:
        publish.trail(request, result)
    return result


def send(task: Any, plan: Plan, calls: Iterable[Any]) -> list[Any]:
    """Send calls by the direct path, so many at a time; gives their results. Raises OperationalError."""
    request = publish.worker_request()
    results: list[Any] = []
    for piece in _pieces(task, plan, calls):
        made: list[Envelope] = []
        began = time.monotonic()
        try:
            if plan.stream is not None:
                plan.stream(_making(plan, request, piece, made), plan.timeout)
            else:
                made.extend(envelope(plan, request, *each) for each in piece)
                plan.sender.publish(made, plan.timeout)
        except OperationalError as error:
            made.extend(envelope(plan, request, *each) for each in piece[len(made) :])
            publish.again(plan.sender, made, began + plan.timeout, task.app.publish_pauses(), error)
        results += [handle(task, plan, request, each.id) for each in made]
    return results


def _making(plan: Plan, request: Any, piece: Sequence[_Call], made: list[Envelope]) -> Iterator[Envelope]:
    for args, kwargs in piece:
        each = envelope(plan, request, args, kwargs)
        made.append(each)
        yield each


async def asend(task: Any, plan: Plan, calls: Iterable[Any]) -> list[Any]:
    """`send` for coroutines."""
    app, request = task.app, publish.worker_request()
    results: list[Any] = []
    for piece in _pieces(task, plan, calls):
        envelopes = [envelope(plan, request, *each) for each in piece]
        await publish.apublish(app, envelopes, plan.timeout, app.publish_pauses())
        results += [handle(task, plan, request, each.id) for each in envelopes]
    return results


def arguments(call: Any) -> tuple[Sequence[Any], Mapping[str, Any]]:
    """Positional and named arguments of one of many calls. Raises TypeError."""
    if isinstance(call, tuple | list):
        return call, {}
    if isinstance(call, Mapping):
        return (), call
    raise TypeError(
        f"a call is a tuple or list of its arguments, or a dict of named ones, not {call!r}: write ({call!r},)"
    )


def checked(
    task: Any, plan: Plan, args: Sequence[Any], kwargs: Mapping[str, Any]
) -> tuple[Sequence[Any], Mapping[str, Any]]:
    """The arguments. Raises TypeError for those that the function does not take."""
    if plan.arity is not None and (len(args) != plan.arity or kwargs):
        task.shape.check(args, kwargs)
    return args, kwargs


def _pieces(task: Any, plan: Plan, calls: Iterable[Any]) -> Iterator[list[_Call]]:
    """The arguments of so many calls at a time, all known before one of them is sent: whatever yields the calls may
    send something itself."""
    rest = iter(calls)
    while piece := [checked(task, plan, *arguments(call)) for call in islice(rest, PIECE)]:
        yield piece
