"""The asyncio connection: order, errors in words, and no endless wait on a server that is gone."""

from __future__ import annotations

import asyncio
import logging
import re
import time
from collections.abc import Callable
from typing import Any

import pytest

from celeriac.drivers.redis import aio
from celeriac.drivers.redis.aio import AsyncConnection, AsyncLink
from celeriac.drivers.redis.url import parse
from celeriac.errors import CeleryError, ImproperlyConfigured, OperationalError
from tests.drivers.fake_redis import HELLO, FakeServer
from tests.proxy import FreezeProxy
from tests.servers import command, free_port, redis_server

Answer = Callable[[int, bytes], bytes | None]


async def _open(url: str, **options: Any) -> AsyncConnection:
    return await AsyncConnection.open(parse(url, options))


def test_replies_come_in_the_order_of_the_calls(redis_url: str) -> None:
    """Many callers share a connection; each gets its own answer, whoever was cancelled meanwhile."""

    async def story() -> None:
        connection = await _open(redis_url)
        calls = [asyncio.ensure_future(connection.call("ECHO", str(n))) for n in range(200)]
        await asyncio.sleep(0)
        for call in calls[::3]:
            call.cancel()
        answers = await asyncio.gather(*calls, return_exceptions=True)
        assert [a for a in answers if not isinstance(a, BaseException)] == [
            b"%d" % n for n in range(200) if n % 3
        ]  # fmt: skip
        assert await connection.many([("ECHO", "a"), ("SET", "aio", "1"), ("GET", "aio")]) == [b"a", b"OK", b"1"]
        assert await connection.many([("ECHO", "a")]) == [b"a"]
        assert await connection.many([]) == []
        connection.close()

    asyncio.run(story())


def test_pushes_pass_by_the_calls(redis_url: str) -> None:
    """What comes of channels goes to the callback, in order, between answers of calls on the same connection."""

    async def story() -> None:
        heard: list[Any] = []
        connection = await AsyncConnection.open(parse(redis_url), heard.append)
        connection.tell(("SUBSCRIBE", "aio-channel"))
        for n in range(50):
            assert await connection.call("PUBLISH", "aio-channel", str(n)) == 1
        await connection.call("PING")
        assert [push[2] for push in heard if push[0] == b"message"] == [b"%d" % n for n in range(50)]
        connection.close()

    asyncio.run(story())


def test_an_error_reply_is_an_error_in_words(redis_url: str) -> None:
    """An error reply raises, names the command, and leaves the connection usable."""

    async def story() -> None:
        connection = await _open(redis_url)
        await connection.call("SET", "text", "1")
        with pytest.raises(OperationalError, match=r"LPUSH: WRONGTYPE"):
            await connection.call("LPUSH", "text", "1")
        with pytest.raises(OperationalError, match="WRONGTYPE"):
            await connection.many([("GET", "text"), ("LPUSH", "text", "1"), ("GET", "text")])
        assert await connection.call("GET", "text") == b"1"
        connection.close()
        with pytest.raises(OperationalError, match="closed"):
            await connection.call("GET", "text")

    asyncio.run(story())


def _error(url: str, **options: Any) -> CeleryError:
    async def story() -> CeleryError:
        with pytest.raises(CeleryError) as caught:
            await _open(url, **options)
        assert "\n" not in str(caught.value)
        assert "geheim" not in str(caught.value)
        return caught.value

    return asyncio.run(story())


def test_nobody_there() -> None:
    """A refused connection says so."""
    error = _error(f"redis://:geheim@127.0.0.1:{free_port()}/0")
    assert isinstance(error, OperationalError)
    assert "connection refused; is the server running?" in str(error)


def test_unknown_host() -> None:
    """A host that does not exist is an OperationalError with its name."""
    error = _error("redis://no-such-host.invalid:1/0")
    assert isinstance(error, OperationalError)
    assert "no-such-host.invalid" in str(error)


def test_no_socket_there() -> None:
    """A Unix socket that is missing is an OperationalError with its path."""
    error = _error("redis+socket:///nowhere/redis.sock")
    assert isinstance(error, OperationalError)
    assert "/nowhere/redis.sock" in str(error)
    assert "No such file" in str(error)


