"""Result documents as rows: one transaction for a batch, upserts that respect a SUCCESS."""

from __future__ import annotations

import os
import random
import threading
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from functools import partial
from typing import Any, TypeVar

import sqlalchemy as sa
from sqlalchemy.dialects import mysql, postgresql, sqlite
from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from celeriac.backends.blocking import Ear
from celeriac.backends.keys import lost_entry
from celeriac.backends.sql.chords import SqlShelf
from celeriac.backends.sql.engine import failure, is_about_data, is_transient, one_line, open_engine, parse
from celeriac.backends.sql.tables import Tables
from celeriac.drivers.shelf_chords import ShelfChords
from celeriac.errors import BackendStoreError, RefusedError
from celeriac.model.message import DONE, LOST, Store, Verdict
from celeriac.wire import row

T = TypeVar("T")

AT_ONCE = 500
"""Ids in one query."""
TRIES = 8
"""How often a transaction is tried that ends in a deadlock."""
EARS = 8
"""How many in one process may listen at once."""
CHANNEL = "celeriac_sql_results"
"""On which PostgreSQL tells the ids of what was stored, with commas."""
_PAYLOAD = 7900
_MYSQL = ("mysql", "mariadb")
_SUCCESS: sa.ColumnElement[str] = sa.literal_column("'SUCCESS'")  # no parameter: see `_Statements._number`


