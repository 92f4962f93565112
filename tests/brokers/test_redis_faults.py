"""Redis that crashes, stops, or sits behind a network that drops everything; and how a waiting worker is woken."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from celeriac.brokers.redis import RedisBroker, RedisSender
from celeriac.drivers.redis import aio
from celeriac.errors import OperationalError
from celeriac.model.message import Demand
from celeriac.ports import Consumer, Place
from celeriac.testing.rigs import LONG, claim, done, envelope, in_loop, name_of, names, settle
from tests.brokers.redis_rig import RedisRig
from tests.proxy import FreezeProxy
from tests.servers import RedisServer, command, redis_server


@asynccontextmanager
async def _consuming(url: str, epoch: str = "w", **options: Any) -> AsyncIterator[tuple[RedisBroker, Consumer]]:
    broker = RedisBroker(url, options)
    try:
        async with broker.subscribe(["q"], epoch=epoch, lease=LONG) as consumer:
            yield broker, consumer
    finally:
        await broker.close()


def _restart(server: RedisServer) -> None:
    """Start it again and wait until it has read its file."""
    server.restart()
    while b"loading:0" not in server.command("INFO", "persistence"):
        time.sleep(0.01)


# Waking


class TestWaking:
    """On both servers."""

    @pytest.fixture(params=["redis", "valkey"])
    def rig(self, request: pytest.FixtureRequest) -> RedisRig:
        return RedisRig(request.getfixturevalue(f"{request.param}_url"))

    @in_loop
    async def test_a_push_wakes_within_a_millisecond(self, rig: RedisRig) -> None:
        """From a push of a peer to the return of `wait` is less than a millisecond in the middle."""
        async with rig.consuming() as (_, consumer), rig.connected() as other:
            assert isinstance(other, RedisBroker)
            connection = await other.link.connection()
            medians: list[float] = []
            while len(medians) < 4 and not (medians and medians[-1] < 0.001):  # a busy machine has its moments
                delays = []
                for _ in range(101):
                    while (await consumer.cycle((), Demand(1))).deliveries:
                        pass
                    waiting = asyncio.ensure_future(consumer.wait())
                    await asyncio.sleep(0.001)
                    assert not waiting.done()
                    before = time.perf_counter()
                    pushing = asyncio.ensure_future(connection.call("LPUSH", "q", "x"))
                    await waiting
                    delays.append(time.perf_counter() - before)
                    await pushing
                medians.append(sorted(delays)[50])
            assert min(medians) < 0.001, medians

    @in_loop
    async def test_every_list_wakes(self, rig: RedisRig) -> None:
        """A push to any step of any queue wakes; one to another queue does not."""
        async with rig.consuming("q", "r") as (broker, consumer):
            for queue, priority in (("q", 0), ("q", 9), ("r", 0), ("r", 5)):
                assert not (await consumer.cycle((), Demand(5))).deliveries
                waiting = asyncio.ensure_future(consumer.wait())
                await broker.publish([envelope("no", "elsewhere", priority=priority)])
                await asyncio.sleep(0.05)
                assert not waiting.done()
                await broker.publish([envelope("yes", queue, priority=priority)])
                await asyncio.wait_for(waiting, 5)
                assert names(await claim(consumer, 1)) == ["yes"]

    @in_loop
    async def test_the_schedule_wakes(self, rig: RedisRig) -> None:
        """A new earliest message of the schedule wakes, a later one does not; and `wait` ends when one is due."""
        async with rig.consuming() as (broker, consumer):
            now = (await consumer.cycle((), Demand(1))).now
            waiting = asyncio.ensure_future(consumer.wait())
            await broker.publish([envelope("far", not_before=now + 1000)])
            await asyncio.wait_for(waiting, 5)
            assert (await consumer.cycle((), Demand(1))).next_due == pytest.approx(now + 1000)
            waiting = asyncio.ensure_future(consumer.wait())
            await broker.publish([envelope("farther", not_before=now + 2000)])
            await asyncio.sleep(0.05)
            assert not waiting.done()
            await broker.publish([envelope("soon", not_before=now + 0.5)])
            await asyncio.wait_for(waiting, 5)
            turn = await consumer.cycle((), Demand(1))
            assert not turn.deliveries
            before = time.monotonic()
            await asyncio.wait_for(consumer.wait(), 5)
            assert 0 < time.monotonic() - before < 1
            assert names(await claim(consumer, 1)) == ["soon"]

    @in_loop
    async def test_a_cancel_wakes(self, rig: RedisRig) -> None:
        """A change of the cancel list wakes: a waiting worker hears of it at once."""
        async with rig.consuming() as (broker, consumer):
            before = (await consumer.cycle((), Demand(1))).cancelled
            waiting = asyncio.ensure_future(consumer.wait())
            await asyncio.sleep(0.01)
            await broker.cancel(["a"], 10)
            await asyncio.wait_for(waiting, 5)
            assert (await consumer.cycle((), Demand(1))).cancelled > before

    @in_loop
    async def test_our_own_writes_do_not_hide_a_push(self, rig: RedisRig) -> None:
        """A cycle that writes to a queue itself and one that claims nothing leave no push unseen."""
        async with rig.consuming() as (broker, consumer):
            await broker.publish([envelope("a")])
            [delivery] = await claim(consumer, 1)
            assert not (await consumer.cycle((), Demand(1))).deliveries
            await settle(consumer, done(delivery.receipt, None, None, envelope("b")))
            await asyncio.wait_for(consumer.wait(), 1)
            [delivery] = await claim(consumer, 1)
            turn = await consumer.cycle([done(delivery.receipt, None, None, envelope("c"))], Demand(0))
            assert turn.verdicts[0].ok
            await asyncio.wait_for(consumer.wait(), 1)
            assert names(await claim(consumer, 1)) == ["c"]

    @in_loop
    async def test_two_wait_and_race(self, rig: RedisRig) -> None:
        """Two waiting consumers are both woken and share what came; nothing comes twice, nothing is left."""
        async with rig.consuming() as (broker, one), rig.consuming() as (_, two):
            seen: list[str] = []

            async def work(consumer: Consumer) -> None:
                while len(seen) < 400:
                    turn = await consumer.cycle((), Demand(3))
                    seen.extend(names(turn.deliveries))
                    await settle(consumer, *(done(d.receipt) for d in turn.deliveries))
                    if not turn.deliveries:
                        await asyncio.wait_for(consumer.wait(), 5)

            workers = [asyncio.ensure_future(work(consumer)) for consumer in (one, two)]
            for n in range(400):
                await broker.publish([envelope(str(n))])
                if n % 7 == 0:
                    await asyncio.sleep(0.001)
            await asyncio.wait(workers, timeout=10, return_when=asyncio.FIRST_COMPLETED)
            for worker in workers:
                worker.cancel()
            assert sorted(seen, key=int) == [str(n) for n in range(400)]

    @pytest.mark.parametrize("also", [(), ("-blmove",)])
    def test_without_tracking(self, rig: RedisRig, also: tuple[str, ...]) -> None:
        """Where tracking is refused a push is seen all the same: quickly by a blocking move onto the same list, within
        a second where that is refused too. The list stays as it is."""
        rights = ("~*", "&*", "+@all", "-client|tracking", *also)
        command(rig.url, "ACL", "SETUSER", "weak", "reset", "on", "nopass", *rights)
        url = rig.url.replace("//", "//weak:x@")

        async def story() -> None:
            async with _consuming(url) as (broker, consumer):
                for n in range(3):
                    assert not (await consumer.cycle((), Demand(1))).deliveries
                    waiting = asyncio.ensure_future(claim(consumer, 1))
                    await asyncio.sleep(0.05)
                    before = time.monotonic()
                    command(rig.url, "LPUSH", "q", envelope(str(n)).blob)
                    assert names(await asyncio.wait_for(waiting, 5)) == [str(n)]
                    assert time.monotonic() - before < (1.5 if also else 0.3)
                command(rig.url, "LPUSH", "q", *(envelope(str(n)).blob for n in range(5)))
                await asyncio.sleep(0.1)
                items = (await broker.browse(Place.READY, "q", 10)).items
                assert [name_of(item.blob) for item in items] == [str(n) for n in range(5)]

        asyncio.run(story())

    def test_an_idle_worker_is_quiet(self, rig: RedisRig, monkeypatch: pytest.MonkeyPatch) -> None:
        """A waiting consumer that renews and recovers sends fewer than five commands a second."""
        sent = 0
        send = aio.AsyncConnection.send

        def counting(self: aio.AsyncConnection, data: bytes, want: int = 1, patience: float | None = None) -> Any:
            nonlocal sent
            sent += want
            return send(self, data, want, patience)

        async def story() -> None:
            async with rig.consuming() as (_, consumer):
                await consumer.cycle((), Demand(1))
                await consumer.recover()
                monkeypatch.setattr(aio.AsyncConnection, "send", counting)
                waiting = asyncio.ensure_future(consumer.wait())
                for _ in range(2):
                    await asyncio.sleep(0.5)
                    await consumer.recover()
                await consumer.renew(())
                assert not waiting.done()
                waiting.cancel()

        asyncio.run(story())
        assert sent < 5


# Crashes


async def _work(consumer: Consumer, completed: set[str]) -> None:
    """Complete what comes, each with one follow-up, until the connection breaks."""
    while True:
        turn = await consumer.cycle((), Demand(7))
        follow_ups = [(d, envelope(f"after {name_of(d.blob)}", "next")) for d in turn.deliveries]
        await settle(consumer, *(done(d.receipt, None, None, follow_up) for d, follow_up in follow_ups))
        completed |= set(names(turn.deliveries))
        if not turn.deliveries:
            await asyncio.sleep(0.005)


def test_a_crash_of_the_server_loses_nothing() -> None:
    """Killed and started again from its append-only file, the server has every published message once, in flight or
    ready; a completion whose answer was lost is done or still to do, never half done."""

    async def story() -> None:
        with redis_server(appendonly=True) as server:
            published = 0
            completed: set[str] = set()
            for life in range(3):
                async with _consuming(server.url) as (broker, consumer):
                    await consumer.adopt(())
                    await broker.publish([envelope(f"{life}.{n}") for n in range(100)])
                    published += 100
                    killed = asyncio.get_running_loop().call_later(0.03, server.kill9)
                    with pytest.raises(OperationalError):
                        await _work(consumer, completed)
                    killed.cancel()
                _restart(server)
            async with _consuming(server.url) as (broker, consumer):
                await consumer.adopt(())
                turn = await consumer.cycle((), Demand(1000))
                left = names(turn.deliveries)
                follow = [name_of(i.blob) for i in (await broker.browse(Place.READY, "next", 1000)).items]
                assert len(follow) == len(set(follow))
                assert completed <= {name.removeprefix("after ") for name in follow}
                assert sorted([*left, *(name.removeprefix("after ") for name in follow)]) == sorted(
                    f"{life}.{n}" for life in range(3) for n in range(100)
                )

    asyncio.run(story())


def test_a_frozen_network_is_noticed(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """Connections that stop forwarding, in a wait or in a cycle, end with OperationalError in time; a new consumer of
    the epoch goes on with what was in flight."""
    monkeypatch.setattr(aio, "SILENCE", 0.3)
    monkeypatch.setattr(aio, "PING_PATIENCE", 0.3)

    async def story() -> None:
        with redis_server() as server, FreezeProxy(server.port) as proxy:
            async with _consuming(proxy.url, socket_timeout=0.5) as (broker, consumer):
                await broker.publish([envelope("a"), envelope("b")])
                [one] = await claim(consumer, 1)
                assert len(await claim(consumer, 1)) == 1
                assert not (await consumer.cycle((), Demand(1))).deliveries
                waiting = asyncio.ensure_future(consumer.wait())
                await asyncio.sleep(0.05)
                proxy.freeze()
                before = time.monotonic()
                with pytest.raises(OperationalError, match="no answer within"):
                    await asyncio.wait_for(waiting, 5)
                with pytest.raises(OperationalError):
                    await consumer.cycle((), Demand(1))
                assert time.monotonic() - before < 3
            async with _consuming(proxy.url, socket_timeout=0.5) as (broker, consumer):
                assert await consumer.renew([one.receipt]) is True
                assert await consumer.adopt([one.receipt]) == 1
                cycle = asyncio.ensure_future(consumer.cycle([done(one.receipt)], Demand(1)))
                proxy.freeze()
                with pytest.raises(OperationalError, match="no answer within"):
                    await asyncio.wait_for(cycle, 5)
                with pytest.raises(OperationalError):
                    await broker.count("q")
                await broker.count("q")

    with caplog.at_level(logging.INFO, "celeriac.redis"):
        asyncio.run(story())
    assert 2 <= sum("the connection is given up" in record.getMessage() for record in caplog.records) <= 5


def test_a_stopped_server(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that is stopped ends a publish and a cycle in time; when it goes on, so do we."""
    monkeypatch.setattr(aio, "SILENCE", 0.3)

    async def story() -> None:
        with redis_server() as server:
            async with _consuming(server.url, socket_timeout=0.4) as (broker, consumer):
                await broker.publish([envelope("a")])
                server.stop_process()
                results = await asyncio.wait_for(
                    asyncio.gather(
                        broker.publish([envelope("b")]), consumer.cycle((), Demand(1)), consumer.renew(()),
                        return_exceptions=True,
                    ),
                    5,
                )  # fmt: skip
                assert all(isinstance(result, OperationalError) for result in results), results
                server.cont()
            async with _consuming(server.url) as (broker, consumer):
                await consumer.adopt(())
                taken = names(await claim(consumer, 1))
                assert taken == ["a"]  # "b" may have been published: its answer was lost

    asyncio.run(story())


