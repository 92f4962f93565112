"""The tables and functions in the database, their version, and how an older layout is brought up to date.

A migration only goes forward and only adds: functions carry the number of their layout (`celeriac_1_cycle`), so workers
of the version before go on beside it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Generator
from functools import cache
from importlib.resources import files
from typing import Any, NamedTuple

from celeriac.drivers.postgres.site import Site
from celeriac.errors import ImproperlyConfigured, LayoutTooNew, OperationalError

VERSION = 1
_MIGRATIONS = (("tables", "publish", "results", "chords", "cycle", "leases", "within"),)
"""Number n holds the scripts that bring layout n to layout n + 1."""
_OWN_NAME = re.compile(r"\bceleriac_(?=[a-z0-9])")
OLDEST_SERVER = 130000
known: set[Site] = set()
"""Databases whose layout was looked at by this process."""
_FOUND = """
SELECT current_setting('server_version_num')::integer, EXISTS (
    SELECT 1 FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace
    WHERE c.relname = 'celeriac_layout'
        AND CASE WHEN $1::name IS NULL THEN n.nspname = ANY (current_schemas(false)) ELSE n.nspname = $1::name END
), current_schema()::text
"""
"""Not to_regclass: after the wait for the lock it may answer from a cache."""
_LOCK = "SELECT pg_advisory_xact_lock(1667591269, 0)"


def worded(statement: str, site: Site) -> str:
    """A statement with the schema before each of our names."""
    return _worded(statement, site.prefix)


@cache
def _worded(statement: str, prefix: str) -> str:
    return _OWN_NAME.sub(f"{prefix}celeriac_", statement) if prefix else statement


class Step(NamedTuple):
    """One statement that `migrating` wants to be run in its transaction."""

    statement: str
    parameters: tuple[Any, ...] = ()


def migrating(site: Site) -> Generator[Step, list[tuple[Any, ...]], int]:
    """The steps of bringing a database up to date; the rows of each are sent back. Returns the version before.
    Raises LayoutTooNew, ImproperlyConfigured."""
    yield Step(_LOCK)
    version = yield from checking(site)
    if version < VERSION:
        # Functions keep the path that stands when they are made: they find their tables whoever calls them.
        if site.schema:
            [(missing,)] = yield Step("SELECT to_regnamespace($1::text) IS NULL", (f'"{site.schema}"',))
            if missing:
                yield Step(f'CREATE SCHEMA "{site.schema}"')
        yield Step(
            "SELECT set_config('search_path', quote_ident(coalesce($1::text, current_schema())), true)",
            (site.schema or None,),
        )
    for number in range(version, VERSION):
        for name in _MIGRATIONS[number]:
            yield Step(files("celeriac.drivers.postgres").joinpath("sql", f"{name}.sql").read_text())
        yield Step(worded("DELETE FROM celeriac_layout", site))
        yield Step(worded("INSERT INTO celeriac_layout VALUES ($1)", site), (number + 1,))
    return version


def checking(site: Site) -> Generator[Step, list[tuple[Any, ...]], int]:
    """Find the layout's version; 0: there is none. Raises LayoutTooNew, ImproperlyConfigured."""
    [(server, found, schema)] = yield Step(_FOUND, (site.schema or None,))
    if server < OLDEST_SERVER:
        raise ImproperlyConfigured(f"{site.shown} is PostgreSQL {server // 10000}: at least 13 is needed")
    if not found:
        if not site.schema and not schema:
            raise ImproperlyConfigured(f"{site.shown}: the user's search path names no schema: add ?schema=... to it")
        return 0
    rows = yield Step(worded("SELECT max(version) FROM celeriac_layout", site))
    version = int(rows[0][0] or 0)
    if version > VERSION:
        raise LayoutTooNew(
            f"{site.shown} was set up by a newer celeriac (layout {version}, this one knows {VERSION}): upgrade "
            "celeriac here, or choose another schema"
        )
    return version


def run(steps: Generator[Step, list[tuple[Any, ...]], int], execute: Callable[[Step], list[tuple[Any, ...]]]) -> int:
    """Carry out steps by a function that runs one of them."""
    step = next(steps)
    while True:
        rows = execute(step)
        try:
            step = steps.send(rows)
        except StopIteration as end:
            return int(end.value)


def forbidden(site: Site) -> ImproperlyConfigured:
    """This user may not make the tables."""
    return ImproperlyConfigured(
        f"{site.shown}: this user may not create celeriac's tables: run `celeriac migrate-schema --grant USER` "
        "once as a user who may"
    )


def wrong_isolation(site: Site, isolation: str) -> ImproperlyConfigured:
    """Through a pooler the isolation can't be chosen for a connection."""
    return ImproperlyConfigured(
        f"{site.shown}: default_transaction_isolation is {isolation}, and a pooler keeps it from being changed: set it "
        "to 'read committed' for this user (ALTER ROLE ... SET)"
    )


def on_standby(site: Site) -> OperationalError:
    """It may become the primary soon: worth another try."""
    return OperationalError(
        f"{site.shown} only reads (a standby): name the primary, or add target_session_attrs=read-write to the URL"
    )
