"""Where RabbitMQ is and how to log in there. Pure: reads URLs, opens nothing."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any
from urllib.parse import parse_qsl, unquote

from celeriac.drivers.server_url import CONNECT_TIMEOUT, REPLY_TIMEOUT, VERIFY, Tls, is_on, seconds, split
from celeriac.errors import ImproperlyConfigured

PORT, TLS_PORT = 5672, 5671
HEARTBEAT = 8
"""Seconds; the server ends a connection that is silent for twice as long, we after one and a half."""

_SECURE = frozenset({"amqps", "pyamqps"})
_SCHEMES = frozenset({"amqp", "pyamqp", "librabbitmq"}) | _SECURE


@dataclass(frozen=True, slots=True)
class Server:
    """One node, and the virtual host on it."""

    host: str = "localhost"
    port: int = PORT
    vhost: str = "/"
    username: str = "guest"
    password: str = field(default="guest", repr=False)
    tls: Tls | None = None
    mechanism: str = ""
    """PLAIN, AMQPLAIN or EXTERNAL; empty: EXTERNAL where only a certificate is given, else PLAIN."""
    client_name: str = "celeriac"
    connect_timeout: float = CONNECT_TIMEOUT
    timeout: float = REPLY_TIMEOUT
    heartbeat: int = HEARTBEAT
    path = ""

    def describe(self) -> str:
        """The URL without its password."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        where = "/" if self.vhost == "/" else self.vhost
        return f"{'amqps' if self.tls else 'amqp'}://{self.username}@{host}:{self.port}/{where}"


def parse_all(urls: str | Sequence[str], options: Mapping[str, Any] | None = None) -> list[Server]:
    """The nodes of one URL, of several with `;` between them, or of a list, in the order in which they are tried
    (option `failover_strategy`). Raises ImproperlyConfigured."""
    texts = urls.split(";") if isinstance(urls, str) else [part for url in urls for part in str(url).split(";")]
    found = [parse(text.strip(), options) for text in texts if text.strip()]
    if not found:
        raise ImproperlyConfigured("no RabbitMQ URL is given: amqp://user:password@host:5672/vhost")
    strategy: Any = (options or {}).get("failover_strategy")
    if strategy == "shuffle":
        random.shuffle(found)
    elif callable(strategy):
        order: Any = strategy(found)
        found = list(islice(order, len(found))) or found
    elif strategy not in (None, "round-robin"):
        raise ImproperlyConfigured(f"broker_failover_strategy must be round-robin or shuffle, not {strategy!r}")
    return found


def parse(url: str, options: Mapping[str, Any] | None = None) -> Server:
    """Read an `amqp://`, `amqps://` or `pyamqp://` URL as Celery does. Raises ImproperlyConfigured; the text never
    holds the URL, which may hold a password."""
    parts, port = split(url if "://" in url else f"{url}://", "RabbitMQ")
    scheme = parts.scheme.lower()
    if scheme not in _SCHEMES:
        raise ImproperlyConfigured(f"{scheme or 'a URL without a scheme'} is no RabbitMQ URL: use amqp:// or amqps://")
    merged: dict[str, Any] = {**(options or {}), **dict(parse_qsl(parts.query, keep_blank_values=True))}
    tls = _tls(scheme in _SECURE, merged)
    username = unquote(parts.username) if parts.username is not None else str(merged.get("username") or "guest")
    password = unquote(parts.password) if parts.password is not None else str(merged.get("password") or "guest")
    mechanism = str(merged.get("login_method") or merged.get("auth_mechanism") or "").upper()
    if mechanism not in ("", "PLAIN", "AMQPLAIN", "EXTERNAL"):
        raise ImproperlyConfigured(f"broker_login_method must be PLAIN, AMQPLAIN or EXTERNAL, not {mechanism!r}")
    return Server(
        host=unquote(parts.hostname or "localhost"),
        port=port or (TLS_PORT if tls else PORT),
        vhost=unquote(parts.path[1:]) or str(merged.get("virtual_host") or "/"),
        username=username,
        password=password,
        tls=tls,
        mechanism=mechanism or ("EXTERNAL" if tls and tls.certificate and parts.username is None else "PLAIN"),
        client_name=str(merged.get("client_name") or "celeriac"),
        connect_timeout=seconds(merged, "socket_connect_timeout", seconds(merged, "connect_timeout", CONNECT_TIMEOUT)),
        timeout=seconds(merged, "socket_timeout", seconds(merged, "read_timeout", REPLY_TIMEOUT)),
        heartbeat=_heartbeat(merged.get("heartbeat")),
    )


def _heartbeat(value: Any) -> int:
    if value in (None, ""):
        return HEARTBEAT
    try:
        found = int(float(str(value)))
    except ValueError:
        found = -1
    if found < 0:
        raise ImproperlyConfigured(f"heartbeat must be a number of seconds from 0 (none), not {value!r}")
    return found


_TLS_NAMES = {
    "ca": ("ca_certs", "ssl_ca_certs", "cacertfile"), "certificate": ("certfile", "ssl_certfile"),
    "key": ("keyfile", "ssl_keyfile"), "verify": ("cert_reqs", "ssl_cert_reqs", "verify"),
}  # fmt: skip
"""As `broker_use_ssl`, Redis URLs and RabbitMQ's own URLs spell it."""


def _tls(wanted: bool, options: Mapping[str, Any]) -> Tls | None:
    secured = options.get("ssl")
    if not (wanted or secured):
        return None
    given: dict[str, Any] = {**options, **(dict(secured) if isinstance(secured, Mapping) else {})}
    found = {key: next((given[name] for name in names if given.get(name) is not None), None)
             for key, names in _TLS_NAMES.items()}  # fmt: skip
    reqs = found["verify"] if found["verify"] is not None else "required"
    verify = str(getattr(reqs, "name", reqs)).lower().removeprefix("cert_").replace("verify_", "")
    verify = {"peer": "required", "0": "none", "1": "optional", "2": "required"}.get(verify, verify)
    if verify not in VERIFY:
        raise ImproperlyConfigured(f"cert_reqs must be required, optional or none, not {reqs!r}")
    check = given.get("check_hostname", given.get("ssl_check_hostname", True))
    return Tls(verify, found["ca"], found["certificate"], found["key"], is_on(check))
