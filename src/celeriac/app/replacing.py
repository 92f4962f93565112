"""What takes the place of a run: any signature, under the same id, with the same links, at the same place in its chain
and its chord."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from celeriac.canvas import advance, tree
from celeriac.canvas.expand import Expansion, Name, expand
from celeriac.errors import ImproperlyConfigured
from celeriac.wire.task import RUN, TaskMessage, follow_up_id, run_name

ACCUMULATE = "celery.accumulate"
"""The built-in task that gives back its arguments: it makes one result of a group's."""


def expansion(old: TaskMessage, signature: Mapping[str, Any]) -> Expansion:
    """What is to be sent in place of the run of `old`. Raises ImproperlyConfigured and InvalidTaskError."""

    name = _namer(old)
    if tree.kind(signature) == tree.CHAIN and not tree.tasks(signature):
        raise ImproperlyConfigured("a task can't be replaced by an empty chain")
    steps = [*tree.steps(tree.chain([signature]))]
    if not steps or tree.kind(steps[-1]) in (tree.GROUP, tree.CHUNKS):
        # the id of the run needs one result, so the group gets a body that gives back what it is given
        group = steps.pop() if steps else signature
        accumulate = {
            "task": ACCUMULATE, "args": (), "kwargs": {"index": 0}, "options": {}, "subtask_type": None,
            "immutable": False,
        }  # fmt: skip
        steps.append(tree.chord(group, accumulate))
    whole: Mapping[str, Any] = tree.chain(steps)
    if old.callbacks:
        whole = tree.with_links(whole, old.callbacks)
    if old.errbacks:
        whole = tree.with_errors(whole, old.errbacks)
    more: dict[str, Any] = {"replaced_task_nesting": (old.replaced_task_nesting or 0) + 1}
    if old.reply_to:
        more["reply_to"] = old.reply_to
    numbers = iter(range(1 << 30))
    frozen, _ = tree.Freezer(lambda: name("replace", next(numbers)), more).freeze(whole, old.id)
    marks = {"group_id": old.group, "group_index": old.group_index, "chord": old.chord}
    marks = {key: value for key, value in marks.items() if value is not None}
    if marks:
        frozen = tree.mark(frozen, marks)
    run = (old.properties or {}).get(RUN) or old.delivery_tag
    if run:  # its links and the steps behind it are those of the run, and must not be taken for others
        frozen = tree.mark(frozen, {RUN: run})
    if old.ignore_result is not None:
        frozen = tree.mark(frozen, {"ignore_result": old.ignore_result})
    return expand(
        tree.chain([*tree.tasks(frozen), *reversed(old.chain or ())]), name=name, edge="replaced",
        root_id=old.root_id or old.id, parent_id=old.parent_id, defaults=more,
    )  # fmt: skip


def send(app: Any, request: Any, old: TaskMessage, found: Expansion) -> None:
    """Send it in the same commit as the outcome of the run."""
    name = _namer(old)
    steps = advance.steps(found, "replaced", time.time())
    app.open_chords(request, found.chords)
    for step in steps:
        app.follow_up(request, TaskMessage(**step.fields), step.options, name(f"publish {step.edge}", step.index))
    request.replaced = True


def _namer(old: TaskMessage) -> Name:
    return lambda edge, index: follow_up_id(run_name(old), old.retries, edge, index)
