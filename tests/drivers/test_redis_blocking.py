"""The blocking connection: one for each thread, anew after a fork, dead ones noticed before use, deadlines kept."""

from __future__ import annotations

import gc
import os
import signal
import threading
import time
from typing import Any

import pytest

from celeriac.drivers.redis.blocking import Connection, Connections
from celeriac.drivers.redis.url import parse
from celeriac.errors import ImproperlyConfigured, OperationalError
from tests.drivers.fake_redis import HELLO, FakeServer
from tests.proxy import FreezeProxy
from tests.servers import command, free_port, redis_server


def _soon(seconds: float = 5.0) -> float:
    return time.monotonic() + seconds


def _named(url: str, name: str) -> int:
    """How many connections of this client name the server has."""
    clients = command(url, "CLIENT", "LIST").decode()
    return sum(f"name={name} " in line for line in clients.splitlines())


def _until(condition: Any) -> None:
    end = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_calls(redis_url: str) -> None:
    """Commands, pipelines and error replies."""
    connection = Connection(parse(redis_url), _soon())
    assert connection.call("SET", "b", "1", deadline=_soon()) == b"OK"
    assert connection.many([("GET", "b"), ("INCR", "b")], _soon()) == [b"1", 2]
    with pytest.raises(OperationalError, match="LPUSH: WRONGTYPE"):
        connection.call("LPUSH", "b", "x", deadline=_soon())
    with pytest.raises(OperationalError, match="WRONGTYPE"):
        connection.many([("GET", "b"), ("LPUSH", "b", "x"), ("GET", "b")], _soon())
    assert connection.call("GET", "b", deadline=_soon()) == b"2"
    big = bytes(range(256)) * 40_000
    connection.call("SET", "b", big, deadline=_soon())
    assert connection.call("GET", "b", deadline=_soon()) == big
    connection.close()
    with pytest.raises(OperationalError, match="not connected"):
        connection.call("GET", "b", deadline=_soon())


def test_pushes_pass_by_the_calls(redis_url: str) -> None:
    """What comes of channels is kept beside the answers, and listening ends at its deadline to the point."""
    connection = Connection(parse(redis_url), _soon())
    connection.tell(connection.pack(("SUBSCRIBE", "blocking")), _soon())
    assert [connection.call("PUBLISH", "blocking", str(n), deadline=_soon()) for n in range(3)] == [1, 1, 1]
    assert [push[2] for push in connection.pushes if push[0] == b"message"] == [b"0", b"1", b"2"]
    connection.pushes.clear()
    before = time.monotonic()
    assert connection.listen(before + 0.3) is False
    assert 0.29 <= time.monotonic() - before < 1
    command(redis_url, "PUBLISH", "blocking", "later")
    assert connection.idle(), "a message is no reason to distrust a connection"
    assert connection.listen(_soon()) is True
    assert connection.pushes[0][2] == b"later"
    connection.close()


def test_each_thread_has_its_own(redis_url: str) -> None:
    """Threads don't share connections; a thread's connection is closed when it ends, all are by close."""
    server = parse(redis_url, {"client_name": "threads"})
    connections = Connections(server)
    mine = connections.get(_soon())
    assert connections.get(_soon()) is mine
    seen: list[Connection] = []
    hold, ready = threading.Event(), threading.Barrier(5)

    def work() -> None:
        seen.append(connections.get(_soon()))
        ready.wait(5)
        hold.wait(5)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    ready.wait(5)
    assert len({id(connection) for connection in [*seen, mine]}) == 5
    assert _named(redis_url, "threads") == 5
    hold.set()
    for thread in threads:
        thread.join()
    seen.clear()
    gc.collect()
    _until(lambda: _named(redis_url, "threads") == 1)
    connections.close()
    _until(lambda: _named(redis_url, "threads") == 0)
    assert connections.get(_soon()).call("PING", deadline=_soon()) == b"PONG"
    connections.close()


def test_a_fork_makes_its_own(redis_url: str) -> None:
    """A forked child connects anew and leaves the parent's connection whole."""
    connections = Connections(parse(redis_url))
    mine = connections.get(_soon())
    child = os.fork()
    if child == 0:
        code = 1
        try:
            other = connections.get(_soon())
            for n in range(100):
                other.call("SET", "from-child", str(n), deadline=_soon())
            code = 0 if other is not mine else 2
        finally:
            os._exit(code)
    for n in range(100):
        assert mine.call("ECHO", str(n), deadline=_soon()) == b"%d" % n
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0
    assert connections.get(_soon()) is mine
    assert mine.call("GET", "from-child", deadline=_soon()) == b"99"
    connections.close()


def test_a_dead_connection_is_made_anew_before_use() -> None:
    """A connection that the server closed while it lay idle is replaced before anything is sent."""
    with redis_server() as server:
        connections = Connections(parse(server.url))
        first = connections.get(_soon())
        server.restart()
        second = connections.get(_soon())
        assert second is not first
        assert second.call("PING", deadline=_soon()) == b"PONG"
        server.command("CLIENT", "KILL", "TYPE", "normal")
        assert connections.get(_soon()).call("PING", deadline=_soon()) == b"PONG"
        connections.close()


