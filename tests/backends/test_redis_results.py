"""Results on Redis: the form that Celery reads, watches that survive a server, and what is refused."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from typing import Any

import pytest

import celeriac.backends.redis.reader as reader_module
from celeriac.backends.redis import RedisBackend, RedisReader
from celeriac.backends.redis import names as names_module
from celeriac.drivers.redis import aio
from celeriac.errors import BackendStoreError, OperationalError
from celeriac.model.message import Store
from tests.proxy import FreezeProxy
from tests.servers import RedisServer, command, redis_server


def _store(name: str, document: bytes = b"x", expires: float | None = None, guard: bool = False) -> Store:
    return Store(name, document, "SUCCESS", expires, guard)


def _restart(server: RedisServer) -> None:
    server.restart()
    while b"loading:0" not in server.command("INFO", "persistence"):
        time.sleep(0.01)


@pytest.fixture(params=["redis", "valkey"])
def url(request: pytest.FixtureRequest) -> str:
    """An empty server."""
    found: str = request.getfixturevalue(f"{request.param}_url")
    command(found, "FLUSHALL")
    return found


@pytest.mark.parametrize(
    ("prefix", "key"),
    [
        ("", "celery-task-meta-a"), ("rp", "rp_celery-task-meta-a"), ("rp.", "rp.celery-task-meta-a"),
        ("r:", "r:celery-task-meta-a"),
    ],
)  # fmt: skip
def test_keys_are_celerys(url: str, prefix: str, key: str) -> None:
    """The key of a result is Celery's, with its rule for a prefix; groups have their own."""
    reader = RedisReader(url, {"global_keyprefix": prefix})
    reader.store([_store("a", b"doc", 86400.9)])
    reader.save_group("a", b"group", None)
    assert command(url, "GET", key) == b"doc"
    assert command(url, "TTL", key) == 86400
    assert command(url, "GET", key.replace("task-meta", "taskset-meta")) == b"group"
    assert command(url, "TTL", key.replace("task-meta", "taskset-meta")) == -1
    reader.close()


def test_a_store_of_celery_is_seen(url: str) -> None:
    """A watch sees what Celery writes: SETEX and PUBLISH in one transaction; and an old result that was only set."""
    reader = RedisReader(url)
    command(url, "SETEX", "celery-task-meta-old", 100, "1")

    def celery() -> None:
        time.sleep(0.05)
        command(url, "EVAL", "redis.call('SETEX', KEYS[1], 9, ARGV[1]) redis.call('PUBLISH', KEYS[1], ARGV[1])",
                1, "celery-task-meta-new", "2")  # fmt: skip

    thread = threading.Thread(target=celery)
    with reader.watch(["old", "new"], 5) as changes:
        thread.start()
        assert [next(changes), next(changes)] == [("old", b"1"), ("new", b"2")]
    thread.join()
    reader.close()


def test_watches_within_watches(url: str) -> None:
    """Watches of one thread may overlap, also on the same id, with other calls between; each sees its own."""
    reader, writer = RedisReader(url), RedisReader(url)
    with reader.watch(["a", "b"], 5) as outer:
        with reader.watch(["b", "c"], 5) as inner:
            thread = threading.Thread(target=writer.store, args=([_store("a"), _store("b"), _store("c")],))
            thread.start()
            assert [next(inner), next(inner)] == [("b", b"x"), ("c", b"x")]
            thread.join()
            assert reader.fetch(["a"]) == {"a": b"x"}
        reader.store([_store("c", b"y"), _store("b", b"y")])
        assert [next(outer), next(outer), next(outer)] == [("a", b"x"), ("b", b"x"), ("b", b"y")]
        assert command(url, "PUBSUB", "NUMSUB", "celery-task-meta-b", "celery-task-meta-c")[1::2] == [1, 0]
    assert reader.fetch(["b"]) == {"b": b"y"}
    assert command(url, "PUBSUB", "NUMSUB", "celery-task-meta-b")[1] == 0
    reader.close()
    writer.close()


