"""What is PostgreSQL's own beside the contract: notifications, a pooler in between, sweeping, broken connections."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest

from celeriac.backends.postgres import PostgresBackend, PostgresReader
from celeriac.brokers.postgres import PostgresBroker, PostgresSender
from celeriac.brokers.postgres.sweeping import tidy
from celeriac.drivers.postgres.line import Line
from celeriac.errors import OperationalError
from celeriac.model.message import Dead, Demand, Part, Store
from celeriac.testing.contract_chords import chord
from celeriac.testing.rigs import BrokerRig, claim, done, envelope, in_loop, settle
from tests.brokers.postgres_rig import PostgresRig
from tests.proxy import FreezeProxy
from tests.servers import PgBouncer, PostgresServer


@pytest.fixture
def rig(postgres_server: PostgresServer) -> PostgresRig:
    """The session's server, emptied."""
    return PostgresRig(postgres_server.url)


@pytest.fixture(scope="module")
def pool(postgres_server: PostgresServer) -> Iterator[PgBouncer]:
    """PgBouncer before the session's server."""
    with PgBouncer(postgres_server) as found:
        yield found


class TestNotifications:
    """Who waits is told; where nobody waits nothing is said, for that holds a lock of the whole database."""

    @in_loop
    async def test_only_who_waits_is_told(self, rig: BrokerRig) -> None:
        """A publish notifies a worker that waits, and none that is busy."""
        told: list[str] = []
        site = PostgresBroker(rig_url(rig), {}).site
        line = Line(site, channels=("celeriac_work",), hear=lambda _, queue: told.append(queue))
        await line.open()
        async with rig.consuming() as (broker, consumer):
            await broker.publish([envelope("a"), envelope("b")])
            await claim(consumer, 1)
            await broker.publish([envelope("c")])
            await line.run("SELECT 1")
            assert told == []
            for _ in range(2):
                assert len((await consumer.cycle((), Demand(9))).deliveries) in (0, 2)
            await broker.publish([envelope("d"), envelope("e")])
            await line.run("SELECT 1")
            assert told == ["q"]
        await line.close()

    @in_loop
    async def test_an_idle_consumer_sends_next_to_nothing(self, rig: BrokerRig) -> None:
        """In three seconds of waiting a consumer looks once or twice, not in a circle."""
        async with rig.consuming() as (_, consumer):
            looks = 0
            end = time.monotonic() + 3
            while time.monotonic() < end:
                await consumer.cycle((), Demand(1))
                looks += 1
                try:
                    await asyncio.wait_for(consumer.wait(), max(0.01, end - time.monotonic()))
                except TimeoutError:
                    break
            assert looks <= 4


class TestThroughPgBouncer:
    """In transaction mode no notification comes through: it is found out, and who waits looks by itself."""

    @pytest.fixture
    def rig(self, postgres_server: PostgresServer, pool: PgBouncer) -> PostgresRig:
        """The session's server through the pool."""
        return PostgresRig(pool.url(postgres_server.url))

    @in_loop
    async def test_a_broker(self, rig: PostgresRig) -> None:
        """Publishing, claiming, waiting, leases, remote control and results work through the pool."""
        async with rig.consuming() as (broker, consumer):
            waiting = asyncio.ensure_future(claim(consumer, 3))
            await asyncio.sleep(0.05)
            before = time.monotonic()
            await broker.publish([envelope(name) for name in "abc"])
            taken = await asyncio.wait_for(waiting, 5)
            assert time.monotonic() - before < 1
            assert isinstance(broker, PostgresBroker)
            assert broker._side.pooled
            store = Store("a", b"1", "SUCCESS", 100.0)
            backend = rig.backend()
            async with backend.watch(["a"]) as changes, broker.listen("celeryev", "#") as heard:
                await broker.broadcast("celeryev", "worker.online", b"hello")
                assert await asyncio.wait_for(anext(heard), 5) == b"hello"
                await settle(consumer, *(done(each.receipt, None, store) for each in taken[:1]))
                assert await asyncio.wait_for(anext(changes), 5) == ("a", b"1")
            assert await consumer.renew([taken[1].receipt])
            await backend.close()

    def test_a_caller(self, rig: PostgresRig) -> None:
        """A sender and a reader through the pool, each more often than a prepared statement would need."""
        url = rig.url
        sender, reader = PostgresSender(url, {}), PostgresReader(url, {})
        for n in range(12):
            sender.publish([envelope(str(n))], 5.0)
            reader.store([Store(str(n), b"x", "SUCCESS")])
        with reader.watch(["11", "nobody"], 0.3) as changes:
            assert list(changes) == [("11", b"x")]
        sender.close()
        reader.close()


