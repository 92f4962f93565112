"""The tables in the file, their version, and how an older file is brought up to date.

A migration only goes forward and only adds, so that workers of the version before may go on beside it. Times are
whole microseconds (messages) or milliseconds (results) since 1970, so that they compare exactly.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable

from celeriac.errors import LayoutTooNew

# A message's row is written once and not touched until its end; where it lies is said by a small row elsewhere that
# names it. So a claim moves some 40 bytes, however large the message is.
_FIRST = """
CREATE TABLE celeriac_layout (version INTEGER NOT NULL);
CREATE TABLE celeriac_state (name TEXT PRIMARY KEY, value INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE celeriac_queues (name TEXT PRIMARY KEY) WITHOUT ROWID;
CREATE TABLE celeriac_messages (
    id INTEGER PRIMARY KEY,
    queue TEXT NOT NULL,
    priority INTEGER NOT NULL,
    blob BLOB NOT NULL
);
CREATE TABLE celeriac_ready (
    queue TEXT NOT NULL,
    priority INTEGER NOT NULL,
    position INTEGER NOT NULL,
    id INTEGER NOT NULL,
    PRIMARY KEY (queue, priority, position, id)
) WITHOUT ROWID;
CREATE TABLE celeriac_inflight (
    id INTEGER PRIMARY KEY,
    epoch TEXT NOT NULL,
    claim INTEGER NOT NULL,
    position INTEGER NOT NULL,
    running INTEGER NOT NULL DEFAULT 0
);
CREATE TABLE celeriac_schedule (
    queue TEXT NOT NULL,
    due INTEGER NOT NULL,
    id INTEGER NOT NULL,
    PRIMARY KEY (queue, due, id)
) WITHOUT ROWID;
CREATE TABLE celeriac_parked (
    queue TEXT NOT NULL,
    key TEXT NOT NULL,
    turn INTEGER NOT NULL,
    id INTEGER NOT NULL,
    position INTEGER NOT NULL,
    PRIMARY KEY (queue, key, turn, id)
) WITHOUT ROWID;
CREATE TABLE celeriac_dead (
    queue TEXT NOT NULL,
    died INTEGER NOT NULL,
    id INTEGER NOT NULL,
    reason TEXT NOT NULL,
    PRIMARY KEY (queue, died, id)
) WITHOUT ROWID;
CREATE TABLE celeriac_workers (epoch TEXT PRIMARY KEY, expires INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE celeriac_published (publish_id TEXT PRIMARY KEY, until INTEGER NOT NULL) WITHOUT ROWID;
CREATE INDEX celeriac_published_until ON celeriac_published (until);
CREATE TABLE celeriac_cancelled (id TEXT PRIMARY KEY, until INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE celeriac_notices (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    exchange TEXT NOT NULL,
    routing_key TEXT NOT NULL,
    payload BLOB NOT NULL,
    expires INTEGER NOT NULL
);
CREATE TABLE celeriac_results (
    id TEXT PRIMARY KEY,
    state TEXT NOT NULL,
    expires INTEGER,
    stored INTEGER NOT NULL,
    document BLOB NOT NULL
);
CREATE TABLE celeriac_groups (id TEXT PRIMARY KEY, expires INTEGER, document BLOB NOT NULL) WITHOUT ROWID;
"""

# Chords. What changes with each member is kept apart from what may be long; `celeriac_groups` has the structure.
# `lifetime` and `expires` are milliseconds, as those of results.
_SECOND = """
CREATE TABLE celeriac_chords (
    id TEXT PRIMARY KEY,
    size INTEGER,
    more INTEGER NOT NULL DEFAULT 0,
    counted INTEGER NOT NULL DEFAULT 0,
    holder TEXT NOT NULL DEFAULT '',
    held_until INTEGER NOT NULL DEFAULT 0,
    lifetime INTEGER,
    moved INTEGER NOT NULL,
    expires INTEGER
) WITHOUT ROWID;
CREATE INDEX celeriac_chords_moved ON celeriac_chords (moved);
CREATE TABLE celeriac_chord_bodies (id TEXT PRIMARY KEY, body BLOB NOT NULL, members BLOB NOT NULL);
CREATE TABLE celeriac_chord_parts (
    chord TEXT NOT NULL,
    member TEXT NOT NULL,
    position INTEGER,
    entry BLOB NOT NULL,
    PRIMARY KEY (chord, member)
) WITHOUT ROWID;
"""

# Members that were added to a chord while it was open, so that each is added once; `more` is how many.
_THIRD = """
CREATE TABLE celeriac_chord_added (
    chord TEXT NOT NULL,
    member TEXT NOT NULL,
    PRIMARY KEY (chord, member)
) WITHOUT ROWID;
"""

MIGRATIONS: tuple[str, ...] = (_FIRST, _SECOND, _THIRD)
"""Script n brings a file from version n to version n + 1."""


def version_of(connection: sqlite3.Connection) -> int:
    """The layout's version in a file; 0: it has none of our tables."""
    try:
        row = connection.execute("SELECT max(version) FROM celeriac_layout").fetchone()
    except sqlite3.OperationalError as error:
        if "no such table" in str(error):
            return 0
        raise
    return int(row[0] or 0)


def prepare(connection: sqlite3.Connection, path: str, begin: Callable[[], None]) -> None:
    """Make the tables, or bring them up to date. `begin` starts a transaction that writes. Raises LayoutTooNew."""
    version = version_of(connection)
    if version < len(MIGRATIONS):
        begin()
        try:
            version = version_of(connection)  # another process may have been first
            for number in range(version, len(MIGRATIONS)):
                for statement in MIGRATIONS[number].split(";"):
                    if statement.strip():
                        connection.execute(statement)
                connection.execute("DELETE FROM celeriac_layout")
                connection.execute("INSERT INTO celeriac_layout VALUES (?)", (number + 1,))
                version = number + 1
            connection.execute("COMMIT")
        except BaseException:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            raise
    if version > len(MIGRATIONS):
        raise LayoutTooNew(
            f"{path} was written by a newer celeriac (layout {version}, this one knows {len(MIGRATIONS)}): "
            "upgrade celeriac here, or choose another file"
        )