@pytest.mark.parametrize(
    ("answer", "kind", "text"),
    [
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", OperationalError, "is no Redis server"),
        (b"\x15\x03\x01\x00\x02\x02\x46", OperationalError, "want TLS"),
        (b"-WRONGPASS invalid username-password pair\r\n", OperationalError, "password is wrong"),
        (b"-NOAUTH HELLO must be called with the client\r\n", OperationalError, "wants a password"),
        (b"-LOADING Redis is loading the dataset in memory\r\n", OperationalError, "loading its data; try again"),
        (b"-MASTERDOWN Link with MASTER is down\r\n", OperationalError, "lost its primary"),
        (b"-ERR unknown command `HELLO`, with args\r\n", ImproperlyConfigured, "Redis 6.2 or newer"),
        (b"-NOPROTO unsupported protocol version\r\n", ImproperlyConfigured, "Redis 6.2 or newer"),
        (b"%1\r\n$7\r\nversion\r\n$6\r\n6.0.16\r\n", ImproperlyConfigured, "Redis 6.0.16 is too old"),
        (HELLO + b"-ERR DB index is out of range\r\n", ImproperlyConfigured, "no database 1"),
        (None, OperationalError, "closed the connection"),
    ],
)
def test_a_server_that_does_not_let_us_in(answer: bytes | None, kind: type[CeleryError], text: str) -> None:
    """What is wrong at the door is said in one line, with what to do."""
    with FakeServer(lambda turn, data: answer) as server:
        url = server.url.replace("//", "//:geheim@")
        error = _error(url.replace("/0", "/1") if b"DB index" in (answer or b"") else url)
    assert isinstance(error, kind)
    assert re.search(text, str(error))


@pytest.mark.parametrize(
    ("reply", "text"),
    [
        ("OOM command not allowed when used memory > 'maxmemory'.", "out of memory"),
        ("READONLY You can't write against a read only replica.", "point the URL at the primary"),
        ("MISCONF Redis is configured to save RDB snapshots, but", "look at its log and its disk"),
        ("NOPERM this user has no permissions to run the 'lpush' command", r"rights \(ACL\)"),
        ("MOVED 1234 10.0.0.1:6379", "Redis Cluster"),
        ("CROSSSLOT Keys in request don't hash to the same slot", "hash tag"),
        ("BUSY Redis is busy running a script.", "SCRIPT KILL"),
    ],
)
def test_refusals_say_what_to_do(reply: str, text: str) -> None:
    """The server's refusals of a command are told with advice."""

    async def story() -> None:
        with FakeServer(lambda turn, data: HELLO if turn == 0 else f"-{reply}\r\n".encode()) as server:
            connection = await _open(server.url)
            with pytest.raises(OperationalError, match=text):
                await connection.call("LPUSH", "a", "b")
            connection.close()

    asyncio.run(story())


def test_real_passwords() -> None:
    """A right password opens, a wrong one and none are told apart, with and without a user."""

    async def story() -> None:
        with redis_server() as server:
            server.command("ACL", "SETUSER", "anna", "on", ">geheim1", "~*", "&*", "+@all")
            server.command("CONFIG", "SET", "requirepass", "geheim0")
            at = server.url.partition("//")[2]
            for good in (f"redis://:geheim0@{at}", f"redis://anna:geheim1@{at}"):
                connection = await _open(good)
                assert await connection.call("PING") == b"PONG"
                connection.close()
            for bad, text in (
                (f"redis://:geheim9@{at}", "password is wrong"),
                (f"redis://anna:geheim9@{at}", "password is wrong"),
                (f"redis://{at}", "wants a password"),
            ):
                with pytest.raises(OperationalError, match=text) as caught:
                    await _open(bad)
                assert "geheim" not in str(caught.value)

    asyncio.run(story())


def test_databases(redis_url: str) -> None:
    """The database of the URL is chosen; one that the server does not have is a matter of configuration."""

    async def story() -> None:
        connection = await _open(redis_url.rpartition("/")[0] + "/3")
        await connection.call("SET", "aio-db", "three")
        connection.close()
        with pytest.raises(ImproperlyConfigured, match="no database 99"):
            await _open(redis_url.rpartition("/")[0] + "/99")

    asyncio.run(story())
    assert command(redis_url.rpartition("/")[0] + "/3", "GET", "aio-db") == b"three"


def test_tls_to_a_plain_port(redis_url: str) -> None:
    """TLS to a port that speaks none ends with an error, not in a wait."""
    before = time.monotonic()
    error = _error(redis_url.replace("redis:", "rediss:"), socket_connect_timeout=2)
    assert isinstance(error, OperationalError)
    assert time.monotonic() - before < 8


def test_a_silent_server_is_given_up() -> None:
    """A server that accepts and says nothing is given up after the connect timeout."""
    with FakeServer(lambda turn, data: b"") as server:
        before = time.monotonic()
        error = _error(server.url, socket_connect_timeout=0.3)
    assert "no connection within 0.3 s" in str(error)
    assert time.monotonic() - before < 3


def test_an_answer_that_never_comes(caplog: pytest.LogCaptureFixture) -> None:
    """A reply that takes too long breaks the connection for all who wait, with one warning."""

    async def story() -> None:
        with FakeServer(lambda turn, data: HELLO if turn == 0 else b"") as server:
            lost: list[CeleryError] = []
            connection = await AsyncConnection.open(parse(server.url, {"socket_timeout": 0.3}), None, lost.append)
            before = time.monotonic()
            answers = await asyncio.gather(
                connection.call("GET", "a"), connection.call("GET", "b"), return_exceptions=True
            )
            assert 0.25 < time.monotonic() - before < 3
            assert all(isinstance(a, OperationalError) and "no answer within 0.3 s" in str(a) for a in answers)
            assert len(lost) == 1
            assert connection.broken

    with caplog.at_level(logging.INFO, "celeriac.redis"):
        asyncio.run(story())
    assert [record.getMessage().endswith("the connection is given up") for record in caplog.records] == [True]


