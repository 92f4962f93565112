"""Where messages lie: looking, counting, mending. One statement each, or one transaction."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from celeriac.brokers.losses import begin_anew
from celeriac.brokers.pages import page_of
from celeriac.brokers.postgres.sweeping import REPLIES
from celeriac.drivers.postgres.arrays import Byteas, Int8s
from celeriac.drivers.postgres.line import Line
from celeriac.drivers.postgres.lines import LONG
from celeriac.model.message import Counts, Page
from celeriac.ports import Place

_EARLIER = 1 << 60
"""Taken off the due time of what was scheduled; see cycle.sql."""
_FIRST = "-9223372036854775808." * 2 + "-9223372036854775808"
_LISTS = {
    Place.READY: """SELECT l.priority::bigint, l.position, l.id, m.blob, NULL FROM celeriac_ready AS l
        JOIN celeriac_messages AS m ON m.id = l.id
        WHERE l.queue = $1::text AND (l.priority, l.position, l.id) > ($2::bigint, $3::bigint, $4::bigint)
        ORDER BY l.priority, l.position, l.id LIMIT $5::integer""",
    Place.SCHEDULED: """SELECT 0::bigint, l.due, l.id, m.blob, NULL FROM celeriac_schedule AS l
        JOIN celeriac_messages AS m ON m.id = l.id
        WHERE l.queue = $1::text AND $2::bigint <= 0 AND (l.due, l.id) > ($3::bigint, $4::bigint)
        ORDER BY l.due, l.id LIMIT $5::integer""",
    Place.IN_FLIGHT: """SELECT 0::bigint, 0::bigint, l.id, m.blob, l.epoch FROM celeriac_inflight AS l
        JOIN celeriac_messages AS m ON m.id = l.id
        WHERE m.queue = $1::text AND $2::bigint <= 0 AND $3::bigint <= 0 AND l.id > $4::bigint
        ORDER BY l.id LIMIT $5::integer""",
    Place.DEAD: """SELECT 0::bigint, l.died, l.id, m.blob, l.reason FROM celeriac_dead AS l
        JOIN celeriac_messages AS m ON m.id = l.id
        WHERE l.queue = $1::text AND $2::bigint <= 0 AND (l.died, l.id) > ($3::bigint, $4::bigint)
        ORDER BY l.died, l.id LIMIT $5::integer""",
    Place.PARKED: """SELECT 0::bigint, 0::bigint, l.id, m.blob, l.key FROM celeriac_parked AS l
        JOIN celeriac_messages AS m ON m.id = l.id
        WHERE l.queue = $1::text AND $2::bigint <= 0 AND $3::bigint <= 0 AND l.id > $4::bigint
        ORDER BY l.id LIMIT $5::integer""",
}
_TABLES = {
    Place.READY: "celeriac_ready",
    Place.SCHEDULED: "celeriac_schedule",
    Place.IN_FLIGHT: "celeriac_inflight",
    Place.PARKED: "celeriac_parked",
    Place.DEAD: "celeriac_dead",
}
_COUNT = """
SELECT (SELECT count(*) FROM celeriac_ready WHERE queue = $1::text),
    (SELECT count(*) FROM celeriac_schedule WHERE queue = $1::text),
    (SELECT count(*) FROM celeriac_inflight AS f JOIN celeriac_messages AS m ON m.id = f.id WHERE m.queue = $1::text),
    (SELECT count(*) FROM celeriac_parked WHERE queue = $1::text),
    (SELECT count(*) FROM celeriac_dead WHERE queue = $1::text),
    (SELECT min(CASE WHEN position < 0 THEN position + $2::bigint ELSE position END)
        FROM celeriac_ready WHERE queue = $1::text),
    celeriac_1_now()
