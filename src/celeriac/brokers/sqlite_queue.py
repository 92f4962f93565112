"""Publishing, claiming and finishing, as plain calls inside one SQLite transaction. No clock: `now` comes in.

Order: priority (the lower number first), then position. The position of a published message is its id, the time of
its arrival; what comes due gets one below all of those, by its due time. A message that is given back has its old
position still, so it is again where it was: at the head.
"""

from __future__ import annotations

import math
import sqlite3
from collections.abc import Generator, Iterable, Sequence
from contextlib import closing
from functools import lru_cache

from celeriac.drivers import sqlite_chords, sqlite_results
from celeriac.drivers.publish_ids import KNOWN_SECONDS, ONCE_SECONDS, can_come_again
from celeriac.model.message import (
    DONE,
    LOST,
    Ack,
    Completion,
    Dead,
    Delay,
    Delivery,
    Demand,
    Envelope,
    Park,
    Receipt,
    Requeue,
    Return,
    Settlement,
    Verdict,
)

DATA_ERRORS = (
    sqlite3.DataError, sqlite3.IntegrityError, sqlite3.InterfaceError, sqlite3.ProgrammingError,
    ValueError, TypeError, OverflowError,
)  # fmt: skip
"""What is wrong with the values of one message, and no fault of the database."""
EARLIER = 1 << 60
"""Taken off the due time, it makes a position below that of every published message."""
_LATEST = 1 << 59

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
_IDS_AT_ONCE = 512
_AT_ONCE = 2000
"""So many scheduled messages are made ready in one cycle; the others in the next ones."""


def micros(seconds: float) -> int:
    """Seconds since 1970 as whole microseconds, rounded up: what is due must not come early."""
    return max(0, min(math.ceil(seconds * 1e6), _LATEST)) if math.isfinite(seconds) else _nonsense(seconds)


def _nonsense(seconds: float) -> int:
    raise ValueError(f"a time of {seconds} seconds")


def next_id(connection: sqlite3.Connection, now: float) -> int:
    """An id, and a position at the tail, after all that are there."""
    [last] = connection.execute("SELECT max(id) FROM celeriac_messages").fetchone()
    return max(int(now * 1e6), (last or 0) + 1)


# Publishing


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


# Finishing


def finish(
    connection: sqlite3.Connection, finished: Sequence[Completion], now: float, hold: float
) -> list[Verdict]:
    """Carry out completions together; chords that they complete are held for so many seconds. Raises one of DATA_ERRORS
    when one of them can't be; the caller rolls back and calls `finish_singly`."""
    verdicts: list[Verdict] = []
    tags = [None if completion.receipt is None else _parts(completion.receipt.tag) for completion in finished]
    ids = [tag[0] for tag in tags if tag is not None]
    held: dict[int, int] = dict(_for_ids(connection, "SELECT id, claim FROM celeriac_inflight WHERE id IN", ids))
    acknowledged: list[int] = []
    settled: list[int] = []
    stores = []
    envelopes: list[Envelope] = []
    for completion, tag in zip(finished, tags, strict=True):
        if tag is not None and held.get(tag[0]) != tag[1]:
            verdicts.append(LOST)
            continue
        verdict = DONE
        follows = True
        if completion.parts or completion.fire or completion.chords:
            verdict, follows = _chords(connection, completion, now, hold)
        if tag is not None and not verdict.complete:
            number = tag[0]
            del held[number]
            settlement = completion.settlement
            if isinstance(settlement, Ack):
                acknowledged.append(number)
            else:
                _settle(connection, number, settlement, now)
                settled.append(number)
        if follows:
            if completion.store is not None:
                stores.append(completion.store)
            if completion.publish:
                envelopes += completion.publish
        verdicts.append(verdict)
    if acknowledged:
        _for_ids(connection, "DELETE FROM celeriac_messages WHERE id IN", acknowledged)
        settled += acknowledged
    _for_ids(connection, "DELETE FROM celeriac_inflight WHERE id IN", settled)
    if stores:
        sqlite_results.put(connection, stores, now)
    if envelopes:
        publish(connection, envelopes, now, remember=False)
    return verdicts


