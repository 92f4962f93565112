"""What both kinds of connection share: how one logs in, and errors in words a user can act on."""

from __future__ import annotations

import struct
from collections.abc import Generator

from celeriac.drivers.amqp import frames
from celeriac.drivers.amqp.frames import M
from celeriac.drivers.amqp.machine import Event
from celeriac.drivers.amqp.table import short, table
from celeriac.drivers.amqp.url import Server
from celeriac.errors import CeleryError, ImproperlyConfigured, OperationalError

LARGEST_FRAME = 131_072
CHANNELS = 2047


class Session:
    """What was agreed upon with a server."""

    __slots__ = ("frame", "heartbeat", "version")

    def __init__(self) -> None:
        self.version: tuple[int, ...] = ()
        self.frame = LARGEST_FRAME
        self.heartbeat = 0


def handshake(server: Server, heartbeat: int) -> Generator[bytes, Event, Session]:
    """Gives what is to be sent and takes what came for it; returns what was agreed upon. Raises OperationalError or
    ImproperlyConfigured."""
    session = Session()
    start = frames.read_start((yield from _expect(server, frames.GREETING, M.START)).arguments)
    session.version = start.version
    mechanism = server.mechanism or "PLAIN"
    if mechanism not in start.mechanisms:
        raise ImproperlyConfigured(
            f"{server.describe()}: the server offers {', '.join(start.mechanisms)} to log in, not {mechanism}; "
            "see broker_login_method"
        )
    answer = frames.start_ok(server.client_name, mechanism, _credentials(server, mechanism))
    tune = yield from _expect(server, frames.method(0, M.START_OK, answer), M.TUNE)
    channels, largest, seconds = struct.unpack(">HIH", tune.arguments)
    session.frame = max(frames.SMALLEST_FRAME, min(largest or LARGEST_FRAME, LARGEST_FRAME))
    session.heartbeat = heartbeat if heartbeat == 0 or not seconds else min(heartbeat, seconds)
    agreed = struct.pack(">HIH", min(channels or CHANNELS, CHANNELS), session.frame, session.heartbeat)
    opening = short(server.vhost) + b"\x00\x00"
    yield from _expect(server, frames.method(0, M.TUNE_OK, agreed) + frames.method(0, M.OPEN, opening), M.OPEN_OK)
    return session


def _credentials(server: Server, mechanism: str) -> bytes:
    if mechanism == "EXTERNAL":
        return b""
    if mechanism == "AMQPLAIN":
        return table({"LOGIN": server.username, "PASSWORD": server.password})[4:]
    return b"\x00" + server.username.encode() + b"\x00" + server.password.encode()


def _expect(server: Server, data: bytes, which: M) -> Generator[bytes, Event, Event]:
    event = yield data
    if event.which == M.CLOSE:
        raise closed(server, frames.read_close(event.arguments), "logging in")
    if event.which != which:
        raise OperationalError(f"{server.describe()}: an answer came to no question while logging in")
    return event


def closed(server: Server, why: frames.Closed, what: str) -> CeleryError:
    """The error to raise when the server closes a connection or a channel. One line, no password."""
    where, text = server.describe(), " ".join(why.text.split())
    low = text.lower()
    if why.code == 403 and ("login was refused" in low or "login refused" in low):
        return ImproperlyConfigured(f"{where}: the user name or password is wrong, or this user may not log in here")
    if why.code == 530 and "not found" in low:
        return ImproperlyConfigured(
            f"{where}: there is no virtual host {server.vhost!r}; make it (rabbitmqctl add_vhost) or change the URL"
        )
    if why.code == 530 and "refused" in low:
        return ImproperlyConfigured(
            f"{where}: this user has no rights in the virtual host {server.vhost!r}; see rabbitmqctl set_permissions"
        )
    if why.code == 403:
        return ImproperlyConfigured(f"{where}: {what}: this user may not do that ({text}); see set_permissions")
    if why.code == 406 and "inequivalent arg" in low:
        return ImproperlyConfigured(
            f"{where}: {what}: it exists with other arguments ({text.removeprefix('PRECONDITION_FAILED - ')}); "
            "declare it the same way here (task_queues, queue_arguments), or delete it"
        )
    if why.code == 320:
        return OperationalError(f"{where}: the server closed the connection ({text})")
    return OperationalError(f"{where}: {what}: {text} ({why.code})")


def unreachable(server: Server, error: BaseException) -> CeleryError:
    """The error to raise when a connection can't be made or has broken. One line, no password."""
    where = server.describe()
    if isinstance(error, TimeoutError):
        return OperationalError(f"{where}: no connection within {server.connect_timeout:g} s; is the address right?")
    if type(error).__name__ == "SSLCertVerificationError":
        fault = getattr(error, "verify_message", error)
        return OperationalError(f"{where}: its certificate is not trusted: {fault}; see ca_certs in broker_use_ssl")
    if type(error).__module__ == "ssl":
        fault = getattr(error, "reason", None) or error
        return OperationalError(f"{where}: TLS failed ({fault}); does this port speak TLS, does it want a certificate?")
    if isinstance(error, ConnectionRefusedError):
        return OperationalError(f"{where}: connection refused; is the server running?")
    detail = error.strerror if isinstance(error, OSError) and error.strerror else str(error) or type(error).__name__
    return OperationalError(f"{where}: {detail}")


def ended(server: Server, logging_in: bool) -> CeleryError:
    """The error to raise when the server closes a connection without a word."""
    where = server.describe()
    if not logging_in:
        return OperationalError(f"{where}: the server closed the connection")
    hint = "a wrong password, or a port that does not speak TLS" if server.tls else "or does it want TLS: amqps://?"
    return OperationalError(f"{where}: the server closed the connection while logging in ({hint})")


def garbled(server: Server, error: BaseException) -> CeleryError:
    """The error to raise when what comes is no AMQP."""
    hint = "" if server.tls else " (or does it want TLS: amqps://?)"
    return OperationalError(f"{server.describe()}: what answers there is no RabbitMQ{hint}: {error}")
