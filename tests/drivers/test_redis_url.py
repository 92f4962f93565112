"""Redis URLs are read as Celery reads them, and never shown with their password."""

from __future__ import annotations

import ssl
import subprocess
import sys
from typing import Any

import pytest

from celeriac.backends.redis import RedisBackend, RedisReader
from celeriac.brokers.redis import RedisBroker, RedisSender
from celeriac.drivers.redis.url import Server, flag, parse
from celeriac.drivers.server_url import Tls
from celeriac.errors import ImproperlyConfigured


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("redis://", Server()),
        ("redis://h", Server("h")),
        ("redis://h:1/", Server("h", 1)),
        ("redis://h:1//", Server("h", 1)),
        ("redis://h/3", Server("h", db=3)),
        ("redis://h?db=4", Server("h", db=4)),
        ("redis://h?virtual_host=/4", Server("h", db=4)),
        ("redis://:pw@h", Server("h", password="pw")),
        ("redis://u:p%40%2F%3A@h", Server("h", username="u", password="p@/:")),
        ("redis://u@h", Server("h", username="u")),
        ("redis://h?password=x&username=y", Server("h", username="y", password="x")),
        ("redis://[::1]:7/2", Server("::1", 7, db=2)),
        ("valkey://h", Server("h")),
        ("redis+socket:///run/redis.sock", Server(path="/run/redis.sock")),
        ("redis+socket:///run/redis.sock?virtual_host=2", Server(path="/run/redis.sock", db=2)),
        ("unix://:pw@/run/a%20b.sock", Server(path="/run/a b.sock", password="pw")),
        ("rediss://h", Server("h", tls=Tls())),
        ("rediss://h?ssl_cert_reqs=none", Server("h", tls=Tls("none"))),
        (
            "rediss://h?ssl_cert_reqs=CERT_OPTIONAL&ssl_ca_certs=/c&ssl_certfile=/f&ssl_keyfile=/k",
            Server("h", tls=Tls("optional", "/c", "/f", "/k")),
        ),
        ("redis://h?socket_timeout=3&socket_connect_timeout=1.5", Server("h", timeout=3.0, connect_timeout=1.5)),
        ("redis://h?client_name=my+app", Server("h", client_name="my-app")),
    ],
)
def test_urls(url: str, expected: Server) -> None:
    """Host, port, database, login, socket, TLS and time limits come from the URL."""
    assert parse(url) == expected


def test_options_beside_the_url() -> None:
    """Options stand for what the URL does not say; the URL wins."""
    secure = {"ssl_cert_reqs": ssl.CERT_NONE}
    options: dict[str, Any] = {"socket_timeout": 7, "password": "p", "ssl": secure, "sep": ":"}
    server = parse("redis://h?socket_timeout=3", options)
    assert (server.timeout, server.password, server.tls) == (3.0, "p", Tls("none"))
    assert server.options["sep"] == ":"
    assert parse("redis://:q@h", options).password == "q"


@pytest.mark.parametrize(
    ("url", "text"),
    [
        ("amqp://h", "amqp is no Redis URL"),
        ("h:6379", "no Redis URL"),
        ("", "a URL without a scheme"),
        ("redis://h/x", "database"),
        ("redis://h:x", "the port must be a number"),
        ("redis://h:99999", "the port must be a number"),
        ("redis://:geheim#x@h", "percent-encoded"),
        ("redis://[::1", "percent-encoded"),
        ("redis+socket://", "needs the path"),
        ("rediss://h?ssl_cert_reqs=perhaps", "ssl_cert_reqs"),
        ("redis://h?socket_timeout=soon", "socket_timeout"),
        ("redis://h?socket_timeout=-1", "socket_timeout"),
    ],
)
def test_what_cannot_be_read(url: str, text: str) -> None:
    """A bad URL says in one line what to change, and not the password."""
    with pytest.raises(ImproperlyConfigured, match=text) as caught:
        parse(url)
    assert "\n" not in str(caught.value)
    assert "geheim" not in str(caught.value)


@pytest.mark.parametrize(
    "url", ["redis://u:geheim@h:1/2", "redis://:geheim@h", "rediss://:geheim@[::1]:5", "redis+socket://:geheim@/a.sock"]
)
def test_the_password_is_never_shown(url: str) -> None:
    """Neither the description nor the repr of a server holds the password."""
    server = parse(url, {"password": "geheim"})
    assert "geheim" not in server.describe() + repr(server)
    assert "**" in server.describe()


def test_tls_files_that_are_missing() -> None:
    """A TLS file that can't be read is a matter of configuration."""
    with pytest.raises(ImproperlyConfigured, match="TLS file"):
        Tls(ca="/nowhere.pem").context()
    assert Tls().context().verify_mode == ssl.CERT_REQUIRED
    assert Tls("optional").context().verify_mode == ssl.CERT_OPTIONAL
    assert Tls("none").context().check_hostname is False


def test_flags() -> None:
    """An option is on or off, from Python or from a URL."""
    assert [flag({"a": value}, "a", True) for value in (True, False, "yes", "false", "0", "on", 0)] == [
        True, False, True, False, False, True, False
    ]  # fmt: skip
    assert flag({}, "a", True) is True


def test_hiredis_that_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without hiredis every door says in one line what to install."""
    monkeypatch.setitem(sys.modules, "hiredis", None)
    for door in (RedisBroker, RedisSender, RedisBackend, RedisReader):
        with pytest.raises(ImproperlyConfigured, match=r"pip install 'celeriac\[redis\]'"):
            door("redis://h")


def test_a_caller_needs_no_asyncio() -> None:
    """What `delay()` and `get()` use imports neither asyncio nor a driver, and no TLS."""
    code = (
        "import sys, celeriac.brokers.redis, celeriac.backends.redis\n"
        "celeriac.brokers.redis.RedisSender, celeriac.backends.redis.RedisReader\n"
        "print([name for name in ('asyncio', 'hiredis', 'ssl', 'importlib.resources') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
