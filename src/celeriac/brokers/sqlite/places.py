"""Where messages lie: looking, counting, mending, sweeping, as plain calls inside one SQLite transaction."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Sequence

from celeriac.brokers.losses import begin_anew
from celeriac.brokers.pages import page_of
from celeriac.brokers.sqlite.claiming import EARLIER, has_ready
from celeriac.brokers.sqlite.publishing import next_id
from celeriac.model.message import Counts, Page
from celeriac.ports import Place

_REPLIES = "%.reply.celery.pidbox"
"""The queues in which workers answer, as kombu names them: one for each process that asks."""
_REPLY_MICROS = 60_000_000
_LISTS = {
    Place.READY: """SELECT l.priority, l.position, l.id, m.blob, NULL FROM celeriac_ready AS l
        JOIN celeriac_messages AS m ON m.id = l.id
        WHERE l.queue = ?1 AND (l.priority, l.position, l.id) > (?2, ?3, ?4)
        ORDER BY l.priority, l.position, l.id LIMIT ?5""",
    Place.SCHEDULED: """SELECT 0, l.due, l.id, m.blob, NULL FROM celeriac_schedule AS l
        JOIN celeriac_messages AS m ON m.id = l.id WHERE l.queue = ?1 AND ?2 <= 0 AND (l.due, l.id) > (?3, ?4)
        ORDER BY l.due, l.id LIMIT ?5""",
    Place.IN_FLIGHT: """SELECT 0, 0, l.id, m.blob, l.epoch FROM celeriac_inflight AS l
        JOIN celeriac_messages AS m ON m.id = l.id WHERE m.queue = ?1 AND ?2 <= 0 AND ?3 <= 0 AND l.id > ?4
        ORDER BY l.id LIMIT ?5""",
    Place.DEAD: """SELECT 0, l.died, l.id, m.blob, l.reason FROM celeriac_dead AS l
        JOIN celeriac_messages AS m ON m.id = l.id WHERE l.queue = ?1 AND ?2 <= 0 AND (l.died, l.id) > (?3, ?4)
        ORDER BY l.died, l.id LIMIT ?5""",
    Place.PARKED: """SELECT 0, 0, l.id, m.blob, l.key FROM celeriac_parked AS l
        JOIN celeriac_messages AS m ON m.id = l.id WHERE l.queue = ?1 AND ?2 <= 0 AND ?3 <= 0 AND l.id > ?4
        ORDER BY l.id LIMIT ?5""",
}
_TABLES = {
    Place.READY: "celeriac_ready",
    Place.SCHEDULED: "celeriac_schedule",
    Place.IN_FLIGHT: "celeriac_inflight",
    Place.PARKED: "celeriac_parked",
    Place.DEAD: "celeriac_dead",
}


def browse(connection: sqlite3.Connection, where: Place, queue: str, limit: int, cursor: str) -> Page:
    """A page of what lies there, in order. The cursor is the key of the last entry, so nothing shifts it."""
    after = tuple(int(part) for part in cursor.split(".")) if cursor else (-EARLIER * 4,) * 3
    rows = connection.execute(_LISTS[where], (queue, *after, limit + 1)).fetchall()
    return page_of(where, rows, limit)


def _take_out(connection: sqlite3.Connection, where: Place, queue: str, ids: Sequence[str]) -> list[int]:
    """Take entries out of a list, leaving their messages. Returns those that were there."""
    numbers = json.dumps([int(name) for name in ids if name.isdecimal()])
    own = "" if where is not Place.IN_FLIGHT else "AND id IN (SELECT id FROM celeriac_messages WHERE queue = ?1)"
    condition = own or "AND queue = ?1"
    return [
        number
        for (number,) in connection.execute(
            f"""DELETE FROM {_TABLES[where]} WHERE id IN (SELECT value FROM json_each(?2)) {condition} RETURNING id""",
            (queue, numbers),
        ).fetchall()
    ]


def remove(connection: sqlite3.Connection, where: Place, queue: str, ids: Sequence[str]) -> int:
    """Delete entries. Returns how many there were."""
    numbers = _take_out(connection, where, queue, ids)
    connection.execute(
        "DELETE FROM celeriac_messages WHERE id IN (SELECT value FROM json_each(?))", (json.dumps(numbers),)
    )
    return len(numbers)


def restore(connection: sqlite3.Connection, where: Place, queue: str, ids: Sequence[str], now: float) -> int:
    """Put scheduled, parked or dead entries to the tail of their queue; dead ones begin anew. Returns how many."""
    if where in (Place.READY, Place.IN_FLIGHT):
        return 0
    numbers = sorted(_take_out(connection, where, queue, ids))
    if where is Place.DEAD:
        for number in numbers:
            [blob] = connection.execute("SELECT blob FROM celeriac_messages WHERE id = ?", (number,)).fetchone()
            if (fresh := begin_anew(blob)) is not blob:
                connection.execute("UPDATE celeriac_messages SET blob = ? WHERE id = ?", (fresh, number))
    return _append(connection, numbers, now)


def _append(connection: sqlite3.Connection, numbers: Sequence[int], now: float) -> int:
    tail = next_id(connection, now)
    connection.executemany(
        "INSERT INTO celeriac_ready SELECT queue, priority, ?1, id FROM celeriac_messages WHERE id = ?2",
        [(tail + place, number) for place, number in enumerate(numbers)],
    )
    return len(numbers)


def count(connection: sqlite3.Connection, queue: str, now: float) -> Counts:
    """How much of a queue lies where."""
    number = {
        where: connection.execute(f"SELECT count(*) FROM {table} WHERE queue = ?", (queue,)).fetchone()[0]
        for where, table in _TABLES.items()
        if where is not Place.IN_FLIGHT
    }
    [in_flight] = connection.execute(
        """SELECT count(*) FROM celeriac_inflight AS f JOIN celeriac_messages AS m ON m.id = f.id WHERE m.queue = ?""",
        (queue,),
    ).fetchone()
    return Counts(
        ready=number[Place.READY],
        scheduled=number[Place.SCHEDULED],
        in_flight=in_flight,
        parked=number[Place.PARKED],
        dead=number[Place.DEAD],
        oldest=_oldest(connection, queue, now),
    )


def _oldest(connection: sqlite3.Connection, queue: str, now: float) -> float | None:
    ages = []
    urgency = -EARLIER
    head = """SELECT priority, position FROM celeriac_ready WHERE queue = ? AND priority > ?
              ORDER BY priority, position LIMIT 1"""
    while row := connection.execute(head, (queue, urgency)).fetchone():
        urgency, position = row
        ages.append(now - (position if position >= 0 else position + EARLIER) / 1e6)
    return max(*ages, 0.0) if ages else None


def purge(connection: sqlite3.Connection, queue: str) -> int:
    """Delete what is ready. Returns how many."""
    connection.execute(
        "DELETE FROM celeriac_messages WHERE id IN (SELECT id FROM celeriac_ready WHERE queue = ?)", (queue,)
    )
    return connection.execute("DELETE FROM celeriac_ready WHERE queue = ?", (queue,)).rowcount


def release(connection: sqlite3.Connection, queue: str, now: float) -> int:
    """Make ready what is parked, scheduled, or in flight at dead workers. Returns how many."""
    dead = connection.execute(
        """SELECT f.id FROM celeriac_inflight AS f JOIN celeriac_messages AS m ON m.id = f.id
           LEFT JOIN celeriac_workers AS w ON w.epoch = f.epoch
           WHERE m.queue = ?1 AND (w.expires IS NULL OR w.expires <= ?2) ORDER BY f.id""",
        (queue, int(now * 1e6)),
    ).fetchall()
    parked = connection.execute(
        "DELETE FROM celeriac_parked WHERE queue = ? RETURNING id", (queue,)
    ).fetchall()
    scheduled = connection.execute(
        "DELETE FROM celeriac_schedule WHERE queue = ? RETURNING id", (queue,)
    ).fetchall()
    connection.executemany("DELETE FROM celeriac_inflight WHERE id = ?", dead)
    return _append(connection, [number for (number,) in [*dead, *sorted(parked), *sorted(scheduled)]], now)


# The rest


def cancel_version(connection: sqlite3.Connection) -> int:
    """The version of the cancel list."""
    row = connection.execute("SELECT value FROM celeriac_state WHERE name = 'cancel_version'").fetchone()
    return 0 if row is None else row[0]


def cancel(connection: sqlite3.Connection, ids: Sequence[str], until: float) -> None:
    """Put ids on the cancel list."""
    connection.executemany(
        "INSERT OR REPLACE INTO celeriac_cancelled VALUES (?, ?)", [(name, int(until * 1e6)) for name in ids]
    )
    version = cancel_version(connection) + 1
    connection.execute("INSERT OR REPLACE INTO celeriac_state VALUES ('cancel_version', ?)", (version,))


def cancelled(connection: sqlite3.Connection, now: float) -> tuple[int, frozenset[str]]:
    """The version and the ids of the cancel list."""
    rows = connection.execute("SELECT id FROM celeriac_cancelled WHERE until > ?", (int(now * 1e6),))
    return cancel_version(connection), frozenset(name for (name,) in rows)


def queues(connection: sqlite3.Connection) -> list[str]:
    """Names of all queues ever used, but for those that hold the answers to one process's questions."""
    rows = connection.execute("SELECT name FROM celeriac_queues WHERE name NOT LIKE ? ORDER BY name", (_REPLIES,))
    return [name for (name,) in rows]