class SqlStore:
    """See `blocking.BlockingStore`."""

    persistent = True

    def __init__(self, url: str, options: Mapping[str, Any], clock: Callable[[], float] | None = None) -> None:
        """`options`: serializer, expires (seconds), extended, and the `database_` settings without that. `clock`: in
        place of the database's. Raises ImproperlyConfigured."""
        self.url = parse(url)
        self._options = options
        self._serializer = str(options.get("serializer") or "json")
        self._expires: float | None = options.get("expires")
        self._clock = clock or (time.time if self.url.drivername.startswith("sqlite") else None)
        self._lock = threading.Lock()
        self._ears = threading.Semaphore(EARS)
        self._engine: sa.Engine | None = None
        self._tables = Tables(options)
        self._pid = os.getpid()
        self._open()  # a wrong URL, option or missing driver is told at once

    def describe(self) -> str:
        """The URL without its password."""
        return f"db+{self.url.render_as_string(hide_password=True)}"

    def _open(self) -> sa.Engine:
        engine = open_engine(self.url, self._options, self.describe())
        self._statements = _Statements(self._tables, engine.dialect.name)
        return engine

    def _connected(self) -> sa.Engine:
        if self._pid != os.getpid():  # forked: the connections are the parent's
            self._pid, self._lock, self._ears = os.getpid(), threading.Lock(), threading.Semaphore(EARS)
            if self._engine is not None:
                self._engine.dispose(close=False)
        engine = self._engine
        if engine is None:
            with self._lock:
                engine = self._engine
                if engine is None:
                    engine = self._open()
                    self._tables.prepare(engine)
                    self._statements.columns = self._tables.columns
                    self._engine = engine
        return engine

    def _run(self, work: Callable[[sa.Connection], T], *, writes: bool = True) -> T:
        """One transaction. Raises OperationalError; for values that can't be stored what the driver raises."""

        def once(engine: sa.Engine) -> T:
            with engine.connect() as plain:
                connection = plain.execution_options(celeriac_writes=True) if writes else plain
                with connection.begin():
                    return work(connection)

        return self._try(once)

    def _try(self, work: Callable[[sa.Engine], T]) -> T:
        tries = 0
        while True:
            tries += 1
            try:
                return work(self._connected())
            except DBAPIError as error:
                if is_about_data(error):
                    raise
                again = is_transient(error) or (error.connection_invalidated and tries == 1)
                if not again or tries >= TRIES:
                    raise failure(self.describe(), error) from None
                time.sleep(random.uniform(0.0, 0.01) * tries)
            except SQLAlchemyError as error:
                raise failure(self.describe(), error) from None

    def prepare(self) -> None:
        """Make the tables now, where they are missing."""
        self._run(lambda _: None, writes=False)

    # The clock

    def _now(self, connection: sa.Connection) -> float:
        if self._clock is not None:
            return self._clock()
        question = (
            "SELECT extract(epoch FROM clock_timestamp())"
            if connection.dialect.name == "postgresql"
            else "SELECT unix_timestamp(sysdate(6))"
        )
        return float(connection.execute(sa.text(question)).scalar_one())

    def clock(self) -> float:
        """The database's clock; with SQLite the machine's."""
        return self._clock() if self._clock is not None else self._run(self._now, writes=False)

    # Results

    def store(self, stores: Sequence[Store], deadline: float | None = None) -> list[Verdict]:
        """Store documents in one transaction; when one of them can't be, each in its own."""
        if not stores:
            return []
        if any(not _fits(store.id) for store in stores):
            if len(stores) > 1:
                return [verdict for each in stores for verdict in self.store([each], deadline)]
            return [Verdict(False, error=f"{stores[0].id[:200]!r} can't be the id of a row")]
        rows = _merged(stores, self._serializer)

        def work(connection: sa.Connection) -> bool:
            self._statements.upsert(connection, rows)
            # Only now: to wait for other writers may have taken long.
            if deadline is not None and self._now(connection) > deadline:
                connection.rollback()
                return False
            if connection.dialect.name == "postgresql":
                _tell(connection, [store.id for store in stores])
            return True

        try:
            return [DONE if self._run(work) else LOST] * len(stores)
        except (DBAPIError, ValueError, TypeError) as error:
            if not is_about_data(error):
                raise
            if len(stores) == 1:
                return [Verdict(False, error=f"{type(error).__name__}: {one_line(error)}")]
            return [verdict for each in stores for verdict in self.store([each], deadline)]

    def fetch(self, ids: Collection[str]) -> dict[str, bytes]:
        """Documents of those ids that have a row."""
        wanted = [name for name in dict.fromkeys(ids) if _fits(name)]
        found: dict[str, bytes] = {}

        def work(connection: sa.Connection) -> None:
            for start in range(0, len(wanted), AT_ONCE):
                batch = wanted[start : start + AT_ONCE]
                for each in connection.execute(self._statements.select, {"ids": batch}):
                    values = each._mapping
                    task_id = values["task_id"]
                    stored = row.Row(**{name: values[name] for name in values if name != "task_id"})
                    found[task_id] = row.join(task_id, stored, self._serializer)

        if wanted:
            self._run(work, writes=False)
        return {name: found[name] for name in wanted if name in found}  # MySQL finds `A` for `a`

    def forget(self, ids: Sequence[str]) -> None:
        """Delete rows."""
        task = self._tables.task
        wanted = list(filter(_fits, ids))
        self._run(lambda connection: connection.execute(sa.delete(task).where(task.c.task_id.in_(wanted))))

    def clean_up(self, limit: int | None = None) -> int:
        """Delete rows whose results ended longer ago than `result_expires`, and chords whose time is over."""
        return self._run(lambda connection: self._clean(connection, limit or AT_ONCE))

    def _clean(self, connection: sa.Connection, limit: int) -> int:
        now = self._now(connection)
        deleted = SqlShelf(connection, self._tables, lambda: now).clean_up(limit)
        if self._expires:
            before = _moment(now - self._expires)
            for table in (self._tables.task, self._tables.group):
                old = sa.select(table.c.id).where(table.c.date_done < before).limit(limit)
                if ids := connection.execute(old).scalars().all():
                    gone = sa.delete(table).where(table.c.id.in_(ids), table.c.date_done < before)
                    deleted += connection.execute(gone).rowcount
        return deleted

    # Groups

    def save_group(self, group_id: str, document: bytes, expires: float | None) -> None:
        """Keep a group's document."""
        blob = row.split_group(document, self._serializer)
        try:
            self._run(lambda connection: self._save_group(connection, group_id, blob))
        except (DBAPIError, ValueError) as error:
            raise BackendStoreError(f"{self.describe()}: {one_line(error)}") from None

    def _save_group(self, connection: sa.Connection, group_id: str, blob: bytes) -> None:
        values = {"taskset_id": group_id, "result": blob, "date_done": _moment(self._now(connection))}
        connection.execute(self._statements.upsert_group, [values])

    def fetch_group(self, group_id: str) -> bytes | None:
        """A group's document."""
        if not _fits(group_id):
            return None
        return self._run(lambda connection: self._fetch_group(connection, group_id), writes=False)

    def _fetch_group(self, connection: sa.Connection, group_id: str) -> bytes | None:
        group = self._tables.group
        found = connection.execute(sa.select(group.c.result).where(group.c.taskset_id == group_id)).first()
        return None if found is None else row.join_group(group_id, found[0], self._serializer)

    def forget_group(self, group_id: str) -> None:
        """Delete a group's document."""
        if not _fits(group_id):
            return
        group = self._tables.group
        self._run(lambda connection: connection.execute(sa.delete(group).where(group.c.taskset_id == group_id)))

    # Chords

    def with_chords(self, work: Callable[[ShelfChords], T]) -> T:
        """Do something with the chords, in one transaction."""

        def inside(connection: sa.Connection) -> T:
            now = self._now(connection)
            shelf = SqlShelf(
                connection,
                self._tables,
                lambda: now,
                lambda group, document: self._save_group(
                    connection, group, row.split_group(document, self._serializer)
                ),
                lambda group: self._fetch_group(connection, group) if _fits(group) else None,
            )
            return work(ShelfChords(shelf, partial(lost_entry, serializer=self._serializer)))

        try:
            return self._run(inside)
        except (DBAPIError, ValueError) as error:
            raise RefusedError(f"{self.describe()}: {one_line(error)}") from None

    # Waiting

    def ear(self) -> Ear | None:
        """With PostgreSQL and psycopg: what `store` tells. Each has a connection of its own, so there are only so many;
        who comes later looks."""
        if self.url.drivername != "postgresql+psycopg":
            return None
        from celeriac.backends.sql.ear import PostgresEar

        ears = self._ears
        if not ears.acquire(blocking=False):
            return None
        try:
            return self._try(lambda engine: PostgresEar(engine, CHANNEL, ears.release))
        except BaseException:
            ears.release()
            raise

    def close(self) -> None:
        """Close all connections. The next use opens others."""
        with self._lock:
            engine, self._engine = self._engine, None
        if engine is not None:
            engine.dispose(close=self._pid == os.getpid())


