"""Chords as arguments of the scripts that use chord.lua. Pure."""

from __future__ import annotations

from typing import Any

import msgspec

from celeriac.model.message import Chord, Part


def opening(chord: Chord) -> tuple[Any, ...]:
    """Group, size, body, members, structure, seconds until it is forgotten (empty: never)."""
    expires = chord.expires
    seconds = "" if expires is None or expires <= 0 else max(1, int(expires))
    members = msgspec.json.encode(chord.members)
    return chord.group, chord.size, chord.body, members, chord.structure, seconds


def counting(part: Part) -> tuple[Any, ...]:
    """Group, `task id:index`, index, entry, body, token. As Celery says it, an index that is not known is `+inf`."""
    index = "+inf" if part.index is None else part.index
    return part.group, part.member, index, part.entry, part.body, part.token
