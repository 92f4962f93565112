"""Taking messages in, as plain calls inside one SQLite transaction. No clock: `now` comes in.

Order: priority (the lower number first), then position. The position of a published message is its id, the time of
its arrival.
"""

from __future__ import annotations

import math
import sqlite3
from collections.abc import Iterable, Sequence

from celeriac.drivers.publish_ids import KNOWN_SECONDS, ONCE_SECONDS, can_come_again
from celeriac.model.message import Envelope

DATA_ERRORS = (
    sqlite3.DataError, sqlite3.IntegrityError, sqlite3.InterfaceError, sqlite3.ProgrammingError,
    ValueError, TypeError, OverflowError,
)  # fmt: skip
"""What is wrong with the values of one message, and no fault of the database."""
_LATEST = 1 << 59


def micros(seconds: float) -> int:
    """Seconds since 1970 as whole microseconds, rounded up: what is due must not come early."""
    return max(0, min(math.ceil(seconds * 1e6), _LATEST)) if math.isfinite(seconds) else _nonsense(seconds)


def _nonsense(seconds: float) -> int:
    raise ValueError(f"a time of {seconds} seconds")


def next_id(connection: sqlite3.Connection, now: float) -> int:
    """An id, and a position at the tail, after all that are there."""
    [last] = connection.execute("SELECT max(id) FROM celeriac_messages").fetchone()
    return max(int(now * 1e6), (last or 0) + 1)


def publish(connection: sqlite3.Connection, envelopes: Sequence[Envelope], now: float, *, remember: bool) -> None:
    """Take envelopes in. `remember`: drop those whose publish id was seen; needless where a fence stands before, except
    for what is to be published once."""
    if any(envelope.once or (remember and can_come_again(envelope.publish_id)) for envelope in envelopes):
        envelopes = [each for each in envelopes if _is_new(connection, each, now, remember)]
    first = next_id(connection, now)
    timed: list[tuple[str, int, int]] = []
    messages: list[tuple[int, str, int, bytes]] = []
    number = first
    for envelope in envelopes:
        envelope.id.encode()  # a message that can't be named can't be run
        messages.append((number, envelope.queue, envelope.priority, envelope.blob))
        if envelope.not_before is not None:
            timed.append((envelope.queue, micros(envelope.not_before), number))
        number += 1
    connection.executemany("INSERT INTO celeriac_messages VALUES (?, ?, ?, ?)", messages)
    if timed:
        connection.executemany("INSERT INTO celeriac_schedule VALUES (?, ?, ?)", timed)
        later = {number for _, _, number in timed}
        connection.executemany(
            "INSERT INTO celeriac_ready VALUES (?1, ?2, ?3, ?3)",
            [(queue, priority, number) for number, queue, priority, _ in messages if number not in later],
        )
    else:
        connection.execute(
            "INSERT INTO celeriac_ready SELECT queue, priority, id, id FROM celeriac_messages WHERE id >= ?", (first,)
        )


def _is_new(connection: sqlite3.Connection, envelope: Envelope, now: float, remember: bool) -> bool:
    if not (envelope.once or (remember and can_come_again(envelope.publish_id))):
        return True
    kept = ONCE_SECONDS if envelope.once else KNOWN_SECONDS
    return (
        connection.execute(
            """INSERT INTO celeriac_published VALUES (?1, ?2) ON CONFLICT (publish_id) DO UPDATE
               SET until = excluded.until WHERE until <= ?3""",
            (envelope.publish_id, int((now + kept) * 1e6), int(now * 1e6)),
        ).rowcount
        == 1
    )


def name_queues(connection: sqlite3.Connection, queues: Iterable[str]) -> None:
    """Remember the names of queues."""
    connection.executemany("INSERT OR IGNORE INTO celeriac_queues VALUES (?)", [(name,) for name in queues])
