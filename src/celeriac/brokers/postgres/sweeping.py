"""Deleting what is over, and keeping the hot tables small: by one worker at a time, on a connection made for it."""

from __future__ import annotations

import asyncio
import logging
import time

from celeriac.drivers.postgres.line import Line
from celeriac.drivers.postgres.lines import LONG, Lines
from celeriac.errors import CeleryError

log = logging.getLogger("celeriac.postgres")

REPLIES = "%.reply.celery.pidbox"
"""The queues in which workers answer, as kombu names them: one for each process that asks."""
_TIDY_SECONDS = 10.0
_BUDGET = 5.0
"""Seconds at most in a row, in transactions of one chunk."""
_VACUUM_AFTER = 20_000
"""Settled messages after which the hot tables are vacuumed. The server itself looks once a minute: by then each claim
would step over a million dead entries at the head of the index."""
_VACUUM = """
VACUUM (TRUNCATE FALSE, INDEX_CLEANUP ON) celeriac_ready, celeriac_inflight, celeriac_messages, celeriac_schedule
"""
_MINE = """
UPDATE celeriac_state SET value = celeriac_1_now() WHERE name = $1::text AND value < celeriac_1_now() - $2::bigint
RETURNING 1
"""
_OVER = """
DELETE FROM {table} WHERE ctid = ANY (ARRAY(
    SELECT ctid FROM {table} WHERE {column} <= celeriac_1_now() - {late} LIMIT 5000 FOR UPDATE SKIP LOCKED
)) RETURNING 1
"""
_TABLES = (
    ("celeriac_results", "expires", 0), ("celeriac_groups", "expires", 0), ("celeriac_published", "until", 0),
    ("celeriac_cancelled", "until", 0), ("celeriac_waiting", "until", 3_600_000_000),
    ("celeriac_notices", "at", 60_000_000),
)  # fmt: skip
_CHORDS = """
WITH gone AS (
    DELETE FROM celeriac_chords WHERE ctid = ANY (ARRAY(
        SELECT ctid FROM celeriac_chords WHERE expires <= celeriac_1_now() LIMIT 1000 FOR UPDATE SKIP LOCKED
    )) RETURNING id
), bodies AS (
    DELETE FROM celeriac_chord_bodies WHERE id IN (SELECT id FROM gone)
), parts AS (
    DELETE FROM celeriac_chord_parts WHERE chord IN (SELECT id FROM gone)
), added AS (
    DELETE FROM celeriac_chord_added WHERE chord IN (SELECT id FROM gone)
)
SELECT 1 FROM gone
"""
_REPLIES = """
WITH late AS (
    DELETE FROM celeriac_ready WHERE queue IN (SELECT name FROM celeriac_queues WHERE name LIKE $1)
        AND position <= celeriac_1_now() - 60000000 RETURNING id
)
DELETE FROM celeriac_messages WHERE id IN (SELECT id FROM late)
"""
_NO_REPLIES = """
DELETE FROM celeriac_queues AS q WHERE name LIKE $1
    AND NOT EXISTS (SELECT 1 FROM celeriac_ready AS r WHERE r.queue = q.name)
"""
_DEAD = """
WITH many AS (
    SELECT queue, count(*) - $1::bigint AS number FROM celeriac_dead GROUP BY queue HAVING count(*) > $1::bigint
), oldest AS (
    SELECT m.queue, d.id FROM many AS m CROSS JOIN LATERAL (
        SELECT id FROM celeriac_dead WHERE queue = m.queue ORDER BY died, id LIMIT m.number
    ) AS d
), gone AS (
    DELETE FROM celeriac_dead WHERE id IN (SELECT id FROM oldest)
), over AS (
    DELETE FROM celeriac_messages WHERE id IN (SELECT id FROM oldest)
)
SELECT queue, count(*) FROM oldest GROUP BY queue
"""


class Sweeps:
    """When this worker is to sweep."""

    def __init__(self, lines: Lines, dead_limit: int) -> None:
        self._lines = lines
        self._dead_limit = dead_limit
        self.settled = 0
        """Messages since the last vacuum."""
        self._next = time.monotonic() + _TIDY_SECONDS
        self._sweeping: asyncio.Task[None] | None = None
        self._told = False

    def begin(self) -> None:
        """Sweep beside what runs, if it is time."""
        now = time.monotonic()
        if self._sweeping is None and (now >= self._next or self.settled >= _VACUUM_AFTER):
            self._next = now + _TIDY_SECONDS
            self._sweeping = asyncio.create_task(self._sweep())
            self._sweeping.add_done_callback(self._swept)

    def _swept(self, _: object) -> None:
        self._sweeping = None

    async def _sweep(self) -> None:
        line: Line | None = None
        try:
            if self.settled >= _VACUUM_AFTER:
                self.settled = 0
                if await self._lines.side.run(_MINE, ("vacuumed", 3_000_000)):
                    line = Line(self._lines.site)
                    await line.run(_VACUUM, (), LONG)
            if await self._lines.side.run(_MINE, ("tidied", int(_TIDY_SECONDS * 0.9e6))):
                line = line or Line(self._lines.site)
                await tidy(line, self._dead_limit)
        except CeleryError as error:
            if not self._told:  # the connection itself is others' care; a right that is missing stays so
                self._told = True
                log.warning("what is over could not be swept: %s", error)
        finally:
            if line is not None:
                await line.close()

    async def stop(self) -> None:
        """End what runs."""
        sweeping = self._sweeping
        if sweeping is not None:
            sweeping.cancel()
            await asyncio.wait([sweeping])


async def tidy(line: Line, dead_limit: int) -> None:
    """Delete what is of no use any more: what is over, answers that nobody came for, and the oldest dead letters of a
    queue that has more than so many (0: no limit)."""
    end = time.monotonic() + _BUDGET
    for table, column, late in _TABLES:
        statement = _OVER.format(table=table, column=column, late=late)
        gone = found = len(await line.run(statement, (), LONG))
        while found == 5000 and time.monotonic() < end:
            found = len(await line.run(statement, (), LONG))
            gone += found
        if gone >= _VACUUM_AFTER:
            await line.run(f"VACUUM (TRUNCATE FALSE) {table}", (), LONG)
    while len(await line.run(_CHORDS, (), LONG)) == 1000 and time.monotonic() < end:
        pass
    await line.run(_REPLIES, (REPLIES,), LONG)
    await line.run(_NO_REPLIES, (REPLIES,), LONG)
    if dead_limit:
        for queue, number in await line.run(_DEAD, (dead_limit,), LONG):
            log.warning("%s: more than %s dead letters; the oldest %s are deleted", queue, dead_limit, number)
