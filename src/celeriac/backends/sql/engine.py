"""From a URL to an engine: the driver, the options, and what its errors mean."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any

import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy.exc import ArgumentError, DataError, DBAPIError, IntegrityError, NoSuchModuleError
from sqlalchemy.pool import NullPool

from celeriac.errors import CeleryError, ImproperlyConfigured, OperationalError, RefusedError

DRIVERS: Mapping[str, tuple[tuple[str, str], ...]] = {
    "postgresql": (("psycopg", "psycopg"), ("psycopg2", "psycopg2")),
    "mysql": (("pymysql", "pymysql"), ("mysqldb", "MySQLdb")),
    "mariadb": (("pymysql", "pymysql"), ("mysqldb", "MySQLdb")),
    "sqlite": (("pysqlite", "sqlite3"),),
}
"""Dialect -> what SQLAlchemy calls its drivers, and their modules. The first one that is installed is taken."""
EXTRAS = {"postgresql": "sql,postgres", "mysql": "sql,mysql", "mariadb": "sql,mysql", "sqlite": "sql"}
_POOL_ONLY = ("pool_size", "max_overflow", "pool_timeout", "pool_use_lifo")
_BUSY_SECONDS = 30.0
_AGAIN = {"40001", "40P01", 1205, 1213}
"""Deadlocks and the like, by SQLSTATE or MySQL's number: the same once more will do."""
_DATA = {1153}
"""MySQL: larger than max_allowed_packet."""
_RIGHTS = {"42501", 1142, 1044}


def parse(url: str) -> sa.URL:
    """The URL of SQLAlchemy in `db+...`. Raises ImproperlyConfigured."""
    text = url.partition("+")[2] if url.partition("+")[0].lower() in ("db", "database") else url
    try:
        parsed = sa.make_url(text)
        dialect, _, driver = parsed.drivername.partition("+")
        if dialect not in DRIVERS:
            raise ImproperlyConfigured(
                f"result_backend: no results are kept in {dialect!r}; use db+postgresql://, db+mysql:// or db+sqlite:///"
            )
        if dialect == "sqlite" and (parsed.database or ":memory:") in (":memory:",):
            raise ImproperlyConfigured(
                "result_backend: a database in memory can't be shared by processes; write db+sqlite:///relative/path"
                " or db+sqlite:////absolute/path"
            )
        return parsed if driver else parsed.set(drivername=f"{dialect}+{_driver(dialect)}")
    except (ArgumentError, ValueError) as error:
        line = str(error).partition("\n")[0]
        raise ImproperlyConfigured(
            f"result_backend: {line.replace(text, 'it')}; write db+postgresql://user:password@host:port/database"
        ) from None


def _driver(dialect: str) -> str:
    drivers = DRIVERS[dialect]
    return next((name for name, module in drivers if importlib.util.find_spec(module)), drivers[0][0])


def open_engine(url: sa.URL, options: Mapping[str, Any], describe: str) -> sa.Engine:
    """The engine. Connects to nothing yet. Raises ImproperlyConfigured for options that SQLAlchemy refuses, and where
    the driver is missing."""
    given: dict[str, Any] = dict(options.get("engine_options") or {})
    dialect = url.drivername.partition("+")[0]
    if options.get("short_lived_sessions"):
        given = {name: value for name, value in given.items() if name not in _POOL_ONLY} | {"poolclass": NullPool}
    if dialect in ("mysql", "mariadb"):
        given.setdefault("isolation_level", "READ COMMITTED")  # else MySQL locks gaps, and inserts end in deadlocks
    if dialect == "sqlite":
        given["connect_args"] = {"timeout": _BUSY_SECONDS, **dict(given.get("connect_args") or {})}
    try:
        engine = sa.create_engine(url, **given)
    except (ModuleNotFoundError, NoSuchModuleError) as error:
        what = getattr(error, "name", None) or url.drivername
        raise ImproperlyConfigured(
            f"the module {what!r} is missing for {describe}: pip install 'celeriac[{EXTRAS[dialect]}]'"
        ) from None
    except (TypeError, ArgumentError) as error:
        raise ImproperlyConfigured(f"database_engine_options: {str(error).partition(chr(10))[0]}") from None
    if dialect == "sqlite":
        _begin_at_once(engine)
    callback = _callback(options.get("engine_callback"))
    if callback is not None:
        callback(engine)
    return engine


def _callback(given: Any) -> Callable[[sa.Engine], Any] | None:
    if isinstance(given, str):
        module, _, name = given.replace(":", ".").rpartition(".")
        try:
            given = getattr(import_module(module), name)
        except (ImportError, AttributeError, ValueError) as error:
            raise ImproperlyConfigured(f"database_engine_callback: {error}") from None
    if given is not None and not callable(given):
        raise ImproperlyConfigured(f"database_engine_callback must be callable, not {given!r}")
    found: Callable[[sa.Engine], Any] | None = given
    return found


def _begin_at_once(engine: sa.Engine) -> None:
    """SQLite: who is about to write takes the lock first. To take it later fails where another one has written."""

    @event.listens_for(engine, "connect")
    def connected(connection: Any, _: Any) -> None:
        connection.isolation_level = None  # the driver begins nothing by itself

    @event.listens_for(engine, "begin")
    def begun(connection: sa.Connection) -> None:
        writes = connection.get_execution_options().get("celeriac_writes")
        connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")


def code_of(error: DBAPIError) -> str | int:
    """SQLSTATE of PostgreSQL, or MySQL's number; empty for others."""
    args: tuple[Any, ...] = getattr(error.orig, "args", ())
    if args and isinstance(args[0], int):
        return args[0]
    return getattr(error.orig, "sqlstate", None) or getattr(error.orig, "pgcode", None) or ""


def is_transient(error: DBAPIError) -> bool:
    """A deadlock, or the like: the whole transaction may be tried again."""
    return code_of(error) in _AGAIN


def is_about_data(error: Exception) -> bool:
    """The values are what can't be stored; others can."""
    if isinstance(error, DBAPIError):
        return isinstance(error, DataError | IntegrityError) or code_of(error) in _DATA
    return isinstance(error, ValueError | TypeError | OverflowError)


def one_line(error: BaseException) -> str:
    """What a driver says, in one line."""
    orig = getattr(error, "orig", None) or error
    args: tuple[Any, ...] = getattr(orig, "args", ())
    text = str(args[1]) if len(args) > 1 and isinstance(args[0], int) else str(orig)
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    fatal = [line for line in lines if "FATAL:" in line]
    return (fatal or lines or [type(orig).__name__])[0]


def failure(describe: str, error: BaseException) -> CeleryError:
    """The error to raise for one of SQLAlchemy's."""
    hint = ""
    if isinstance(error, DBAPIError) and code_of(error) in _RIGHTS:
        hint = " (grant the user SELECT, INSERT, UPDATE, DELETE and, for the first start, CREATE TABLE)"
    kind = RefusedError if hint else OperationalError
    return kind(f"{describe}: {one_line(error)}{hint}")
