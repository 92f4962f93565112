"""Leases and what is given back on Redis: boots, gaps, revived workers, epochs, and Celery's own `unacked`."""

from __future__ import annotations

import asyncio
import json
import time
from typing import Any

import pytest

from celeriac.brokers.redis import RedisBroker, recovery
from celeriac.errors import LayoutTooNew
from celeriac.model.message import Delay, Demand, Park
from celeriac.ports import Consumer, Place
from celeriac.testing.rigs import claim, done, envelope, eventually, in_loop, losses, message, name_of, names, settle
from tests.brokers.redis_rig import RedisRig
from tests.servers import command, redis_server

LEASE = 0.6


async def _outlive(*living: Consumer, leases: float = 2) -> None:
    for _ in range(int(leases * 6)):
        await asyncio.sleep(LEASE / 6)
        for consumer in living:
            await consumer.renew(())


async def _recovered(consumer: Consumer, want: int) -> None:
    got = 0
    end = time.monotonic() + 10
    while got < want:
        await consumer.renew(())
        got += await consumer.recover()
        assert time.monotonic() < end, f"{got} of {want} came back"
        await asyncio.sleep(0.02)
    assert got == want


class TestLeases:
    """On both servers, with and without a prefix."""

    @pytest.fixture(params=["redis", "valkey", "apart"])
    def rig(self, request: pytest.FixtureRequest) -> RedisRig:
        url = request.getfixturevalue("valkey_url" if request.param == "valkey" else "redis_url")
        return RedisRig(url, apart=request.param == "apart")

    @in_loop
    async def test_of_two_epochs_only_the_dead_one(self, rig: RedisRig) -> None:
        """Of three workers one dies: what it held comes back with the marks of what ran, the others keep theirs."""
        async with (
            rig.consuming(lease=LEASE) as (broker, dying),
            rig.consuming(lease=LEASE) as (_, living),
            rig.consuming(lease=LEASE) as (_, other),
        ):
            await broker.publish([envelope(str(n)) for n in range(9)])
            dead, kept, more = [await claim(consumer, 3) for consumer in (dying, living, other)]
            await dying.renew([dead[1].receipt])
            await _outlive(living, other)
            await _recovered(living, 3)
            items = (await broker.browse(Place.READY, "q", 10)).items
            assert [name_of(item.blob) for item in items] == ["0", "1", "2"]
            assert [losses(item.blob) for item in items] == [(0, 0), (0, 1), (0, 0)]
            assert json.loads(items[1].blob)["headers"]["redelivered"] is True
            await settle(living, *(done(d.receipt) for d in kept))
            await settle(other, *(done(d.receipt) for d in more))
            turn = await dying.cycle([done(d.receipt) for d in dead], Demand(0))
            assert [verdict.lost for verdict in turn.verdicts] == [True] * 3

    @in_loop
    async def test_the_worker_is_forgotten_with_its_keys(self, rig: RedisRig) -> None:
        """After a recovery nothing of the dead worker is left on the server."""
        epoch = rig.epoch("gone")
        async with rig.consuming(lease=LEASE) as (broker, living):
            async with rig.consuming("q", "r", epoch=epoch, lease=LEASE) as (_, dying):
                await broker.publish([envelope("a"), envelope("b", "r")])
                taken = await claim(dying, 2)
                await dying.renew([d.receipt for d in taken])
            await _outlive(living)
            await _recovered(living, 2)
            left = [key for key in command(rig.url, "KEYS", "*") if epoch.encode() in key]
            assert left == []
            prefix = rig.options.get("global_keyprefix", "")
            assert command(rig.url, "ZSCORE", f"{prefix}celeriac:1:workers", epoch) is None

    @in_loop
    async def test_a_worker_that_comes_back_in_the_middle(self, rig: RedisRig) -> None:
        """A lease that lives again stops the recovery: what was not yet taken stays with its worker."""
        epoch = rig.epoch("back")
        async with (
            rig.consuming(lease=LEASE) as (broker, living),
            rig.consuming(epoch=epoch, lease=LEASE) as (_, back),
        ):
            assert isinstance(broker, RedisBroker)
            await broker.publish([envelope(str(n)) for n in range(250)])
            taken = await claim(back, 250)
            await _outlive(living)
            link, layout = broker.link, broker.layout
            run = link.run
            calls = 0

            async def renewing(script: Any, keys: Any, *arguments: Any) -> Any:
                nonlocal calls
                answer = await run(script, keys, *arguments)
                if arguments[-1:] and calls == 0 and isinstance(answer, list) and len(answer) == 2:
                    calls += 1
                    await back.renew(())  # after the first batch
                return answer

            link.run = renewing  # type: ignore[method-assign]
            given = await recovery.give_back(link, layout, epoch, only_dead=True)
            assert given == 100
            turn = await back.cycle([done(d.receipt) for d in taken], Demand(0))
            assert [verdict.ok for verdict in turn.verdicts] == [True] * 150 + [False] * 100
            assert (await broker.count("q")).ready == 100

    @in_loop
    async def test_nobody_is_dead_after_a_boot(self, rig: RedisRig) -> None:
        """When the server's run id changed, nobody is declared dead for one lease."""
        prefix = rig.options.get("global_keyprefix", "")
        async with rig.consuming(lease=LEASE) as (broker, dying), rig.consuming(lease=LEASE) as (_, living):
            await broker.publish([envelope("a")])
            await claim(dying, 1)
            await _outlive(living)
            command(rig.url, "HSET", f"{prefix}celeriac:1:boot", "run_id", "another")
            assert await living.recover() == 0
            booted = time.monotonic()
            await _recovered(living, 1)
            assert time.monotonic() - booted > LEASE * 0.9

    @in_loop
    async def test_who_was_stopped_recovers_nobody(self, rig: RedisRig) -> None:
        """A worker whose own renewals had a gap declares nobody dead for one lease."""
        async with rig.consuming(lease=LEASE) as (broker, dying), rig.consuming(lease=LEASE) as (_, stopped):
            await broker.publish([envelope("a")])
            await claim(dying, 1)
            await asyncio.sleep(2 * LEASE)
            assert await stopped.recover() == 0, "its own lease is not sure"
            await stopped.renew(())
            back = time.monotonic()
            assert await stopped.recover() == 0
            await _recovered(stopped, 1)
            assert time.monotonic() - back > LEASE * 0.9

    @in_loop
    async def test_a_flush_of_the_server(self, rig: RedisRig) -> None:
        """After FLUSHALL a living worker works on, and what it claims then is given back when it dies."""
        async with rig.consuming(lease=LEASE) as (broker, worker), rig.consuming("p", lease=LEASE) as (_, living):
            await broker.publish([envelope("a")])
            [lost] = await claim(worker, 1)
            command(rig.url, "FLUSHALL")
            command(rig.url, "LPUSH", f"{rig.options.get('global_keyprefix', '')}q", message("b"))
            turn = await worker.cycle([done(lost.receipt)], Demand(1))
            assert turn.verdicts[0].lost
            assert names(turn.deliveries) == ["b"]
            await worker.renew(())
            await _outlive(living)
            await _recovered(living, 1)
            assert (await broker.count("q")).ready == 1

    @in_loop
    async def test_a_wrong_list_keeps_what_is_given_back(self, rig: RedisRig) -> None:
        """Where the ready list is of a wrong type, the messages of the dead stay in flight until it is mended."""
        prefix = rig.options.get("global_keyprefix", "")
        async with rig.consuming(lease=LEASE) as (broker, dying), rig.consuming("p", lease=LEASE) as (_, living):
            await broker.publish([envelope("a"), envelope("b", priority=3)])
            await claim(dying, 2)
            command(rig.url, "SET", f"{prefix}q", "wrong")
            await _outlive(living)
            await _recovered(living, 1)
            assert await living.recover() == 0
            command(rig.url, "DEL", f"{prefix}q")
            await _recovered(living, 1)
            assert (await broker.count("q")).ready == 2

    @in_loop
    async def test_release_for_the_way_back(self, rig: RedisRig) -> None:
        """After a release Celery finds everything in its own lists, what was in flight first, in order."""
        async with rig.consuming(lease=LEASE) as (broker, dying), rig.consuming("p", lease=LEASE) as (_, living):
            await broker.publish([envelope(str(n)) for n in range(5)])
            taken = await claim(dying, 4)
            await settle(dying, done(taken[2].receipt, Park("k")), done(taken[3].receipt, Delay(4e9)))
            await _outlive(living)
            assert await broker.release("q") == 4
            prefix = rig.options.get("global_keyprefix", "")
            order = [name_of(blob) for blob in reversed(command(rig.url, "LRANGE", f"{prefix}q", 0, -1))]
            assert order == ["0", "1", "2", "4", "3"]
            counts = await broker.count("q")
            assert (counts.ready, counts.in_flight, counts.parked, counts.scheduled) == (5, 0, 0, 0)

    @in_loop
    async def test_a_newer_layout_is_refused(self, rig: RedisRig) -> None:
        """Data of a newer version is not touched; the error says to upgrade."""
        prefix = rig.options.get("global_keyprefix", "")
        command(rig.url, "SET", f"{prefix}celeriac:1:layout", "2")
        broker = rig.broker()
        with pytest.raises(LayoutTooNew, match="upgrade"):
            await broker.publish([envelope("a")])
        with pytest.raises(LayoutTooNew, match="layout 2"):
            async with broker.subscribe(["q"], epoch="e", lease=LEASE):
                pass
        await broker.close()
        sender = rig.sender()
        with pytest.raises(LayoutTooNew, match="upgrade"):
            sender.publish([envelope("a", not_before=4e9)], 5)
        sender.close()


