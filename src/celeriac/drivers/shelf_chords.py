"""Chords in a store that can do no more than change one document at a time: a table, a folder, memcached.

A chord is one document: size, who has been counted, who holds it. What the members gave lies beside it, each by itself,
so that the document stays small. The rules are those of `memory_chords`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from hashlib import sha256
from threading import RLock
from typing import NamedTuple, Protocol, TypeVar

import msgspec

from celeriac.drivers.memory_chords import MemoryChords
from celeriac.model.message import Chord, Fire, Part, Standing

T = TypeVar("T")


class Written(NamedTuple):
    """What a chord's document becomes."""

    document: bytes
    moved: float | None
    """When it moved; None: it is done, and not to be listed."""
    expires: float
    """When it is to be forgotten; infinity: never."""


class Shelf(Protocol):
    """What keeping chords asks of a store. Times are Unix seconds of the store's clock."""

    def clock(self) -> float:
        """The time now."""
        ...

    def change(self, group: str, work: Callable[[bytes | None], Written | None]) -> None:
        """Give a chord's document to `work` and keep what it gives back (None: leave it), so that nobody changes it in
        between. `work` may be called several times; the last one counts."""
        ...

    def read(self, group: str) -> bytes | None:
        """A chord's document."""
        ...

    def keep(self, group: str, entries: Mapping[str, bytes]) -> None:
        """Keep what members gave; where there is something already, that stays."""
        ...

    def kept(self, group: str, members: Sequence[str]) -> Mapping[str, bytes]:
        """What those of these members gave of whom there is something."""
        ...

    def drop(self, group: str, members: Iterable[str]) -> None:
        """Forget what members gave."""
        ...

    def oldest(self, before: float, limit: int) -> Sequence[str]:
        """At most so many chords that are not done and have not moved since `before`, the oldest first; more may come,
        and in any order, where the store can't tell."""
        ...

    def structure(self, group: str, document: bytes, expires: float) -> None:
        """Save a group's document."""
        ...

    def renew_structure(self, group: str, expires: float) -> None:
        """Keep a group's document until another time, where the store forgets by itself."""
        ...

    def read_structure(self, group: str) -> bytes | None:
        """A group's document."""
        ...


class ShelfChords:
    """Chords on a Shelf. See `ports.ResultBackend` for what each method promises."""

    def __init__(self, shelf: Shelf, lost: Callable[[str], bytes]) -> None:
        """`lost` makes the entry of a member (`task id:index`) whose own the store has lost."""
        self._shelf = shelf
        self._lost = lost

    def open(self, chords: Iterable[Chord]) -> None:
        """Make chords known."""
        for chord in chords:
            self._open(chord)

    def _open(self, chord: Chord) -> None:
        named = msgspec.structs.replace(chord, group=_named(chord.group))
        self._change(chord.group, lambda book: book.open([named]))

    def add(self, group: str, members: Sequence[str]) -> None:
        """More members, each once."""
        self._change(group, lambda book: book.add(_named(group), members))

    def count(self, parts: Sequence[Part], hold: float) -> list[bool]:
        """Count members, each once. True: complete, and held by the part's token."""
        found = [False] * len(parts)
        places: dict[str, list[int]] = {}
        for number, part in enumerate(parts):
            places.setdefault(part.group, []).append(number)
        for group, numbers in places.items():
            for number, taken in zip(numbers, self._count(group, [parts[n] for n in numbers], hold), strict=True):
                found[number] = taken
        return found

    def _count(self, group: str, parts: Sequence[Part], hold: float) -> list[bool]:
        name = _named(group)
        # Those that are there stay: a second run may have given something else.
        first = {_named(part.member): part.entry for part in reversed(parts)}
        self._shelf.keep(name, first)
        named = [
            msgspec.structs.replace(part, group=name, id=_named(part.id), entry=_named(part.member).encode())
            for part in parts
        ]

        def work(book: MemoryChords) -> tuple[list[bool], bool]:
            held = book.count(named, hold)
            standing = book.look(name)
            return held, standing is not None and standing.held == "done"

        held, done = self._change(group, work)
        if done:
            self._shelf.drop(name, first)
        return held

    def look(self, group: str) -> Standing | None:
        """A chord as it stands."""
        name = _named(group)
        document = self._shelf.read(name)
        if document is None:
            return None
        book = MemoryChords(RLock(), self._shelf.clock, lambda *_: b"")
        book.load(name, document)
        standing = book.look(name)
        if standing is None or standing.held == "done":
            return standing and msgspec.structs.replace(standing, group=group)
        members = [entry.decode() for entry in standing.entries]
        kept = self._shelf.kept(name, members)
        return msgspec.structs.replace(
            standing,
            group=group,
            entries=tuple(kept.get(member) or self._lost(member) for member in members),
            structure=self._shelf.read_structure(group) or b"",
        )

    def fire(self, fires: Iterable[Fire], hold: float) -> list[bool]:
        """End chords. True: it was the token's to end."""
        return [self._fire(each, hold) for each in fires]

    def _fire(self, fire: Fire, hold: float) -> bool:
        name = _named(fire.group)

        def work(book: MemoryChords) -> tuple[bool, list[str]]:
            standing = book.look(name)
            ended = book.fire([Fire(name, fire.token)], hold)[0]
            return ended, [] if standing is None else [entry.decode() for entry in standing.entries]

        mine, members = self._change(fire.group, work)
        if mine:
            self._shelf.drop(name, members)
        return mine

    def hold(self, fire: Fire, hold: float) -> bool:
        """Take or keep a chord that is complete."""
        return self._change(fire.group, lambda book: book.hold(Fire(_named(fire.group), fire.token), hold))

    def standing(self, idle: float, limit: int) -> list[Standing]:
        """Chords that are not done and have not moved for `idle` seconds, the oldest first."""
        listed = []
        for group in self._shelf.oldest(self._shelf.clock() - idle, limit):
            # Within the book it lasts anew; what the members gave is read afterwards.
            if self._change(group, lambda book: book.standing(idle, 1)):
                found = self.look(group)
                if found is not None and found.held != "done":
                    listed.append(found)
        return sorted(listed, key=lambda each: -each.idle)[: max(limit, 0)]

    def _change(self, group: str, work: Callable[[MemoryChords], T]) -> T:
        """Do `work` on a book that has this one chord, and write down what has become of it."""
        name = _named(group)
        found: list[T] = []

        def structured(_: str, structure: bytes | None, until: float) -> bytes:
            if structure is None:
                self._shelf.renew_structure(group, until)
            else:
                self._shelf.structure(group, structure, until)
            return b""

        def change(document: bytes | None) -> Written | None:
            book = MemoryChords(RLock(), self._shelf.clock, structured)
            if document is not None:
                book.load(name, document)
            found[:] = [work(book)]
            written = book.dump(name)
            return None if written is None or written[0] == document else Written(*written)

        self._shelf.change(name, change)
        return found[0]


def _named(text: str) -> str:
    """A name that every store takes: the text itself, as all that are made here; of one that is long or strange a
    fingerprint. Whoever may send messages may name groups as he likes."""
    if len(text) <= 150 and text.isascii() and text.isprintable():
        return text
    return "sha256-" + sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
