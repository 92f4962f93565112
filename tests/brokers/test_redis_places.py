"""What operators do on Redis: pages of every place, removing and restoring far inside long lists, other servers."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Sequence

import pytest

from celeriac.backends.memory import MemoryBackend
from celeriac.backends.redis import RedisBackend
from celeriac.brokers.memory import MemoryServer
from celeriac.brokers.redis import RedisBroker
from celeriac.brokers.redis.scripts import PROBE
from celeriac.drivers.redis.script import Script
from celeriac.errors import OperationalError
from celeriac.model.message import Dead, Delay, Demand, Item, Park, Settlement
from celeriac.ports import Broker, Place
from celeriac.testing.rigs import claim, done, envelope, in_loop, losses, message, name_of, names, settle
from celeriac.wire.frame import with_losses
from tests.brokers.redis_rig import RedisRig
from tests.servers import command, redis_server


@pytest.fixture(params=["redis", "valkey", "apart"])
def rig(request: pytest.FixtureRequest) -> RedisRig:
    """Both servers, and one with a prefix."""
    url = request.getfixturevalue("valkey_url" if request.param == "valkey" else "redis_url")
    return RedisRig(url, apart=request.param == "apart")


async def _pages(broker: Broker, where: Place, limit: int) -> list[Item]:
    items: list[Item] = []
    cursor, pages = "", 0
    while pages == 0 or cursor:
        page = await broker.browse(where, "q", limit, cursor)
        assert len(page.items) <= limit
        items += page.items
        cursor, pages = page.cursor, pages + 1
        assert pages < 100
    return items


def _names(items: Sequence[Item]) -> list[str]:
    return [name_of(item.blob) for item in items]


class TestPlaces:
    """Every place."""

    @in_loop
    async def test_pages_of_every_place(self, rig: RedisRig) -> None:
        """Pages show each entry once, in the order in which it would be served, whatever the size of a page."""
        how: dict[Place, Settlement] = {Place.SCHEDULED: Delay(0), Place.PARKED: Park("0"), Place.DEAD: Dead("x")}
        async with rig.consuming() as (broker, consumer):
            for place, settlement in how.items():
                await broker.publish([envelope(f"{n:03}") for n in range(130)])
                taken = await claim(consumer, 130)
                await settle(consumer, *(done(d.receipt, _nth(settlement, n)) for n, d in enumerate(taken)))
                for limit in (1000, 130, 50, 7):
                    items = await _pages(broker, place, limit)
                    assert len({item.id for item in items}) == 130
                    if place is Place.PARKED:
                        assert [item.key for item in items] == sorted(item.key for item in items)
                        items.sort(key=lambda item: name_of(item.blob))
                    assert _names(items) == [f"{n:03}" for n in range(130)]
            await broker.publish([envelope(f"{n:03}", priority=9 * (n % 2)) for n in range(130)])
            for limit in (1000, 130, 50, 7):
                assert _names(await _pages(broker, Place.READY, limit)) == [
                    *(f"{n:03}" for n in range(0, 130, 2)), *(f"{n:03}" for n in range(1, 130, 2))
                ]  # fmt: skip
            await claim(consumer, 130)
            for limit in (1000, 130, 50, 7):
                assert sorted(_names(await _pages(broker, Place.IN_FLIGHT, limit))) == [f"{n:03}" for n in range(130)]

    @in_loop
    async def test_removed_and_restored_far_inside(self, rig: RedisRig) -> None:
        """Entries anywhere in lists of hundreds are found; the others keep their order."""
        async with rig.consuming() as (broker, consumer):
            await broker.publish([envelope(f"{n:03}", priority=3 * (n % 2)) for n in range(450)])
            items = await _pages(broker, Place.READY, 1000)
            gone = items[::7]
            assert await broker.remove(Place.READY, "q", [item.id for item in gone]) == len(gone)
            left = [item for n, item in enumerate(items) if n % 7]
            assert _names(await _pages(broker, Place.READY, 1000)) == _names(left)
            taken = await claim(consumer, len(left))
            await settle(consumer, *(done(d.receipt, Park("k")) for d in taken))
            items = await _pages(broker, Place.PARKED, 1000)
            assert await broker.remove(Place.PARKED, "q", [item.id for item in items[::5]]) == len(items[::5])
            back = [item for n, item in enumerate(items) if n % 5 == 1]
            assert await broker.restore(Place.PARKED, "q", [item.id for item in back]) == len(back)
            assert sorted(names(await claim(consumer, len(back)))) == sorted(_names(back))
            rest = [item for n, item in enumerate(items) if n % 5 > 1]
            assert _names(await _pages(broker, Place.PARKED, 1000)) == _names(rest)
            assert await broker.restore(Place.PARKED, "q", [item.id for item in rest]) == len(rest)
            counts = await broker.count("q")
            assert (counts.ready, counts.parked) == (len(rest), 0)
            prefix = rig.options.get("global_keyprefix", "")
            assert command(rig.url, "EXISTS", f"{prefix}celeriac:1:{{q}}:parkings") == 0

    @in_loop
    async def test_twins(self, rig: RedisRig) -> None:
        """Of entries with equal bytes as many are removed as are named."""
        async with rig.connected() as broker:
            await broker.publish([envelope(blob=message("twin")) for _ in range(5)])
            items = await _pages(broker, Place.READY, 10)
            assert await broker.remove(Place.READY, "q", [item.id for item in items[:3]]) == 3
            assert (await broker.count("q")).ready == 2

    @in_loop
    async def test_ids_of_nothing(self, rig: RedisRig) -> None:
        """Ids that are not of our making remove and restore nothing."""
        odd = ["", "x", ":", "::", "x:y", "0:0", " ", "a b c", "Ü"]
        async with rig.connected() as broker:
            await broker.publish([envelope("a")])
            for place in Place:
                assert await broker.remove(place, "q", odd) == 0
            for place in (Place.SCHEDULED, Place.PARKED, Place.DEAD):
                assert await broker.restore(place, "q", odd) == 0
            assert (await broker.count("q")).ready == 1
            assert (await broker.browse(Place.READY, "q", 10, "nonsense")).items

    @in_loop
    async def test_an_in_flight_entry_that_is_removed(self, rig: RedisRig) -> None:
        """Removing an entry in flight makes its completion lost."""
        async with rig.consuming() as (broker, consumer):
            await broker.publish([envelope("a"), envelope("b")])
            one, two = await claim(consumer, 2)
            [item] = [i for i in (await broker.browse(Place.IN_FLIGHT, "q", 10)).items if name_of(i.blob) == "a"]
            assert await broker.remove(Place.IN_FLIGHT, "q", [item.id]) == 1
            turn = await consumer.cycle([done(one.receipt), done(two.receipt)], Demand(0))
            assert [verdict.lost for verdict in turn.verdicts] == [True, False]

    @in_loop
    async def test_a_restored_dead_letter_begins_anew(self, rig: RedisRig) -> None:
        """A dead letter that an operator restores has no losses any more, or it would be dead at once; one without is
        kept to the byte, unreadable ones too."""
        async with rig.consuming() as (broker, consumer):
            blobs = [with_losses(message("a"), 3, 1), message("b"), b"\xff\x00"]
            await broker.publish([envelope(blob=blob) for blob in blobs])
            await settle(consumer, *(done(d.receipt, Dead("12:x")) for d in await claim(consumer, 3)))
            items = (await broker.browse(Place.DEAD, "q", 10)).items
            assert {item.reason for item in items} == {"12:x"}
            assert await broker.restore(Place.DEAD, "q", [item.id for item in items]) == 3
            found = [delivery.blob for delivery in await claim(consumer, 3)]
            assert losses(found[0]) == (0, 0)
            assert name_of(found[0]) == "a"
            assert found[1:] == blobs[1:]

    @in_loop
    async def test_restored_ones_go_to_the_tail(self, rig: RedisRig) -> None:
        """Scheduled and dead ones are served after what waits already."""
        async with rig.consuming() as (broker, consumer):
            await broker.publish([envelope("dead"), envelope("later", not_before=4e9)])
            [delivery] = await claim(consumer, 1)
            await settle(consumer, done(delivery.receipt, Dead("x")))
            await broker.publish([envelope("ready")])
            for place in (Place.DEAD, Place.SCHEDULED):
                [item] = (await broker.browse(place, "q", 10)).items
                await broker.restore(place, "q", [item.id])
            assert names(await claim(consumer, 3)) == ["ready", "dead", "later"]


def _nth(settlement: Settlement, n: int) -> Settlement:
    match settlement:
        case Delay():
            return Delay(4e9 + n)
        case Park():
            return Park(f"k{n % 3}")
        case _:
            return settlement


def test_another_server_is_another_server(redis_url: str, caplog: pytest.LogCaptureFixture) -> None:
    """Only a Redis backend on the same server process is the same server; and only if the broker's user may write and
    publish results and keep chords. One line says what it may not."""

    async def story() -> None:
        with redis_server() as other:
            broker = RedisBroker(redis_url)
            for url, expected in ((redis_url, True), (redis_url.rpartition("/")[0] + "/5", True), (other.url, False)):
                backend = RedisBackend(url)
                assert await broker.same_server(backend) is expected
                await backend.close()
            assert await broker.same_server(MemoryBackend(MemoryServer("x"))) is False
            await broker.close()
            assert not caplog.records
            own = ("~q", "~celeriac:*", "~_kombu*")
            for rights, told in (
                (("~*", "&/0.*", "+@all"), "channel"),
                ((*own, "&*", "+@all"), "keys"),
                ((*own, "~celery-task-meta-*", "&*", "+@all"), "chords need DEL on celery-taskset-meta-*"),
                (("~*", "&*", "+@all", "-sismember"), "chords need SISMEMBER on celery-taskset-meta-*"),
            ):
                command(redis_url, "ACL", "SETUSER", "mute", "reset", "on", "nopass", *rights)
                broker = RedisBroker(redis_url.replace("//", "//mute:x@"))
                for url in (redis_url, redis_url.rpartition("/")[0] + "/5"):
                    backend = RedisBackend(url)
                    assert await broker.same_server(backend) is False
                    await backend.close()
                    (record,) = caplog.records
                    assert "rights (ACL)" in record.getMessage()
                    assert told in record.getMessage()
                    caplog.clear()
                await broker.close()

    asyncio.run(story())


def test_all_that_chords_need_is_asked_for() -> None:
    """Whatever command the script calls."""
    chord = Script(("celeriac.drivers.redis", "lua/chord.lua"))
    called, asked = (set(re.findall("'([A-Z]{3,})'", script.source)) for script in (chord, PROBE))
    assert called - {"LIMIT"} == asked - {"SELECT", "SETRANGE", "PUBLISH"}


def test_listeners_hear_of_a_lost_connection() -> None:
    """A listener whose connection breaks gets an OperationalError; listening anew works."""

    async def story() -> None:
        with redis_server() as server:
            broker = RedisBroker(server.url)
            async with broker.listen("celeryev", "#") as heard:
                await broker.broadcast("celeryev", "a.b", b"1")
                assert await anext(heard) == b"1"
                server.restart()
                with pytest.raises(OperationalError):
                    await asyncio.wait_for(anext(heard), 5)
            async with broker.listen("celeryev", "#") as heard:
                await broker.broadcast("celeryev", "a.b", b"2")
                assert await anext(heard) == b"2"
                await broker.close()
                with pytest.raises(OperationalError):
                    await asyncio.wait_for(anext(heard), 5)

    asyncio.run(story())


def test_two_listeners_of_one_pattern(redis_url: str) -> None:
    """When one of two listeners of a pattern leaves, the other goes on hearing."""

    async def story() -> None:
        broker = RedisBroker(redis_url)
        async with broker.listen("x", "#") as one:
            async with broker.listen("x", "#") as two:
                await broker.broadcast("x", "k", b"1")
                assert (await anext(one), await anext(two)) == (b"1", b"1")
            await broker.broadcast("x", "k", b"2")
            assert await asyncio.wait_for(anext(one), 5) == b"2"
        await broker.close()

    asyncio.run(story())


