"""Chords as a pool child sees them: what is counted of a member, and what the members' results make together."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from celeriac.canvas.expand import Opened
from celeriac.errors import CeleryError, ChordError
from celeriac.model.message import Chord, Part
from celeriac.runtime.documents import Documents
from celeriac.wire import failure, record, values
from celeriac.wire.task import TaskMessage

EXCEPTIONS = frozenset({"FAILURE", "REVOKED"})
"""States of a member that let its chord fail."""


def opened(chords: Iterable[Opened], serializer: str) -> tuple[Chord, ...]:
    """What a result store has to know of chords whose members are about to be sent."""
    return tuple(
        Chord(
            chord.group,
            chord.size,
            values.dumps(chord.body).encode(),
            tuple(chord.members),
            b"" if chord.structure is None else record.group_document(chord.structure, serializer),
        )
        for chord in chords
    )


def part_of(documents: Documents, message: TaskMessage, state: str, result: Any) -> tuple[Part, ...]:
    """How the run of a message counts for the chord that it is a member of."""
    if message.chord is None or not message.group:
        return ()
    entry = documents.entry(message.id, state, result)
    return (Part(message.group, message.id, message.group_index, entry, values.dumps(message.chord).encode()),)


def parts_of(
    documents: Documents, tasks: Iterable[Mapping[str, Any]], state: str, error: BaseException
) -> tuple[Part, ...]:
    """How tasks count, given by their options, that will not run because of `error`."""
    found = []
    for task in tasks:
        task_id, group_id, chord = task.get("task_id"), task.get("group_id"), task.get("chord")
        if isinstance(task_id, str) and isinstance(group_id, str) and chord is not None:
            index = task.get("group_index")
            entry = documents.entry(task_id, state, error)
            body = values.dumps(chord).encode()
            found.append(Part(group_id, task_id, index if isinstance(index, int) else None, entry, body))
    return tuple(found)


def results_of(
    entries: Sequence[bytes], structure: bytes, serializer: str, accept: frozenset[str] | None
) -> list[Any]:
    """The results of a chord's members, in order. Raises ChordError when one of them has failed, with what it raised as
    its cause, or when they can't be read."""
    try:
        found = [record.read_entry(entry, serializer, accept) for entry in entries]
        form = record.read_group(structure, serializer, accept) if structure else None
    except CeleryError as error:
        raise ChordError(f"Join error: {error!r}") from error
    for task_id, state, result in found:
        if state in EXCEPTIONS:
            cause = failure.rebuild(result)
            raise ChordError(f"Dependency {task_id} raised {cause!r}") from cause
    if form is None:
        return [result for _, _, result in found]
    nested: list[Any] = _nested(form, {task_id: result for task_id, _, result in found})
    return nested


def _nested(form: Any, known: Mapping[str, Any]) -> Any:
    """The value of a result tuple: of a task its result, of a group the list of its members' values."""
    try:
        (task_id, _), members = form
        return known[task_id] if members is None else [_nested(member, known) for member in members]
    except KeyError as error:
        raise ChordError(f"Join error: the result of {error} is missing") from None
    except (TypeError, ValueError):
        raise ChordError("Join error: the group that was saved can't be read") from None
