"""Workflows without a worker: what planning says is carried out in memory, in any order, and some messages twice. And
what a workflow is to give, worked out without planning."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from random import Random
from typing import Any

from celeriac.canvas import advance, tree
from celeriac.canvas.expand import Expansion, Opened, expand
from celeriac.wire.task import TaskMessage, follow_up_id

FAILING = "fails"
"""A task of this name raises."""


class Failed(Exception):
    """What a task, or a chord for one of its members, ends with."""


def sig(task: str = "t", *args: Any, immutable: bool = False, **options: Any) -> dict[str, Any]:
    """A single task."""
    return {
        "task": task, "args": args, "kwargs": {}, "options": options, "subtask_type": None, "immutable": immutable,
    }  # fmt: skip


def outcome(task: str, args: list[Any]) -> Any:
    """What a task gives: its name and its arguments."""
    if task == FAILING:
        raise Failed(f"{task} {args}")
    return [task, *args]


@dataclass
class Chord:
    opened: Opened | None = None
    entries: dict[str, tuple[int, str, Any]] = field(default_factory=dict)
    fired: int = 0


class World:
    """A broker, a result store and a worker."""

    def __init__(self, random: Random, twice: float = 0.0) -> None:
        self._random = random
        self._twice = twice
        self.queue: list[TaskMessage] = []
        self.ends: dict[str, Any] = {}
        """Task id -> what it gave, or a Failed."""
        self.chords: dict[str, Chord] = {}
        self.errbacks: Counter[str] = Counter()
        """Ids of failed tasks for which an error link was sent."""
        self.sent: Counter[str] = Counter()

    def apply(self, signature: Mapping[str, Any], *args: Any) -> Expansion:
        """Send a workflow."""
        number = iter(range(1 << 30))
        found = expand(signature, args, name=lambda edge, index: f"n{next(number)}")
        self._take(advance.steps(found, "", 0.0), found.chords)
        return found

    def _take(self, steps: list[advance.Step], chords: list[Opened]) -> None:
        for opened in chords:
            self.chords.setdefault(opened.group, Chord()).opened = opened
        for step in steps:
            message = TaskMessage(**step.fields)
            self.sent[message.id] += 1
            self.queue.append(message)

    def run(self) -> None:
        """Until nothing is left to do."""
        while self.queue:
            message = self.queue.pop(self._random.randrange(len(self.queue)))
            if message.task == "errback":
                self.errbacks[message.args[0]] += 1
                continue
            again = self._random.random() < self._twice
            try:
                value = outcome(message.task, list(message.args))
            except Failed as error:
                self._fail(message, error)
            else:
                self._succeed(message, value, again)

    def _succeed(self, message: TaskMessage, value: Any, again: bool) -> None:
        self.ends[message.id] = value
        follow = advance.after_success(message, value, now=0.0, name=_namer(message))
        self._take(follow.steps, follow.chords)
        if message.chord is not None:
            self._count(message.group, message.id, message.group_index, "SUCCESS", value, message)
            if again:  # delivered again, with another result
                self._count(message.group, message.id, message.group_index, "SUCCESS", ["another"], message)

    def _fail(self, message: TaskMessage, error: Failed) -> None:
        self.ends[message.id] = error
        for index, link in enumerate(message.errbacks or ()):
            follow = advance.error_link(message, link, index, now=0.0, name=_namer(message))
            self._take(follow.steps, follow.chords)
        if message.chord is not None:
            self._count(message.group, message.id, message.group_index, "FAILURE", error, message)
        self._unrun(advance.fails_with([*reversed(message.chain or ())]), error, message)

    def _unrun(self, tasks: list[dict[str, Any]], error: Failed, message: TaskMessage) -> None:
        for task in tasks:
            self.ends[task["task_id"]] = error
            if "chord" in task:
                member = TaskMessage(task["task_id"], "unrun", [], {}, chord=task["chord"], root_id=message.root_id)
                self._count(task["group_id"], member.id, task.get("group_index"), "FAILURE", error, member)

    def _count(
        self, group: str | None, task_id: str, index: int | None, state: str, value: Any, message: TaskMessage
    ) -> None:
        assert group is not None
        chord = self.chords[group]
        chord.entries.setdefault(f"{task_id}:{index}", (index or 0, state, value))
        opened = chord.opened
        if opened is None or chord.fired or len(chord.entries) < opened.size:
            return
        chord.fired += 1
        assert set(opened.members) == set(chord.entries)
        ordered = sorted(chord.entries.items(), key=lambda item: item[1][0])
        bad = [value for _, (_, state, value) in ordered if state == "FAILURE"]
        if bad:
            error = Failed(f"chord: {bad[0]}")
            for failed_id, links in advance.first_errors(message.chord):
                failed = TaskMessage(failed_id, "body", [], {}, errbacks=links)
                for number, link in enumerate(links):
                    follow = advance.error_link(failed, link, number, now=0.0, name=_namer(failed))
                    self._take(follow.steps, follow.chords)
            self._unrun(advance.fails_with([message.chord]), error, message)
            return
        known = {name.rpartition(":")[0]: value for name, (_, _, value) in chord.entries.items()}
        results = [value for _, (_, _, value) in ordered]
        if opened.structure is not None:
            results = _of_tuple(opened.structure, known)
        follow = advance.after_chord(message, message.chord, results, now=0.0, name=_namer(message))
        self._take(follow.steps, follow.chords)

    def value(self, node: tree.Node) -> Any:
        """What a result gives. Raises Failed."""
        if node.members is not None:
            return [self.value(member) for member in node.members]
        end = self.ends[node.id]
        if isinstance(end, Failed):
            raise end
        return end


def _of_tuple(form: Any, known: Mapping[str, Any]) -> Any:
    (task_id, _), members = form
    return known[task_id] if members is None else [_of_tuple(member, known) for member in members]


def _namer(message: TaskMessage) -> Callable[[str, int], str]:
    return lambda edge, index: follow_up_id(message.id, message.retries, edge, index)


def meaning(signature: Mapping[str, Any], *args: Any) -> Any:
    """What a workflow gives, by the definition of its shape. Raises Failed."""
    what = signature.get("subtask_type")
    kwargs = signature["kwargs"]
    if what == "chain":
        steps = _flat(signature)
        if not steps:
            return []
        given = args
        for step, behind in zip(steps, [*steps[1:], None], strict=True):
            given = (_one_or_all(_before(step, behind), *given),)
        return given[0]
    if what == "group":
        return [meaning(member, *args) for member in _members(signature)]
    if what == "chord":
        head = kwargs["header"]
        return meaning(kwargs["body"], meaning(head if isinstance(head, Mapping) else tree.group(head), *args))
    own = list(signature["args"])
    return outcome(signature["task"], own if signature["immutable"] else [*args, *own])


def _flat(chain: Mapping[str, Any]) -> list[Any]:
    found = []
    for step in chain["kwargs"]["tasks"]:
        if step["subtask_type"] == "chain":
            found += _flat(step)
        elif step["subtask_type"] != "group" or _members(step):
            found.append(step)
    return found


def _before(step: Mapping[str, Any], behind: Mapping[str, Any] | None) -> Mapping[str, Any]:
    """Between two chords a body that is a group of one is its member."""
    if behind is not None and step["subtask_type"] == behind["subtask_type"] == "chord":
        body = step["kwargs"]["body"]
        if body["subtask_type"] == "group" and len(_members(body)) == 1:
            return {**step, "kwargs": {**step["kwargs"], "body": _members(body)[0]}}
    return step


def _one_or_all(step: Mapping[str, Any], *args: Any) -> Any:
    """In a chain a group of one is its member."""
    if step["subtask_type"] == "group":
        members = _members(step)
        if len(members) == 1:
            return _one_or_all(members[0], *args)
    return meaning(step, *args)


def _members(group: Mapping[str, Any]) -> list[Any]:
    found = []
    for member in group["kwargs"]["tasks"]:
        if member["subtask_type"] == "group":
            found += _members(member)
        elif member["subtask_type"] != "chain" or _flat(member):
            found.append(member)
    return found
