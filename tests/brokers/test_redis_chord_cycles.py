"""Chords in the cycle script: keys that are not as they should be leave nothing half done, and others pay nothing."""

from __future__ import annotations

import math
from typing import Any

import msgspec
import pytest

from celeriac.brokers.redis import RedisBroker
from celeriac.brokers.redis.layout import Layout
from celeriac.brokers.redis.settling import settle as settling_words
from celeriac.drivers.redis.site import Site
from celeriac.model.message import (
    RETURN,
    Ack,
    Chord,
    Completion,
    Dead,
    Delay,
    Demand,
    Envelope,
    Fire,
    Park,
    Receipt,
    Settlement,
    Store,
)
from celeriac.ports import Place
from celeriac.testing.contract_chords import HOLD, chord, part, standing_of
from celeriac.testing.rigs import claim, done, envelope, in_loop, settle
from tests.brokers.redis_rig import RedisRig
from tests.servers import command

PRIVATE = "celeriac:1:{q}:"


def _once(name: str, queue: str = "q", not_before: float | None = None) -> Envelope:
    return msgspec.structs.replace(envelope(name, queue, not_before=not_before, publish_id=f"id-{name}"), once=True)


class TestChordCycles:
    """In one database, and with results under another prefix in another one."""

    @pytest.fixture(params=["redis", "valkey", "apart"])
    def rig(self, request: pytest.FixtureRequest) -> RedisRig:
        url = request.getfixturevalue("valkey_url" if request.param == "valkey" else "redis_url")
        return RedisRig(url, apart=request.param == "apart")

    def _results(self, rig: RedisRig) -> tuple[str, str]:
        """Where results lie, and what their keys begin with."""
        return (rig.url.rpartition("/")[0] + "/1", "results_") if rig.apart else (rig.url, "")

    def _dump(self, rig: RedisRig) -> dict[tuple[str, bytes], bytes]:
        """All there is, but for the message that is dead-lettered, and the lease."""
        found = {}
        for url in dict.fromkeys((rig.url, self._results(rig)[0])):
            for key in command(url, "KEYS", "*"):
                if not any(word in key for word in (b"}:", b"workers")):
                    found[url, key] = command(url, "DUMP", key.decode())
        return found

    @pytest.mark.parametrize(
        "key", ["celery-taskset-meta-g.j", "celery-taskset-meta-g.d", "celery-taskset-meta-g.s",
                "celery-taskset-meta-g.t", "celery-taskset-meta-g.c", "celeriac:1:chord:g", "celeriac:1:chords"]
    )  # fmt: skip
    @pytest.mark.parametrize("role", ["part", "chord", "fire"])
    def test_a_wrong_key(self, rig: RedisRig, key: str, role: str) -> None:
        """A chord with a key of a wrong type: that completion alone is dead-lettered, and nothing of it is done."""
        url, prefix = self._results(rig)

        @in_loop
        async def story(self: TestChordCycles, rig: RedisRig) -> None:
            backend = rig.backend()
            async with rig.consuming() as (broker, consumer):
                await backend.open_chords([chord(1), chord(2, group="h")])
                await broker.publish([envelope("a"), envelope("b")])
                one, two = await claim(consumer, 2)
                command(url, "DEL", prefix + key)
                command(url, "XADD", prefix + key, "*", "f", "v")
                before = self._dump(rig)
                completion = Completion(
                    one.receipt, store=Store("a", b"{}", "SUCCESS", 100), publish=(envelope("next", "q"), _once("o")),
                    chords=(chord(1, group="g" if role == "chord" else "new"),),
                    parts=(part("a", 0, group="h"), part("a", 1, group="g" if role == "part" else "h")),
                    fire=Fire("g" if role == "fire" else "h", "x"),
                )  # fmt: skip
                turn = await consumer.cycle([completion, done(two.receipt)], Demand(0))
                assert [verdict.ok for verdict in turn.verdicts] == [False, True]
                assert "WRONGTYPE" in turn.verdicts[0].error
                assert self._dump(rig) == before
                [dead] = (await broker.browse(Place.DEAD, "q", 10)).items
                assert dead.blob == one.blob
                assert (await broker.count("q")).in_flight == 0
            await backend.close()

        story(self, rig)

    @pytest.mark.parametrize(
        ("key", "settlement"),
        [
            ("q", RETURN), (PRIVATE + "schedule", Delay(1e12)), (PRIVATE + "scheduled", Delay(1e12)),
            (PRIVATE + "parked:k", Park("k")), (PRIVATE + "parkings", Park("k")), (PRIVATE + "dead", Dead("x")),
            ("", Delay(math.nan)),
        ],
    )  # fmt: skip
    def test_a_settlement_that_can_not_be(self, rig: RedisRig, key: str, settlement: Settlement) -> None:
        """Where the message can't go where it is to go, its member is not counted either."""

        @in_loop
        async def story(self: TestChordCycles, rig: RedisRig) -> None:
            backend = rig.backend()
            async with rig.consuming() as (broker, consumer):
                await backend.open_chords([chord(2)])
                await broker.publish([envelope("a")])
                [one] = await claim(consumer, 1)
                if key:
                    command(rig.url, "SET", rig.options.get("global_keyprefix", "") + key, "wrong")
                completion = Completion(one.receipt, settlement, parts=(part("a", 0),), chords=(chord(1, group="h"),))
                [verdict] = (await consumer.cycle([completion], Demand(0))).verdicts
                assert (verdict.ok, verdict.lost, bool(verdict.error)) == (False, False, True)
                assert (await standing_of(backend)).counted == ()
                assert await backend.chord("h") is None
            await backend.close()

        story(self, rig)

    @in_loop
    async def test_names_that_can_not_be_written(self, rig: RedisRig) -> None:
        """A chord with a name that no server could keep fails alone, before anything of it is sent."""
        backend = rig.backend()
        async with rig.consuming() as (broker, consumer):
            await broker.publish([envelope(name) for name in "abcd"])
            taken = await claim(consumer, 4)
            bad = "\ud800"
            finished = [
                Completion(taken[0].receipt, chords=(Chord("g", 1, b"", (bad,)),)),
                Completion(taken[1].receipt, parts=(part("b", 0),)),
                Completion(taken[2].receipt, parts=(part("c", 0, group=bad),)),
                Completion(taken[3].receipt, fire=Fire("g", bad)),
            ]
            turn = await consumer.cycle(finished, Demand(0))
            assert [verdict.ok for verdict in turn.verdicts] == [False, True, False, False]
            assert (await broker.count("q")).dead == 3
            assert (await standing_of(backend)).counted == ("b:0",)
        await backend.close()

    def test_a_command_that_is_not_allowed(self, rig: RedisRig) -> None:
        """Where the user may not do to a chord what is needed, that completion alone fails; its follow-ups are taken
        back."""
        command(rig.url, "ACL", "SETUSER", "w", "reset", "on", "nopass", "~*", "&*", "+@all", "-sismember")

        @in_loop
        async def story(self: TestChordCycles, rig: RedisRig) -> None:
            broker = RedisBroker(rig.url.replace("//", "//w:x@"))
            async with broker.subscribe(["q"], epoch="w", lease=60) as consumer:
                await broker.publish([envelope("a"), envelope("b")])
                one, two = await claim(consumer, 2)
                bad = Completion(one.receipt, publish=(envelope("next"),), parts=(part("a", 0),))
                good = done(two.receipt, None, Store("b", b"{}", "SUCCESS", 100))
                verdicts = (await consumer.cycle([bad, good], Demand(0))).verdicts
                assert [(verdict.ok, bool(verdict.error)) for verdict in verdicts] == [(False, True), (True, False)]
                counts = await broker.count("q")
                assert (counts.ready, counts.in_flight, counts.dead) == (0, 0, 1)
            await broker.close()
            assert command(rig.url, "EXISTS", "celery-taskset-meta-g.j") == 0
            assert command(rig.url, "EXISTS", "celery-task-meta-b") == 1

        story(self, rig)

    @in_loop
    async def test_how_once_is_remembered(self, rig: RedisRig) -> None:
        """A key of the publish id for a day, by every way; none where the publishing was undone."""
        prefix = rig.options.get("global_keyprefix", "")
        async with rig.consuming() as (broker, consumer):
            command(rig.url, "SET", f"{prefix}wrong", "wrong")
            far = (await consumer.cycle((), Demand(0))).now + 1000
            await broker.publish([_once("by broker"), _once("later", not_before=far)])
            sender = rig.sender()
            sender.publish([_once("by sender")], 5.0)
            sender.close()
            await settle(consumer, done(None, None, None, _once("by cycle"), _once("then", not_before=far)))
            bad = done(None, None, None, _once("undone"), _once("wrong one", "wrong"))
            [verdict] = (await consumer.cycle([bad], Demand(0))).verdicts
            assert not verdict.ok
            marks = set(command(rig.url, "KEYS", f"{prefix}celeriac:1:once:*"))
            names = ("by broker", "later", "by sender", "by cycle", "then")
            assert marks == {f"{prefix}celeriac:1:once:id-{name}".encode() for name in names}
            for mark in marks:
                assert 86_390 < command(rig.url, "TTL", mark.decode()) <= 86_400
            counts = await broker.count("q")
            assert (counts.ready, counts.scheduled) == (3, 2)

    @in_loop
    async def test_a_chord_is_in_the_database_of_results(self, rig: RedisRig) -> None:
        """What a cycle opens and counts lies under the prefix of results in their database, and nowhere else."""
        url, prefix = self._results(rig)
        backend = rig.backend()
        async with rig.consuming(lease=12.0) as (_, consumer):
            opening = Completion(None, chords=(chord(1, structure=b"shape"),), parts=(part("m0", 0),))
            [verdict] = (await consumer.cycle([opening], Demand(0))).verdicts
            assert verdict.complete == ("g",)
            keys = {f"{prefix}celery-taskset-meta-g{end}" for end in ("", ".j", ".d", ".s", ".c")}
            keys |= {f"{prefix}celeriac:1:chord:g", f"{prefix}celeriac:1:chords"}
            assert keys <= {key.decode() for key in command(url, "KEYS", "*")}
            assert 5000 < command(url, "PTTL", f"{prefix}celery-taskset-meta-g.c") <= 6000
            if rig.apart:
                assert command(rig.url, "KEYS", "*taskset*") == []
            assert await backend.hold(Fire("g", part("m0").token), HOLD) is True
        await backend.close()

    @in_loop
    async def test_without_an_order(self, rig: RedisRig) -> None:
        """A cycle keeps entries as the result backend is told to (`result_chord_ordered`)."""
        backend = rig.backend()
        backend.names.ordered = False
        async with rig.consuming() as (broker, consumer):
            assert await broker.same_server(backend)
            await settle(consumer, Completion(None, parts=(part("m1", 1), part("m0", 0))))
            assert (await standing_of(backend)).entries == (part("m1").entry, part("m0").entry)
        await backend.close()


def test_who_has_no_chord_pays_nothing() -> None:
    """Completions without chords are said to the script in as few words as ever."""
    words: list[Any] = []
    receipt = Receipt("q", "t-1A.0")
    finished = [
        Completion(receipt), Completion(receipt, store=Store("a", b"{}", "SUCCESS", 10)),
        Completion(receipt, Ack(), publish=(envelope("x", blob=b"X"),)), Completion(receipt, parts=(part("m", 3),)),
    ]  # fmt: skip
    assert settling_words(Layout({}), Site("", 0, "p_", lambda document: False), words, finished) is None
    assert words == [
        "q", "q", "a", "t-1A.0", "s", "t-1A.0", "p_celery-task-meta-a", 10, b"{}",
        "x", "t-1A.0", "A", "", b"", "", "", "", "0", 1, "q", "", "", b"X",
        "c", "t-1A.0", "A", "", b"", "", "", "", "0", 0, "p_", "1", "", "", 0, 1,
        "g", "m:3", 3, b'[1, "m", "SUCCESS", 1]', part("m").body, "celeriac:m",
    ]  # fmt: skip