class TestCeleryPeers:
    """Celery's unacknowledged messages, as kombu keeps them."""

    @pytest.fixture(params=["redis", "valkey", "apart"])
    def rig(self, request: pytest.FixtureRequest) -> RedisRig:
        url = request.getfixturevalue("valkey_url" if request.param == "valkey" else "redis_url")
        return RedisRig(url, apart=request.param == "apart")

    def _unacked(
        self, rig: RedisRig, tag: str, age: float, blob: bytes, exchange: str | None = "", key: str | None = "q"
    ) -> None:
        prefix = rig.options.get("global_keyprefix", "")
        entry = b"[%s, %s, %s]" % (blob, json.dumps(exchange).encode(), json.dumps(key).encode())
        command(rig.url, "HSET", f"{prefix}unacked", tag, entry)
        command(rig.url, "ZADD", f"{prefix}unacked_index", time.time() - age, tag)

    async def _restore(self, rig: RedisRig) -> int:
        broker = rig.broker()
        try:
            return await recovery.restore_unacked(broker.link, broker.layout)
        finally:
            await broker.close()

    @in_loop
    async def test_only_after_the_visibility_timeout(self, rig: RedisRig) -> None:
        """What was taken longer ago than the timeout comes back to the head, marked; the rest stays."""
        prefix = rig.options.get("global_keyprefix", "")
        broker = rig.broker()
        await broker.publish([envelope("ready")])
        self._unacked(rig, "t1", 3700, message("old"))
        self._unacked(rig, "t2", 3500, message("young"))
        self._unacked(rig, "t3", 4000, message("older"))
        assert await self._restore(rig) == 2
        items = (await broker.browse(Place.READY, "q", 10)).items
        assert [name_of(item.blob) for item in items] == ["older", "old", "ready"]
        restored = json.loads(items[0].blob)
        assert restored["headers"]["redelivered"] is True
        assert restored["properties"]["delivery_info"] == {"exchange": "", "routing_key": "q", "redelivered": True}
        assert losses(items[0].blob) == (0, 0)
        assert command(rig.url, "HKEYS", f"{prefix}unacked") == [b"t2"]
        assert command(rig.url, "ZRANGE", f"{prefix}unacked_index", 0, -1) == [b"t2"]
        assert command(rig.url, "EXISTS", f"{prefix}unacked_mutex") == 0
        await broker.close()

    @in_loop
    async def test_priorities_and_bindings(self, rig: RedisRig) -> None:
        """A restored message goes to the step of its priority, and by its exchange's bindings to every queue."""
        prefix = rig.options.get("global_keyprefix", "")
        urgent = json.loads(message("p"))
        urgent["properties"]["priority"] = 7
        self._unacked(rig, "t1", 4000, json.dumps(urgent).encode())
        for member in ("a\x06\x16\x06\x16one", "\x06\x16^a\\.[^\\.]+$\x06\x16two", "b\x06\x16\x06\x16three"):
            command(rig.url, "SADD", f"{prefix}_kombu.binding.x", member)
        self._unacked(rig, "t2", 4000, message("d"), "x", "a")
        self._unacked(rig, "t3", 4000, message("t"), "x", "a.z")
        self._unacked(rig, "t4", 4000, message("n"), "x", "unbound")
        self._unacked(rig, "t5", 4000, message("m"), None, "q")
        assert await self._restore(rig) == 5
        lists = ("q", "q\x06\x166", "one", "two", "three", "unbound")
        lengths = {name: command(rig.url, "LLEN", prefix + name) for name in lists}
        assert lengths == {"q": 1, "q\x06\x166": 1, "one": 1, "two": 1, "three": 0, "unbound": 1}

    @in_loop
    async def test_what_cannot_be_read_stays(self, rig: RedisRig) -> None:
        """Entries that are no messages stay where they are; tags without an entry are swept; others are restored."""
        prefix = rig.options.get("global_keyprefix", "")
        for tag, entry in (("t1", b"\xff\x00"), ("t2", b"[1]"), ("t3", b'["text", "", "q"]')):
            command(rig.url, "HSET", f"{prefix}unacked", tag, entry)
            command(rig.url, "ZADD", f"{prefix}unacked_index", 1, tag)
        command(rig.url, "ZADD", f"{prefix}unacked_index", 1, "ghost")
        self._unacked(rig, "t4", 4000, message("good"))
        assert await self._restore(rig) == 1
        assert sorted(command(rig.url, "HKEYS", f"{prefix}unacked")) == [b"t1", b"t2", b"t3"]
        assert command(rig.url, "ZSCORE", f"{prefix}unacked_index", "ghost") is None
        assert await self._restore(rig) == 0

    @in_loop
    async def test_the_mutex_of_a_peer_is_respected(self, rig: RedisRig) -> None:
        """While a peer restores we don't; its mutex is not ours to take away."""
        prefix = rig.options.get("global_keyprefix", "")
        self._unacked(rig, "t1", 4000, message("a"))
        command(rig.url, "SET", f"{prefix}unacked_mutex", "theirs")
        assert await self._restore(rig) == 0
        assert command(rig.url, "GET", f"{prefix}unacked_mutex") == b"theirs"
        command(rig.url, "DEL", f"{prefix}unacked_mutex")
        assert await self._restore(rig) == 1

    @in_loop
    async def test_many(self, rig: RedisRig) -> None:
        """Hundreds are restored in order, each once, by workers that try at the same time."""
        for n in range(350):
            self._unacked(rig, f"t{n}", 5000 - n, message(str(n)))
        counts = await asyncio.gather(*(self._restore(rig) for _ in range(4)))
        assert sum(counts) == 350
        async with rig.consuming() as (_, consumer):
            assert names(await claim(consumer, 350)) == [str(n) for n in range(350)]

    @in_loop
    async def test_a_worker_restores_from_time_to_time(self, rig: RedisRig) -> None:
        """`recover` restores at once, then at intervals; never where no peers are."""
        self._unacked(rig, "t1", 4000, message("a"))
        async with rig.consuming() as (broker, consumer):
            assert await consumer.recover() == 1
            self._unacked(rig, "t2", 4000, message("b"))
            assert await consumer.recover() == 0
        rig.options.update(unacked_restore_interval=0.01)
        async with rig.consuming() as (broker, consumer):
            assert await consumer.recover() == 1
            self._unacked(rig, "t3", 4000, message("c"))

            async def restored() -> bool:
                await consumer.recover()
                return (await broker.count("q")).ready == 3

            await eventually(restored, "it was not restored")
        rig.options["celery_peers"] = False
        self._unacked(rig, "t4", 4000, message("d"))
        async with rig.consuming() as (_, consumer):
            assert await consumer.recover() == 0


def test_a_restarted_server_kills_nobody() -> None:
    """After a crash of a server with an append-only file the entries stand, and their worker renews and goes on, though
    its lease ended meanwhile."""

    async def story() -> None:
        with redis_server(appendonly=True) as server:
            rig = RedisRig(server.url)
            one, two = rig.epoch("one"), rig.epoch("two")
            async with rig.consuming(epoch=one, lease=LEASE) as (broker, first):
                await broker.publish([envelope("a"), envelope("b")])
                [taken] = await claim(first, 1)
                server.kill9()
                await asyncio.sleep(LEASE)
                server.start()
                while b"loading:0" not in server.command("INFO", "persistence"):
                    await asyncio.sleep(0.01)
            async with rig.consuming(epoch=two, lease=LEASE) as (_, other):
                assert await other.recover() == 0
                async with rig.consuming(epoch=one, lease=LEASE) as (broker, again):
                    await again.renew([taken.receipt])
                    await settle(again, done(taken.receipt))
                    assert names(await claim(again, 1)) == ["b"]

    asyncio.run(story())
