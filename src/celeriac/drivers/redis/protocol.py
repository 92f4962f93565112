"""What both kinds of connection share: hiredis on first use, the handshake, and errors in words a user can act on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from celeriac.drivers.redis.url import Server
from celeriac.errors import CeleryError, ImproperlyConfigured, OperationalError, RefusedError

Words = tuple[str | bytes | int | float, ...]
"""One command."""

MINIMUM = (6, 2)
"""Oldest server that has every command in use."""
NEEDED = "Redis 6.2 or newer, or Valkey, is needed"

MISSING = object()
"""What a hiredis Reader of ours says when a reply is not complete."""


def driver() -> Any:
    """hiredis. Raises ImproperlyConfigured when it is not installed."""
    try:
        import hiredis
    except ImportError as error:
        raise ImproperlyConfigured("Redis needs hiredis: pip install 'celeriac[redis]'") from error
    return hiredis


def new_reader(hiredis: Any) -> Any:
    """A reader that tells an incomplete reply (MISSING) from every value, and keeps errors as values."""
    return hiredis.Reader(notEnoughData=MISSING)


def handshake(server: Server) -> list[Words]:
    """What is sent first on a new connection."""
    hello: list[str] = ["HELLO", "3"]
    if server.password is not None:
        hello += ["AUTH", server.username or "default", server.password]
    hello += ["SETNAME", server.client_name]
    commands: list[Words] = [tuple(hello)]
    if server.db:
        commands.append(("SELECT", server.db))
    return commands


def check_handshake(server: Server, replies: Sequence[Any]) -> None:
    """Raises when the server did not let us in, or is too old."""
    hello = replies[0]
    if isinstance(hello, Exception):
        text = str(hello)
        if text.startswith(("ERR unknown command", "NOPROTO", "unknown command")):
            raise ImproperlyConfigured(f"{server.describe()}: the server is too old; {NEEDED}")
        raise failure(server, hello, "logging in")
    version = hello.get(b"version", b"") if isinstance(hello, dict) else b""
    numbers = tuple(int(part) for part in version.decode().split(".")[:2] if part.isdigit())
    if numbers and numbers < MINIMUM:
        raise ImproperlyConfigured(
            f"{server.describe()}: Redis {version.decode()} is too old; {NEEDED}"
        )
    for reply in replies[1:]:
        if isinstance(reply, Exception):
            if "DB index" in str(reply):
                raise ImproperlyConfigured(
                    f"{server.describe()}: the server has no database {server.db}; see `databases` in its configuration"
                )
            raise failure(server, reply, "choosing the database")


_ADVICE = {
    "WRONGPASS": "the user name or password is wrong",
    "NOAUTH": "the server wants a password; put it into the URL: redis://:password@host",
    "LOADING": "the server is loading its data; try again in a moment",
    "OOM": "the server is out of memory (maxmemory) and refuses writes; free some, or raise maxmemory",
    "READONLY": "the server is a read-only replica; point the URL at the primary",
    "MISCONF": "the server can't save to its disk and refuses writes; look at its log and its disk",
    "MASTERDOWN": "the server is a replica that has lost its primary",
    "NOREPLICAS": "the server has too few replicas and refuses writes (min-replicas-to-write)",
    "CLUSTERDOWN": "the Redis Cluster is down",
    "MOVED": "the server is a node of a Redis Cluster, which is not supported; use a single server",
    "CROSSSLOT": "Redis Cluster needs all keys in one slot: set global_keyprefix to a hash tag, as '{app}:'",
    "BUSY": "the server is busy with a script of somebody; see SCRIPT KILL",
    "NOPERM": "the user's rights (ACL) don't allow it",
}


def failure(server: Server, error: BaseException, what: str) -> CeleryError:
    """The error to raise for an error reply. One line, no password."""
    text = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    word = text.partition(" ")[0]
    if word == "ERR" and "invalid password" in text:
        word = "WRONGPASS"
    elif "user executing the script can't" in text:
        word = "NOPERM"
    advice = _ADVICE.get(word)
    kind = RefusedError if word in ("NOPERM", "WRONGTYPE") else OperationalError
    return kind(f"{server.describe()}: {what}: {f'{advice} ({text})' if advice else text}")


def unreachable(server: Server, error: BaseException) -> CeleryError:
    """The error to raise when a connection can't be made or has broken. One line, no password."""
    where = server.describe()
    if isinstance(error, TimeoutError):
        return OperationalError(f"{where}: no connection within {server.connect_timeout:g} s; is the address right?")
    if type(error).__name__ == "SSLCertVerificationError":
        fault = getattr(error, "verify_message", error)
        return OperationalError(f"{where}: its certificate is not trusted: {fault}; see ssl_ca_certs")
    if type(error).__module__ == "ssl":
        fault = getattr(error, "reason", None) or error
        return OperationalError(f"{where}: TLS failed ({fault}); does this port speak TLS?")
    if isinstance(error, ConnectionRefusedError):
        return OperationalError(f"{where}: connection refused; is the server running?")
    if type(error).__name__ == "ProtocolError":
        return garbled(server, error)
    detail = error.strerror if isinstance(error, OSError) and error.strerror else str(error) or type(error).__name__
    return OperationalError(f"{where}: {detail}")


def garbled(server: Server, error: BaseException) -> CeleryError:
    """The error to raise when what comes is no Redis protocol."""
    hint = "" if server.tls else " (or does it want TLS: rediss://?)"
    return OperationalError(f"{server.describe()}: what answers there is no Redis server{hint}: {error}")
