"""The cycle script under bad keys, bad data, refusals and large numbers: what fails, fails alone and loses nothing."""

from __future__ import annotations

import asyncio
import logging
import pickle
import zlib
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest

from celeriac.backends.redis import RedisBackend
from celeriac.brokers.redis import RedisBroker
from celeriac.brokers.redis.recovery import claim_order
from celeriac.drivers.redis.aio import AsyncConnection
from celeriac.drivers.redis.url import parse
from celeriac.errors import OperationalError
from celeriac.model.message import (
    REQUEUE,
    RETURN,
    Completion,
    Dead,
    Delay,
    Delivery,
    Demand,
    Park,
    Receipt,
    Requeue,
    Return,
    Settlement,
    Store,
    Turn,
)
from celeriac.ports import Broker, Consumer, Place
from celeriac.testing.rigs import claim, claim_nothing, done, envelope, in_loop, name_of, names, settle
from tests.brokers.redis_rig import RedisRig
from tests.servers import command, redis_server

PRIVATE = "celeriac:1:{q}:"


def _store(name: str, document: bytes = b'{"status": "SUCCESS"}', guard: bool = False) -> Store:
    return Store(name, document, "SUCCESS", 1000, guard)


async def _take(broker: Broker, consumer: Consumer, count: int = 3) -> list[Delivery]:
    await broker.publish([envelope(chr(ord("a") + n)) for n in range(count)])
    return await claim(consumer, count)


def _words(turn: Turn) -> list[str]:
    return ["ok" if verdict.ok else "lost" if verdict.lost else verdict.error for verdict in turn.verdicts]