def test_a_frozen_connection_is_noticed_in_silence(redis_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A connection over which nothing is asked is asked whether it lives; a dead one breaks by itself."""
    monkeypatch.setattr(aio, "SILENCE", 0.2)
    monkeypatch.setattr(aio, "PING_PATIENCE", 0.2)

    async def story() -> None:
        with FreezeProxy(int(redis_url.rpartition(":")[2].partition("/")[0])) as proxy:
            lost = asyncio.Event()
            connection = await AsyncConnection.open(parse(proxy.url), None, lambda error: lost.set())
            await asyncio.sleep(1.0)
            assert not connection.broken, "a living connection was given up"
            proxy.freeze()
            await asyncio.wait_for(lost.wait(), 5)
            assert connection.broken

    asyncio.run(story())


def test_a_stopped_server_is_noticed() -> None:
    """A server that is stopped (SIGSTOP) in the middle of a call ends the call with OperationalError."""

    async def story() -> None:
        with redis_server() as server:
            connection = await _open(server.url, socket_timeout=0.5)
            server.stop_process()
            try:
                with pytest.raises(OperationalError, match="no answer within"):
                    await asyncio.wait_for(connection.call("PING"), 5)
            finally:
                server.cont()

    asyncio.run(story())


def test_a_slow_but_living_answer_is_waited_for(redis_url: str) -> None:
    """A long reply that keeps coming is not given up, however long it takes in all."""

    async def slow(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1000)
        writer.write(HELLO)
        await reader.read(1000)
        writer.write(b"$10\r\n")
        for _ in range(10):
            await asyncio.sleep(0.1)
            writer.write(b"x")
        writer.write(b"\r\n")
        await reader.read(10)
        writer.close()

    async def story() -> None:
        server = await asyncio.start_server(slow, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        connection = await _open(f"redis://127.0.0.1:{port}", socket_timeout=0.4)
        assert await connection.call("GET", "a") == b"x" * 10
        connection.close()
        server.close()

    asyncio.run(story())


def test_an_idle_connection_is_quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    """An idle connection sends one PING in each silence and nothing else."""
    monkeypatch.setattr(aio, "SILENCE", 0.2)

    async def story() -> None:
        with FakeServer(lambda turn, data: HELLO if turn == 0 else b"+PONG\r\n" * data.count(b"PING")) as server:
            connection = await _open(server.url)
            await asyncio.sleep(1.1)
            connection.close()
            pings = b"".join(server.heard[1:])
            assert 2 <= pings.count(b"PING") <= 6
            assert pings.replace(b"*1\r\n$4\r\nPING\r\n", b"") == b""

    asyncio.run(story())


def test_a_link_opens_anew() -> None:
    """After the server went and came back the link opens another connection, once, prepared before use."""

    async def story() -> None:
        with redis_server() as server:
            prepared: list[AsyncConnection] = []

            async def prepare(connection: AsyncConnection) -> None:
                await connection.call("PING")
                prepared.append(connection)

            link = AsyncLink(parse(server.url), prepare=prepare)
            await asyncio.gather(*(link.call("PING") for _ in range(10)))
            assert len(prepared) == 1
            server.kill9()
            with pytest.raises(OperationalError):
                await link.call("PING")
            with pytest.raises(OperationalError, match="refused"):
                await link.call("PING")
            server.restart()
            await asyncio.gather(*(link.call("PING") for _ in range(10)))
            assert len(prepared) == 2
            link.close()
            assert link.current is None
            await link.call("PING")
            link.close()

    asyncio.run(story())


def test_big_replies_and_commands(redis_url: str) -> None:
    """Values of many megabytes go both ways."""

    async def story() -> None:
        connection = await _open(redis_url)
        value = bytes(range(256)) * 80_000
        await connection.call("SET", "aio-big", value)
        assert await connection.call("GET", "aio-big") == value
        await connection.call("DEL", "aio-big")
        connection.close()

    asyncio.run(story())


def test_over_a_unix_socket(tmp_path: Any) -> None:
    """A Unix socket works as a port does."""

    async def story() -> None:
        with redis_server() as server:
            path = f"{server.folder}/s.sock"
            # a running server can't be told to listen there: another one of the same binary does
            import subprocess

            from tests.servers import redis_binary

            process = subprocess.Popen(
                [redis_binary(), "--port", "0", "--unixsocket", path, "--save", "", "--dir", str(server.folder)],
                stdout=subprocess.DEVNULL,
            )
            try:
                for _ in range(200):
                    try:
                        connection = await _open(f"redis+socket://{path}?virtual_host=2")
                        break
                    except OperationalError:
                        await asyncio.sleep(0.02)
                else:
                    raise AssertionError("the server did not come up")
                assert await connection.call("PING") == b"PONG"
                connection.close()
            finally:
                process.kill()
                process.wait()

    asyncio.run(story())