def tidy(connection: sqlite3.Connection, now: float, dead_limit: int) -> dict[str, int]:
    """Delete what is of no use any more: what is over, answers that nobody came for, and the oldest dead letters of a
    queue that has more than so many (0: no limit). Returns how many of these went, by queue. Results have a Sweeper."""
    over = int(now * 1e6)
    connection.execute("DELETE FROM celeriac_published WHERE until <= ?", (over,))
    connection.execute("DELETE FROM celeriac_cancelled WHERE until <= ?", (over,))
    connection.execute("DELETE FROM celeriac_notices WHERE expires <= ?", (over,))
    for (queue,) in connection.execute("SELECT name FROM celeriac_queues WHERE name LIKE ?", (_REPLIES,)).fetchall():
        late = "SELECT id FROM celeriac_ready WHERE queue = ? AND position <= ?"
        answers = connection.execute(late, (queue, over - _REPLY_MICROS)).fetchall()
        remove(connection, Place.READY, queue, [str(answer) for (answer,) in answers])
        if not has_ready(connection, [queue]):
            connection.execute("DELETE FROM celeriac_queues WHERE name = ?", (queue,))
    gone: dict[str, int] = {}
    if not dead_limit:
        return gone
    many = "SELECT queue, count(*) FROM celeriac_dead GROUP BY queue HAVING count(*) > ?"
    for queue, number in connection.execute(many, (dead_limit,)).fetchall():
        oldest = "SELECT id FROM celeriac_dead WHERE queue = ? ORDER BY died, id LIMIT ?"
        ids = connection.execute(oldest, (queue, number - dead_limit)).fetchall()
        gone[queue] = remove(connection, Place.DEAD, queue, [str(dead) for (dead,) in ids])
    return gone