class TestCycle:
    """On both servers."""

    @pytest.fixture(params=["redis", "valkey"])
    def rig(self, request: pytest.FixtureRequest) -> RedisRig:
        return RedisRig(request.getfixturevalue(f"{request.param}_url"))

    # Keys of a wrong type

    @pytest.mark.parametrize(
        ("key", "settlement"),
        [
            ("q", RETURN), ("q", REQUEUE), ("q", Return(b"new")), ("q", Requeue(b"new")),
            (PRIVATE + "schedule", Delay(1e12)), (PRIVATE + "scheduled", Delay(1e12)),
            (PRIVATE + "parked:k", Park("k")), (PRIVATE + "parkings", Park("k")),
        ],
    )  # fmt: skip
    def test_a_settlement_that_meets_a_wrong_key(self, rig: RedisRig, key: str, settlement: Settlement) -> None:
        """A settlement into a key of a wrong type: that message alone is dead-lettered, as it was, with the error."""

        async def story() -> None:
            async with rig.consuming() as (broker, consumer):
                one, two, three = await _take(broker, consumer)
                command(rig.url, "SET", key, "wrong")
                finished = [done(one.receipt), done(two.receipt, settlement), done(three.receipt)]
                turn = await consumer.cycle(finished, Demand(0))
                first, second, third = _words(turn)
                assert (first, third) == ("ok", "ok")
                assert "WRONGTYPE" in second
                [dead] = (await broker.browse(Place.DEAD, "q", 10)).items
                assert dead.blob == two.blob
                assert "WRONGTYPE" in dead.reason
                assert command(rig.url, "GET", key) == b"wrong"
                command(rig.url, "DEL", key)
                counts = await broker.count("q")
                assert (counts.ready, counts.scheduled, counts.in_flight, counts.parked) == (0, 0, 0, 0)

        asyncio.run(story())

    @pytest.mark.parametrize("key", [PRIVATE + "dead", PRIVATE + "letters"])
    def test_dead_letters_that_meet_a_wrong_key(self, rig: RedisRig, key: str) -> None:
        """Where not even a dead letter can be written, the message stays in flight and the verdict says so."""

        async def story() -> None:
            async with rig.consuming() as (broker, consumer):
                one, two, three = await _take(broker, consumer)
                command(rig.url, "SET", key, "wrong")
                finished = [done(one.receipt), done(two.receipt, Dead("x")), done(three.receipt)]
                turn = await consumer.cycle(finished, Demand(0))
                first, second, third = _words(turn)
                assert (first, third) == ("ok", "ok")
                assert "it stays in flight" in second
                command(rig.url, "DEL", key)
                [item] = (await broker.browse(Place.IN_FLIGHT, "q", 10)).items
                assert item.blob == two.blob
                await settle(consumer, done(two.receipt, Dead("x")))

        asyncio.run(story())

    @in_loop
    async def test_follow_ups_are_undone(self, rig: RedisRig) -> None:
        """When one follow-up can't be published, those before it are taken back, scheduled ones too."""
        async with rig.consuming() as (broker, consumer):
            one, two, three = await _take(broker, consumer)
            command(rig.url, "SET", "bad", "wrong")
            command(rig.url, "SET", "celeriac:1:{far}:schedule", "wrong")
            await broker.publish([envelope("old", "other"), envelope("old", "later", not_before=2e9)])
            good = (envelope("x", "other"), envelope("y", "later", not_before=3e9))
            turn = await consumer.cycle(
                [
                    Completion(one.receipt, store=_store("a"), publish=(*good, envelope("z", "bad"))),
                    Completion(two.receipt, store=_store("b"), publish=(*good, envelope("z", "far", not_before=3e9))),
                    Completion(three.receipt, store=_store("c"), publish=good),
                ],
                Demand(0),
            )
            first, second, third = _words(turn)
            assert "(bad)" in first
            assert "{far}:schedule" in second
            assert third == "ok"
            other = (await broker.browse(Place.READY, "other", 10)).items
            assert sorted(name_of(item.blob) for item in other) == ["old", "x"]
            later = (await broker.browse(Place.SCHEDULED, "later", 10)).items
            assert [name_of(item.blob) for item in later] == ["old", "y"]
            assert {item.blob for item in (await broker.browse(Place.DEAD, "q", 10)).items} == {one.blob, two.blob}
            assert [command(rig.url, "EXISTS", f"celery-task-meta-{name}") for name in "abc"] == [0, 0, 1]

    @in_loop
    async def test_an_early_acknowledged_one_fails_without_a_message(self, rig: RedisRig) -> None:
        """Where nothing is in flight there is nothing to dead-letter; the verdict tells the error."""
        async with rig.consuming() as (broker, consumer):
            command(rig.url, "SET", "bad", "wrong")
            finished = [Completion(None, store=_store("a"), publish=(envelope("z", "bad"),))]
            turn = await consumer.cycle(finished, Demand(0))
            assert "WRONGTYPE" in _words(turn)[0]
            assert command(rig.url, "EXISTS", "celery-task-meta-a") == 0
            assert (await broker.count("q")).dead == 0

    @in_loop
    async def test_a_result_key_of_another_type(self, rig: RedisRig) -> None:
        """A result takes the place of whatever stands under its name, guarded or not."""
        async with rig.consuming() as (broker, consumer):
            one, two, _ = await _take(broker, consumer)
            for name in "ab":
                command(rig.url, "LPUSH", f"celery-task-meta-{name}", "wrong")
            stores = _store("a", b"1"), _store("b", b"2", True)
            finished = [done(d.receipt, None, store) for d, store in zip((one, two), stores, strict=True)]
            turn = await consumer.cycle(finished, Demand(0))
            assert _words(turn) == ["ok", "ok"]
            assert [command(rig.url, "GET", f"celery-task-meta-{name}") for name in "ab"] == [b"1", b"2"]

    def test_a_queue_of_a_wrong_type(self, rig: RedisRig, caplog: pytest.LogCaptureFixture) -> None:
        """A queue whose list is no list is left out, with one line in the log; the others are served."""

        async def story() -> None:
            async with rig.consuming("bad", "q") as (broker, consumer):
                command(rig.url, "SET", "bad", "wrong")
                await broker.publish([envelope("a"), envelope("b", priority=9)])
                assert names(await claim(consumer, 2)) == ["a", "b"]
                for _ in range(3):
                    await claim_nothing(consumer, 0.01)

        with caplog.at_level(logging.ERROR, "celeriac.redis"):
            asyncio.run(story())
        assert ["'bad'" in record.getMessage() for record in caplog.records] == [True]

    @pytest.mark.parametrize("what", ["schedule", "scheduled", "parked:k"])
    def test_private_keys_of_a_wrong_type(self, rig: RedisRig, what: str) -> None:
        """Where a private key is not what it should be, ready messages are served all the same."""

        async def story() -> None:
            async with rig.consuming() as (broker, consumer):
                await broker.publish([envelope("later", not_before=1.0)])
                command(rig.url, "DEL", PRIVATE + what)
                command(rig.url, "SET", PRIVATE + what, "wrong")
                await broker.publish([envelope("a")])
                turn = await consumer.cycle((), Demand(5, parked={"k": 3}))
                assert "a" in names(turn.deliveries)

        asyncio.run(story())

    def test_an_in_flight_key_of_a_wrong_type(self, rig: RedisRig) -> None:
        """When the record of what is in flight can't be written, nothing is taken out of the list."""

        async def story() -> None:
            epoch = rig.epoch()
            async with rig.consuming(epoch=epoch) as (broker, consumer):
                published = [envelope(str(n)) for n in range(100)]
                await broker.publish(published)
                command(rig.url, "SET", f"{PRIVATE}inflight:{epoch}", "wrong")
                turn = await consumer.cycle((), Demand(50))
                assert not turn.deliveries
                assert not turn.more, "a worker would ask again and again"
                items = (await broker.browse(Place.READY, "q", 200)).items
                assert [name_of(item.blob) for item in items] == [str(n) for n in range(100)]
                command(rig.url, "DEL", f"{PRIVATE}inflight:{epoch}")
                assert names(await claim(consumer, 100)) == [str(n) for n in range(100)]

        asyncio.run(story())

    @in_loop
    async def test_a_due_message_for_a_wrong_list(self, rig: RedisRig) -> None:
        """A message that comes due for a list of a wrong type becomes a dead letter instead of coming due for ever."""
        async with rig.consuming() as (broker, consumer):
            await broker.publish([envelope("a", not_before=1.0, priority=3), envelope("b", not_before=1.0)])
            command(rig.url, "SET", "q\x06\x163", "wrong")
            assert names(await claim(consumer, 1, Demand(5))) == ["b"]
            [dead] = (await broker.browse(Place.DEAD, "q", 10)).items
            assert name_of(dead.blob) == "a"
            assert (await consumer.cycle((), Demand(5))).next_due is None

    # Data that can't be sent

    @in_loop
    async def test_what_cannot_be_written_fails_alone(self, rig: RedisRig) -> None:
        """Text that is no Unicode fails in its own completion, wherever it stands."""
        async with rig.consuming() as (broker, consumer):
            taken = await _take(broker, consumer, 6)
            bad = "\ud800"
            turn = await consumer.cycle(
                [
                    done(taken[0].receipt, None, _store(bad)),
                    done(taken[1].receipt, Park(bad)),
                    done(taken[2].receipt, Dead(bad)),
                    done(taken[3].receipt, None, None, envelope("x", bad)),
                    done(taken[4].receipt, None, _store("e")),
                    done(taken[5].receipt, RETURN),
                    done(None, None, _store(bad)),
                ],
                Demand(0),
            )
            assert [verdict.ok for verdict in turn.verdicts] == [False] * 4 + [True, True, False]
            assert all("can't be sent" in verdict.error for verdict in turn.verdicts if not verdict.ok)
            assert {item.blob for item in (await broker.browse(Place.DEAD, "q", 10)).items} == {
                delivery.blob for delivery in taken[:4]
            }
            assert command(rig.url, "EXISTS", "celery-task-meta-e") == 1
            assert names(await claim(consumer, 1)) == ["f"]

    # Large numbers

    @in_loop
    async def test_many_at_once(self, rig: RedisRig) -> None:
        """Thousands are claimed, finished, returned, scheduled, parked and brought back in single cycles."""
        count = 9000
        async with rig.consuming() as (broker, consumer):
            await broker.publish([envelope(str(n), blob=b"%d" % n) for n in range(count)])
            turn = await consumer.cycle((), Demand(count))
            assert [delivery.blob for delivery in turn.deliveries] == [b"%d" % n for n in range(count)]
            assert len({delivery.receipt for delivery in turn.deliveries}) == count
            receipts = [delivery.receipt for delivery in turn.deliveries]
            turn = await consumer.cycle([done(receipt, RETURN) for receipt in receipts], Demand(count))
            assert [delivery.blob for delivery in turn.deliveries] == [b"%d" % n for n in range(count)]
            receipts = [delivery.receipt for delivery in turn.deliveries]
            third = count // 3
            turn = await consumer.cycle(
                [done(receipt, Delay(1.0 + n)) for n, receipt in enumerate(receipts[:third])]
                + [done(receipt, Park("k")) for receipt in receipts[third : 2 * third]]
                + [done(receipt, None, _store(receipt.tag)) for receipt in receipts[2 * third :]],
                Demand(0),
            )
            assert all(verdict.ok for verdict in turn.verdicts)
            seen: list[bytes] = []
            while len(seen) < 2 * third:
                turn = await consumer.cycle((), Demand(1500, parked={"k": 1500}))
                assert turn.deliveries
                seen += [delivery.blob for delivery in turn.deliveries]
            assert sorted(map(int, seen)) == list(range(2 * third))
            due = [int(blob) for blob in seen if int(blob) < third]
            parked = [int(blob) for blob in seen if int(blob) >= third]
            assert due == sorted(due)
            assert parked == sorted(parked)

    @in_loop
    async def test_bytes_bound_what_is_taken(self, rig: RedisRig) -> None:
        """The bound of bytes holds over queues and steps, and never blocks one message that is larger."""
        async with rig.consuming("one", "two") as (broker, consumer):
            size = 100_000
            for queue in ("one", "two"):
                await broker.publish([envelope(blob=b"%d" % n + b"x" * size, queue=queue) for n in range(100)])
            turn = await consumer.cycle((), Demand(200, size=20 * size))
            assert 20 <= len(turn.deliveries) <= 21
            assert turn.more
            seen = [*turn.deliveries]
            seen += (await consumer.cycle((), Demand(200, size=20 * size))).deliveries
            assert {delivery.receipt.queue for delivery in seen} == {"one", "two"}
            while len(seen) < 200:
                turn = await consumer.cycle((), Demand(200, size=50 * size))
                assert 1 <= len(turn.deliveries) <= 51
                seen += turn.deliveries
            for queue in ("one", "two"):
                order = [int(d.blob.rstrip(b"x")) for d in seen if d.receipt.queue == queue]
                assert order == list(range(100))

    # Order

    @in_loop
    async def test_steps_go_before_queues(self, rig: RedisRig) -> None:
        """All queues of a step are served before the next step, as kombu does."""
        async with rig.consuming("one", "two") as (broker, consumer):
            await broker.publish(
                [envelope(f"{queue}{p}", queue, priority=p) for queue in ("one", "two") for p in (9, 6, 3, 0)]
            )
            seen = [name for _ in range(4) for name in names(await claim(consumer, 2))]
            assert [name[-1] for name in seen] == list("00336699")

    @in_loop
    async def test_a_batch_is_shared_between_queues(self, rig: RedisRig) -> None:
        """In one batch each queue has its share; what one does not need the others get."""
        async with rig.consuming("one", "two", "three") as (broker, consumer):
            for queue, count in (("one", 100), ("two", 100), ("three", 4)):
                await broker.publish([envelope(f"{queue}{n}", queue) for n in range(count)])
            turn = await consumer.cycle((), Demand(60))
            shares = {q: sum(d.receipt.queue == q for d in turn.deliveries) for q in ("one", "two", "three")}
            assert sum(shares.values()) == 60
            assert shares["three"] == 4
            assert min(shares["one"], shares["two"]) >= 20

    def test_strategies(self, rig: RedisRig) -> None:
        """`priority` serves queues in the given order, `sorted` by name, each to its end."""

        async def served(strategy: str) -> str:
            rig.options["queue_order_strategy"] = strategy
            command(rig.url, "FLUSHALL")
            async with rig.consuming("c", "a", "b") as (broker, consumer):
                await broker.publish([envelope(queue, queue) for queue in "abc" for _ in range(40)])
                return "".join([name for _ in range(4) for name in names(await claim(consumer, 30))])

        assert asyncio.run(served("priority")) == "c" * 40 + "a" * 40 + "b" * 40
        assert asyncio.run(served("sorted")) == "a" * 40 + "b" * 40 + "c" * 40
        rig.options.clear()

    def test_other_steps_and_separator(self, rig: RedisRig) -> None:
        """Steps and separator are options; a priority goes to the largest step not above it, and is bounded to 0..9."""
        rig.options.update(priority_steps="[0,5]", sep=":")

        async def story() -> None:
            async with rig.consuming() as (broker, consumer):
                await broker.publish([envelope(str(p), priority=p) for p in (-3, 0, 4, 5, 9, 255)])
                assert command(rig.url, "LLEN", "q") == 3
                assert command(rig.url, "LLEN", "q:5") == 3
                taken = await claim(consumer, 6)
                assert names(taken) == ["-3", "0", "4", "5", "9", "255"]
                await settle(consumer, *(done(d.receipt, REQUEUE) for d in taken))
                assert command(rig.url, "LLEN", "q:5") == 3

        asyncio.run(story())
        rig.options.clear()

    @in_loop
    async def test_returned_ones_keep_their_order_over_consumers(self, rig: RedisRig) -> None:
        """Messages claimed by two consumers of one epoch go back in the order of their claims, from several queues."""
        epoch = rig.epoch()
        async with rig.consuming("p", "q", epoch=epoch) as (broker, first):
            await broker.publish([envelope(f"p{n}", "p") for n in range(4)] + [envelope(f"q{n}") for n in range(4)])
            taken = await claim(first, 4)
        await asyncio.sleep(0.01)
        async with rig.consuming("p", "q", epoch=epoch) as (broker, second):
            taken += await claim(second, 4)
            turn = await second.cycle(
                [done(None)] + [done(d.receipt, RETURN) for d in taken] + [done(taken[0].receipt)], Demand(0)
            )
            assert _words(turn) == ["ok", "lost"] + ["ok"] * 7 + ["ok"] or _words(turn) == ["ok"] * 9 + ["lost"]
            for queue in "pq":
                items = (await broker.browse(Place.READY, queue, 10)).items
                order = [name_of(item.blob) for item in items]
                assert order == sorted(order)

    def test_tags_sort_by_claim(self) -> None:
        """Tags sort by consumer, cycle, round and letter; foreign ones don't fail."""
        tags = ["a-1-0A.0", "a-1-0z.9", "a-1-1A.0", "a-1-10A.0", "a-2-0A.0", "a-10-0A.0", "b-1-0A.0"]
        assert sorted(reversed(tags), key=claim_order) == tags
        assert sorted(["", "x", "x-y", "x-y-z.1", "x-1-.0"], key=claim_order)

    # Results

    @in_loop
    async def test_results_expire_and_are_told(self, rig: RedisRig) -> None:
        """A document is set with its time in whole seconds, at least one, or for ever; and published on its channel."""
        heard: list[Any] = []
        async with rig.consuming() as (broker, consumer):
            assert isinstance(broker, RedisBroker)
            taken = await _take(broker, consumer, 4)
            listener = await AsyncConnection.open(parse(rig.url), heard.append)
            listener.tell(("PSUBSCRIBE", "celery-task-meta-*"))
            await listener.call("PING")
            await settle(
                consumer,
                *(
                    done(d.receipt, None, Store(name, name.encode(), "SUCCESS", expires))
                    for d, name, expires in zip(taken, "abcd", (None, 0.2, 100.7, 0), strict=True)
                ),
            )
            await listener.call("PING")
            listener.close()
        assert [command(rig.url, "TTL", f"celery-task-meta-{name}") for name in "abcd"] == [-1, 1, 100, -1]
        assert [push[3] for push in heard if push[0] == b"pmessage"] == [b"a", b"b", b"c", b"d"]

    @pytest.mark.parametrize("database", [0, 1])
    @pytest.mark.parametrize(
        "form",
        [
            b'{"status": "%s", "result": null}',
            b'{"result": {"status": "SUCCESS"}, "status": "%s"}',
            b"pickle", b"msgpack", b"zlib",
            b"children: []\ndate_done: x\nresult: |-\n  status: SUCCESS\nstatus: %s\ntask_id: x\n",
        ],
    )  # fmt: skip
    def test_a_success_is_known_in_every_form(self, rig: RedisRig, form: bytes, database: int) -> None:
        """The guard knows a stored SUCCESS in every serializer's form, compressed too, and nothing else."""

        def document(state: str) -> bytes:
            record = {"status": state, "result": "SUCCESS", "traceback": None}
            if form == b"pickle":
                return pickle.dumps(record, protocol=5)
            if form == b"msgpack":
                return msgspec.msgpack.encode(record)
            if form == b"zlib":
                plain = b'{"status": "%s", "result": "SUCCESS"}' % state.encode()
                return b"\0celery-compressed\0application/x-gzip\0" + zlib.compress(plain)
            return form.replace(b"%s", state.encode())

        url = f"{rig.url.rpartition('/')[0]}/{database}"
        command(url, "SET", "celery-task-meta-good", document("SUCCESS"))
        command(url, "SET", "celery-task-meta-bad", document("FAILURE"))

        async def story() -> None:
            backend = RedisBackend(url)
            async with rig.consuming() as (broker, consumer):
                assert await broker.same_server(backend)
                taken = await _take(broker, consumer, 2)
                await settle(
                    consumer,
                    done(taken[0].receipt, None, _store("good", b"new", True)),
                    done(taken[1].receipt, None, _store("bad", b"new", True)),
                )
                assert (await broker.count("q")).in_flight == 0
            await backend.close()

        asyncio.run(story())
        assert command(url, "GET", "celery-task-meta-good") == document("SUCCESS")
        assert command(url, "GET", "celery-task-meta-bad") == b"new"

    @pytest.mark.parametrize("database", [0, 1])
    def test_a_success_of_the_same_cycle_guards(self, rig: RedisRig, database: int) -> None:
        """Two runs of one task that end in one cycle: the SUCCESS stands against the guarded FAILURE after it."""
        url = f"{rig.url.rpartition('/')[0]}/{database}"

        async def story() -> None:
            backend = RedisBackend(url)
            async with rig.consuming() as (broker, consumer):
                assert await broker.same_server(backend)
                one, two, _ = await _take(broker, consumer)
                await settle(
                    consumer,
                    done(one.receipt, None, _store("a")),
                    done(two.receipt, None, _store("a", b'{"status": "FAILURE"}', True)),
                )
            await backend.close()

        asyncio.run(story())
        assert command(url, "GET", "celery-task-meta-a") == b'{"status": "SUCCESS"}'

    def test_a_right_to_publish_that_goes(self, rig: RedisRig, caplog: pytest.LogCaptureFixture) -> None:
        """Where results can't be told any more they are stored all the same, with a line in the log."""
        command(rig.url, "ACL", "SETUSER", "w", "reset", "on", "nopass", "~*", "&*", "+@all")

        async def story() -> None:
            broker = RedisBroker(rig.url.replace("//", "//w:x@"))
            async with broker.subscribe(["q"], epoch="w", lease=60) as consumer:
                taken = await _take(broker, consumer)
                command(rig.url, "ACL", "SETUSER", "w", "resetchannels")
                command(rig.url, "ACL", "SETUSER", "w", "&/*")
                await settle(consumer, *(done(d.receipt, None, _store(name_of(d.blob))) for d in taken))
            await broker.close()

        with caplog.at_level(logging.ERROR, "celeriac.redis"):
            asyncio.run(story())
        assert ["PUBLISH" in record.getMessage() for record in caplog.records] == [True]
        assert [command(rig.url, "EXISTS", f"celery-task-meta-{name}") for name in "abc"] == [1, 1, 1]

    # Scripts and connections

    @in_loop
    async def test_a_server_that_forgot_the_scripts(self, rig: RedisRig) -> None:
        """After SCRIPT FLUSH everything goes on."""
        async with rig.consuming() as (broker, consumer):
            taken = await _take(broker, consumer)
            command(rig.url, "SCRIPT", "FLUSH")
            await settle(consumer, *(done(d.receipt) for d in taken))
            command(rig.url, "SCRIPT", "FLUSH")
            assert await consumer.renew(()) is True
            command(rig.url, "SCRIPT", "FLUSH")
            await broker.cancel(["x"], 10)

    @in_loop
    async def test_a_cancelled_cycle_is_not_forgotten(self, rig: RedisRig) -> None:
        """Cancelling a cycle closes the connection; what it claimed is returned by the next consumer's adopt."""
        epoch = rig.epoch()
        async with rig.consuming(epoch=epoch) as (broker, consumer):
            await broker.publish([envelope(str(n)) for n in range(10)])
            cycle = asyncio.ensure_future(consumer.cycle((), Demand(10)))
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            cycle.cancel()
            with pytest.raises(asyncio.CancelledError):
                await cycle
            with pytest.raises(OperationalError):
                await consumer.cycle((), Demand(10))
            with pytest.raises(OperationalError):
                await consumer.wait()
        async with rig.consuming(epoch=epoch) as (broker, again):
            await asyncio.sleep(0.05)  # the server may still be about to run what was sent
            await again.renew(())
            await again.adopt(())
            assert names(await claim(again, 10)) == [str(n) for n in range(10)]

    @in_loop
    async def test_the_cap_of_dead_letters(self, rig: RedisRig) -> None:
        """Over the cap the oldest dead letters go, with their messages."""
        rig.options["dead_letter_limit"] = 5
        async with rig.consuming() as (broker, consumer):
            for n in range(3):
                await broker.publish([envelope(f"{n}{m}") for m in range(3)])
                taken = await claim(consumer, 3)
                await settle(consumer, *(done(d.receipt, Dead(name_of(d.blob))) for d in taken))
            items = (await broker.browse(Place.DEAD, "q", 100)).items
            assert len(items) == 5
            assert {item.reason for item in items} >= {"20", "21", "22"}
            assert command(rig.url, "HLEN", f"{PRIVATE}letters") == 5