def test_a_reader_keeps_its_connection(url: str) -> None:
    """Watch after watch goes over one connection."""
    reader = RedisReader(url, {"client_name": "keeper"})
    ids = set()
    for n in range(10):
        with reader.watch([str(n)], 5) as changes:
            reader.store([_store(str(n))])
            assert next(changes) == (str(n), b"x")
        clients = command(url, "CLIENT", "LIST").decode().splitlines()
        ids |= {line.split()[0] for line in clients if "name=keeper " in line}
    assert len(ids) == 1
    reader.close()


def test_a_watch_ends_to_the_point(url: str) -> None:
    """A watch with nothing to see ends at its timeout, not before and not much later."""
    reader = RedisReader(url)
    reader.fetch(["warm"])
    for timeout in (0.0, 0.05, 0.3, 0.7):
        before = time.monotonic()
        with reader.watch(["never"], timeout) as changes:
            assert list(changes) == []
        assert timeout <= time.monotonic() - before < timeout + 0.2
    reader.close()


def test_a_watch_in_a_forked_child(url: str) -> None:
    """A child forked while the parent watches has watches of its own; the parent's goes on."""
    reader = RedisReader(url)
    with reader.watch(["parent"], 10) as changes:
        child = os.fork()
        if child == 0:
            code = 1
            try:
                with reader.watch(["child"], 5) as mine:
                    reader.store([_store("child", b"c"), _store("parent", b"p")])
                    code = 0 if next(mine) == ("child", b"c") else 2
            finally:
                os._exit(code)
        assert next(changes) == ("parent", b"p")
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    reader.close()


def test_a_sync_watch_survives_a_restart() -> None:
    """The server is killed and comes back while a caller waits: it sees what is stored afterwards, and what was stored
    before its subscription stood again."""
    with redis_server(appendonly=True) as server:
        reader = RedisReader(server.url)

        def fate() -> None:
            time.sleep(0.1)
            server.kill9()
            time.sleep(0.2)
            _restart(server)
            command(server.url, "SET", "celery-task-meta-a", "1")  # without PUBLISH
            time.sleep(0.5)
            RedisReader(server.url).store([_store("b", b"2")])

        thread = threading.Thread(target=fate)
        with reader.watch(["a", "b"], 20) as changes:
            thread.start()
            assert next(changes) == ("a", b"1")
            assert next(changes) == ("b", b"2")
        thread.join()
        reader.close()


def test_an_async_watch_survives_a_restart() -> None:
    """As the synchronous one; other calls meanwhile raise OperationalError and work again later."""

    async def story() -> None:
        with redis_server(appendonly=True) as server:
            backend, writer = RedisBackend(server.url), RedisBackend(server.url)
            async with backend.watch(["a", "b"]) as changes, backend.watch(["b"]) as others:
                await writer.store([_store("a", b"0")])
                assert await anext(changes) == ("a", b"0")
                server.kill9()
                with pytest.raises(OperationalError):
                    await writer.fetch(["a"])
                await asyncio.to_thread(_restart, server)
                command(server.url, "SET", "celery-task-meta-a", "1")
                assert await asyncio.wait_for(anext(changes), 10) == ("a", b"1")
                await writer.store([_store("b", b"2")])
                assert await asyncio.wait_for(anext(changes), 10) == ("b", b"2")
                assert await asyncio.wait_for(anext(others), 10) == ("b", b"2")
            await backend.close()
            await writer.close()

    asyncio.run(story())


def test_a_server_that_stays_away(monkeypatch: pytest.MonkeyPatch) -> None:
    """A watch whose server does not come back raises OperationalError after its patience, or ends at its timeout."""
    monkeypatch.setattr(reader_module, "RECONNECT_PATIENCE", 0.4)
    monkeypatch.setattr("celeriac.backends.redis.backend.RECONNECT_PATIENCE", 0.4)
    with redis_server() as server:
        reader = RedisReader(server.url)
        with reader.watch(["a"], None) as changes:
            server.kill9()
            before = time.monotonic()
            with pytest.raises(OperationalError, match="refused"):
                next(changes)
            assert time.monotonic() - before < 3
        server.start()
        with reader.watch(["a"], 0.3) as changes:
            server.kill9()
            assert list(changes) == []
        with pytest.raises(OperationalError):
            reader.fetch(["a"])
        with pytest.raises(OperationalError), reader.watch(["a"], 1):
            pass
        reader.close()

        async def story() -> None:
            server.start()
            backend = RedisBackend(server.url)
            async with backend.watch(["a"]) as found:
                server.kill9()
                with pytest.raises(OperationalError):
                    await asyncio.wait_for(anext(found), 5)
            await backend.close()

        asyncio.run(story())


