"""The tables: Celery's, column by column as its 5.7 makes them, and two of our own for chords."""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Mapping
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects.mysql import LONGBLOB, LONGTEXT
from sqlalchemy.exc import SQLAlchemyError

log = logging.getLogger("celeriac.backends")

# MySQL's BLOB and TEXT end at 64 KiB.
_BLOB = sa.LargeBinary().with_variant(LONGBLOB(), "mysql", "mariadb")
_TEXT = sa.Text().with_variant(LONGTEXT(), "mysql", "mariadb")
_NAME = sa.String(255).with_variant(sa.String(255, collation="utf8mb4_bin"), "mysql", "mariadb")
EXTENDED = ("name", "args", "kwargs", "worker", "retries", "queue", "stamps")
"""Columns that are made where `result_extended` is set."""
LATER = ("children", *EXTENDED)
"""Columns that a table of an older Celery, or of one without `result_extended`, may lack."""


def _task(metadata: sa.MetaData, name: str | None, schema: str | None, extended: bool) -> sa.Table:
    more = (
        sa.Column("name", sa.String(155)),
        sa.Column("args", _BLOB),
        sa.Column("kwargs", _BLOB),
        sa.Column("worker", sa.String(155)),
        sa.Column("retries", sa.Integer),
        sa.Column("queue", sa.String(155)),
        sa.Column("stamps", _BLOB),
    )
    return sa.Table(
        name or "celery_taskmeta",
        metadata,
        sa.Column(
            "id", sa.Integer, sa.Sequence("task_id_sequence", schema=schema), primary_key=True, autoincrement=True
        ),
        sa.Column("task_id", sa.String(155), unique=True),
        sa.Column("status", sa.String(50)),
        sa.Column("result", _BLOB),
        sa.Column("date_done", sa.DateTime, index=True),
        sa.Column("traceback", _TEXT),
        sa.Column("children", _BLOB),
        *(more if extended else ()),
        schema=schema,
        sqlite_autoincrement=True,
    )


TRIES = 10
"""How often it is tried to make the tables."""


class Tables:
    """Names and schemas as the settings say."""

    def __init__(self, options: Mapping[str, Any]) -> None:
        names, schemas = options.get("table_names") or {}, options.get("table_schemas") or {}
        self.metadata = sa.MetaData()
        self.extended = bool(options.get("extended"))
        self.task = _task(self.metadata, names.get("task"), schemas.get("task"), True)
        self.group = sa.Table(
            names.get("group") or "celery_tasksetmeta",
            self.metadata,
            sa.Column(
                "id", sa.Integer, sa.Sequence("taskset_id_sequence", schema=schemas.get("group")),
                primary_key=True, autoincrement=True,
            ),
            sa.Column("taskset_id", sa.String(155), unique=True),
            sa.Column("result", _BLOB),
            sa.Column("date_done", sa.DateTime, index=True),
            schema=schemas.get("group"),
            sqlite_autoincrement=True,
        )  # fmt: skip
        self.chord = sa.Table(
            "celeriac_sql_chords",
            self.metadata,
            sa.Column("id", _NAME, primary_key=True),
            sa.Column("document", _BLOB, nullable=False),
            sa.Column("moved", sa.Double, index=True),
            sa.Column("expires", sa.Double, index=True),
            schema=schemas.get("group"),
        )
        self.entry = sa.Table(
            "celeriac_sql_chord_entries",
            self.metadata,
            sa.Column("chord", _NAME, primary_key=True),
            sa.Column("member", _NAME, primary_key=True),
            sa.Column("entry", _BLOB, nullable=False),
            schema=schemas.get("group"),
        )
        self.columns: frozenset[str] = frozenset()
        """Those of LATER that the table has."""

    def prepare(self, engine: sa.Engine) -> None:
        """Make what is missing, and look at what is there."""
        tries = 0
        while not self._there(engine):
            tries += 1
            try:
                self._make(engine)
            except SQLAlchemyError:  # another process is doing the same, most likely
                if tries == TRIES:
                    raise
                time.sleep(random.uniform(0.02, 0.1))
        if engine.dialect.name in ("mysql", "mariadb"):
            self._number(engine)
        present = self._present(engine)
        wanted = LATER if self.extended else ("children",)
        for name in wanted:
            if name not in present and self._add(engine, name):
                present.add(name)
        self.columns = frozenset(present & set(LATER))

    def _number(self, engine: sa.Engine) -> None:
        """MariaDB has sequences and SQLAlchemy uses them; a table that was made without one numbers its rows itself."""
        for table in (self.task, self.group):
            for column in sa.inspect(engine).get_columns(table.name, schema=table.schema):
                if column["name"] == "id" and column.get("autoincrement") is True:
                    table.c.id.default = None

    def _there(self, engine: sa.Engine) -> bool:
        inspector = sa.inspect(engine)
        return all(inspector.has_table(table.name, schema=table.schema) for table in self.metadata.tables.values())

    def _present(self, engine: sa.Engine) -> set[str]:
        columns = sa.inspect(engine).get_columns(self.task.name, schema=self.task.schema)
        return {column["name"] for column in columns}

    def _make(self, engine: sa.Engine) -> None:
        made = sa.MetaData()
        _task(made, self.task.name, self.task.schema, self.extended)
        for table in (self.group, self.chord, self.entry):
            table.to_metadata(made)
        made.create_all(engine.execution_options(celeriac_writes=True))

    def _add(self, engine: sa.Engine, name: str) -> bool:
        column = self.task.c[name]
        preparer = engine.dialect.identifier_preparer
        statement = (
            f"ALTER TABLE {preparer.format_table(self.task)} ADD COLUMN {preparer.quote(name)}"
            f" {column.type.compile(engine.dialect)}"
        )
        try:
            with engine.execution_options(celeriac_writes=True).begin() as connection:
                connection.execute(sa.text(statement))
        except SQLAlchemyError as error:
            if name in self._present(engine):  # another process was first
                return True
            log.warning("%s could not be done, so %s of results is not kept: %s", statement, name, _first_line(error))
            return False
        return True


def _first_line(error: BaseException) -> str:
    return str(getattr(error, "orig", None) or error).partition("\n")[0]
