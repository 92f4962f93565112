"""Chords in the file, as plain calls inside a transaction: a worker's cycle and the backend share them. No clock.

What changes with each member that ends is a small row of its own: body and ids of the members may be long.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import msgspec

from celeriac.drivers.chords import UNOPENED_SECONDS, done_seconds
from celeriac.model.message import Chord, Fire, Part, Standing

_LOOK = """
SELECT size, more, counted, holder, held_until, lifetime, moved FROM celeriac_chords
WHERE id = ? AND (expires IS NULL OR expires > ?)
"""
_MOVE = """
UPDATE celeriac_chords SET size = ?2, more = ?3, counted = ?4, holder = ?5, held_until = ?6, lifetime = ?7,
moved = ?8, expires = ?9 WHERE id = ?1
"""
_BODY = """
INSERT INTO celeriac_chord_bodies VALUES (?1, ?2, ?3)
ON CONFLICT (id) DO UPDATE SET body = excluded.body, members = excluded.members
"""
_ADD = "INSERT OR IGNORE INTO celeriac_chord_added VALUES (?, ?)"
_FORGET_ADDED = "DELETE FROM celeriac_chord_added WHERE chord = ?"
_STANDING = """
SELECT id FROM celeriac_chords
WHERE moved <= ? AND holder <> 'done' AND (expires IS NULL OR expires > ?) ORDER BY moved, id LIMIT ?
"""


class _Chord(NamedTuple):
    """Times in microseconds, the lifetime in milliseconds."""

    size: int | None
    more: int
    counted: int
    holder: str
    held_until: int
    lifetime: int | None
    moved: int

    def held_by(self, now: float) -> str:
        """Who holds it now."""
        return self.holder if self.held_until > int(now * 1e6) else ""

    @property
    def complete(self) -> bool:
        """Have all members ended?"""
        return self.size is not None and self.counted >= self.size + self.more


def open_chords(connection: sqlite3.Connection, chords: Iterable[Chord], now: float) -> None:
    """Make chords known."""
    for chord in chords:
        lifetime = None if chord.expires is None else int(chord.expires * 1000)
        held = _made(connection, chord.group, now)
        if held.holder == "done":
            connection.execute(_FORGET_ADDED, (chord.group,))
        held = held._replace(size=chord.size, holder="", held_until=0, lifetime=lifetime)
        expires = _move(connection, chord.group, held, now)
        connection.execute(_BODY, (chord.group, chord.body, msgspec.json.encode(chord.members)))
        if chord.structure:
            connection.execute(
                "INSERT OR REPLACE INTO celeriac_groups VALUES (?, ?, ?)", (chord.group, expires, chord.structure)
            )


def add(connection: sqlite3.Connection, group: str, members: Iterable[str], now: float) -> None:
    """More members, each once."""
    held = _made(connection, group, now)
    if held.holder != "done":
        new = sum(connection.execute(_ADD, (group, member)).rowcount for member in members)
        _move(connection, group, held._replace(more=held.more + new), now)


def count(connection: sqlite3.Connection, parts: Iterable[Part], now: float, hold: float) -> list[bool]:
    """Count members, each once. True: complete, and held by the part's token."""
    return [_count(connection, part, now, hold) for part in parts]


def _count(connection: sqlite3.Connection, part: Part, now: float, hold: float) -> bool:
    part.id.encode()  # what can't be named can't be counted
    held = _made(connection, part.group, now)
    if held.holder == "done":
        return False
    new = connection.execute(
        "INSERT OR IGNORE INTO celeriac_chord_parts VALUES (?, ?, ?, ?)",
        (part.group, part.member, part.index, part.entry),
    ).rowcount
    if not held.counted:
        connection.execute(
            "INSERT OR IGNORE INTO celeriac_chord_bodies VALUES (?, ?, ?)", (part.group, part.body, b"[]")
        )
    held = held._replace(counted=held.counted + new)
    taken = _taken(held, part.token, now, hold)
    _move(connection, part.group, taken or held, now)
    return taken is not None


def look(connection: sqlite3.Connection, group: str, now: float) -> Standing | None:
    """A chord as it stands."""
    held = _standing(connection, group, now)
    if held is None:
        return None
    texts = connection.execute("SELECT body, members FROM celeriac_chord_bodies WHERE id = ?", (group,)).fetchone()
    body, names = texts or (b"", b"[]")
    added = connection.execute("SELECT member FROM celeriac_chord_added WHERE chord = ?", (group,)).fetchall()
    members = (*msgspec.json.decode(names, type=tuple[str, ...]), *(member for (member,) in added))
    if held.holder == "done":
        return Standing(group, 0, body, (), (), b"", members, 0.0, held.holder)
    parts = connection.execute(
        "SELECT member, entry FROM celeriac_chord_parts WHERE chord = ? ORDER BY position IS NULL, position, member",
        (group,),
    ).fetchall()
    structure = connection.execute(
        "SELECT document FROM celeriac_groups WHERE id = ? AND (expires IS NULL OR expires > ?)",
        (group, int(now * 1000)),
    ).fetchone()
    return Standing(
        group,
        0 if held.size is None else held.size + held.more,
        body,
        tuple(entry for _, entry in parts),
        tuple(sorted(member for member, _ in parts)),
        structure[0] if structure else b"",
        members,
        max(0.0, now - held.moved / 1e6),
        held.held_by(now),
    )