def test_a_frozen_network_in_a_watch(monkeypatch: pytest.MonkeyPatch) -> None:
    """A watch on a connection that stopped forwarding finds out and goes on over a new one."""
    monkeypatch.setattr(reader_module, "SILENCE", 0.2)
    monkeypatch.setattr(aio, "SILENCE", 0.2)
    monkeypatch.setattr(aio, "PING_PATIENCE", 0.2)
    with redis_server() as server, FreezeProxy(server.port) as proxy:
        reader, writer = RedisReader(proxy.url), RedisReader(server.url)
        with reader.watch(["a"], None) as changes:
            proxy.freeze()
            writer.store([_store("a", b"1")])
            assert next(changes) == ("a", b"1")
        reader.close()

        async def story() -> None:
            backend = RedisBackend(proxy.url)
            async with backend.watch(["b"]) as found:
                proxy.freeze()
                writer.store([_store("b", b"1")])
                assert await asyncio.wait_for(anext(found), 5) == ("b", b"1")
            await backend.close()

        asyncio.run(story())
        writer.close()


def test_rights_that_are_missing(url: str) -> None:
    """A user who may not subscribe, or not publish, gets an OperationalError that speaks of rights."""
    command(url, "ACL", "SETUSER", "deaf", "reset", "on", "nopass", "~*", "&other", "+@all")
    weak = url.replace("//", "//deaf:x@")
    reader = RedisReader(weak)
    with pytest.raises(OperationalError, match="ACL"), reader.watch(["a"], 1):
        pass
    with pytest.raises(OperationalError, match="ACL"):
        reader.store([_store("a")])
    assert dict(reader.fetch(["b"])) == {}
    reader.close()

    async def story() -> None:
        backend = RedisBackend(weak)
        with pytest.raises(OperationalError, match="ACL"):
            async with backend.watch(["a"]):
                pass
        with pytest.raises(OperationalError, match="ACL"):
            await backend.store([_store("a")])
        assert dict(await backend.fetch(["b"])) == {}
        await backend.close()

    asyncio.run(story())


def test_what_cannot_be_stored(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A document that is too large, or an id that is no text, fails alone; the others are stored."""
    monkeypatch.setattr(names_module, "LARGEST", 1000)
    bad = "\ud800"
    stores = [_store("a"), _store("big", b"x" * 1001), _store(bad), _store("b", guard=True), _store(bad, guard=True)]

    async def story() -> list[Any]:
        backend = RedisBackend(url)
        verdicts = await backend.store(stores)
        await backend.close()
        return list(verdicts)

    verdicts = asyncio.run(story())
    assert [verdict.ok for verdict in verdicts] == [True, False, False, True, False]
    assert "512 MiB" in verdicts[1].error
    assert command(url, "MGET", "celery-task-meta-a", "celery-task-meta-b") == [b"x", b"x"]
    reader = RedisReader(url)
    with pytest.raises(BackendStoreError, match="512 MiB") as caught:
        reader.store([_store("c"), _store("big", b"x" * 1001)])
    assert caught.value.task_id == "big"
    assert reader.fetch(["c"]) == {"c": b"x"}
    reader.close()


def test_many_stores_at_once(url: str) -> None:
    """Thousands of documents, small and large, are stored in batches."""

    async def story() -> None:
        backend = RedisBackend(url)
        stores = [_store(str(n), b"%d" % n * (1 + 20_000 * (n % 50 == 0))) for n in range(2000)]
        assert all(verdict.ok for verdict in await backend.store(stores))
        found = await backend.fetch([store.id for store in stores])
        assert dict(found) == {store.id: store.document for store in stores}
        await backend.forget([store.id for store in stores])
        assert dict(await backend.fetch([store.id for store in stores])) == {}
        await backend.close()

    asyncio.run(story())
