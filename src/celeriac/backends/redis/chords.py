"""Chords: the scripts of both sides, what they take, and what they give. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import msgspec

from celeriac.drivers.redis import chord_words
from celeriac.drivers.redis.script import Script
from celeriac.model.message import Chord, Part, Standing

_CHORD = ("celeriac.drivers.redis", "lua/chord.lua")


def _script(name: str) -> Script:
    return Script(_CHORD, ("celeriac.backends", f"lua/{name}.lua"))


OPEN = _script("open_chords")
ADD = _script("add_to_chord")
COUNT = _script("count_parts")
LOOK = _script("chord")
HOLD = _script("hold_chord")
FIRE = _script("fire_chords")
STANDING = _script("standing_chords")
AT_ONCE = 100
"""Chords or members in one script call."""


def openings(prefix: str, chords: Sequence[Chord]) -> Iterator[list[Any]]:
    """The arguments of OPEN, call by call."""
    for start in range(0, len(chords), AT_ONCE):
        words: list[Any] = [prefix]
        for chord in chords[start : start + AT_ONCE]:
            words += chord_words.opening(chord)
        yield words


def countings(prefix: str, ordered: bool, parts: Sequence[Part], hold: float) -> Iterator[list[Any]]:
    """The arguments of COUNT, call by call."""
    for start in range(0, len(parts), AT_ONCE):
        words: list[Any] = [prefix, "1" if ordered else "0", milliseconds(hold)]
        for part in parts[start : start + AT_ONCE]:
            words += chord_words.counting(part)
        yield words


def milliseconds(seconds: float) -> int:
    """What PX takes: never 0."""
    return max(1, int(seconds * 1000))


def standing(reply: Sequence[Any]) -> Standing:
    """What `look` in chord.lua says of a chord."""
    group, holder = reply[0].decode(), reply[1].decode()
    size, body, text, added = reply[2:6]
    members = msgspec.json.decode(text, type=tuple[str, ...]) if text else ()
    members = (*members, *(each.decode() for each in added))
    if holder == "done":
        return Standing(group, 0, body, (), (), b"", members, 0.0, holder)
    structure, idle, entries, counted = reply[6:]
    return Standing(
        group, int(size), body, tuple(entries), tuple(sorted(each.decode() for each in counted)), structure, members,
        max(0.0, float(idle)), holder,
    )  # fmt: skip