def _chords(
    connection: sqlite3.Connection, completion: Completion, now: float, hold: float
) -> tuple[Verdict, bool]:
    """End, open and count. Is the rest to be done but for the settlement?"""
    if completion.fire is not None and not sqlite_chords.fire(connection, [completion.fire], now, hold)[0]:
        return DONE, False
    sqlite_chords.open_chords(connection, completion.chords, now)
    held = sqlite_chords.count(connection, completion.parts, now, hold)
    complete = dict.fromkeys(part.group for part, mine in zip(completion.parts, held, strict=True) if mine)
    return Verdict(True, complete=tuple(complete)) if complete else DONE, True


def _for_ids(connection: sqlite3.Connection, statement: str, ids: Sequence[int]) -> list[tuple[int, int]]:
    """Run a statement that ends with `IN` for some ids. The hot path: json_each costs more, for a few ids much more."""
    found: list[tuple[int, int]] = []
    for start in range(0, len(ids), _IDS_AT_ONCE):
        part = ids[start : start + _IDS_AT_ONCE]
        size = 1 << (len(part) - 1).bit_length()  # few different texts, so that they stay prepared
        found += connection.execute(_with_marks(statement, size), (*part, *(None,) * (size - len(part)))).fetchall()
    return found


@lru_cache(maxsize=64)
def _with_marks(statement: str, size: int) -> str:
    return f"{statement} ({', '.join('?' * size)})"


def _parts(tag: str) -> tuple[int, int]:
    """The message and the claim that a receipt's tag names; (-1, 0) for a tag that no claim has made."""
    number, _, claim = tag.partition(".")
    try:
        return int(number), int(claim)
    except ValueError:
        return -1, 0


def _settle(connection: sqlite3.Connection, number: int, settlement: Settlement, now: float) -> None:
    position, queue, priority = connection.execute(
        """SELECT f.position, m.queue, m.priority FROM celeriac_inflight AS f
           JOIN celeriac_messages AS m ON m.id = f.id WHERE f.id = ?""",
        (number,),
    ).fetchone()
    blob: bytes | None = None
    match settlement:
        case Return(blob=blob):
            connection.execute("INSERT INTO celeriac_ready VALUES (?, ?, ?, ?)", (queue, priority, position, number))
        case Requeue(blob=blob):
            tail = next_id(connection, now)
            connection.execute("INSERT INTO celeriac_ready VALUES (?, ?, ?, ?)", (queue, priority, tail, number))
        case Delay(until=until, blob=blob):
            connection.execute("INSERT INTO celeriac_schedule VALUES (?, ?, ?)", (queue, micros(until), number))
        case Park(key=key):
            connection.execute(
                """INSERT INTO celeriac_parked SELECT ?1, ?2, coalesce(max(turn), 0) + 1, ?3, ?4
                   FROM celeriac_parked WHERE queue = ?1 AND key = ?2""",
                (queue, key, number, position),
            )
        case Dead(reason=reason):
            bury(connection, queue, number, reason, now)
        case Ack():
            pass
    if blob is not None:
        connection.execute("UPDATE celeriac_messages SET blob = ? WHERE id = ?", (blob, number))


def bury(connection: sqlite3.Connection, queue: str, number: int, reason: str, now: float) -> None:
    """Put a message among the dead letters of its queue."""
    connection.execute("INSERT INTO celeriac_dead VALUES (?, ?, ?, ?)", (queue, int(now * 1e6), number, reason))


def finish_singly(
    connection: sqlite3.Connection, finished: Sequence[Completion], now: float, hold: float
) -> list[Verdict]:
    """Carry out completions one by one; one that can't be goes to the dead letters with what is wrong with it."""
    verdicts: list[Verdict] = []
    for completion in finished:
        connection.execute("SAVEPOINT one")
        try:
            verdicts += finish(connection, [completion], now, hold)
        except DATA_ERRORS as error:
            connection.execute("ROLLBACK TO one")
            reason = f"{type(error).__name__}: {error}".encode("utf-8", "replace").decode()
            if completion.receipt is not None:
                number, _ = _parts(completion.receipt.tag)
                connection.execute("DELETE FROM celeriac_inflight WHERE id = ?", (number,))
                bury(connection, completion.receipt.queue, number, reason, now)
            verdicts.append(Verdict(False, error=reason))
        connection.execute("RELEASE one")
    return verdicts


# Claiming


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