"""
_APPEND = """
INSERT INTO celeriac_ready SELECT m.queue, m.priority, celeriac_1_now() + u.place, m.id, octet_length(m.blob)
FROM unnest($1::bigint[]) WITH ORDINALITY AS u (id, place) JOIN celeriac_messages AS m ON m.id = u.id
RETURNING celeriac_1_ring(ARRAY[queue], false) IS NULL
"""
_RELEASED = """
WITH dead AS (
    DELETE FROM celeriac_inflight AS f USING celeriac_messages AS m WHERE m.id = f.id AND m.queue = $1::text
        AND NOT EXISTS (SELECT 1 FROM celeriac_workers AS w WHERE w.epoch = f.epoch AND w.expires > celeriac_1_now())
    RETURNING 0 AS place, f.id
), parked AS (
    DELETE FROM celeriac_parked WHERE queue = $1::text RETURNING 1 AS place, id
), scheduled AS (
    DELETE FROM celeriac_schedule WHERE queue = $1::text RETURNING 2 AS place, id
)
SELECT id FROM (SELECT * FROM dead UNION ALL SELECT * FROM parked UNION ALL SELECT * FROM scheduled) AS every
ORDER BY place, id
"""


async def browse(line: Line, where: Place, queue: str, limit: int, cursor: str) -> Page:
    """A page of what lies there, in order. The cursor is the key of the last entry, so nothing shifts it."""
    after = [int(part) for part in (cursor or _FIRST).split(".")]
    rows = await line.run(_LISTS[where], (queue, *after, limit + 1), LONG)
    return page_of(where, rows, limit)


async def _take_out(run: Any, where: Place, queue: str, ids: Sequence[str]) -> list[int]:
    """Take entries out of a list, leaving their messages. Returns those that were there."""
    own = "queue = $1::text"
    if where is Place.IN_FLIGHT:
        own = "id IN (SELECT id FROM celeriac_messages WHERE id = ANY ($2) AND queue = $1::text)"
    numbers = Int8s([int(name) for name in ids if name.isdecimal() and len(name) < 19])
    rows = await run(f"DELETE FROM {_TABLES[where]} WHERE id = ANY ($2) AND {own} RETURNING id", (queue, numbers))
    return sorted(number for (number,) in rows)


async def remove(line: Line, where: Place, queue: str, ids: Sequence[str]) -> int:
    """Delete entries. Returns how many there were."""
    async with line.transaction(LONG) as run:
        numbers = await _take_out(run, where, queue, ids)
        await run("DELETE FROM celeriac_messages WHERE id = ANY ($1)", (Int8s(numbers),))
    return len(numbers)


async def restore(line: Line, where: Place, queue: str, ids: Sequence[str]) -> int:
    """Put scheduled, parked or dead entries to the tail of their queue; dead ones begin anew. Returns how many."""
    if where in (Place.READY, Place.IN_FLIGHT):
        return 0
    async with line.transaction(LONG) as run:
        numbers = await _take_out(run, where, queue, ids)
        if where is Place.DEAD:
            rows = await run("SELECT id, blob FROM celeriac_messages WHERE id = ANY ($1)", (Int8s(numbers),))
            fresh = [(number, begin_anew(blob)) for number, blob in rows]
            await run(
                """UPDATE celeriac_messages AS m SET blob = u.blob
                   FROM unnest($1::bigint[], $2::bytea[]) AS u (id, blob) WHERE m.id = u.id AND m.blob <> u.blob""",
                (Int8s([number for number, _ in fresh]), Byteas([blob for _, blob in fresh])),
            )
        await run(_APPEND, (Int8s(numbers),))
    return len(numbers)


async def count(line: Line, queue: str) -> Counts:
    """How much of a queue lies where."""
    [(ready, scheduled, in_flight, parked, dead, first, now)] = await line.run(_COUNT, (queue, _EARLIER), LONG)
    oldest = None if first is None else max(0.0, (now - first) / 1e6)
    return Counts(ready, scheduled, in_flight, parked, dead, oldest)


async def purge(line: Line, queue: str) -> int:
    """Delete what is ready. Returns how many."""
    rows = await line.run(
        """WITH gone AS (DELETE FROM celeriac_ready WHERE queue = $1::text RETURNING id),
           over AS (DELETE FROM celeriac_messages WHERE id IN (SELECT id FROM gone))
           SELECT count(*) FROM gone""",
        (queue,), LONG,
    )  # fmt: skip
    return int(rows[0][0])


async def release(line: Line, queue: str) -> int:
    """Make ready what is parked, scheduled, or in flight at dead workers. Returns how many."""
    async with line.transaction(LONG) as run:
        numbers = [number for (number,) in await run(_RELEASED, (queue,))]
        await run(_APPEND, (Int8s(numbers),))
    return len(numbers)


_QUEUES = """
WITH RECURSIVE ready AS (
    SELECT min(queue) AS name FROM celeriac_ready
    UNION ALL SELECT (SELECT min(queue) FROM celeriac_ready WHERE queue > name) FROM ready WHERE name IS NOT NULL
), timed AS (
    SELECT min(queue) AS name FROM celeriac_schedule
    UNION ALL SELECT (SELECT min(queue) FROM celeriac_schedule WHERE queue > name) FROM timed WHERE name IS NOT NULL
)
SELECT name FROM (SELECT name FROM celeriac_queues UNION SELECT name FROM ready UNION SELECT name FROM timed) AS named
WHERE name NOT LIKE $1::text ORDER BY name
"""
"""Those that hold messages too: what was sent within a transaction of the user's has put no name down."""


async def queues(line: Line) -> list[str]:
    """Names of all queues ever used, but for those that hold the answers to one process's questions."""
    rows = await line.run(_QUEUES, (REPLIES,))
    return [name for (name,) in rows]


async def cancel(line: Line, ids: Sequence[str], ttl: float) -> None:
    """Put ids on the cancel list. They may hold any character, so they are kept as bytes."""
    async with line.transaction() as run:
        await run("UPDATE celeriac_state SET value = value + 1 WHERE name = 'cancel_version'")
        await run(
            """INSERT INTO celeriac_cancelled SELECT DISTINCT u, celeriac_1_now() + $2::bigint FROM unnest($1) AS u
               ON CONFLICT (id) DO UPDATE SET until = excluded.until""",
            (Byteas([name.encode("utf-8", "surrogatepass") for name in ids]), int(ttl * 1e6)),
        )


async def cancelled(line: Line) -> tuple[int, frozenset[str]]:
    """The version and the ids of the cancel list."""
    [(version, ids)] = await line.run(
        """SELECT value, ARRAY(SELECT id FROM celeriac_cancelled WHERE until > celeriac_1_now())
           FROM celeriac_state WHERE name = 'cancel_version'"""
    )
    return int(version), frozenset(name.decode("utf-8", "surrogatepass") for name in ids)

