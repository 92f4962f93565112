"""Where a Redis server is and how to log in there. Pure: reads URLs, opens nothing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qsl, unquote

from celeriac.drivers.server_url import CONNECT_TIMEOUT, REPLY_TIMEOUT, VERIFY, Tls, is_on, seconds, split
from celeriac.errors import ImproperlyConfigured

DEFAULT_PORT = 6379

_TLS_KEYS = ("ssl_cert_reqs", "ssl_ca_certs", "ssl_certfile", "ssl_keyfile", "ssl_check_hostname")


@dataclass(frozen=True, slots=True)
class Server:
    """One database of one server."""

    host: str = "localhost"
    port: int = DEFAULT_PORT
    path: str = ""
    """Of a Unix socket; then host and port mean nothing."""
    db: int = 0
    username: str = ""
    password: str | None = field(default=None, repr=False)
    tls: Tls | None = None
    client_name: str = "celeriac"
    connect_timeout: float = CONNECT_TIMEOUT
    timeout: float = REPLY_TIMEOUT
    options: Mapping[str, Any] = field(default_factory=dict, repr=False, compare=False)
    """Every option of the URL's query and of the mapping beside it; the URL's win."""

    def describe(self) -> str:
        """The URL without its password."""
        login = self.username + (":**" if self.password else "")
        login += "@" if login else ""
        if self.path:
            return f"redis+socket://{login}{self.path}?virtual_host={self.db}"
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{'rediss' if self.tls else 'redis'}://{login}{host}:{self.port}/{self.db}"


def parse(url: str, options: Mapping[str, Any] | None = None) -> Server:
    """Read `redis://`, `rediss://`, `redis+socket://` and `unix://` URLs as Celery does. Raises ImproperlyConfigured;
    the text never holds the URL, which may hold a password."""
    parts, port = split(url, "Redis")
    scheme = parts.scheme.lower()
    if scheme not in ("redis", "rediss", "valkey", "valkeys", "redis+socket", "unix", "socket"):
        raise ImproperlyConfigured(
            f"{scheme or 'a URL without a scheme'} is no Redis URL: "
            "use redis://, rediss:// (TLS) or redis+socket:///path"
        )
    merged: dict[str, Any] = {**(options or {}), **dict(parse_qsl(parts.query, keep_blank_values=True))}
    on_socket = scheme in ("redis+socket", "unix", "socket")
    path = unquote(parts.path)
    if on_socket:
        if parts.hostname:
            path = f"/{unquote(parts.netloc.rpartition('@')[2])}{path}"
        if not path.strip("/"):
            raise ImproperlyConfigured("redis+socket:// needs the path of the socket: redis+socket:///run/redis.sock")
        database = merged.get("virtual_host", merged.get("db", 0))
    else:
        database = path.strip("/") or merged.get("virtual_host", merged.get("db", 0))
    password = parts.password if parts.password is not None else merged.get("password")
    return Server(
        host=unquote(parts.hostname or "localhost"),
        port=port or DEFAULT_PORT,
        path=path if on_socket else "",
        db=_database(database),
        username=unquote(parts.username or "") or str(merged.get("username") or ""),
        password=unquote(password) if parts.password is not None and password else password or None,
        tls=_tls(scheme in ("rediss", "valkeys"), merged),
        client_name=str(merged.get("client_name") or "celeriac").replace(" ", "-"),
        connect_timeout=seconds(merged, "socket_connect_timeout", CONNECT_TIMEOUT),
        timeout=seconds(merged, "socket_timeout", REPLY_TIMEOUT),
        options=merged,
    )


def _database(value: object) -> int:
    text = str(value).strip("/") or "0"
    if not text.isdecimal():
        raise ImproperlyConfigured(f"the database of a Redis URL is a number, as in redis://host:6379/0, not {text!r}")
    return int(text)


def flag(options: Mapping[str, Any], name: str, default: bool) -> bool:
    """An option that is on or off, from Python or from a URL."""
    return is_on(options.get(name, default))


def _tls(wanted: bool, options: Mapping[str, Any]) -> Tls | None:
    secured = options.get("ssl")
    if not (wanted or secured):
        return None
    settings: dict[str, Any] = dict(secured) if isinstance(secured, Mapping) else {}
    settings.update({key: options[key] for key in _TLS_KEYS if key in options})
    given = settings.get("ssl_cert_reqs", "required")
    verify = str(getattr(given, "name", given)).lower().removeprefix("cert_")  # ssl.CERT_NONE too
    if verify not in VERIFY:
        raise ImproperlyConfigured(f"ssl_cert_reqs must be required, optional or none, not {given!r}")
    return Tls(
        verify,
        settings.get("ssl_ca_certs"),
        settings.get("ssl_certfile"),
        settings.get("ssl_keyfile"),
        flag(settings, "ssl_check_hostname", True),
    )
