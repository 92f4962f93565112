"""Chords in two tables of our own, within one transaction."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence

import sqlalchemy as sa
from sqlalchemy.dialects import mysql, postgresql, sqlite

from celeriac.backends.sql.tables import Tables
from celeriac.drivers.shelf_chords import Written

AT_ONCE = 500


class SqlShelf:
    """See `shelf_chords.Shelf`."""

    def __init__(
        self,
        connection: sa.Connection,
        tables: Tables,
        clock: Callable[[], float],
        save_group: Callable[[str, bytes], None] = lambda *_: None,
        fetch_group: Callable[[str], bytes | None] = lambda _: None,
    ) -> None:
        self._connection = connection
        self._chord, self._entry = tables.chord, tables.entry
        self.clock = clock
        self._save_group = save_group
        self._fetch_group = fetch_group

    def _insert_or_leave(self, table: sa.Table) -> sa.Insert:
        name = self._connection.dialect.name
        if name in ("mysql", "mariadb"):
            return mysql.insert(table).prefix_with("IGNORE")
        if name == "postgresql":
            return postgresql.insert(table).on_conflict_do_nothing()
        return sqlite.insert(table).on_conflict_do_nothing()

    def change(self, group: str, work: Callable[[bytes | None], Written | None]) -> None:
        """Give a chord's document to `work` and keep what it gives back. The row is locked until the end."""
        chord = self._chord
        query = sa.select(chord.c.document).where(chord.c.id == group).with_for_update()
        found = self._connection.execute(query).first()
        if found is None:
            empty = {"id": group, "document": b"", "moved": None, "expires": 0.0}
            self._connection.execute(self._insert_or_leave(chord), [empty])
            found = self._connection.execute(query).first()
        written = work(found[0] or None if found else None)
        if written is not None:
            expires = None if math.isinf(written.expires) else written.expires
            values = {"document": written.document, "moved": written.moved, "expires": expires}
            self._connection.execute(sa.update(chord).where(chord.c.id == group).values(values))

    def read(self, group: str) -> bytes | None:
        """A chord's document."""
        chord = self._chord
        found = self._connection.execute(sa.select(chord.c.document).where(chord.c.id == group)).first()
        return found[0] or None if found else None

    def keep(self, group: str, entries: Mapping[str, bytes]) -> None:
        """Keep what members gave; where there is something already, that stays."""
        rows = [{"chord": group, "member": member, "entry": entries[member]} for member in sorted(entries)]
        self._connection.execute(self._insert_or_leave(self._entry), rows)

    def kept(self, group: str, members: Sequence[str]) -> Mapping[str, bytes]:
        """What those of these members gave of whom there is something."""
        entry = self._entry
        query = sa.select(entry.c.member, entry.c.entry).where(entry.c.chord == group)
        wanted = frozenset(members)
        return {member: given for member, given in self._connection.execute(query) if member in wanted}

    def drop(self, group: str, members: Iterable[str]) -> None:
        """Forget what members gave."""
        entry = self._entry
        wanted = list(members)
        for start in range(0, len(wanted), AT_ONCE):
            batch = wanted[start : start + AT_ONCE]
            self._connection.execute(sa.delete(entry).where(entry.c.chord == group, entry.c.member.in_(batch)))

    def oldest(self, before: float, limit: int) -> Sequence[str]:
        """Chords that are not done and have not moved since `before`, the oldest first."""
        chord = self._chord
        over = sa.or_(chord.c.expires.is_(None), chord.c.expires > self.clock())
        query = sa.select(chord.c.id).where(chord.c.moved <= before, over).order_by(chord.c.moved, chord.c.id)
        return self._connection.execute(query.limit(max(limit, 0))).scalars().all()

    def structure(self, group: str, document: bytes, expires: float) -> None:
        """Save a group's document."""
        self._save_group(group, document)

    def renew_structure(self, group: str, expires: float) -> None:
        """Rows stay until they are cleaned up."""

    def read_structure(self, group: str) -> bytes | None:
        """A group's document."""
        return self._fetch_group(group)

    def clean_up(self, limit: int) -> int:
        """Delete chords whose time is over."""
        chord, entry = self._chord, self._entry
        now = self.clock()
        over = sa.select(chord.c.id).where(chord.c.expires < now).limit(limit).with_for_update()
        groups = self._connection.execute(over).scalars().all()
        if groups:
            self._connection.execute(sa.delete(entry).where(entry.c.chord.in_(groups)))
            self._connection.execute(sa.delete(chord).where(chord.c.id.in_(groups)))
        return len(groups)
