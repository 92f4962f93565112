"""What becomes of messages that were claimed, as plain calls inside one SQLite transaction. No clock: `now` comes in.

A message that is given back has its old position still, so it is again where it was: at the head.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from functools import lru_cache

from celeriac.brokers.sqlite.publishing import DATA_ERRORS, micros, next_id, publish
from celeriac.drivers import sqlite_chords, sqlite_results
from celeriac.model.message import (
    DONE,
    LOST,
    Ack,
    Completion,
    Dead,
    Delay,
    Envelope,
    Park,
    Requeue,
    Return,
    Settlement,
    Verdict,
)

_IDS_AT_ONCE = 512


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