# The sender


def test_a_sender_keeps_its_deadline() -> None:
    """A publish to a stopped server raises at its deadline; afterwards the sender works again."""
    with redis_server() as server:
        sender = RedisSender(server.url)
        sender.publish([envelope("a")], 5)
        server.stop_process()
        before = time.monotonic()
        with pytest.raises(OperationalError, match="no answer in time"):
            sender.publish([envelope("b")], 0.3)
        assert 0.3 <= time.monotonic() - before < 1
        server.cont()
        sender.publish([envelope("c")], 5)
        assert command(server.url, "LLEN", "q") in (2, 3)  # "b" may have come through
        sender.close()


def test_a_sender_survives_a_restart() -> None:
    """A connection that died while it lay idle is not noticed by a caller; a server that is down is, at once."""
    with redis_server(appendonly=True) as server:
        sender = RedisSender(server.url)
        sender.publish([envelope("a")], 5)
        server.kill9()
        before = time.monotonic()
        with pytest.raises(OperationalError, match="refused"):
            sender.publish([envelope("b")], 5)
        assert time.monotonic() - before < 1
        _restart(server)
        sender.publish([envelope("c")], 5)
        sender.publish([envelope("d", "other"), envelope("e", not_before=4e9)], 5)
        names_of = [name_of(blob) for blob in reversed(command(server.url, "LRANGE", "q", 0, -1))]
        assert names_of == ["a", "c"]
        _restart(server)
        sender.publish([envelope("f")], 5)
        assert command(server.url, "LLEN", "q") == 3
        sender.close()


def test_a_sender_on_a_frozen_network() -> None:
    """A publish over a connection that stopped forwarding raises at its deadline; the next one has a new connection."""
    with redis_server() as server, FreezeProxy(server.port) as proxy:
        sender = RedisSender(proxy.url)
        sender.publish([envelope("a")], 5)
        proxy.freeze()
        with pytest.raises(OperationalError):
            sender.publish([envelope("b")], 0.3)
        sender.publish([envelope("c")], 5)
        assert command(server.url, "LLEN", "q") == 2
        sender.close()
