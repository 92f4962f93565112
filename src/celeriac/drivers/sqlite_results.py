"""Result documents in the file, as plain calls inside a transaction: a worker's cycle and the backend share them."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable, Sequence

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
_SWEEP = """
DELETE FROM celeriac_results WHERE rowid IN (
    SELECT rowid FROM celeriac_results WHERE expires IS NOT NULL AND expires <= ?1 ORDER BY expires LIMIT ?2
)
"""


def put(connection: sqlite3.Connection, stores: Iterable[Store], now: float) -> None:
    """Store documents, the later ones over the earlier ones."""
    stored, base = int(now * 1e6), int(now * 1000)
    connection.executemany(
        _UPSERT,
        [
            (
                store.id, store.state, None if store.expires is None else base + int(store.expires * 1000),
                stored, store.document, store.guard,
            )
            for store in stores
        ],
    )  # fmt: skip


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


def sweep(connection: sqlite3.Connection, now: float, limit: int) -> bool:
    """Delete up to `limit` documents whose time is over. Are there more?"""
    connection.execute("DELETE FROM celeriac_groups WHERE expires <= ?", (int(now * 1000),))
    deleted = connection.execute(_SWEEP, (int(now * 1000), limit)).rowcount
    return deleted >= limit


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