def test_an_answer_to_no_question_is_not_taken() -> None:
    """A connection on which something came that nobody asked for is replaced: the next answer would be the wrong
    one."""
    with FakeServer(lambda turn, data: HELLO + b"+STRAY\r\n" if turn == 0 else b"+OK\r\n") as server:
        connections = Connections(parse(server.url))
        first = connections.get(_soon())
        _until(lambda: not first.idle())
        assert connections.get(_soon()) is not first
        connections.close()


def test_deadlines() -> None:
    """A call ends at its deadline, not before and not much later, also when bytes trickle; then the connection is
    gone."""
    with redis_server() as server:
        connection = Connection(parse(server.url), _soon())
        server.stop_process()
        try:
            for seconds in (0.2,):
                before = time.monotonic()
                with pytest.raises(OperationalError, match="no answer in time"):
                    connection.call("GET", "a", deadline=before + seconds)
                assert seconds <= time.monotonic() - before < seconds + 1
            assert connection.broken
        finally:
            server.cont()
    with FakeServer(lambda turn, data: b"") as silent:
        before = time.monotonic()
        with pytest.raises(OperationalError):
            Connection(parse(silent.url), before + 0.3)
        assert 0.3 <= time.monotonic() - before < 2
        before = time.monotonic()
        with pytest.raises(OperationalError):
            Connection(parse(silent.url, {"socket_connect_timeout": 0.3}), before + 60)
        assert 0.3 <= time.monotonic() - before < 2


def test_long_waits_are_cut_in_slices() -> None:
    """A deadline beyond the longest socket timeout is reached all the same."""
    with FakeServer(lambda turn, data: HELLO if turn == 0 else b"") as server:
        connection = Connection(parse(server.url), _soon())
        before = time.monotonic()
        with pytest.raises(OperationalError):
            connection.call("GET", "a", deadline=before + 2.8)
        assert 2.8 <= time.monotonic() - before < 4


def test_a_frozen_network() -> None:
    """A connection that stopped forwarding ends the call at its deadline; the next call has a new connection."""
    with redis_server() as server, FreezeProxy(server.port) as proxy:
        connections = Connections(parse(proxy.url))
        assert connections.get(_soon()).call("PING", deadline=_soon()) == b"PONG"
        proxy.freeze()
        with pytest.raises(OperationalError, match="in time"):
            connections.get(_soon()).call("PING", deadline=_soon(0.3))
        assert connections.get(_soon()).call("PING", deadline=_soon()) == b"PONG"
        connections.close()


def test_an_interrupt_in_the_middle(redis_url: str) -> None:
    """Ctrl-C in the middle of a call drops the connection: the late answer must not go to the next question."""

    class Interrupted(BaseException):
        pass

    def interrupt(*_: object) -> None:
        raise Interrupted

    connections = Connections(parse(redis_url))
    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.1)
        with pytest.raises(Interrupted):
            connections.get(_soon()).call("BLPOP", "nothing-here", 5, deadline=_soon(10))
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert connections.get(_soon()).call("ECHO", "mine", deadline=_soon()) == b"mine"
    connections.close()


@pytest.mark.parametrize(
    ("answer", "kind", "text"),
    [
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", OperationalError, "is no Redis server"),
        (b"-WRONGPASS invalid username-password pair\r\n", OperationalError, "password is wrong"),
        (b"-LOADING Redis is loading the dataset in memory\r\n", OperationalError, "loading its data; try again"),
        (b"-ERR unknown command `HELLO`, with args\r\n", ImproperlyConfigured, "Redis 6.2 or newer"),
        (None, OperationalError, "closed the connection"),
    ],
)
def test_a_server_that_does_not_let_us_in(answer: bytes | None, kind: type[Exception], text: str) -> None:
    """What is wrong at the door is said in one line, without the password."""
    with FakeServer(lambda turn, data: answer) as server, pytest.raises(kind, match=text) as caught:
        Connection(parse(server.url.replace("//", "//:geheim@")), _soon())
    assert "geheim" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_nobody_there() -> None:
    """A refused connection says so at once."""
    before = time.monotonic()
    with pytest.raises(OperationalError, match="connection refused; is the server running"):
        Connection(parse(f"redis://127.0.0.1:{free_port()}"), _soon())
    assert time.monotonic() - before < 2


def test_garbage_in_the_middle() -> None:
    """Bytes that are no Redis protocol end the call and the connection."""
    with FakeServer(lambda turn, data: HELLO if turn == 0 else b"what?\r\n") as server:
        connection = Connection(parse(server.url), _soon())
        with pytest.raises(OperationalError, match="is no Redis server"):
            connection.call("GET", "a", deadline=_soon())
        assert connection.broken
