# mypy: ignore-errors
# pyright: reportMissingImports=false, reportAttributeAccessIssue=false, reportFunctionMemberAccess=false
"""Sends the workflows in a file and prints what came of each: `flows.py file seconds`. Run by either interpreter."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import tasks

if tasks.PEER == "celery":
    from celery import chain, chord, group
else:
    from celeriac import chain, chord, group

FINAL = ("SUCCESS", "FAILURE", "REVOKED")


def build(shape: list[Any]) -> Any:
    """A signature from its description."""
    kind, *rest = shape
    if kind == "task":
        name, args, immutable = rest
        made = getattr(tasks, name).s(*args)
        if immutable:
            made = made.set(immutable=True)
        return made.on_error(tasks.errback_by_id.s())
    if kind == "chain":
        return chain(*[build(each) for each in rest[0]])
    if kind == "group":
        return group([build(each) for each in rest[0]])
    return chord([build(each) for each in rest[0]], build(rest[1]))


def nodes(result: Any) -> list[Any]:
    """All results of a tree, in an order that both sides share."""
    if result is None:
        return []
    members = getattr(result, "results", None)
    own = [result] if members is None else [each for member in members for each in nodes(member)]
    return nodes(result.parent) + own


def outcome(result: Any, end: float) -> dict[str, Any]:
    """What a workflow gave, and the states of all its tasks."""
    line = nodes(result)
    while time.time() < end and any(each.state not in FINAL for each in line):
        time.sleep(0.05)
    try:
        value = ["value", result.get(timeout=max(0.5, end - time.time()), disable_sync_subtasks=False)]
    except Exception as error:
        value = ["error", type(error).__name__, str(error)]
    return {"value": value, "ids": [each.id for each in line], "states": [each.state for each in line]}


shapes = json.loads(Path(sys.argv[1]).read_text())
sent = []
for shape in shapes:
    try:
        sent.append(build(shape).apply_async((7,)))
    except Exception as error:
        sent.append(f"{type(error).__name__}: {error}")
end = time.time() + float(sys.argv[2])
print(
    "answer",
    json.dumps([{"refused": each} if isinstance(each, str) or each is None else outcome(each, end) for each in sent]),
)
