"""Judges what has happened to workflows: a history of events goes in, a verdict with reasons comes out. Pure.

Whoever records (a wrapper around an adapter, tasks that write a ledger) says what it saw, in the order in which it
happened. `turn` tells messages of one task id apart that follow each other rightly (a retry, a replacement).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any


class What(StrEnum):
    """Kinds of events."""

    OPENED = "opened"
    """A chord: `id` and `turn` of its body, `members` of its header. Said again, it is the same chord."""
    PUBLISHED = "published"
    """A message is in the broker. It may be said again: a worker repeats what a dead one has begun, and the broker
    drops it. A second entry is told by its claim."""
    CLAIMED = "claimed"
    """A worker took an entry out of a queue."""
    GIVEN_BACK = "given back"
    """It put the entry back, to be claimed again."""
    SETTLED = "settled"
    """It has removed the entry."""
    STARTED = "started"
    """The function was called. `value` of a body: what its members gave, in the order of `members`. `about` of an error
    link: whose failure it is told of."""
    ENDED = "ended"
    """A final result is stored. `value`: `(state, result)`."""
    KILLED = "killed"
    """A worker died. What its last request did may be said later."""


SHOWN = frozenset({What.PUBLISHED, What.CLAIMED, What.STARTED})
"""By these a message is seen to be there."""


@dataclass(frozen=True, slots=True)
class Event:
    """One thing that happened."""

    what: What
    id: str = ""
    """The task id."""
    worker: str = ""
    turn: str = ""
    value: Any = None
    about: str = ""
    members: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Verdict:
    """What was broken, a line for each; nothing: the history is clean."""

    reasons: tuple[str, ...]

    @property
    def clean(self) -> bool:
        """Nothing was broken."""
        return not self.reasons

    def assert_clean(self, context: str = "") -> None:
        """Raise AssertionError with the reasons."""
        assert self.clean, "\n".join([context, *self.reasons])


_Key = tuple[str, str]
"""Task id and turn."""


def judge(events: Iterable[Event], links: Iterable[str] = (), *, repeats: bool = False) -> Verdict:
    """Judge a history that has come to its end. `links`: a task id for each error link that hangs on it, whether or not
    it fails. `repeats`: the broker takes a message a second time that is published a second time, so that one may have
    two entries and may start twice.

    * Nothing is lost: whatever was published or belongs to a chord ends.
    * Nothing is early: of a body nothing is seen before each member of its header has ended.
    * A message has one entry in its queue, and starts again only if the worker that ran it was killed in between.
    * A result that stands stays as it is.
    * Each member counts once: the body got as many results as it has members, each the one that is stored.
    * An error link is called once for a failure, and for nothing else."""
    history = list(events)
    ends = _ends(history)
    return Verdict((
        *_lost(history, ends), *_early(history), *(() if repeats else (*_entries(history), *_starts(history))),
        *_changed(history), *_counted(history, ends), *_told(history, ends, list(links)),
    ))  # fmt: skip


def _ends(history: Sequence[Event]) -> dict[str, tuple[str, Any]]:
    ends: dict[str, tuple[str, Any]] = {}
    for event in history:
        if event.what is What.ENDED:
            ends.setdefault(event.id, event.value)
    return ends


def _lost(history: Sequence[Event], ends: dict[str, tuple[str, Any]]) -> list[str]:
    wanted = [
        one for event in history if event.what in (What.PUBLISHED, What.OPENED) for one in (event.id, *event.members)
    ]
    return [f"lost: {one} has not ended" for one in dict.fromkeys(wanted) if one not in ends]


def _early(history: Sequence[Event]) -> list[str]:
    headers: dict[str, tuple[str, frozenset[str]]] = {}
    ended: set[str] = set()
    found = []
    for event in history:
        if event.what is What.OPENED:
            headers.setdefault(event.id, (event.turn, frozenset(event.members)))
        elif event.what is What.ENDED or event.what in SHOWN:
            turn, members = headers.get(event.id, ("", frozenset()))
            missing = members - ended
            if missing and (event.what is What.ENDED or event.turn == turn):
                found.append(
                    f"early: the body {event.id} was {event.what} before {', '.join(sorted(missing))} had ended"
                )
        if event.what is What.ENDED:
            ended.add(event.id)
    return found


def _entries(history: Sequence[Event]) -> list[str]:
    held: dict[_Key, str] = {}
    settled: set[_Key] = set()
    killed: set[str] = set()
    found = []
    for event in history:
        key = (event.id, event.turn)
        if event.what is What.CLAIMED:
            if key in settled:
                found.append(f"published twice: {event.id} was claimed by {event.worker} after it was settled")
            elif key in held:
                found.append(f"published twice: {event.id} was claimed by {event.worker} while {held[key]} held it")
            if event.worker in killed:  # what it had asked for came when nobody was there any more
                held.pop(key, None)
            else:
                held[key] = event.worker
        elif event.what is What.GIVEN_BACK:
            held.pop(key, None)
        elif event.what is What.SETTLED:
            held.pop(key, None)
            settled.add(key)
        elif event.what is What.KILLED:
            killed.add(event.worker)
            held = {key: worker for key, worker in held.items() if worker != event.worker}
    return found


def _starts(history: Sequence[Event]) -> list[str]:
    running: dict[_Key, str] = {}
    found = []
    for event in history:
        key = (event.id, event.turn)
        if event.what is What.STARTED:
            if key in running:
                found.append(
                    f"started twice: {event.id} by {running[key]} and by {event.worker}, and the first was not killed"
                )
            running[key] = event.worker
        elif event.what is What.KILLED:
            running = {key: worker for key, worker in running.items() if worker != event.worker}
    return found


def _changed(history: Sequence[Event]) -> list[str]:
    stands: dict[str, Any] = {}
    found = []
    for event in history:
        if event.what is What.ENDED and stands.setdefault(event.id, event.value) != event.value:
            found.append(f"changed: {event.id} had ended with {stands[event.id]}, then with {event.value}")
    return found


def _counted(history: Sequence[Event], ends: dict[str, tuple[str, Any]]) -> list[str]:
    headers = {event.id: event.members for event in history if event.what is What.OPENED}
    found = []
    for event in history:
        members = headers.get(event.id)
        if event.what is not What.STARTED or members is None or event.value is None:
            continue
        got = list(event.value)
        if len(got) != len(members):
            found.append(f"counted wrongly: the body {event.id} of {len(members)} members got {len(got)} results")
            continue
        for member, value in zip(members, got, strict=True):
            if member in ends and ends[member] != ("SUCCESS", value):
                found.append(
                    f"counted wrongly: the body {event.id} got {value!r} of {member}, which ended with {ends[member]}"
                )
    return found


def _told(history: Sequence[Event], ends: dict[str, tuple[str, Any]], links: Sequence[str]) -> list[str]:
    calls: dict[str, set[str]] = defaultdict(set)
    for event in history:
        if event.what is What.STARTED and event.about:
            calls[event.about].add(event.id)
    found = []
    for about in sorted({*calls, *links}):
        failed = about in ends and ends[about][0] != "SUCCESS"
        wanted = links.count(about) if failed else 0
        if len(calls[about]) != wanted:
            state = ends[about][0] if about in ends else "no end"
            found.append(f"error links: {about} ({state}) has called {len(calls[about])} instead of {wanted}")
    return found
