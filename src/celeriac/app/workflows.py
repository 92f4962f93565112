"""How a workflow stands: the tasks that belong to a result, what came before and what followed, as they are stored."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from celeriac.app.results import Results
from celeriac.canvas import advance
from celeriac.errors import CeleryError
from celeriac.model.states import PENDING
from celeriac.ports import ResultBackend
from celeriac.wire.record import Record


@dataclass(slots=True)
class Branch:
    """A task or a group, and what followed from it."""

    id: str
    kind: str
    """task or group."""
    name: str = ""
    """The task's, where the store has it (`result_extended`)."""
    state: str = PENDING
    done: str | None = None
    """When it ended, ISO 8601."""
    result: str = ""
    """What it gave, or why it failed; shortened."""
    branches: list[Branch] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "id": self.id, "kind": self.kind, "name": self.name, "state": self.state, "done": self.done,
            "result": self.result, "branches": [branch.as_dict() for branch in self.branches],
        }  # fmt: skip


class Workflows:
    """Reads one workflow."""

    def __init__(self, backend: ResultBackend, results: Results) -> None:
        self._backend = backend
        self._results = results
        self._records: dict[str, Record | None] = {}
        self._drawn: set[str] = set()

    async def of(self, task_id: str) -> list[Branch]:
        """The whole workflow that a task is part of, from its first task (or first group) on, step by step."""
        top, seen = task_id, set[str]()
        while top not in seen:
            seen.add(top)
            record = await self._record(top)
            if record is None or not record.parent_id or await self._record(record.parent_id) is None:
                break
            top = record.parent_id
        record = await self._record(top)
        group = record.group_id if record is not None else None
        return (await self._chord(group) if group else []) or await self._steps([(top, None)])

    async def _record(self, task_id: str) -> Record | None:
        if task_id not in self._records:
            await self._load([task_id])
        return self._records[task_id]

    async def _load(self, ids: Iterable[str]) -> None:
        wanted = [one for one in dict.fromkeys(ids) if one not in self._records]
        documents = await self._backend.fetch(wanted) if wanted else {}
        for one in wanted:
            document = documents.get(one)
            try:
                self._records[one] = None if document is None else self._results.read(one, document)
            except CeleryError:
                self._records[one] = Record(one, "UNREADABLE")

    async def _chord(self, group: str) -> list[Branch]:
        """A chord whose header was sent by a caller: its members stand only in what is kept of the chord."""
        standing = await self._backend.chord(group)
        if standing is None or not standing.members:
            return []
        members = [name.rpartition(":")[0] for name in standing.members]
        await self._load(members)
        inner = [branch for member in members for branch in await self._steps([(member, None)])]
        head = Branch(group, "group", state=_of_all(inner), branches=inner)
        try:
            body: Mapping[str, Any] = json.loads(standing.body)
            firsts = [options["task_id"] for options in advance.fails_with([body])][:1]
        except (ValueError, KeyError):
            firsts = []
        return [head, *await self._steps([(first, None) for first in firsts])]

    async def _steps(self, waiting: list[Node]) -> list[Branch]:
        """One step after the other, as long as one follows from one; where several follow, they are its branches."""
        line: list[Branch] = []
        waiting.reverse()
        while waiting:
            node_id, members = waiting.pop()
            if node_id in self._drawn:
                continue
            self._drawn.add(node_id)
            if members is not None:
                inner = [branch for member in members for branch in await self._steps(_nodes(member))]
                line.append(Branch(node_id, "group", state=_of_all(inner), branches=inner))
                continue
            record = await self._record(node_id)
            branch = Branch(node_id, "task")
            line.append(branch)
            if record is None:
                continue
            branch.name, branch.state, branch.done = record.name or "", record.status, record.date_done
            branch.result = _shown(record)
            children = record.children or []
            if len(children) == 1:
                waiting += reversed(_nodes(children[0]))
            else:
                for form in children:
                    branch.branches += await self._steps(_nodes(form))
        return line


Node = tuple[str, Any]
"""An id, and of a group its members' result tuples."""


def _nodes(form: Any) -> list[Node]:
    """What a result tuple names: what is before it, then itself."""
    line: list[Node] = []
    while isinstance(form, Sequence) and len(form) == 2 and isinstance(form[0], Sequence) and len(form[0]) == 2:
        (node_id, parent), members = form
        if isinstance(node_id, str):
            line.append((node_id, members))
        form = parent
    line.reverse()
    return line


def _of_all(branches: Sequence[Branch]) -> str:
    states = [branch.state for branch in branches]
    for state in ("FAILURE", "REVOKED"):
        if state in states:
            return state
    done = states.count("SUCCESS")
    return "SUCCESS" if done == len(states) else f"{done} of {len(states)} done"


def _shown(record: Record) -> str:
    result = record.result
    if isinstance(result, Mapping) and "exc_type" in result:
        message = result.get("exc_message")
        words = ", ".join(map(str, message)) if isinstance(message, list | tuple) else str(message)
        text = f"{result['exc_type']}: {words}"
    else:
        text = "" if record.status == PENDING else repr(result)
    return text if len(text) <= 60 else f"{text[:57]}..."
