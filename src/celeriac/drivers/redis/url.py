"""Where a Redis server is and how to log in there. Pure: reads URLs, opens nothing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl, unquote, urlsplit

from celeriac.errors import ImproperlyConfigured

if TYPE_CHECKING:  # who uses no TLS does not pay for it
    from ssl import SSLContext

DEFAULT_PORT = 6379
CONNECT_TIMEOUT = 5.0
REPLY_TIMEOUT = 10.0
"""Seconds after which a server that does not answer is given up."""

_TLS_KEYS = ("ssl_cert_reqs", "ssl_ca_certs", "ssl_certfile", "ssl_keyfile", "ssl_check_hostname")
_VERIFY = ("required", "optional", "none")


@dataclass(frozen=True, slots=True)
class Tls:
    """How to verify the server and who we are."""

    verify: str = "required"
    """The server's certificate is `required` to be good, `optional`, or not looked at (`none`)."""
    ca: str | None = None
    certificate: str | None = None
    key: str | None = None
    check_hostname: bool = True

    def context(self) -> SSLContext:
        """A new TLS context. Raises ImproperlyConfigured when a file can't be used."""
        import ssl

        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = self.check_hostname and self.verify == "required"
        context.verify_mode = ssl.VerifyMode[f"CERT_{self.verify.upper()}"]
        try:
            if self.ca:
                context.load_verify_locations(self.ca)
            elif self.verify != "none":
                context.load_default_certs()
            if self.certificate:
                context.load_cert_chain(self.certificate, self.key)
        except OSError as error:  # SSLError is one
            raise ImproperlyConfigured(f"a TLS file of the Redis URL can't be used: {error}") from error
        return context


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
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise ImproperlyConfigured(f"a Redis URL can't be read: {_plain(error)}") from None
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
        connect_timeout=_seconds(merged, "socket_connect_timeout", CONNECT_TIMEOUT),
        timeout=_seconds(merged, "socket_timeout", REPLY_TIMEOUT),
        options=merged,
    )


def _plain(error: ValueError) -> str:
    """What the parser says, unless it quotes a part of the URL that may be secret."""
    text = str(error)
    hint = "special characters of a password must be percent-encoded"
    fault = "the port must be a number below 65536" if "ort" in text.lower() else "its form is not that of a URL"
    return f"{fault}; {hint}"


def _database(value: object) -> int:
    text = str(value).strip("/") or "0"
    if not text.isdecimal():
        raise ImproperlyConfigured(f"the database of a Redis URL is a number, as in redis://host:6379/0, not {text!r}")
    return int(text)


def _seconds(options: Mapping[str, Any], name: str, default: float) -> float:
    value = options.get(name)
    if value in (None, "", "None"):
        return default
    try:
        seconds = float(str(value))
    except ValueError:
        seconds = 0.0
    if seconds <= 0:
        raise ImproperlyConfigured(f"{name} must be a number of seconds above 0, not {value!r}")
    return seconds


def flag(options: Mapping[str, Any], name: str, default: bool) -> bool:
    """An option that is on or off, from Python or from a URL."""
    value = options.get(name, default)
    return value.lower() in ("1", "true", "yes", "on") if isinstance(value, str) else bool(value)


def _tls(wanted: bool, options: Mapping[str, Any]) -> Tls | None:
    secured = options.get("ssl")
    if not (wanted or secured):
        return None
    settings: dict[str, Any] = dict(secured) if isinstance(secured, Mapping) else {}
    settings.update({key: options[key] for key in _TLS_KEYS if key in options})
    given = settings.get("ssl_cert_reqs", "required")
    verify = str(getattr(given, "name", given)).lower().removeprefix("cert_")  # ssl.CERT_NONE too
    if verify not in _VERIFY:
        raise ImproperlyConfigured(f"ssl_cert_reqs must be required, optional or none, not {given!r}")
    return Tls(
        verify,
        settings.get("ssl_ca_certs"),
        settings.get("ssl_certfile"),
        settings.get("ssl_keyfile"),
        flag(settings, "ssl_check_hostname", True),
    )
