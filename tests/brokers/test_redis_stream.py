"""Envelopes that are made while the server works on those before."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from celeriac import Celeriac
from celeriac.brokers.redis import RedisSender
from celeriac.errors import EncodeError, OperationalError
from celeriac.model.message import Envelope
from celeriac.testing.rigs import envelope
from tests.brokers.redis_rig import RedisRig
from tests.proxy import FreezeProxy
from tests.servers import command, redis_server


@pytest.fixture
def rig(redis_url: str) -> RedisRig:
    return RedisRig(redis_url)


def _ids(url: str, key: str) -> int:
    return int(command(url, "LLEN", key))


@pytest.mark.parametrize("count", [0, 1, 64, 65, 1000])
def test_all_arrive_in_order(rig: RedisRig, count: int) -> None:
    """Also the first ones of a queue that nobody knew, and of another priority."""
    sender = rig.sender()
    made = [envelope(f"m{n}", priority=3) for n in range(count)]
    sender.stream(iter(made), 5.0)
    found = command(rig.url, "LRANGE", "q\x06\x163", 0, -1)
    assert found == [each.blob for each in reversed(made)]
    if count:
        assert command(rig.url, "SISMEMBER", "celeriac:1:queues", "q") == 1
    sender.close()


def test_huge_ones_do_not_travel_together(rig: RedisRig) -> None:
    """Each command stays within a few megabytes."""
    sender = rig.sender()
    big = Envelope("i", "p", "q", b"x" * (3 << 20))
    command(rig.url, "CONFIG", "RESETSTAT")
    sender.stream(iter([big] * 3), 10.0)
    assert _ids(rig.url, "q") == 3
    assert b"cmdstat_lpush:calls=3," in command(rig.url, "INFO", "commandstats")
    sender.close()


def test_an_error_in_the_making_leaves_no_answer_behind(rig: RedisRig) -> None:
    """What was sent before may stand; the next publish is answered by its own answer."""
    sender = rig.sender()

    def making() -> Iterator[Envelope]:
        yield from (envelope(f"m{n}") for n in range(100))
        raise EncodeError("this one can't be written")

    with pytest.raises(EncodeError):
        sender.stream(making(), 5.0)
    sender.publish([envelope("after")], 5.0)
    assert 1 <= _ids(rig.url, "q") <= 101
    sender.close()


def test_a_refusal_is_an_error(rig: RedisRig) -> None:
    """A key that is no list."""
    sender = rig.sender()
    command(rig.url, "SET", "q", "wrong")
    with pytest.raises(OperationalError, match="WRONGTYPE"):
        sender.stream(iter([envelope(f"m{n}") for n in range(200)]), 5.0)
    sender.close()


def test_a_server_that_stops_reading(rig: RedisRig) -> None:
    """The deadline holds, also while there is more to send."""
    with redis_server() as server, FreezeProxy(server.port) as proxy:
        sender = RedisSender(proxy.url)
        sender.publish([envelope("first")], 5.0)
        proxy.freeze()
        began = time.monotonic()
        with pytest.raises(OperationalError, match="no answer in time"):
            sender.stream((Envelope("i", "p", "q", b"x" * 100_000) for _ in range(1000)), 0.7)
        assert time.monotonic() - began < 3
        sender.close()


def test_what_yields_the_calls_may_send_too(rig: RedisRig) -> None:
    """`delay_many` takes the arguments from it before it sends anything: answers don't mix."""
    send_while_yielding(rig.url)
    assert _ids(rig.url, "celery") == 2507


def send_while_yielding(url: str) -> None:
    """2,500 calls by `delay_many`, from a generator that sends seven by itself."""
    app = Celeriac("stream", broker=url, set_as_current=False)
    task = app.task(name="t")(lambda n: None)

    def calls() -> Iterator[tuple[int]]:
        for n in range(2500):
            if n % 400 == 0:
                task.delay(-n)
            yield (n,)

    results = task.delay_many(calls())
    assert len({result.id for result in results}) == 2500
    app.close()
