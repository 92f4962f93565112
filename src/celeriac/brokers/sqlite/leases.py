"""Leases of workers, and what becomes of what they hold, as plain calls inside one SQLite transaction."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence

from celeriac.brokers.losses import after_lost_worker
from celeriac.model.message import Receipt

_PUT_BACK = """
INSERT INTO celeriac_ready (queue, priority, position, id)
SELECT m.queue, m.priority, f.position, f.id FROM celeriac_inflight AS f JOIN celeriac_messages AS m ON m.id = f.id
WHERE f.epoch = ?1
"""
_STATE = """
SELECT (SELECT value FROM celeriac_state WHERE name = 'cancel_version'),
       (SELECT expires FROM celeriac_workers WHERE epoch = ?1)
"""


def hold_lease(connection: sqlite3.Connection, epoch: str, now: float, lease: float) -> int:
    """See that a worker that claims has a lease: without one nobody would ever give back what it claims. Returns the
    version of the cancel list, which lies on the way."""
    version, expires = connection.execute(_STATE, (epoch,)).fetchone()
    if expires is None or expires <= now * 1e6:
        _set_lease(connection, epoch, now, lease)
    return version or 0


def _set_lease(connection: sqlite3.Connection, epoch: str, now: float, lease: float) -> None:
    connection.execute("INSERT OR REPLACE INTO celeriac_workers VALUES (?, ?)", (epoch, int((now + lease) * 1e6)))


def renew(connection: sqlite3.Connection, epoch: str, running: Sequence[Receipt], now: float, lease: float) -> bool:
    """Prolong a lease and mark what runs. False: the lease had been taken away."""
    stood = connection.execute("SELECT 1 FROM celeriac_workers WHERE epoch = ?", (epoch,)).fetchone() is not None
    _set_lease(connection, epoch, now, lease)
    tags = {receipt.tag for receipt in running}
    marks = connection.execute("SELECT id, claim, running FROM celeriac_inflight WHERE epoch = ?", (epoch,)).fetchall()
    changed = [
        (int(runs), number) for number, claim, marked in marks if (runs := f"{number}.{claim}" in tags) != bool(marked)
    ]
    connection.executemany("UPDATE celeriac_inflight SET running = ? WHERE id = ?", changed)
    return stood


def dead_workers(connection: sqlite3.Connection, epoch: str, now: float) -> list[str]:
    """The epochs whose lease has ended, other than one's own."""
    rows = connection.execute("SELECT epoch FROM celeriac_workers WHERE expires <= ?", (int(now * 1e6),))
    return [dead for (dead,) in rows if dead != epoch]


def recover(connection: sqlite3.Connection, epoch: str, now: float) -> int:
    """Give back what a dead worker held, with one more loss in what it ran. 0 if another was first, or it lives."""
    ended = connection.execute(
        "DELETE FROM celeriac_workers WHERE epoch = ? AND expires <= ?", (epoch, int(now * 1e6))
    ).rowcount
    if not ended:
        return 0
    held = connection.execute(
        """SELECT m.blob, m.id, f.running FROM celeriac_inflight AS f JOIN celeriac_messages AS m ON m.id = f.id
           WHERE f.epoch = ?""",
        (epoch,),
    ).fetchall()
    marked = [(after_lost_worker(blob, bool(ran)), number) for blob, number, ran in held]
    connection.executemany("UPDATE celeriac_messages SET blob = ? WHERE id = ?", marked)
    return give_back(connection, epoch)


def give_back(connection: sqlite3.Connection, epoch: str) -> int:
    """Put all that an epoch holds back to where it was. Returns how many."""
    connection.execute(_PUT_BACK, (epoch,))
    return connection.execute("DELETE FROM celeriac_inflight WHERE epoch = ?", (epoch,)).rowcount


def adopt(connection: sqlite3.Connection, epoch: str, known: set[str]) -> int:
    """Put what an epoch holds, but whose receipts are not known, back to where it was. Returns how many."""
    held = connection.execute("SELECT id, claim FROM celeriac_inflight WHERE epoch = ?", (epoch,)).fetchall()
    stray = [(number,) for number, claim in held if f"{number}.{claim}" not in known]
    connection.executemany(f"{_PUT_BACK.replace('f.epoch', 'f.id')}", stray)
    connection.executemany("DELETE FROM celeriac_inflight WHERE id = ?", stray)
    return len(stray)


def standing(connection: sqlite3.Connection, epoch: str) -> set[str]:
    """The tags of what an epoch holds."""
    held = connection.execute("SELECT id, claim FROM celeriac_inflight WHERE epoch = ?", (epoch,))
    return {f"{number}.{claim}" for number, claim in held}


def leave(connection: sqlite3.Connection, epoch: str) -> None:
    """Give back what an epoch holds, and end its lease."""
    give_back(connection, epoch)
    connection.execute("DELETE FROM celeriac_workers WHERE epoch = ?", (epoch,))