def _fits(name: str) -> bool:
    """Can a row have this id? Others need not be looked for, and a driver would stumble over them."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return len(name) <= row.TEXT_LIMIT and "\0" not in name


def _moment(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC).replace(tzinfo=None)


def _merged(stores: Iterable[Store], serializer: str) -> dict[bool, dict[str, row.Row]]:
    """Guarded or not -> id -> row: of several documents of one id that which stands in the end."""
    last: dict[str, Store] = {}
    for store in stores:
        before = last.get(store.id)
        if before is not None and store.guard:
            if before.state == "SUCCESS":
                continue
            if not before.guard:  # it would have taken the place of anything
                store = Store(store.id, store.document, store.state, store.expires)
        last[store.id] = store
    rows: dict[bool, dict[str, row.Row]] = {False: {}, True: {}}
    for task_id in sorted(last):  # all writers lock rows in the same order
        rows[last[task_id].guard][task_id] = row.split(last[task_id].document, last[task_id].state, serializer)
    return rows


def _tell(connection: sa.Connection, ids: Sequence[str]) -> None:
    text = ""
    texts = []
    for name in ids:
        if len(text) + len(name) * 4 > _PAYLOAD:
            texts.append(text)
            text = ""
        if len(name) * 4 <= _PAYLOAD:
            text += f",{name}" if text else name
    for each in (*texts, text):
        connection.execute(_NOTIFY, {"channel": CHANNEL, "ids": each})


_NOTIFY = sa.text("SELECT pg_notify(:channel, :ids)")


class _Statements:
    """The statements of one dialect."""

    def __init__(self, tables: Tables, dialect: str) -> None:
        self._tables = tables
        self._dialect = dialect
        self.columns = frozenset()
        self.upsert_group = self._upsert_of(tables.group, "taskset_id", ("result", "date_done"), None)

    @property
    def columns(self) -> frozenset[str]:
        """Columns of LATER that there are."""
        return self._columns

    @columns.setter
    def columns(self, columns: frozenset[str]) -> None:
        task = self._tables.task
        self._columns = columns
        names = ["result", "date_done", "traceback", *sorted(columns), "status"]  # MySQL: what is asked for comes last
        self._names = names
        self._upserts = {
            guard: self._upsert_of(task, "task_id", names, task.c.status if guard else None) for guard in (False, True)
        }
        chosen = [task.c.task_id, *(task.c[name] for name in names)]
        self.select = sa.select(*chosen).where(task.c.task_id.in_(sa.bindparam("ids", expanding=True)))

    def upsert(self, connection: sa.Connection, rows: Mapping[bool, Mapping[str, row.Row]]) -> None:
        """Store rows."""
        for guard, some in rows.items():
            values = [
                {"task_id": task_id, **{name: getattr(each, name) for name in self._names}}
                for task_id, each in some.items()
            ]
            if len(values) > 1 and self._dialect in _MYSQL:
                self._number(connection, values)
            if values:
                connection.execute(self._upserts[guard], values)

    def _number(self, connection: sa.Connection, values: Sequence[dict[str, Any]]) -> None:
        """MariaDB: give rows their numbers. PyMySQL sends rows at once only where they hold nothing but parameters."""
        default = self._tables.task.c.id.default
        if isinstance(default, sa.Sequence) and connection.dialect.supports_sequences:
            name = connection.dialect.identifier_preparer.format_sequence(default)
            numbers = connection.execute(sa.text(f"SELECT nextval({name}) FROM seq_1_to_{len(values)}")).scalars()
            for each, number in zip(values, numbers, strict=True):
                each["id"] = number

    def _upsert_of(
        self, table: sa.Table, key: str, names: Sequence[str], status: sa.ColumnElement[Any] | None
    ) -> sa.Insert:
        if self._dialect in _MYSQL:
            into = mysql.insert(table)
            mine = table.c[key] == into.inserted[key]  # and not another row, that happens to have the new one's number
            if status is not None:
                mine = mine & (sa.func.coalesce(status, sa.literal_column("''")) != _SUCCESS)
            new = [(name, sa.func.IF(mine, into.inserted[name], table.c[name])) for name in names]
            return into.on_duplicate_key_update(new)
        make: Any = postgresql.insert if self._dialect == "postgresql" else sqlite.insert
        insert = make(table)
        upsert: sa.Insert = insert.on_conflict_do_update(
            index_elements=[table.c[key]],
            set_={name: insert.excluded[name] for name in names},
            where=None if status is None else sa.or_(status.is_(None), status != _SUCCESS),
        )
        return upsert