def fire(connection: sqlite3.Connection, fires: Iterable[Fire], now: float, hold: float) -> list[bool]:
    """End chords. True: it was the token's to end."""
    ended = []
    for each in fires:
        held = _standing(connection, each.group, now)
        holder = "" if held is None else held.held_by(now)
        mine = held is not None and (holder == each.token or (not holder and held.size is not None))
        if held is not None and mine:
            connection.execute("DELETE FROM celeriac_chord_parts WHERE chord = ?", (each.group,))
            until = None if held.lifetime is None else now + max(done_seconds(hold), held.lifetime / 1000)
            connection.execute(
                """UPDATE celeriac_chords SET size = NULL, more = 0, counted = 0, moved = ?2, expires = ?3,
                   holder = 'done', held_until = ?4 WHERE id = ?1""",
                (
                    each.group, int(now * 1e6), None if until is None else int(until * 1000),
                    0 if until is None else int(until * 1e6),
                ),
            )  # fmt: skip
        ended.append(mine)
    return ended


def hold(connection: sqlite3.Connection, wanted: Fire, now: float, seconds: float) -> bool:
    """Take or keep a chord that is complete."""
    held = _standing(connection, wanted.group, now)
    taken = None if held is None else _taken(held, wanted.token, now, seconds)
    if taken is not None:
        _move(connection, wanted.group, taken, now)
    return taken is not None


def standing(connection: sqlite3.Connection, idle: float, limit: int, now: float) -> list[Standing]:
    """Chords that are not done and have not moved for `idle` seconds, the oldest first."""
    listed = connection.execute(_STANDING, (int((now - idle) * 1e6), int(now * 1000), max(limit, 0))).fetchall()
    found = []
    for (group,) in listed:
        if (each := look(connection, group, now)) is not None:
            found.append(each)
            held = _standing(connection, group, now)
            assert held is not None
            _move(connection, group, held, now, moved=held.moved)
    return found


def sweep(connection: sqlite3.Connection, now: float) -> None:
    """Delete what is over."""
    over = connection.execute("SELECT id FROM celeriac_chords WHERE expires <= ?", (int(now * 1000),)).fetchall()
    _delete(connection, [group for (group,) in over])


def _standing(connection: sqlite3.Connection, group: str, now: float) -> _Chord | None:
    row = connection.execute(_LOOK, (group, int(now * 1000))).fetchone()
    return None if row is None else _Chord(*row)


def _made(connection: sqlite3.Connection, group: str, now: float) -> _Chord:
    held = _standing(connection, group, now)
    if held is None:
        _delete(connection, [group])
        moved, lifetime = int(now * 1e6), int(UNOPENED_SECONDS * 1000)
        connection.execute("INSERT INTO celeriac_chords (id, moved) VALUES (?, ?)", (group, moved))
        held = _Chord(None, 0, 0, "", 0, lifetime, moved)
    return held


def _taken(held: _Chord, token: str, now: float, seconds: float) -> _Chord | None:
    if not held.complete or held.held_by(now) not in ("", token):
        return None
    return held._replace(holder=token, held_until=int((now + seconds) * 1e6))


def _move(
    connection: sqlite3.Connection, group: str, held: _Chord, now: float, moved: int | None = None
) -> int | None:
    """Write a chord down; its time begins anew. Returns when it is over."""
    expires = None if held.lifetime is None else int(now * 1000) + held.lifetime
    held = held._replace(moved=int(now * 1e6) if moved is None else moved)
    connection.execute(_MOVE, (group, *held, expires))
    connection.execute("UPDATE celeriac_groups SET expires = ? WHERE id = ?", (expires, group))
    return expires


def _delete(connection: sqlite3.Connection, groups: Sequence[str]) -> None:
    for group in groups:
        connection.execute("DELETE FROM celeriac_chords WHERE id = ?", (group,))
        connection.execute("DELETE FROM celeriac_chord_bodies WHERE id = ?", (group,))
        connection.execute("DELETE FROM celeriac_chord_parts WHERE chord = ?", (group,))
        connection.execute(_FORGET_ADDED, (group,))
