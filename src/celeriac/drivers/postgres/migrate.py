"""`celeriac migrate-schema`: the tables, made or brought up to date at a time that the operator chooses."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from celeriac.drivers.postgres import layout
from celeriac.drivers.postgres.driver import driver
from celeriac.drivers.postgres.failures import lacks_rights, refused, translated
from celeriac.drivers.postgres.lines import LONG
from celeriac.drivers.postgres.site import parse


def migrate(url: str, options: Mapping[str, Any], grant: str = "") -> str:
    """Bring a database up to the layout of this version, in one transaction; workers of the version before go on.
    `grant`: a role that gets the rights to use the tables. Returns one line that says what was done. Raises
    OperationalError, ImproperlyConfigured."""
    site = parse(url, options)
    try:
        made = driver().Connection.connect(
            site.conninfo, cursor_factory=driver().RawCursor, connect_timeout=max(2, round(site.connect_timeout))
        )
    except driver().Error as error:
        raise refused(error, site) from None
    made.deadline = time.monotonic() + LONG

    def execute(step: layout.Step) -> list[tuple[Any, ...]]:
        cursor = made.execute(step.statement, step.parameters or None)
        return cursor.fetchall() if cursor.description is not None else []

    try:
        with made:
            before = layout.run(layout.migrating(site), execute)
            if grant:
                _grant(execute, site.prefix, grant)
    except driver().Error as error:
        raise (layout.forbidden(site) if lacks_rights(error) else translated(error, site)) from error
    done = f"layout {before} -> {layout.VERSION}" if before < layout.VERSION else f"layout {before}, up to date"
    return f"{site.shown}: {done}" + (f"; {grant} may use it" if grant else "")


def _grant(execute: Any, prefix: str, grant: str) -> None:
    [(role,)] = execute(layout.Step("SELECT quote_ident($1::text)", (grant,)))
    if prefix:
        execute(layout.Step(f"GRANT USAGE ON SCHEMA {prefix[:-1]} TO {role}"))
    rows = execute(layout.Step(
        """SELECT c.oid::regclass::text, c.relkind = 'S' FROM pg_class AS c
           WHERE c.relname LIKE 'celeriac\\_%' AND c.relkind IN ('r', 'S') AND c.relnamespace =
               (SELECT relnamespace FROM pg_class WHERE oid = $1::text::regclass)""",
        (f"{prefix}celeriac_layout",),
    ))  # fmt: skip
    for name, is_sequence in rows:
        rights = "USAGE, SELECT ON SEQUENCE" if is_sequence else "SELECT, INSERT, UPDATE, DELETE ON"
        execute(layout.Step(f"GRANT {rights} {name} TO {role}"))
