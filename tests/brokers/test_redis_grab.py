"""What an idle worker is told of is claimed before it asks: one message, from the list that was pushed to."""

from __future__ import annotations

import asyncio
import logging

import pytest

from celeriac.model.message import DONE, Demand, Turn
from celeriac.ports import Consumer
from celeriac.testing.rigs import done, envelope, names
from tests.brokers.redis_rig import RedisRig
from tests.servers import command

INFLIGHT = "celeriac:1:{q}:inflight:"


async def _idle(consumer: Consumer) -> Turn:
    """The worker asks and gets nothing."""
    turn = await consumer.cycle([], Demand(10))
    assert not turn.deliveries
    assert not consumer.ahead
    return turn


async def _told(consumer: Consumer) -> None:
    async with asyncio.timeout(5):
        while not consumer.ahead:
            await consumer.wait()
            await asyncio.sleep(0)


async def _all(consumer: Consumer, count: int) -> list[str]:
    found: list[str] = []
    async with asyncio.timeout(5):
        while len(found) < count:
            found += names((await consumer.cycle([], Demand(10))).deliveries)
    return found


class TestGrab:
    """On both servers."""

    @pytest.fixture(params=["redis", "valkey"])
    def rig(self, request: pytest.FixtureRequest) -> RedisRig:
        return RedisRig(request.getfixturevalue(f"{request.param}_url"))

    @pytest.mark.parametrize("priority", [0, 6])
    def test_a_push_to_an_idle_worker_is_claimed_ahead(self, rig: RedisRig, priority: int) -> None:
        """It is in flight before the worker asks, settles like any other, and the next push is told too."""

        async def story() -> None:
            async with rig.consuming() as (broker, consumer):
                for n in range(3):
                    await _idle(consumer)
                    await broker.publish([envelope(f"m{n}", priority=priority)])
                    await _told(consumer)
                    turn = await consumer.cycle([], Demand(0))
                    assert names(turn.deliveries) == [f"m{n}"]
                    assert not turn.more
                    counts = await broker.count("q")
                    assert (counts.ready, counts.in_flight) == (0, 1)
                    turn = await consumer.cycle([done(turn.deliveries[0].receipt)], Demand(0))
                    assert turn.verdicts == [DONE]
                    assert (await broker.count("q")).in_flight == 0

        asyncio.run(story())

    def test_what_was_claimed_ahead_comes_with_what_is_settled(self, rig: RedisRig) -> None:
        """One call of `cycle` brings both, each with its own word."""

        async def story() -> None:
            async with rig.consuming() as (broker, consumer):
                await broker.publish([envelope("first")])
                [first] = (await consumer.cycle([], Demand(1))).deliveries
                await _idle(consumer)
                await broker.publish([envelope("second"), envelope("third")])
                await _told(consumer)
                turn = await consumer.cycle([done(first.receipt)], Demand(5))
                assert (names(turn.deliveries), turn.verdicts, turn.more) == (["second"], [DONE], True)
                await consumer.wait()
                assert await _all(consumer, 1) == ["third"]

        asyncio.run(story())

    def test_a_due_message_and_a_revoke_are_still_heard_of(self, rig: RedisRig) -> None:
        """A grab looks at one list only; it forgets neither when something is due nor who was revoked."""

        async def story() -> None:
            async with rig.consuming() as (broker, consumer):
                now = (await _idle(consumer)).now
                await broker.publish([envelope("later", not_before=now + 0.6)])
                waiting = await _idle(consumer)
                assert waiting.next_due == pytest.approx(now + 0.6, abs=0.01)
                await broker.publish([envelope("first")])
                await _told(consumer)
                turn: Turn = await consumer.cycle([], Demand(1))
                assert (names(turn.deliveries), turn.next_due) == (["first"], waiting.next_due)
                assert turn.cancelled == waiting.cancelled
                assert await _all(consumer, 1) == ["later"]
                idle = await _idle(consumer)
                await broker.cancel(["x"], 100)
                await broker.publish([envelope("second")])
                async with asyncio.timeout(5):
                    await consumer.wait()
                turn = await consumer.cycle([], Demand(1))
                assert turn.cancelled != idle.cancelled
                assert names(turn.deliveries) == ["second"]

        asyncio.run(story())

    def test_a_server_that_has_forgotten_the_script(self, rig: RedisRig) -> None:
        """It is given the source."""

        async def story() -> None:
            async with rig.consuming() as (broker, consumer):
                for name in ("one", "two"):
                    await _idle(consumer)
                    command(rig.url, "SCRIPT", "FLUSH")
                    await broker.publish([envelope(name)])
                    await _told(consumer)
                    assert names((await consumer.cycle([], Demand(1))).deliveries) == [name]

        asyncio.run(story())

    def test_wrong_keys_are_left_to_the_whole_cycle(self, rig: RedisRig, caplog: pytest.LogCaptureFixture) -> None:
        """A list or an in-flight hash of another type: nothing is lost, the cycle says what is wrong, work goes on."""

        async def story() -> None:
            caplog.set_level(logging.ERROR)
            async with rig.consuming() as (broker, consumer):
                await _idle(consumer)
                command(rig.url, "SET", "q", "wrong")
                await _told(consumer)
                turn = await consumer.cycle([], Demand(1))
                assert (turn.deliveries, turn.more) == ([], True)
                await _idle(consumer)
                assert "'q' is not as it should be" in caplog.text
                command(rig.url, "DEL", "q")
                await _idle(consumer)

                key = INFLIGHT + consumer.epoch  # type: ignore[attr-defined]
                command(rig.url, "SET", key, "wrong")
                await broker.publish([envelope("kept")])
                await _told(consumer)
                turn = await consumer.cycle([], Demand(1))
                assert (turn.deliveries, turn.more) == ([], True)
                assert command(rig.url, "LLEN", "q") == 1
                command(rig.url, "DEL", key)
                assert await _all(consumer, 1) == ["kept"]

        asyncio.run(story())

    def test_leaving_gives_back_what_was_claimed_ahead(self, rig: RedisRig) -> None:
        """A worker that goes before it has looked leaves the message to others."""

        async def story() -> None:
            async with rig.consuming() as (broker, consumer):
                await _idle(consumer)
                await broker.publish([envelope("m")])
                await _told(consumer)
                await consumer.leave()
                counts = await broker.count("q")
                assert (counts.ready, counts.in_flight) == (1, 0)

        asyncio.run(story())
