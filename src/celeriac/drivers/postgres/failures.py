"""What PostgreSQL and psycopg say, in our words: one line that says what to do."""

from __future__ import annotations

import struct

from celeriac.drivers.postgres.driver import driver
from celeriac.drivers.postgres.site import Site
from celeriac.errors import CeleryError, ImproperlyConfigured, OperationalError

_VALUE_CLASSES = ("22", "23", "54", "P0")
"""SQLSTATE classes about the values of one statement: data exception, integrity, too large, raised by a trigger."""
MISSING = ("42883", "42P01", "3F000")
"""There is no such function, table, schema."""


def code_of(error: BaseException | None) -> str:
    """The SQLSTATE that the server gave; empty: none."""
    return getattr(error, "sqlstate", None) or ""


def is_in_the_way(error: BaseException | None) -> bool:
    """A deadlock, or two that could not be put in order: nothing was done, and it may be run again at once."""
    return code_of(error) in ("40001", "40P01")


def lacks_rights(error: BaseException | None) -> bool:
    """The server says that this user may not."""
    return code_of(error) == "42501"


def is_about_values(error: BaseException) -> bool:
    """The values of one message are at fault, and not the database: the others may still be carried out."""
    if isinstance(error, driver().Error):
        code = code_of(error)
        return code[:2] in _VALUE_CLASSES or (not code and isinstance(error, driver().DataError))
    return isinstance(error, ValueError | TypeError | OverflowError | struct.error)


def reason_of(error: BaseException) -> str:
    """What is wrong with a value, on one line."""
    return f"{type(error).__name__}: {_line(error)}".encode("utf-8", "replace").decode().replace("\x00", "")


def _line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__


def translated(error: Exception, site: Site) -> Exception:
    """The celeriac error for what went wrong. What is about values comes out as it is."""
    if isinstance(error, CeleryError) or is_about_values(error) or not isinstance(error, driver().Error):
        return error
    where = site.shown
    text = _line(error)
    match code_of(error):
        case "42501":
            return ImproperlyConfigured(
                f"{where}: {text}: give this user the rights to use celeriac's tables "
                "(celeriac migrate-schema --grant USER), or let it create them"
            )
        case "25006":
            return OperationalError(
                f"{where} only reads (a standby?): name the primary, or add target_session_attrs=read-write to the URL"
            )
        case "42883" | "42P01" | "3F000" if "celeriac_" in text:
            return ImproperlyConfigured(
                f"{where}: {text}: the tables are missing or in another schema; run `celeriac migrate-schema`, or name "
                "the schema in the URL (?schema=...)"
            )
        case "53100":
            return OperationalError(f"{where}: the disk is full; nothing of this was stored")
        case "53300":
            return OperationalError(_TOO_MANY.format(where))
        case "0A000":
            return ImproperlyConfigured(f"{where}: {text}")
        case _:
            return OperationalError(f"{where}: {text}")


_TOO_MANY = "{}: too many connections: raise max_connections, run fewer workers, or put PgBouncer in between"


def refused(error: Exception, site: Site) -> Exception:
    """The celeriac error for a connection that was not made. libpq gives no code for it, only the server's words."""
    said = str(error)
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    text = lines[0] if lines else type(error).__name__
    text = text.removeprefix("connection failed: ")
    where = site.shown
    lower = said.lower()
    if "password authentication failed" in lower or "no password supplied" in lower or "ident authentication" in lower:
        return ImproperlyConfigured(f"{where}: the server refuses this user or password: correct the URL")
    if "peer authentication failed" in lower:
        return ImproperlyConfigured(f"{where}: the server lets only the system user of that name in: name a host")
    if "role" in lower and "does not exist" in lower:
        return ImproperlyConfigured(f"{where}: there is no such user: correct the URL, or create it with createuser")
    if "database" in lower and "does not exist" in lower:
        return ImproperlyConfigured(f"{where}: there is no such database: create it (createdb), or correct the URL")
    if "does not support ssl" in lower or "server closed ssl" in lower:
        return ImproperlyConfigured(f"{where}: the server has no TLS: switch it on there, or use sslmode=disable")
    if "no pg_hba.conf entry" in lower or "pg_hba.conf rejects" in lower:
        return ImproperlyConfigured(
            f"{where}: the server lets nobody in this way: allow this host, user and database in its pg_hba.conf"
            + (", or use TLS (sslmode=require)" if "no encryption" in lower or "ssl off" in lower else "")
        )
    if "certificate" in lower or "ssl error" in lower or "tls" in lower:
        return ImproperlyConfigured(f"{where}: TLS failed ({text}): see sslmode, sslrootcert, sslcert in the URL")
    if "unsupported startup parameter" in lower:
        return ImproperlyConfigured(f"{where}: PgBouncer refuses an option of the URL ({text}): leave it out")
    if "invalid" in lower and ("uri" in lower or "connection option" in lower or "sslmode value" in lower):
        return ImproperlyConfigured(f"{where}: {text}: correct the URL")
    if "too many clients" in lower or "remaining connection slots" in lower or "too many connections" in lower:
        return OperationalError(_TOO_MANY.format(where))
    return OperationalError(f"{where} can't be reached: {text}")