class TestSweeping:
    """Tables stay small: what is over goes."""

    @in_loop
    async def test_what_is_over_is_deleted(self, rig: BrokerRig) -> None:
        """Results, groups, chords, publish ids, notices and old answers, but nothing whose time is not over."""
        url = rig_url(rig)
        broker, backend = PostgresBroker(url, {}), PostgresBackend(url, {})
        for name, expires in (("over", 0.05), ("stays", 100.0)):
            await backend.store([Store(name, b"x", "SUCCESS", expires)])
            await backend.save_group(name, b"x", expires)
            await backend.open_chords([chord(2, group=name, expires=expires)])
            await backend.add_to_chord(name, ["more:0"])
            await backend.count([Part(name, "m0", 0, b"[]", b"{}")], 1.0)
            await broker.cancel([name], expires)
        await broker.publish([envelope("x", publish_id="11111111-2222-5333-8444-555555555555"), envelope("r", REPLY)])
        async with broker.listen("e", "#"):
            await broker.broadcast("e", "k", b"x")
        await broker.broadcast("nobody", "k", b"x")
        await asyncio.sleep(0.1)
        line = Line(broker.site)
        assert await line.run("SELECT exchange FROM celeriac_notices") == [("e",)]
        await line.run("UPDATE celeriac_published SET until = 1")
        await line.run("UPDATE celeriac_notices SET at = 1")
        await line.run("UPDATE celeriac_ready SET position = 1 WHERE queue LIKE '%pidbox'")
        await tidy(line, 10)
        for table, column in (
            ("results", "id"), ("groups", "id"), ("chords", "id"), ("chord_bodies", "id"), ("chord_parts", "chord"),
            ("chord_added", "chord"), ("cancelled", "convert_from(id, 'UTF8')"),
        ):  # fmt: skip
            rows = await line.run(f"SELECT DISTINCT {column} FROM celeriac_{table} WHERE {column} <> 'd'")
            assert rows == [("stays",)], table
        for table in ("published", "notices"):
            assert await line.run(f"SELECT count(*) FROM celeriac_{table}") == [(0,)]
        assert await line.run("SELECT name FROM celeriac_queues") == [("q",)]
        assert await line.run("SELECT count(*) FROM celeriac_messages") == [(1,)]
        await line.close()
        await broker.close()
        await backend.close()

    @in_loop
    async def test_the_oldest_dead_letters_go(self, rig: BrokerRig) -> None:
        """Of the dead letters of a queue so many are kept, the newest."""
        async with rig.consuming() as (broker, consumer):
            await broker.publish([envelope(str(n)) for n in range(5)])
            for number, delivery in enumerate(await claim(consumer, 5)):
                await settle(consumer, done(delivery.receipt, Dead(str(number))))
            line = Line(PostgresBroker(rig_url(rig), {}).site)
            await tidy(line, 2)
            assert await line.run("SELECT reason FROM celeriac_dead ORDER BY died") == [("3",), ("4",)]
            assert await line.run("SELECT count(*) FROM celeriac_messages") == [(2,)]
            await line.close()


class TestConnections:
    """Each statement has a deadline; a connection that broke is made anew."""

    @in_loop
    async def test_a_frozen_connection(self, rig: BrokerRig) -> None:
        """It raises in time, and the next statement passes on a new one."""
        with FreezeProxy(int(rig_url(rig).rpartition(":")[2].partition("/")[0])) as proxy:
            url = f"postgresql://postgres@127.0.0.1:{proxy.port}/postgres?timeout=0.5"
            broker = PostgresBroker(url, {})
            await broker.publish([envelope("a")])
            proxy.freeze()
            before = time.monotonic()
            with pytest.raises(OperationalError, match=r"did not answer within 0\.5 s"):
                await broker.publish([envelope("b")])
            assert time.monotonic() - before < 2
            await broker.publish([envelope("c")])
            sender = PostgresSender(url, {})
            sender.publish([envelope("d")], 5.0)
            proxy.freeze()
            before = time.monotonic()
            with pytest.raises(OperationalError, match="did not answer"):
                sender.publish([envelope("e")], 0.5)
            assert time.monotonic() - before < 2
            sender.publish([envelope("f")], 5.0)
            sender.close()
            await broker.close()

    @in_loop
    async def test_hundreds_of_reconnects(self, rig: BrokerRig) -> None:
        """Connections that are ended again and again leave none behind."""
        url = rig_url(rig)
        broker = PostgresBroker(url, {})
        with psycopg.connect(url, autocommit=True) as link:
            for n in range(100):
                try:
                    await broker.publish([envelope(str(n))])
                except OperationalError:  # it was ended in the middle
                    await broker.publish([envelope(str(n))])
                link.execute(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'celeriac'"
                )
            await broker.close()
            [(left,)] = link.execute("SELECT count(*) FROM pg_stat_activity WHERE application_name = 'celeriac'")
            assert left <= 1
            [(ready,)] = link.execute("SELECT count(*) FROM celeriac_ready")
            assert ready >= 100

    @in_loop
    async def test_what_deadlocks_is_run_again(self, rig: BrokerRig) -> None:
        """Two that lock the same rows crosswise both get through."""
        url = rig_url(rig)
        one, two = Line(PostgresBroker(url, {}).site), Line(PostgresBroker(url, {}).site)
        await one.run("INSERT INTO celeriac_state VALUES ('x', 0), ('y', 0)")
        crosswise = """DO $$ BEGIN
            UPDATE celeriac_state SET value = value + 1 WHERE name = '{}'; PERFORM pg_sleep(0.3);
            UPDATE celeriac_state SET value = value + 1 WHERE name = '{}'; END $$"""
        await asyncio.gather(one.run(crosswise.format("x", "y")), two.run(crosswise.format("y", "x")))
        assert await one.run("SELECT value FROM celeriac_state WHERE name IN ('x', 'y')") == [(2,), (2,)]
        await one.run("DELETE FROM celeriac_state WHERE name IN ('x', 'y')")
        await one.close()
        await two.close()


REPLY = "1.reply.celery.pidbox"


def rig_url(rig: Any) -> str:
    """Where a rig stands."""
    return str(rig.url)
