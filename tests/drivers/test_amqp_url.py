"""URLs of RabbitMQ."""

from __future__ import annotations

import ssl
from typing import Any

import pytest

from celeriac.drivers.amqp.url import parse, parse_all
from celeriac.drivers.server_url import Tls
from celeriac.errors import ImproperlyConfigured


@pytest.mark.parametrize(
    ("url", "host", "port", "vhost", "username", "password"),
    [
        ("amqp://", "localhost", 5672, "/", "guest", "guest"), ("amqp", "localhost", 5672, "/", "guest", "guest"),
        ("amqp://h", "h", 5672, "/", "guest", "guest"), ("amqp://u:p@h:1//", "h", 1, "/", "u", "p"),
        ("amqp://u:p%40%2F@h/a%2Fb", "h", 5672, "a/b", "u", "p@/"), ("pyamqp://u@h/v", "h", 5672, "v", "u", "guest"),
        ("amqps://[::1]/v", "::1", 5671, "v", "guest", "guest"), ("amqp://h/%2F", "h", 5672, "/", "guest", "guest"),
    ],
)  # fmt: skip
def test_parts(url: str, host: str, port: int, vhost: str, username: str, password: str) -> None:
    """As Celery reads them."""
    server = parse(url)
    assert (server.host, server.port, server.vhost) == (host, port, vhost)
    assert (server.username, server.password) == (username, password)
    assert "p@/" not in server.describe()
    assert "p@/" not in repr(server)


def test_several() -> None:
    """In one text or in a list, in their order unless the strategy says otherwise."""
    assert [server.host for server in parse_all("amqp://a; amqp://b")] == ["a", "b"]
    assert [server.host for server in parse_all(["amqp://a", "amqp://b;amqp://c"])] == ["a", "b", "c"]
    turned = parse_all("amqp://a;amqp://b", {"failover_strategy": lambda servers: reversed(servers)})
    assert [server.host for server in turned] == ["b", "a"]


@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        ({"ssl": True}, Tls()),
        ({"ssl": {"cert_reqs": ssl.CERT_NONE, "ca_certs": "ca"}}, Tls("none", "ca")),
        ({"ssl": {"keyfile": "k", "certfile": "c", "cert_reqs": "optional"}}, Tls("optional", None, "c", "k")),
    ],
)
def test_tls(options: dict[str, Any], wanted: Tls) -> None:
    """`broker_use_ssl` and RabbitMQ's own names in the query."""
    assert parse("amqp://h", options).tls == wanted
    assert parse("amqps://h?cacertfile=x&verify=verify_none").tls == Tls("none", "x")
    assert parse("amqps://h?certfile=c&keyfile=k").mechanism == "EXTERNAL"


@pytest.mark.parametrize(
    ("url", "options", "words"),
    [
        ("amqp://u:secret@h:port/", {}, "below 65536"), ("redis://h", {}, "use amqp:// or amqps://"),
        ("amqp://h", {"heartbeat": "often"}, "heartbeat must be"), ("amqp://h", {"login_method": "X"}, "PLAIN"),
        ("amqp://h", {"socket_timeout": -1}, "socket_timeout must be"), ("", {}, "no RabbitMQ URL"),
        ("amqps://h?verify=sometimes", {}, "cert_reqs must be"),
        ("amqp://h", {"failover_strategy": "x"}, "round-robin"),
    ],
)  # fmt: skip
def test_one_line_says_what_is_wrong(url: str, options: dict[str, Any], words: str) -> None:
    """And never holds a password."""
    with pytest.raises(ImproperlyConfigured, match=words) as caught:
        parse_all(url, options)
    assert "secret" not in str(caught.value)
