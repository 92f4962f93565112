"""Chords inside one process, for a worker's cycle and the result store alike."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from threading import RLock

import msgspec

from celeriac.drivers.chords import UNOPENED_SECONDS, done_seconds
from celeriac.model.message import Chord, Fire, Part, Standing


@dataclass(slots=True, eq=False)
class _Chord:
    size: int | None = None
    """None: not opened yet."""
    added: dict[str, None] = field(default_factory=dict)
    """Members that were added later."""
    body: bytes = b""
    members: tuple[str, ...] = ()
    parts: dict[str, tuple[float, bytes]] = field(default_factory=dict)
    """`task id:index` -> index and entry."""
    lifetime: float = UNOPENED_SECONDS
    """Seconds after a movement until it is forgotten."""
    expires: float = math.inf
    moved: float = 0.0
    holder: str = ""
    held_until: float = 0.0


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(_Chord).decode


class MemoryChords:
    """All chords of a MemoryServer. Safe for threads: all work is done under the server's lock."""

    def __init__(
        self, lock: RLock, clock: Callable[[], float], group: Callable[[str, bytes | None, float], bytes]
    ) -> None:
        """`group` saves a structure, or renews that which stands (None), until a time, and gives what stands."""
        self._lock = lock
        self._clock = clock
        self._group = group
        self._chords: dict[str, _Chord] = {}

    def load(self, group: str, document: bytes) -> None:
        """Take a chord in that `dump` has written down."""
        self._chords[group] = _decode(document)

    def dump(self, group: str) -> tuple[bytes, float | None, float] | None:
        """A chord written down; when it moved, None: it is done; when it is to be forgotten. None: there is none."""
        held = self._chords.get(group)
        if held is None:
            return None
        return _encode(held), None if held.holder == "done" else held.moved, held.expires

    def open(self, chords: Iterable[Chord]) -> None:
        """Make chords known."""
        with self._lock:
            for chord in chords:
                held = self._made(chord.group)
                held.size, held.body, held.members = chord.size, chord.body, chord.members
                held.holder = ""
                held.lifetime = math.inf if chord.expires is None else chord.expires
                self._moved(chord.group, held)
                if chord.structure:
                    self._group(chord.group, chord.structure, held.expires)

    def add(self, group: str, members: Sequence[str]) -> None:
        """More members, each once."""
        with self._lock:
            held = self._made(group)
            if held.holder != "done":
                held.added |= dict.fromkeys(members)
                self._moved(group, held)

    def count(self, parts: Sequence[Part], hold: float) -> list[bool]:
        """Count members, each once. True: complete, and held by the part's token."""
        with self._lock:
            return [self._count(part, hold) for part in parts]

    def _count(self, part: Part, hold: float) -> bool:
        held = self._made(part.group)
        if held.holder == "done":
            return False
        held.parts.setdefault(part.member, (math.inf if part.index is None else part.index, part.entry))
        held.body = held.body or part.body
        self._moved(part.group, held)
        return self._take(held, part.token, hold)

    def look(self, group: str) -> Standing | None:
        """A chord as it stands."""
        with self._lock:
            held = self._standing(group)
            return None if held is None else self._describe(group, held)

    def may_fire(self, fire: Fire) -> bool:
        """Is it the token's to end this chord?"""
        with self._lock:
            held = self._standing(fire.group)
            if held is None:
                return False
            holder = self._holder(held)
            return holder == fire.token or (not holder and held.size is not None)

    def fire(self, fires: Iterable[Fire], hold: float) -> list[bool]:
        """End chords. True: it was the token's to end."""
        with self._lock:
            ended = []
            for fire in fires:
                mine = self.may_fire(fire)
                if mine:
                    over = self._chords[fire.group]
                    until = self._clock() + max(done_seconds(hold), over.lifetime)
                    self._chords[fire.group] = _Chord(
                        body=over.body, members=(*over.members, *over.added), holder="done", held_until=until,
                        expires=until,
                    )  # fmt: skip
                ended.append(mine)
            return ended

    def hold(self, fire: Fire, hold: float) -> bool:
        """Take or keep a chord that is complete."""
        with self._lock:
            held = self._standing(fire.group)
            if held is None or not self._take(held, fire.token, hold):
                return False
            self._moved(fire.group, held)
            return True

    def standing(self, idle: float, limit: int) -> list[Standing]:
        """Chords that are not done and have not moved for `idle` seconds, the oldest first."""
        with self._lock:
            now = self._clock()
            stood = [(name, self._standing(name)) for name in tuple(self._chords)]
            open_ones = [(name, held) for name, held in stood if held is not None and held.holder != "done"]
            listed = [(name, held) for name, held in open_ones if held.moved <= now - idle]
            listed = sorted(listed, key=lambda pair: pair[1].moved)[: max(limit, 0)]
            for name, held in listed:
                self._renew(name, held)
            return [self._describe(name, held) for name, held in listed]

    def sweep(self, now: float) -> None:
        """Forget what is over."""
        for name in [name for name, held in self._chords.items() if held.expires <= now]:
            del self._chords[name]

    def _standing(self, group: str) -> _Chord | None:
        held = self._chords.get(group)
        return held if held is not None and held.expires > self._clock() else None

    def _made(self, group: str) -> _Chord:
        held = self._standing(group)
        if held is None:
            held = self._chords[group] = _Chord()
        return held

    def _holder(self, held: _Chord) -> str:
        return held.holder if held.held_until > self._clock() else ""

    def _take(self, held: _Chord, token: str, hold: float) -> bool:
        if held.size is None or len(held.parts) < held.size + len(held.added) or self._holder(held) not in ("", token):
            return False
        held.holder, held.held_until = token, self._clock() + hold
        return True

    def _moved(self, group: str, held: _Chord) -> None:
        held.moved = self._clock()
        self._renew(group, held)

    def _renew(self, group: str, held: _Chord) -> None:
        held.expires = self._clock() + held.lifetime
        self._group(group, None, held.expires)

    def _describe(self, group: str, held: _Chord) -> Standing:
        if held.holder == "done":
            return Standing(group, 0, held.body, (), (), b"", held.members, 0.0, "done")
        structure = self._group(group, None, held.expires)
        entries = tuple(entry for _, entry in sorted(held.parts.values(), key=lambda part: part[0]))
        size = 0 if held.size is None else held.size + len(held.added)
        idle = max(0.0, self._clock() - held.moved)
        return Standing(
            group, size, held.body, entries, tuple(sorted(held.parts)), structure,
            (*held.members, *held.added), idle, self._holder(held),
        )  # fmt: skip


def check_chord(chord: Chord) -> None:
    """Raise UnicodeError or TypeError for what no server could keep."""
    for text in (chord.group, *chord.members):
        text.encode()
    memoryview(chord.body)


def check_part(part: Part) -> None:
    """As `check_chord`, for a member."""
    for text in (part.group, part.id):
        text.encode()
    memoryview(part.entry)
