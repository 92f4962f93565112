"""One loop under the sync API."""

from __future__ import annotations

import asyncio
import os
import threading
import time

import pytest

from celeriac.app.bridge import Bridge
from celeriac.app.greenloop import GreenProofLoop, PollSelector
from celeriac.drivers.unpatched import unpatched


async def later(value: int, seconds: float = 0.0) -> int:
    """The value, in a while."""
    await asyncio.sleep(seconds)
    return value


async def fail() -> None:
    """Raise."""
    raise KeyError("x")


@pytest.fixture
def bridge() -> Bridge:
    """A bridge."""
    return Bridge()


def test_a_coroutine_is_run(bridge: Bridge) -> None:
    """Its value, or what it raises."""
    assert bridge.run(later(5, 0.01)) == 5
    with pytest.raises(KeyError):
        bridge.run(fail())
    bridge.stop()
    assert bridge.run(later(6)) == 6
    bridge.stop()


def test_it_starts_at_the_first_use(bridge: Bridge) -> None:
    """No thread before."""
    before = threading.active_count()
    assert bridge._loop is None
    bridge.run(later(1))
    assert bridge._loop is not None
    assert threading.active_count() >= before
    bridge.stop()


def test_a_deadline(bridge: Bridge) -> None:
    """The coroutine is cancelled."""
    cancelled = threading.Event()

    async def stay() -> None:
        try:
            await asyncio.sleep(30)
        finally:
            cancelled.set()

    began = time.monotonic()
    with pytest.raises(TimeoutError, match=r"0\.05"):
        bridge.run(stay(), 0.05)
    assert cancelled.wait(5)
    assert time.monotonic() - began < 5
    bridge.stop()


def test_many_threads_at_once(bridge: Bridge) -> None:
    """All on one loop."""
    found: list[int] = []
    threads = [threading.Thread(target=lambda n=n: found.append(bridge.run(later(n, 0.05)))) for n in range(32)]
    began = time.monotonic()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(found) == list(range(32))
    assert time.monotonic() - began < 5
    bridge.stop()


def test_on_its_own_loop(bridge: Bridge) -> None:
    """It would wait for itself."""

    async def inner() -> None:
        bridge.run(later(1))

    with pytest.raises(RuntimeError, match="async twin"):
        bridge.run(inner())
    bridge.stop()


def test_inside_another_loop(bridge: Bridge) -> None:
    """Blocks that loop, and works."""

    async def outer() -> int:
        return bridge.run(later(7))

    assert asyncio.run(outer()) == 7
    bridge.stop()


def test_after_a_fork(bridge: Bridge) -> None:
    """The child gets a loop of its own."""
    assert bridge.run(later(1)) == 1
    pid = os.fork()
    if not pid:
        code = 1
        try:
            code = 0 if bridge.run(later(3), 5) == 3 else 2
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert bridge.run(later(2)) == 2
    bridge.stop()


def test_the_loop_for_patched_processes() -> None:
    """Sockets, timers, names, many at once."""
    loop = GreenProofLoop(unpatched("select", "poll")())

    async def talk() -> list[bytes]:
        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(await reader.readexactly(5))
            writer.close()

        async def ask(text: bytes) -> bytes:
            reader, writer = await asyncio.open_connection("localhost", port)
            writer.write(text)
            answer = await reader.read()
            writer.close()
            return answer

        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        async with server:
            return list(await asyncio.gather(*(ask(b"%05d" % number) for number in range(20))))

    assert loop.run_until_complete(talk()) == [b"%05d" % number for number in range(20)]
    loop.close()


def test_the_poll_selector() -> None:
    """As the standard one, for descriptors that are closed, too."""
    import selectors
    import socket

    selector = PollSelector(unpatched("select", "poll")())
    ours, theirs = socket.socketpair()
    selector.register(ours, selectors.EVENT_READ, "data")
    with pytest.raises(KeyError):
        selector.register(ours, selectors.EVENT_READ)
    assert selector.select(0) == []
    theirs.send(b"x")
    assert [(key.data, events) for key, events in selector.select(1)] == [("data", selectors.EVENT_READ)]
    selector.modify(ours, selectors.EVENT_READ | selectors.EVENT_WRITE, "more")
    assert selector.get_key(ours).data == "more"
    assert selector.select(1)[0][1] == selectors.EVENT_READ | selectors.EVENT_WRITE
    assert list(selector.get_map()) == [ours.fileno()]
    ours.close()
    assert selector.unregister(ours).data == "more"
    with pytest.raises(KeyError):
        selector.get_key(ours)
    theirs.close()
    selector.close()
