"""The laws of a Broker, a Sender and a Bus. Subclass the suites; see `celeriac.testing`."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Iterator

import pytest

from celeriac.errors import OperationalError
from celeriac.model.message import Dead, Demand, Park
from celeriac.ports import Broker, Consumer, Place
from celeriac.testing.rigs import (
    PATIENCE,
    BrokerRig,
    claim,
    claim_nothing,
    done,
    envelope,
    eventually,
    in_loop,
    losses,
    message,
    name_of,
    names,
    settle,
)


class BrokerContract:
    """What a caller and an operator may rely on, whatever the broker."""

    @pytest.fixture
    def rig(self) -> Iterator[BrokerRig]:
        """A fresh rig. To be overridden."""
        raise NotImplementedError

    @in_loop
    async def test_published_messages_are_counted(self, rig: BrokerRig) -> None:
        """What was published is ready, and its queue is known."""
        async with rig.connected() as broker:
            await broker.publish([envelope("a"), envelope("b"), envelope("c", "other")])
            assert (await broker.count("q")).ready == 2
            assert (await broker.count("other")).ready == 1
            assert {"q", "other"} <= set(await broker.queues())

    @in_loop
    async def test_nothing_is_no_error(self, rig: BrokerRig) -> None:
        """Empty batches and unknown queues are no error."""
        async with rig.connected() as broker:
            await broker.publish([])
            counts = await broker.count("nowhere")
            assert (counts.ready, counts.scheduled, counts.in_flight, counts.parked, counts.dead) == (0, 0, 0, 0, 0)
            assert await broker.purge("nowhere") == 0
            assert await broker.release("nowhere") == 0
            for place in Place:
                assert not (await broker.browse(place, "nowhere", 10)).items
                assert await broker.remove(place, "nowhere", ["1"]) == 0
            for place in (Place.SCHEDULED, Place.PARKED, Place.DEAD):
                assert await broker.restore(place, "nowhere", ["1"]) == 0
                assert await broker.restore(place, "nowhere", []) == 0

    @in_loop
    async def test_second_publish_of_one_id_is_dropped(self, rig: BrokerRig) -> None:
        """Where the broker claims it, an envelope with a publish id that it holds is dropped."""
        async with rig.connected() as broker:
            if not broker.capabilities.idempotent_publish:
                pytest.skip("the broker does not claim it")
            first = envelope("a", publish_id="11111111-2222-5333-8444-555555555555")
            await broker.publish([first, envelope("b")])
            await broker.publish([first, first])
            assert (await broker.count("q")).ready == 2

    @in_loop
    async def test_second_publish_after_the_end_is_dropped(self, rig: BrokerRig) -> None:
        """A derived publish id (uuid5) stays known after its message is done: a repeated completion adds nothing."""
        async with rig.consuming() as (broker, consumer):
            if not broker.capabilities.idempotent_publish:
                pytest.skip("the broker does not claim it")
            first = envelope("a", publish_id="11111111-2222-5333-8444-555555555555")
            await broker.publish([first])
            [delivery] = await claim(consumer, 1)
            await settle(consumer, done(delivery.receipt))
            await broker.publish([first])
            assert (await broker.count("q")).ready == 0

    @in_loop
    async def test_browse_shows_blobs_as_they_are(self, rig: BrokerRig) -> None:
        """Browsing takes nothing and shows the exact bytes, also of what is no message at all."""
        blobs = [b"\x00\xff\xfe not json", b"", message("fine"), b"[1, 2]"]
        async with rig.connected() as broker:
            await broker.publish([envelope(str(n), blob=blob) for n, blob in enumerate(blobs)])
            for _ in range(2):
                page = await broker.browse(Place.READY, "q", 10)
                seen = [rig.kept(item.blob) for item in page.items]
                assert rig.in_order(seen) == rig.in_order([rig.kept(blob) for blob in blobs])
                assert page.cursor == ""
            assert (await broker.count("q")).ready == 4

    @in_loop
    async def test_browse_by_pages(self, rig: BrokerRig) -> None:
        """Pages show each entry of an unchanged queue once, and the last page has no cursor."""
        if not rig.keeps_order:
            pytest.skip("to look at messages changes their order")
        async with rig.connected() as broker:
            await broker.publish([envelope(f"{n:02}") for n in range(25)])
            seen: list[str] = []
            cursor, pages = "", 0
            while pages == 0 or cursor:
                page = await broker.browse(Place.READY, "q", 10, cursor)
                seen += [name_of(item.blob) for item in page.items]
                cursor, pages = page.cursor, pages + 1
                assert pages < 30
            assert sorted(seen) == [f"{n:02}" for n in range(25)]

    @in_loop
    async def test_remove_takes_the_named_entries(self, rig: BrokerRig) -> None:
        """Removing a ready entry takes that one alone, and says how many there were."""
        async with rig.connected() as broker:
            await broker.publish([envelope(name) for name in ("a", "b", "c")])
            items = (await broker.browse(Place.READY, "q", 10)).items
            [wanted] = [item.id for item in items if name_of(item.blob) == "b"]
            assert await broker.remove(Place.READY, "q", [wanted]) == 1
            assert await broker.remove(Place.READY, "q", [wanted]) == 0
            left = (await broker.browse(Place.READY, "q", 10)).items
            assert rig.in_order([name_of(item.blob) for item in left]) == ["a", "c"]

    @in_loop
    async def test_purge_deletes_what_is_ready(self, rig: BrokerRig) -> None:
        """A purge deletes the ready messages of one queue of every priority, and nothing else."""
        async with rig.consuming() as (broker, consumer):
            await broker.publish([envelope("flying")])
            flying = await claim(consumer, 1)
            await broker.publish([envelope(str(n), priority=n) for n in range(10)] + [envelope("x", "other")])
            later = (await consumer.cycle((), Demand(0))).now + 1000
            if broker.capabilities.delay:
                await broker.publish([envelope("later", not_before=later)])
            assert await broker.purge("q") == 10
            counts = await broker.count("q")
            assert (counts.ready, counts.scheduled) == (0, 1 if broker.capabilities.delay else 0)
            assert (await broker.count("other")).ready == 1
            await settle(consumer, done(flying[0].receipt))

    @in_loop
    async def test_scheduled_are_listed_removed_and_restored(self, rig: BrokerRig) -> None:
        """A message that is not due stands in the schedule: counted, listed with its time, removable, restorable."""
        async with rig.consuming() as (broker, consumer):
            if not broker.capabilities.delay:
                pytest.skip("the broker has no schedule")
            now = (await consumer.cycle((), Demand(0))).now
            await broker.publish([envelope(f"{n}", not_before=now + 1000 + n) for n in (2, 0, 1)])
            counts = await broker.count("q")
            assert (counts.ready, counts.scheduled) == (0, 3)
            await claim_nothing(consumer)
            items = (await broker.browse(Place.SCHEDULED, "q", 10)).items
            assert [name_of(item.blob) for item in items] == ["0", "1", "2"]
            assert [round((item.due or 0) - now) for item in items] == [1000, 1001, 1002]
            assert await broker.remove(Place.SCHEDULED, "q", [items[0].id]) == 1
            assert await broker.remove(Place.SCHEDULED, "q", [items[0].id]) == 0
            assert await broker.restore(Place.SCHEDULED, "q", [items[0].id, items[2].id]) == 1
            assert names(await claim(consumer, 1)) == ["2"]
            assert (await broker.count("q")).scheduled == 1

    @in_loop
    async def test_dead_letters_are_listed_restored_and_removed(self, rig: BrokerRig) -> None:
        """A dead letter keeps its bytes and its reason; it can be put back to work or deleted."""
        async with rig.consuming() as (broker, consumer):
            await broker.publish([envelope("a"), envelope("bad", blob=b"\x00\xff"), envelope("c")])
            taken = await claim(consumer, 3)
            await settle(consumer, *(done(delivery.receipt, Dead(f"reason {n}")) for n, delivery in enumerate(taken)))
            counts = await broker.count("q")
            assert (counts.ready, counts.in_flight, counts.dead) == (0, 0, 3)
            items = {item.reason: item for item in (await broker.browse(Place.DEAD, "q", 10)).items}
            assert {reason: rig.kept(item.blob) for reason, item in items.items()} == {
                f"reason {n}": rig.kept(delivery.blob) for n, delivery in enumerate(taken)
            }
            assert await broker.restore(Place.DEAD, "q", [items["reason 0"].id]) == 1
            assert await broker.restore(Place.DEAD, "q", [items["reason 0"].id]) == 0
            assert names(await claim(consumer, 1)) == ["a"]
            assert await broker.remove(Place.DEAD, "q", [items["reason 1"].id, items["reason 2"].id]) == 2
            assert (await broker.count("q")).dead == 0

    @in_loop
    async def test_a_restored_dead_letter_begins_anew(self, rig: BrokerRig) -> None:
        """A dead letter that is put back to work has no losses any more; otherwise the next loss would end it again."""
        async with rig.consuming() as (broker, consumer):
            await broker.publish([envelope("a", blob=message("a", **{"x-celeriac-losses": [3, 1]}))])
            [delivery] = await claim(consumer, 1)
            await settle(consumer, done(delivery.receipt, Dead("lost too often")))
            [item] = (await broker.browse(Place.DEAD, "q", 10)).items
            assert await broker.restore(Place.DEAD, "q", [item.id]) == 1
            [again] = await claim(consumer, 1)
            assert (name_of(again.blob), losses(again.blob)) == ("a", (0, 0))

    @in_loop
    async def test_in_flight_are_listed_with_their_owner(self, rig: BrokerRig) -> None:
        """An in-flight entry is shown with the worker epoch that holds it."""
        epoch = rig.epoch("owner")
        async with rig.consuming(epoch=epoch) as (broker, consumer):
            if not broker.capabilities.lease:
                pytest.skip("the broker owns delivery")
            await broker.publish([envelope("a"), envelope("b")])
            await claim(consumer, 1)
            assert (await broker.count("q")).in_flight == 1
            [item] = (await broker.browse(Place.IN_FLIGHT, "q", 10)).items
            assert (name_of(item.blob), item.owner) == ("a", epoch)

    @in_loop
    async def test_release_gives_everything_private_back(self, rig: BrokerRig) -> None:
        """After a release the schedule and the parked lists are empty and all of it is ready, bytes untouched."""
        async with rig.consuming() as (broker, consumer):
            published = [envelope("park1"), envelope("park2")]
            await broker.publish(published)
            taken = await claim(consumer, 2)
            await settle(consumer, *(done(delivery.receipt, Park("key")) for delivery in taken))
            if broker.capabilities.delay:
                now = (await consumer.cycle((), Demand(0))).now
                published.append(envelope("later", not_before=now + 1000))
                published.append(envelope("bad", blob=b"\xff", not_before=now + 9))
                await broker.publish(published[2:])
            assert await broker.release("q") == len(published)
            counts = await broker.count("q")
            assert (counts.ready, counts.scheduled, counts.parked) == (len(published), 0, 0)
            items = (await broker.browse(Place.READY, "q", 10)).items
            assert sorted(rig.kept(item.blob) for item in items) == sorted(rig.kept(entry.blob) for entry in published)

    @in_loop
    async def test_release_takes_from_dead_workers_only(self, rig: BrokerRig) -> None:
        """A release gives back what dead workers hold, and leaves what living ones hold."""
        async with (
            rig.consuming(lease=rig.lease) as (broker, dying),
            rig.consuming(lease=rig.lease) as (_, living),
        ):
            if not broker.capabilities.lease:
                pytest.skip("the broker owns delivery")
            await broker.publish([envelope("a"), envelope("b")])
            await claim(dying, 1)
            await claim(living, 1)
            await rig.outlive(living)
            await eventually(lambda: _released(broker, living, 1), "the dead worker's message is not back")
            counts = await broker.count("q")
            assert (counts.ready, counts.in_flight) == (1, 1)

    @in_loop
    async def test_cancelled_ids_are_listed_for_their_time(self, rig: BrokerRig) -> None:
        """Cancelled ids, any text, are listed for their time; each call changes the version, which cycles carry too."""
        async with rig.consuming() as (broker, consumer):
            before, ids = await broker.cancelled()
            assert ids == frozenset()
            await broker.cancel(["a", "b\x00SIGKILL"], 1000)
            version, ids = await broker.cancelled()
            assert version != before
            assert ids == {"a", "b\x00SIGKILL"}
            assert (await consumer.cycle((), Demand(0))).cancelled == version
            await broker.cancel(["c"], 0.2)
            later, ids = await broker.cancelled()
            assert later != version
            assert ids == {"a", "b\x00SIGKILL", "c"}
            assert (await consumer.cycle((), Demand(0))).cancelled == later
            await rig.elapse(0.5)
            assert (await broker.cancelled())[1] == {"a", "b\x00SIGKILL"}

    @in_loop
    async def test_ages_are_told_in_seconds(self, rig: BrokerRig) -> None:
        """The age of the oldest ready message is told in seconds where the broker knows it, and is None when empty."""
        async with rig.connected() as broker:
            assert (await broker.count("q")).oldest is None
            await broker.publish([envelope("a")])
            oldest = (await broker.count("q")).oldest
            assert oldest is None or 0 <= oldest < PATIENCE

    @in_loop
    async def test_a_broker_can_be_closed_twice(self, rig: BrokerRig) -> None:
        """Closing is harmless at any time, also twice and before first use; what was published stays."""
        idle = rig.broker()
        await idle.close()
        broker = rig.broker()
        await broker.publish([envelope("a")])
        await broker.close()
        await broker.close()
        async with rig.connected() as again:
            assert (await again.count("q")).ready == 1

    @in_loop
    async def test_a_description_is_one_line(self, rig: BrokerRig) -> None:
        """A broker describes itself in one line."""
        async with rig.connected() as broker:
            assert broker.describe()
            assert "\n" not in broker.describe()

    @in_loop
    async def test_same_server(self, rig: BrokerRig) -> None:
        """A backend on the same server is recognised."""
        backend = rig.backend()
        if backend is None:
            pytest.skip("no backend on this server")
        async with rig.connected() as broker:
            try:
                assert await broker.same_server(backend) is True
            finally:
                await backend.close()

    @in_loop
    async def test_odd_names(self, rig: BrokerRig) -> None:
        """Names of queues and tasks are any text."""
        odd = "Ünïcode queue:{1}*?[x]'\";--%"
        async with rig.consuming(odd) as (broker, consumer):
            await broker.publish([envelope("a", odd)])
            [delivery] = await claim(consumer, 1)
            assert delivery.receipt.queue == odd
            await settle(consumer, done(delivery.receipt, Park(odd)))
            [item] = (await broker.browse(Place.PARKED, odd, 10)).items
            assert item.key == odd
            assert odd in await broker.queues()


async def _released(broker: Broker, living: Consumer, want: int) -> bool:
    await living.renew(())
    await broker.release("q")
    return (await broker.count("q")).ready == want


class SenderContract:
    """What `delay()` may rely on."""

    @pytest.fixture
    def rig(self) -> Iterator[BrokerRig]:
        """A fresh rig. To be overridden."""
        raise NotImplementedError

    def test_on_return_all_are_safe(self, rig: BrokerRig) -> None:
        """When publish returns, every envelope can be claimed, in order, also the scheduled ones in time."""
        sender = rig.sender()
        try:
            sender.publish([], PATIENCE)
            sender.publish([envelope("a"), envelope("b")], PATIENCE)
            sender.publish([envelope("c", blob=b"\xff\x00")], PATIENCE)
        finally:
            sender.close()

        async def look() -> None:
            async with rig.connected() as broker:
                items = (await broker.browse(Place.READY, "q", 10)).items
                assert [name_of(item.blob) for item in items[:2]] == ["a", "b"]
                assert items[2].blob == b"\xff\x00"

        asyncio.run(look())

    def test_a_wait_is_published_to_the_schedule(self, rig: BrokerRig) -> None:
        """An envelope with a time to wait for goes to the schedule, not to the ready list."""

        async def clock() -> tuple[bool, float]:
            async with rig.consuming() as (broker, consumer):
                return broker.capabilities.delay, (await consumer.cycle((), Demand(0))).now

        delay, now = asyncio.run(clock())
        if not delay:
            pytest.skip("the broker has no schedule")
        sender = rig.sender()
        sender.publish([envelope("a", not_before=now + 1000)], PATIENCE)
        sender.close()

        async def look() -> None:
            async with rig.connected() as broker:
                counts = await broker.count("q")
                assert (counts.ready, counts.scheduled) == (0, 1)

        asyncio.run(look())

    def test_threads_share_a_sender(self, rig: BrokerRig) -> None:
        """Many threads may publish through one Sender at a time; nothing is lost or doubled."""
        sender = rig.sender()
        failures: list[BaseException] = []

        def work(number: int) -> None:
            try:
                for n in range(20):
                    sender.publish([envelope(f"{number}.{n}")], 30.0)
            except BaseException as failure:
                failures.append(failure)

        threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        sender.close()
        assert not failures

        async def look() -> None:
            async with rig.connected() as broker:
                assert (await broker.count("q")).ready == 80
                page = await broker.browse(Place.READY, "q", 100)
                assert {name_of(item.blob) for item in page.items} == {f"{t}.{n}" for t in range(4) for n in range(20)}

        asyncio.run(look())

    def test_a_closed_sender_may_open_again_or_say_no(self, rig: BrokerRig) -> None:
        """After close a publish works again or raises OperationalError; it never pretends."""
        sender = rig.sender()
        sender.close()
        published = 1
        try:
            sender.publish([envelope("a")], PATIENCE)
        except OperationalError:
            published = 0
        sender.close()

        async def look() -> None:
            async with rig.connected() as broker:
                assert (await broker.count("q")).ready == published

        asyncio.run(look())

    @in_loop
    async def test_a_waiting_consumer_wakes(self, rig: BrokerRig) -> None:
        """A publish by a Sender in another thread wakes a waiting consumer."""
        sender = rig.sender()
        async with rig.consuming() as (_, consumer):
            for n in range(5):
                waiting = asyncio.ensure_future(claim(consumer, 1))
                await asyncio.sleep(0.02)
                await asyncio.to_thread(sender.publish, [envelope(str(n))], PATIENCE)
                [delivery] = await asyncio.wait_for(waiting, PATIENCE)
                await settle(consumer, done(delivery.receipt))
        sender.close()


class BusContract:
    """What remote control and events may rely on, where the broker has fanout."""

    @pytest.fixture
    def rig(self) -> Iterator[BrokerRig]:
        """A fresh rig. To be overridden."""
        raise NotImplementedError

    @in_loop
    async def test_every_listener_hears(self, rig: BrokerRig) -> None:
        """A broadcast reaches every listener that listened before it, once, in order."""
        async with rig.connected() as one, rig.connected() as two:
            first, second = rig.bus(one), rig.bus(two)
            if first is None or second is None:
                pytest.skip("the broker has no fanout")
            async with first.listen("celery.pidbox", "") as here, second.listen("celery.pidbox", "") as there:
                for n in range(3):
                    await first.broadcast("celery.pidbox", "", b"%d" % n)
                assert await _take(here, 3) == [b"0", b"1", b"2"]
                assert await _take(there, 3) == [b"0", b"1", b"2"]

    @in_loop
    async def test_patterns(self, rig: BrokerRig) -> None:
        """`#` hears everything of an exchange; `word.#` what begins with the word; other exchanges are not heard."""
        async with rig.connected() as broker:
            bus = rig.bus(broker)
            if bus is None:
                pytest.skip("the broker has no fanout")
            async with bus.listen("celeryev", "#") as everything, bus.listen("celeryev", "task.#") as tasks:
                await bus.broadcast("celeryev", "worker.online", b"1")
                await bus.broadcast("elsewhere", "task.sent", b"2")
                await bus.broadcast("celeryev", "task.sent", b"3")
                await bus.broadcast("celeryev", "task.multi", b"4")
                assert await _take(everything, 3) == [b"1", b"3", b"4"]
                assert await _take(tasks, 2) == [b"3", b"4"]

    @in_loop
    async def test_any_bytes(self, rig: BrokerRig) -> None:
        """A payload is any bytes, also a large one."""
        async with rig.connected() as broker:
            bus = rig.bus(broker)
            if bus is None:
                pytest.skip("the broker has no fanout")
            payloads = [b"\x00\xff", b"x" * 1_000_000]
            async with bus.listen("celeryev", "#") as heard:
                for payload in payloads:
                    await bus.broadcast("celeryev", "a.b", payload)
                assert await _take(heard, 2) == payloads

    @in_loop
    async def test_a_reply_waits_in_its_queue(self, rig: BrokerRig) -> None:
        """A reply is found in its queue by whoever consumes that queue, also later."""
        async with rig.connected() as broker:
            bus = rig.bus(broker)
            if bus is None:
                pytest.skip("the broker has no fanout")
            if broker.capabilities.lease:
                await bus.reply("oid.reply.celery.pidbox", message("answer"))
            async with rig.consuming("oid.reply.celery.pidbox") as (_, consumer):
                if not broker.capabilities.lease:  # then the queue is there as long as somebody consumes it
                    await bus.reply("oid.reply.celery.pidbox", message("answer"))
                [delivery] = await claim(consumer, 1)
                assert name_of(delivery.blob) == "answer"
                await settle(consumer, done(delivery.receipt))


async def _take(heard: AsyncIterator[bytes], count: int) -> list[bytes]:
    return [await asyncio.wait_for(anext(heard), PATIENCE) for _ in range(count)]
