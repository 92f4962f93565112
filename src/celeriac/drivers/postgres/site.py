"""Which database, and how it is to be used: what a URL and the options beside it say. No driver is needed here."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import parse_qsl, quote, unquote, urlencode, urlsplit

import msgspec

from celeriac.errors import ImproperlyConfigured

SCHEMES = ("postgresql", "postgres", "postgresql+psycopg")
CONNECT_TIMEOUT = 5.0
TIMEOUT = 10.0
"""Seconds within which the server has to answer one statement."""
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_$]{0,62}")
_TLS = {"ssl_ca_certs": "sslrootcert", "ssl_certfile": "sslcert", "ssl_keyfile": "sslkey"}
_OURS = frozenset({"schema", "timeout", "listen", "socket_timeout", "socket_connect_timeout"})
_LIBPQ = frozenset({
    "application_name", "channel_binding", "client_encoding", "connect_timeout", "dbname", "gssencmode", "host",
    "hostaddr", "keepalives", "keepalives_count", "keepalives_idle", "keepalives_interval", "krbsrvname",
    "load_balance_hosts", "options", "passfile", "password", "port", "require_auth", "service", "sslcert",
    "sslcertmode", "sslcrl", "sslcrldir", "sslkey", "sslmode", "sslnegotiation", "sslpassword", "sslrootcert",
    "sslsni", "target_session_attrs", "tcp_user_timeout", "user",
})  # fmt: skip


class Site(msgspec.Struct, frozen=True):
    """A database."""

    conninfo: str
    """libpq's connection URI, with the password."""
    shown: str
    """The same without password and options."""
    schema: str = ""
    """Where the tables are; empty: the first schema of the user's search path."""
    connect_timeout: float = CONNECT_TIMEOUT
    timeout: float = TIMEOUT
    listen: bool | None = None
    """Notifications come through. None: find out."""

    @property
    def prefix(self) -> str:
        """What stands before the name of a table or function."""
        return f'"{self.schema}".' if self.schema else ""


def parse(url: str, options: Mapping[str, Any] | None = None) -> Site:
    """Read `postgresql://user:password@host:port/database?option=value`. What the query holds and is no option of ours
    goes to libpq (sslmode, target_session_attrs, ...); several hosts are tried in turn. Raises ImproperlyConfigured;
    the text never holds the password."""
    scheme, found, rest = url.partition("://")
    if not found or scheme.lower() not in SCHEMES:
        raise ImproperlyConfigured("a PostgreSQL URL looks like postgresql://user:password@host:5432/database")
    try:
        parts = urlsplit(f"postgresql://{rest}")
    except ValueError:
        raise ImproperlyConfigured(
            "a PostgreSQL URL can't be read: special characters of a password must be percent-encoded"
        ) from None
    login, _, hosts = parts.netloc.rpartition("@")
    user = login.partition(":")[0]
    for host in hosts.split(","):
        port = host.rpartition(":")[2] if ":" in host and not host.endswith("]") else ""
        if port and not (port.isdecimal() and 0 < int(port) < 65536):
            raise ImproperlyConfigured(
                "a PostgreSQL URL can't be read: the port must be a number below 65536; special characters of a "
                "password must be percent-encoded"
            )
    query = dict(parse_qsl(parts.query, keep_blank_values=True))
    given = {**(options or {}), **query}
    if unknown := sorted(set(query) - _OURS - _LIBPQ):
        raise ImproperlyConfigured(
            f"a PostgreSQL URL has the unknown option {unknown[0]!r}; there are {', '.join(sorted(_OURS))} and those "
            "of libpq (sslmode, application_name, target_session_attrs, ...)"
        )
    libpq = {"application_name": "celeriac", "keepalives_idle": "15", "keepalives_interval": "5"}
    libpq |= _tls(given.get("ssl"))
    libpq |= {key: str(value) for key, value in given.items() if key in _LIBPQ and key != "connect_timeout"}
    schema = str(given.get("schema") or "")
    if schema and not _NAME.fullmatch(schema):
        raise ImproperlyConfigured(f"schema is a plain name of letters, digits and _, not {schema!r}")
    listen = given.get("listen")
    netloc = f"{quote(unquote(user), safe='')}@{hosts}" if user else hosts
    return Site(
        conninfo=f"postgresql://{parts.netloc}{parts.path}?{urlencode(libpq, quote_via=quote)}",
        shown=f"postgresql://{netloc}{parts.path}",
        schema=schema,
        connect_timeout=_seconds(given, ("socket_connect_timeout", "connect_timeout"), CONNECT_TIMEOUT),
        timeout=_seconds(given, ("timeout", "socket_timeout"), TIMEOUT),
        listen=None if listen is None else str(listen).lower() in ("1", "true", "yes", "on"),
    )


def _tls(given: Any) -> dict[str, str]:
    """libpq's options for `broker_use_ssl`: True, or a mapping with Celery's names or libpq's."""
    if not given:
        return {}
    if not isinstance(given, Mapping):
        return {"sslmode": "verify-full"}
    found = {_TLS.get(str(key), str(key)): str(value) for key, value in given.items() if value is not None}
    reqs = found.pop("ssl_cert_reqs", None)
    if reqs is not None:
        unchecked = reqs.lower().rpartition("_")[2] in ("none", "optional") or reqs in ("0", "1")
        found.setdefault("sslmode", "require" if unchecked else "verify-full")
    found.setdefault("sslmode", "verify-full")
    if unknown := sorted(set(found) - _LIBPQ):
        raise ImproperlyConfigured(f"ssl has the unknown key {unknown[0]!r}; use libpq's: sslmode, sslrootcert, ...")
    return found


def _seconds(given: Mapping[str, Any], names: tuple[str, ...], default: float) -> float:
    for name in names:
        value = given.get(name)
        if value in (None, ""):
            continue
        try:
            seconds = float(str(value))
        except ValueError:
            seconds = math.nan
        if not 0 < seconds < math.inf:
            raise ImproperlyConfigured(f"{name} must be a number of seconds above 0, not {value!r}")
        return seconds
    return default
