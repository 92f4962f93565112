"""Result documents in the file, as plain calls inside a transaction: a worker's cycle and the backend share them."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable, Sequence

from celeriac.drivers import sqlite_chords
from celeriac.drivers.sqlite import Database
from celeriac.model.message import Store

_UPSERT = """
INSERT INTO celeriac_results (id, state, expires, stored, document) VALUES (?1, ?2, ?3, ?4, ?5)
ON CONFLICT (id) DO UPDATE
SET state = excluded.state, expires = excluded.expires, stored = excluded.stored, document = excluded.document
WHERE NOT ?6 OR state <> 'SUCCESS' OR expires <= ?4 / 1000
"""
_FETCH = """
SELECT id, document FROM celeriac_results
WHERE id IN (SELECT value FROM json_each(?1)) AND (expires IS NULL OR expires > ?2)
"""
_STAMPS = """
SELECT id, stored, rowid FROM celeriac_results
WHERE id IN (SELECT value FROM json_each(?1)) AND (expires IS NULL OR expires > ?2)
"""
_CHUNK = 500


def put(connection: sqlite3.Connection, stores: Iterable[Store], now: float) -> None:
    """Store documents, the later ones over the earlier ones."""
    stored = int(now * 1e6)
    times: dict[float | None, int | None] = {None: None}  # most have the same
    rows = []
    for store in stores:
        expires = store.expires
        if expires not in times:
            times[expires] = int((now + expires) * 1000) if expires is not None else None
        rows.append((store.id, store.state, times[expires], stored, store.document, store.guard))
    connection.executemany(_UPSERT, rows)


def fetch(connection: sqlite3.Connection, ids: Iterable[str], now: float) -> dict[str, bytes]:
    """The documents of those ids that have one."""
    return dict(connection.execute(_FETCH, (json.dumps(list(ids)), int(now * 1000))))


def stamps(connection: sqlite3.Connection, ids: Iterable[str], now: float) -> dict[str, tuple[int, int]]:
    """What differs after each change of a document, for those ids that have one."""
    rows = connection.execute(_STAMPS, (json.dumps(list(ids)), int(now * 1000)))
    return {name: (stored, number) for name, stored, number in rows}


def forget(connection: sqlite3.Connection, ids: Sequence[str]) -> None:
    """Delete documents."""
    connection.execute("DELETE FROM celeriac_results WHERE id IN (SELECT value FROM json_each(?))", (json.dumps(ids),))


def save_group(
    connection: sqlite3.Connection, group_id: str, document: bytes, expires: float | None, now: float
) -> None:
    """Keep a group's document."""
    until = None if expires is None else int((now + expires) * 1000)
    connection.execute("INSERT OR REPLACE INTO celeriac_groups VALUES (?, ?, ?)", (group_id, until, document))


def fetch_group(connection: sqlite3.Connection, group_id: str, now: float) -> bytes | None:
    """A group's document, if it stands."""
    row = connection.execute(
        "SELECT document FROM celeriac_groups WHERE id = ? AND (expires IS NULL OR expires > ?)",
        (group_id, int(now * 1000)),
    ).fetchone()
    return None if row is None else row[0]


def forget_group(connection: sqlite3.Connection, group_id: str) -> None:
    """Delete a group's document."""
    connection.execute("DELETE FROM celeriac_groups WHERE id = ?", (group_id,))


class Sweeper:
    """Deletes documents whose time is over, a chunk at a time.

    There is no index of the times: it would cost more on each store than the sweeping does. Documents lie in the order
    of their first store, so those whose time is over are mostly the first ones; a second hand goes round through all,
    for what hides behind a document that stays.
    """

    def __init__(self) -> None:
        self._hand = 0

    def sweep(self, database: Database, now: float) -> bool:
        """Look at one chunk at the beginning and one further on. Is there probably more to delete?"""
        over = int(now * 1000)

        def look(connection: sqlite3.Connection) -> tuple[set[int], int, bool]:
            first, _, many = _expired(connection, 0, over)
            further, last, many_more = _expired(connection, self._hand, over)
            return {*first, *further}, last, many or many_more

        expired, self._hand, more = database.read(look)
        if expired:
            # Whoever stored anew meanwhile has given it a new time: ask again.
            database.write(
                lambda connection: connection.executemany(
                    "DELETE FROM celeriac_results WHERE rowid = ? AND expires <= ?", [(row, over) for row in expired]
                ).rowcount
            )
        if not self._hand:
            database.write(lambda connection: _sweep_groups(connection, now))
        return more


def _sweep_groups(connection: sqlite3.Connection, now: float) -> None:
    connection.execute("DELETE FROM celeriac_groups WHERE expires <= ?", (int(now * 1000),))
    sqlite_chords.sweep(connection, now)


def _expired(connection: sqlite3.Connection, after: int, over: int) -> tuple[list[int], int, bool]:
    """Of one chunk: what is over, its last row (0: it was the last chunk), and whether much of it is over."""
    rows = connection.execute(
        "SELECT rowid, expires FROM celeriac_results WHERE rowid > ? ORDER BY rowid LIMIT ?", (after, _CHUNK)
    ).fetchall()
    expired = [number for number, expires in rows if expires is not None and expires <= over]
    return expired, rows[-1][0] if len(rows) == _CHUNK else 0, len(expired) > _CHUNK // 4
