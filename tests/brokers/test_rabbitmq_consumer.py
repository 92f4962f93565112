"""What is RabbitMQ's own: delivery that belongs to a connection, long tasks, demand, exchanges."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from celeriac import Celeriac
from celeriac.brokers.rabbitmq import RabbitmqBroker, RabbitmqConsumer
from celeriac.errors import OperationalError
from celeriac.model.message import REQUEUE, RETURN, Dead, Delay, Demand, Return
from celeriac.model.queues import Broadcast, Exchange, Queue, Queues
from celeriac.ports import Consumer, Place
from celeriac.testing.rigs import (
    PATIENCE,
    claim,
    claim_nothing,
    done,
    envelope,
    in_loop,
    losses,
    message,
    name_of,
    names,
    settle,
)
from tests.brokers.rabbitmq_rig import RabbitmqRig
from tests.rabbit import RabbitServer


@pytest.fixture(params=["classic", pytest.param("quorum", marks=pytest.mark.full)])
def rig(rabbit: RabbitServer, request: pytest.FixtureRequest) -> RabbitmqRig:
    """A virtual host of its own."""
    return RabbitmqRig(rabbit, request.param, consumer_timeout=1.2)


@asynccontextmanager
async def _again(broker: RabbitmqBroker, epoch: str) -> AsyncIterator[Consumer]:
    async with broker.subscribe(["q"], epoch=epoch, lease=30) as consumer:
        yield consumer


async def _work(consumer: Consumer) -> None:
    while True:
        await consumer.wait()
        await consumer.cycle((), Demand(1))


class TestConnections:
    """What becomes of claims when a connection ends."""

    @in_loop
    async def test_what_still_runs_is_recognised(self, rig: RabbitmqRig) -> None:
        """After a lost connection the messages of running tasks come back to their worker under the old receipts; those
        of nobody are claimed anew."""
        broker, epoch = rig.broker(), rig.epoch()
        async with _again(broker, epoch) as first:
            await broker.publish([envelope(name) for name in "abc"])
            one, _, three = await claim(first, 3)
            assert await first.renew(()) is True
            await rig.cut(first)
        async with _again(broker, epoch) as second:
            assert await second.renew(()) is False
            known = [one.receipt, three.receipt]
            await second.adopt(known)
            assert await second.standing(known) == set(known)
            assert await second.renew(()) is True
            await settle(second, done(one.receipt))
            assert names(await claim(second, 1)) == ["b"]
            await settle(second, done(three.receipt, REQUEUE))
        await broker.close()

    @in_loop
    async def test_what_went_to_another_worker_is_refused(self, rig: RabbitmqRig) -> None:
        """The completion of a message that another worker has now is lost, with its follow-ups."""
        broker, epoch = rig.broker(), rig.epoch()
        async with _again(broker, epoch) as first:
            await broker.publish([envelope("a")])
            [old] = await claim(first, 1)
            await rig.cut(first)
        async with rig.consuming() as (_, other):
            [new] = await claim(other, 1)
            async with _again(broker, epoch) as second:
                await second.renew(())
                await second.adopt([old.receipt])
                assert await second.standing([old.receipt]) == frozenset()
                turn = await second.cycle([done(old.receipt, None, None, envelope("next"))], Demand(0))
                assert turn.verdicts[0].lost
                assert (await broker.count("q")).ready == 0
            await settle(other, done(new.receipt))
        await broker.close()

    @in_loop
    async def test_a_message_keeps_its_name(self, rig: RabbitmqRig) -> None:
        """Whatever way it goes, a message is delivered with the same delivery tag each time: what follows from it has
        names that are made of that."""
        found: list[str] = []
        async with rig.consuming() as (broker, first):
            await broker.publish([envelope("a")])
            for settlement in (REQUEUE, Delay(time.time() + 0.3), Return(message("a"))):
                [one] = await claim(first, 1)
                found.append(json.loads(one.blob)["properties"]["delivery_tag"])
                await settle(first, done(one.receipt, settlement))
            await claim(first, 1)
            await rig.cut(first)
        async with rig.consuming() as (_, second):  # it comes by way of a queue of the worker's own
            [one] = await claim(second, 1)
            found.append(json.loads(one.blob)["properties"]["delivery_tag"])
            await settle(second, done(one.receipt))
        assert found == [json.loads(envelope("a").blob)["properties"]["delivery_tag"]] * 4

    @in_loop
    async def test_a_deleted_queue_ends_the_consumer(self, rig: RabbitmqRig) -> None:
        """A worker whose queue is deleted is told, and declares it again."""
        async with rig.consuming() as (broker, consumer):
            await claim_nothing(consumer)
            rig.server.api("DELETE", f"/api/queues/{rig.url.rpartition('/')[2]}/q")
            with pytest.raises(OperationalError, match=r"was deleted|NOT_FOUND"):
                await asyncio.wait_for(_work(consumer), PATIENCE)
        async with rig.consuming() as (broker, consumer):
            await broker.publish([envelope("a")])
            assert names(await claim(consumer, 1)) == ["a"]


class TestLongTasks:
    """The consumer timeout."""

    @in_loop
    async def test_a_running_message_is_handed_over(self, rig: RabbitmqRig) -> None:
        """Before half of the timeout has passed the delivery is replaced by that of a copy, as often as it takes; the
        receipt stays good and the message is never to be had by others."""
        async with rig.consuming() as (broker, consumer):
            assert isinstance(consumer, RabbitmqConsumer)
            await broker.publish([envelope("a"), envelope("b")])
            taken = await claim(consumer, 2)
            first = {tag: found.tag for tag, found in consumer.claims.open.items()}
            for _ in range(2):
                await asyncio.sleep(0.7)
                before = {tag: found.tag for tag, found in consumer.claims.open.items()}
                assert await consumer.renew([taken[0].receipt])
                after = {tag: found.tag for tag, found in consumer.claims.open.items()}
                assert after.keys() == first.keys()
                assert not set(after.values()) & set(before.values())
                assert (await broker.count("q")).ready == 0
            await settle(consumer, done(taken[0].receipt), done(taken[1].receipt, RETURN))
            [again] = await claim(consumer, 1)
            assert name_of(again.blob) == "b"
            await settle(consumer, done(again.receipt))
            await asyncio.sleep(0.2)
            counts = rig.server.queues(rig.url.rpartition("/")[2])
            assert {name: queue.get("messages", 0) for name, queue in counts.items() if ".held." in name} == {
                name: 0 for name in counts if ".held." in name
            }

    @in_loop
    async def test_what_was_handed_over_comes_back_when_its_worker_dies(self, rig: RabbitmqRig) -> None:
        """The copy goes to the queue it came from, and tells of the lost worker."""
        async with rig.consuming() as (broker, consumer):
            await broker.publish([envelope("a")])
            [one] = await claim(consumer, 1)
            await asyncio.sleep(0.7)
            await consumer.renew([one.receipt])
            await rig.cut(consumer)
        async with rig.consuming() as (_, other):
            [again] = await claim(other, 1)
            assert (name_of(again.blob), losses(again.blob)) == ("a", (0, 1))


class TestDemand:
    """Who holds how much."""

    @in_loop
    async def test_what_is_not_wanted_goes_to_others(self, rig: RabbitmqRig) -> None:
        """Messages that were pushed to a worker whose seats are taken now are soon to be had by another one, and those
        that a worker did not start are not counted."""
        async with rig.consuming() as (broker, busy):
            for _ in range(30):  # a fast worker: the broker pushes ahead
                await broker.publish([envelope(str(n)) for n in range(10)])
                await settle(busy, *(done(delivery.receipt) for delivery in await claim(busy, 10)))
            await broker.publish([envelope(str(n)) for n in range(20)])
            [one] = await claim(busy, 1)
            async with rig.consuming() as (_, free):
                rest = await claim(free, 19)
                assert {name_of(delivery.blob) for delivery in (one, *rest)} == {str(n) for n in range(20)}
                assert {losses(delivery.blob) for delivery in rest} == {(0, 0)}

    @in_loop
    async def test_many_queues_hold_nothing_back(self, rig: RabbitmqRig) -> None:
        """A worker of several queues that wants one message holds one."""
        async with rig.consuming("a", "b", "c") as (broker, one), rig.consuming("a", "b", "c") as (_, two):
            await broker.publish([envelope(f"{queue}{n}", queue) for queue in "abc" for n in range(2)])
            first = await claim(one, 1)
            others = await claim(two, 5)
            assert len({name_of(delivery.blob) for delivery in (*first, *others)}) == 6

    @in_loop
    async def test_a_changed_message_that_is_returned(self, rig: RabbitmqRig) -> None:
        """It has its new counters, wherever it is run next."""
        async with rig.consuming() as (broker, consumer):
            await broker.publish([envelope("a")])
            [one] = await claim(consumer, 1)
            await settle(consumer, done(one.receipt, Return(message("a", **{"x-celeriac-losses": [1, 0]}))))
            [again] = await claim(consumer, 1)
            assert losses(again.blob) == (1, 0)

    @in_loop
    async def test_a_wait_longer_than_the_ladder(self, rig: RabbitmqRig) -> None:
        """What waits longer than the longest way goes through it again; it is listed with its time."""
        async with rig.consuming() as (broker, consumer):
            await broker.publish([envelope("a")])
            [one] = await claim(consumer, 1)
            due = time.time() + 30 * 86400
            await settle(consumer, done(one.receipt, Delay(due)))
            [item] = (await broker.browse(Place.SCHEDULED, "q", 10)).items
            assert item.due == pytest.approx(due)
            queues = rig.server.queues(rig.url.rpartition("/")[2])
            assert "celeriac.1.delay.23" in queues


class TestLooking:
    """What looking at messages costs them."""

    @in_loop
    async def test_a_message_outlives_many_looks(self, rig: RabbitmqRig) -> None:
        """A quorum queue drops what was delivered twenty times: waiting or dead, however often one looks, and what is
        removed is gone."""
        async with rig.consuming() as (broker, consumer):
            await broker.publish([envelope("a"), envelope("b")])
            taken = await claim(consumer, 2)
            await settle(consumer, done(taken[0].receipt, Dead("x")), done(taken[1].receipt, REQUEUE))
            for where, name in ((Place.DEAD, "a"), (Place.READY, "b")):
                looks = [(await broker.browse(where, "q", 10)).items for _ in range(25)]
                for [item] in looks:
                    assert (name_of(item.blob), item.reason) == (name, "x" if where is Place.DEAD else "")
                assert await broker.remove(where, "q", [looks[-1][0].id]) == 1
                assert not (await broker.browse(where, "q", 10)).items


class TestExchanges:
    """Where messages go that are not sent to a queue."""

    def test_topics_fanout_and_broadcast(self, rabbit: RabbitServer) -> None:
        """A topic exchange gives a message to the queues whose patterns fit, once to each; a Broadcast reaches every
        worker that is there; a topic that fits nothing is an error of ours."""
        url = rabbit.vhost()

        def make() -> Celeriac:
            topics = Exchange("media", "topic")
            queues = [
                Queue("celery"), Queue("all", topics, routing_key="#"), Queue("video", topics, routing_key="video.#"),
                Broadcast("everyone"),
            ]  # fmt: skip
            app = Celeriac("exchanges", broker=url)
            app.conf.update(task_queues=queues, task_routes={"t.hello": {"queue": "everyone"}})
            return app

        sender, one, two = make(), make(), make()
        asyncio.run(self._check(url, sender, one, two))

    async def _check(self, url: str, sender: Celeriac, one: Celeriac, two: Celeriac) -> None:
        heard: list[Any] = []
        for app in (one, two):
            broker = app.broker()
            [queue] = [name for name in app.queues if name.startswith("bcast.")]
            consumer = broker.subscribe([queue], epoch=queue, lease=30)
            heard.append((broker, await consumer.__aenter__(), consumer))
        await asyncio.to_thread(sender.send_task, "t.film", exchange="media", routing_key="video.film")
        await asyncio.to_thread(sender.send_task, "t.hello")
        for broker, consumer, context in heard:
            [delivery] = await claim(consumer, 1)
            assert b"t.hello" in delivery.blob
            await settle(consumer, done(delivery.receipt))
            await claim_nothing(consumer)
            await context.__aexit__(None, None, None)
            await broker.close()
        broker = sender.broker()
        for name in ("all", "video"):
            [item] = (await broker.browse(Place.READY, name, 10)).items
            assert b"t.film" in item.blob
        await broker.close()


def test_the_servers_version_decides(rabbit: RabbitServer) -> None:
    """Where no Celery declares the same queue, quorum is the default from 4.0 on; what can't be one stays classic."""
    from celeriac.brokers.rabbitmq.topology import Topology

    queues = Queues([Queue("plain"), Queue("pressing", max_priority=5), Queue("own", exclusive=True)])
    for peers, version, wanted in ((True, (4, 1), "classic"), (False, (3, 13), "classic"), (False, (4, 0), "quorum")):
        topology = Topology({"queues": queues, "celery_peers": peers})
        assert topology.kind("plain", version) == wanted
        assert {topology.kind(name, version) for name in ("pressing", "own")} == {"classic"}
