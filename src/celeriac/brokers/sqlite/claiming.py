"""Taking messages into flight, as plain calls inside one SQLite transaction. No clock: `now` comes in.

What comes due gets a position below those of all published messages, by its due time.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Generator, Iterable, Sequence
from contextlib import closing

from celeriac.model.message import Delivery, Demand, Receipt

EARLIER = 1 << 60
"""Taken off the due time, it makes a position below that of every published message."""

_NEXT = """
SELECT r.queue, r.priority, r.position, r.id, m.blob
FROM celeriac_ready AS r CROSS JOIN celeriac_messages AS m ON m.id = r.id
WHERE r.queue = ?1 ORDER BY r.priority, r.position, r.id LIMIT ?2
"""
_TAKE = """
INSERT INTO celeriac_inflight (id, epoch, claim, position)
SELECT id, ?1, ?2, position FROM celeriac_ready WHERE queue = ?3 AND (priority, position, id) <= (?4, ?5, ?6)
"""
_TAKEN = "DELETE FROM celeriac_ready WHERE queue = ?1 AND (priority, position, id) <= (?2, ?3, ?4)"
_PARKED = """
SELECT p.turn, p.id, p.position, m.blob FROM celeriac_parked AS p CROSS JOIN celeriac_messages AS m ON m.id = p.id
WHERE p.queue = ?1 AND p.key = ?2 ORDER BY p.turn, p.id LIMIT ?3
"""
_DUE = "SELECT due, id FROM celeriac_schedule WHERE queue = ?1 AND due <= ?2 ORDER BY due, id LIMIT ?3"
_PROMOTE = """
INSERT INTO celeriac_ready (queue, priority, position, id)
SELECT s.queue, m.priority, s.due - ?4, s.id FROM celeriac_schedule AS s JOIN celeriac_messages AS m ON m.id = s.id
WHERE s.queue = ?1 AND (s.due, s.id) <= (?2, ?3)
"""
_AT_ONCE = 2000
"""So many scheduled messages are made ready in one cycle; the others in the next ones."""


def promote(connection: sqlite3.Connection, queues: Sequence[str], now: float) -> float | None:
    """Put what is due to the heads of its queues. Returns when the next one is due."""
    due = next_due(connection, queues)
    if due is None or due > now:
        return due
    for queue in queues:
        rows = connection.execute(_DUE, (queue, int(now * 1e6), _AT_ONCE)).fetchall()
        if rows:
            connection.execute(_PROMOTE, (queue, *rows[-1], EARLIER))
            connection.execute(
                "DELETE FROM celeriac_schedule WHERE queue = ? AND (due, id) <= (?, ?)", (queue, *rows[-1])
            )
    return next_due(connection, queues)


def next_due(connection: sqlite3.Connection, queues: Iterable[str]) -> float | None:
    """When the next scheduled message of these queues is due."""
    found = [
        connection.execute("SELECT min(due) FROM celeriac_schedule WHERE queue = ?", (queue,)).fetchone()[0]
        for queue in queues
    ]
    return min((due / 1e6 for due in found if due is not None), default=None)


def has_ready(connection: sqlite3.Connection, queues: Iterable[str]) -> bool:
    """Is there something to claim?"""
    return any(
        connection.execute("SELECT 1 FROM celeriac_ready WHERE queue = ? LIMIT 1", (queue,)).fetchone()
        for queue in queues
    )


def has_parked(connection: sqlite3.Connection, queues: Sequence[str], want: Demand) -> bool:
    """Is there something parked under one of the wanted keys?"""
    return any(
        connection.execute("SELECT 1 FROM celeriac_parked WHERE queue = ? AND key = ? LIMIT 1", (queue, key)).fetchone()
        for key, count in want.parked.items()
        if count > 0
        for queue in queues
    )


def claim(
    connection: sqlite3.Connection, queues: Sequence[str], want: Demand, epoch: str, number: int
) -> tuple[list[Delivery], bool]:
    """Take what is wanted into flight, under the claim's `number`. Was there more?"""
    deliveries: list[Delivery] = []
    size = 0
    for key, count in want.parked.items():
        for queue in queues:
            taken = []
            cursor = connection.execute(_PARKED, (queue, key, max(count, 0)))
            while size < want.size and (row := cursor.fetchone()) is not None:
                turn, message, position, blob = row
                taken.append((message, position, turn))
                size += len(blob)
                deliveries.append(Delivery(Receipt(queue, f"{message}.{number}"), blob))
            cursor.close()
            count -= len(taken)
            for message, position, turn in taken:
                connection.execute(
                    "INSERT INTO celeriac_inflight (id, epoch, claim, position) VALUES (?, ?, ?, ?)",
                    (message, epoch, number, position),
                )
                connection.execute(
                    "DELETE FROM celeriac_parked WHERE queue = ? AND key = ? AND turn = ? AND id = ?",
                    (queue, key, turn, message),
                )
    if want.count <= 0:
        return deliveries, False
    last: dict[str, tuple[int, int, int]] = {}
    claimed = len(deliveries)
    with closing(_in_turn(connection, queues, want.count)) as ready:
        for queue, priority, position, message, blob in ready:
            deliveries.append(Delivery(Receipt(queue, f"{message}.{number}"), blob))
            last[queue] = (priority, position, message)
            size += len(blob)
            if size >= want.size:
                break
    for queue, (priority, position, message) in last.items():
        connection.execute(_TAKE, (epoch, number, queue, priority, position, message))
        connection.execute(_TAKEN, (queue, priority, position, message))
    full = len(deliveries) - claimed >= want.count or size >= want.size
    return deliveries, full and has_ready(connection, queues)


Row = tuple[str, int, int, int, bytes]


def _in_turn(connection: sqlite3.Connection, queues: Sequence[str], count: int) -> Generator[Row, None, None]:
    """The first `count` ready messages of some queues: the more urgent first; among equals one queue after the other,
    so that a long queue starves no other."""
    cursors: list[sqlite3.Cursor] = [connection.execute(_NEXT, (queue, count)) for queue in queues]
    try:
        if len(queues) == 1:
            yield from cursors[0]
            return
        heads = {n: row for n, cursor in enumerate(cursors) if (row := cursor.fetchone()) is not None}
        while heads:
            urgent = min(row[1] for row in heads.values())
            for n in [n for n, row in heads.items() if row[1] == urgent]:
                yield heads[n]
                count -= 1
                if not count:
                    return
                row = cursors[n].fetchone()
                if row is None:
                    del heads[n]
                else:
                    heads[n] = row
    finally:
        for cursor in cursors:
            cursor.close()