class TestRefusals:
    """A server that refuses writes."""

    @pytest.fixture
    def url(self) -> Iterator[str]:
        with redis_server() as server:
            yield server.url

    @pytest.mark.parametrize("how", ["memory", "replica"])
    def test_nothing_is_done_and_nothing_lost(self, url: str, how: str) -> None:
        """When the server refuses writes the whole cycle fails with OperationalError that says why, nothing of it was
        done, and all goes on when it takes writes again."""
        rig = RedisRig(url)

        async def story() -> None:
            async with rig.consuming() as (broker, consumer):
                await broker.publish([envelope(str(n)) for n in range(10)])
                taken = await claim(consumer, 5)
                finished = [
                    done(d.receipt, None, _store(str(n)), envelope(f"n{n}", "next")) for n, d in enumerate(taken)
                ]
                text = "out of memory" if how == "memory" else "read-only replica"
                if how == "memory":
                    command(url, "CONFIG", "SET", "maxmemory", "1mb")
                else:
                    command(url, "REPLICAOF", "127.0.0.1", "1")
                try:
                    with pytest.raises(OperationalError, match=text):
                        await consumer.cycle(finished, Demand(5))
                    with pytest.raises(OperationalError, match=text):
                        await broker.publish([envelope("x")])
                    with pytest.raises(OperationalError, match=text):
                        await consumer.renew(())
                finally:
                    command(url, "REPLICAOF", "NO", "ONE")
                    command(url, "CONFIG", "SET", "maxmemory", "0")
                counts = await broker.count("q")
                assert (counts.ready, counts.in_flight, counts.dead) == (5, 5, 0)
                turn = await consumer.cycle(finished, Demand(5))
                assert _words(turn) == ["ok"] * 5
                assert names(turn.deliveries) == [str(n) for n in range(5, 10)]
                assert (await broker.count("next")).ready == 5

        asyncio.run(story())

    def test_a_receipt_that_never_was(self, url: str) -> None:
        """A completion of an unknown receipt, or of an unknown queue, is lost and does no harm."""
        rig = RedisRig(url)

        async def story() -> None:
            async with rig.consuming() as (_, consumer):
                turn = await consumer.cycle(
                    [done(Receipt("nowhere", "x")), done(Receipt("q", ""), RETURN), done(Receipt("q", "a"), Park("k"))],
                    Demand(1),
                )
                assert _words(turn)[0] == "lost"
                assert _words(turn)[2] == "lost"

        asyncio.run(story())
