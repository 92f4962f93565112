"""What stands on the server is what kombu and Flower expect there, and what celeriac's own keys are called."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from celeriac.brokers.redis.layout import Layout
from celeriac.errors import EncodeError, ImproperlyConfigured
from celeriac.model.message import Delay, Park
from celeriac.testing.rigs import claim, done, envelope, in_loop, message, settle
from tests.brokers.redis_rig import RedisRig
from tests.servers import command

SEP = "\x06\x16"


@pytest.fixture
def rig(redis_url: str) -> RedisRig:
    """Redis without a prefix."""
    return RedisRig(redis_url)


@in_loop
async def _publish(_: object, rig: RedisRig) -> None:
    async with rig.connected() as broker:
        await broker.publish([envelope("a", "celery"), envelope("b", "celery", priority=5)])


def test_published_lies_in_kombus_lists(rig: RedisRig) -> None:
    """LPUSH at the left of the list of the step; bindings as kombu writes them; nothing else but two keys of ours."""
    _publish(None, rig)
    assert sorted(command(rig.url, "KEYS", "*")) == sorted([
        b"celery", b"celery\x06\x163", b"_kombu.binding.celery", b"_kombu.binding_permanent.celery",
        b"celeriac:1:layout", b"celeriac:1:queues",
    ])  # fmt: skip
    member = f"celery{SEP}{SEP}celery".encode()
    assert command(rig.url, "SMEMBERS", "_kombu.binding.celery") == [member]
    assert command(rig.url, "SMEMBERS", "_kombu.binding_permanent.celery") == [member]


def test_sender_writes_the_same(rig: RedisRig) -> None:
    """The synchronous side leaves the same keys, and makes a queue known once for each connection."""
    sender = rig.sender()
    sender.publish([envelope("a", "celery")], 5)
    command(rig.url, "DEL", "_kombu.binding.celery")
    sender.publish([envelope("b", "celery", priority=5)], 5)
    assert command(rig.url, "LLEN", f"celery{SEP}3") == 1
    assert command(rig.url, "EXISTS", "_kombu.binding.celery") == 0
    sender.close()
    sender.publish([envelope("c", "celery"), envelope("d", "celery")], 5)
    assert command(rig.url, "EXISTS", "_kombu.binding.celery") == 1
    assert command(rig.url, "LLEN", "celery") == 3
    sender.close()


def test_bindings_of_configured_queues(rig: RedisRig) -> None:
    """A queue with an exchange of another name, or several bindings, is bound as it was configured."""
    rig.options["queue_bindings"] = {"q": [("media", "video", ""), ("topics", "a.#", "^a\\..*?$")]}
    sender = rig.sender()
    sender.publish([envelope("a")], 5)
    sender.close()
    assert command(rig.url, "SMEMBERS", "_kombu.binding.media") == [f"video{SEP}{SEP}q".encode()]
    assert command(rig.url, "SMEMBERS", "_kombu.binding.topics") == [f"a.#{SEP}^a\\..*?${SEP}q".encode()]
    assert command(rig.url, "EXISTS", "_kombu.binding.q") == 0


def test_our_own_keys(rig: RedisRig) -> None:
    """Every key of ours begins with celeriac:1:, those of a queue with its name in braces."""
    epoch = "w@h:1"

    async def story() -> None:
        async with rig.consuming(epoch=epoch) as (broker, consumer):
            await broker.publish([envelope(str(n)) for n in range(4)])
            taken = await claim(consumer, 4)
            await settle(consumer, done(taken[0].receipt, Delay(4e9)), done(taken[1].receipt, Park("10/m a")))
            await consumer.renew([taken[2].receipt])
            await broker.cancel(["x"], 10)

    asyncio.run(story())
    ours = sorted(key.decode() for key in command(rig.url, "KEYS", "celeriac*"))
    assert ours == sorted([
        "celeriac:1:boot", "celeriac:1:cancelled", "celeriac:1:cancelled:version", "celeriac:1:layout",
        "celeriac:1:queues", "celeriac:1:running:w@h:1", "celeriac:1:workers", "celeriac:1:{q}:due",
        "celeriac:1:{q}:inflight:w@h:1", "celeriac:1:{q}:parked:10/m a", "celeriac:1:{q}:parkings",
        "celeriac:1:{q}:schedule", "celeriac:1:{q}:scheduled",
    ])  # fmt: skip


def test_a_prefix_stands_before_every_key(redis_url: str) -> None:
    """With a global prefix every key begins with it, kombu's and ours."""
    rig = RedisRig(redis_url, apart=True)

    async def story() -> None:
        async with rig.consuming() as (broker, consumer):
            await broker.publish([envelope("a"), envelope("b", not_before=4e9), envelope("c")])
            taken = await claim(consumer, 2)
            await settle(consumer, done(taken[0].receipt, Park("k")))
            await consumer.renew([taken[1].receipt])
            await consumer.recover()
            await broker.cancel(["x"], 10)
            bus = rig.bus(broker)
            assert bus is not None
            await bus.reply("r.reply.celery.pidbox", b"x")

    asyncio.run(story())
    keys = command(rig.url, "KEYS", "*")
    assert len(keys) > 10
    assert [key for key in keys if not key.startswith(b"app.")] == []


@pytest.mark.parametrize(
    ("options", "channel", "pattern"),
    [
        ({}, "/2.celeryev/task.sent", "/2.celeryev/task.*"),
        ({"fanout_prefix": False}, "celeryev/task.sent", "celeryev/task.*"),
        ({"fanout_prefix": "false"}, "celeryev/task.sent", "celeryev/task.*"),
        ({"fanout_prefix": "mine-"}, "mine-celeryev/task.sent", "mine-celeryev/task.*"),
        ({"fanout_prefix": "/{db}:"}, "/2:celeryev/task.sent", "/2:celeryev/task.*"),
        ({"fanout_patterns": False}, "/2.celeryev", "/2.celeryev"),
        ({"global_keyprefix": "p_"}, "p_/2.celeryev/task.sent", "p_/2.celeryev/task.*"),
    ],
)
def test_fanout_channels(options: dict[str, Any], channel: str, pattern: str) -> None:
    """Channels are called as kombu calls them."""
    layout = Layout(options, 2)
    assert layout.channel("celeryev", "task.sent") == channel
    assert layout.channel_pattern("celeryev", "task.#") == pattern


def test_a_fanout_exchange_is_meant_literally() -> None:
    """Signs of patterns in the name of an exchange are no patterns."""
    assert Layout({}).channel_pattern("a*[b]?", "") == "/0.a\\*\\[b\\]\\?"
    assert Layout({}).channel("celery.pidbox", "") == "/0.celery.pidbox"


def test_a_reply_queue_expires(rig: RedisRig) -> None:
    """A reply lies in the list of its queue and is gone after its time."""

    async def story() -> None:
        broker = rig.broker()
        await broker.reply("01f1.reply.celery.pidbox", message("answer"))
        await broker.close()

    asyncio.run(story())
    assert command(rig.url, "LRANGE", "01f1.reply.celery.pidbox", 0, -1) == [message("answer")]
    assert 8000 < command(rig.url, "PTTL", "01f1.reply.celery.pidbox") <= 10000


def test_queues_of_peers_are_known(rig: RedisRig) -> None:
    """Queues that only Celery declared are listed; those of events and remote control are not."""
    command(rig.url, "SADD", "_kombu.binding.celery", f"celery{SEP}{SEP}celery")
    command(rig.url, "SADD", "_kombu.binding.x", f"k{SEP}{SEP}one", f"{SEP}^a${SEP}two")
    command(rig.url, "SADD", "_kombu.binding.celery.pidbox", f"{SEP}{SEP}w1@h.celery.pidbox")
    command(rig.url, "SADD", "_kombu.binding.reply.celery.pidbox", f"i{SEP}{SEP}i.reply.celery.pidbox")
    command(rig.url, "SADD", "_kombu.binding.celeryev", f"worker.#{SEP}x{SEP}celeryev.1")

    async def story() -> list[str]:
        broker = rig.broker()
        await broker.publish([envelope("a", "ours")])
        found = list(await broker.queues())
        await broker.close()
        return found

    assert asyncio.run(story()) == ["celery", "one", "ours", "two"]


@pytest.mark.parametrize(
    "options",
    [
        {"priority_steps": "often"}, {"priority_steps": []}, {"priority_steps": [-1, 3]}, {"priority_steps": 5},
        {"queue_order_strategy": "random"}, {"visibility_timeout": "long"},
    ],
)  # fmt: skip
def test_options_that_make_no_sense(options: dict[str, Any]) -> None:
    """A bad option is refused with its name."""
    with pytest.raises(ImproperlyConfigured, match=next(iter(options))):
        Layout(options)


def test_many_messages_in_one_publish(rig: RedisRig) -> None:
    """Thousands of messages, small and large, keep their order over commands and writes, on both sides."""
    small = [envelope(blob=b"%d" % n) for n in range(3000)]
    large = [envelope(blob=b"%d" % n + b"x" * 300_000) for n in range(3000, 3030)]

    async def story() -> None:
        broker = rig.broker()
        await broker.publish(small + large)
        await broker.close()

    asyncio.run(story())
    sender = rig.sender()
    sender.publish(small + large, 30)
    sender.close()
    found = [int(blob.rstrip(b"x")) for blob in reversed(command(rig.url, "LRANGE", "q", 0, -1, timeout=30))]
    assert found == [*range(3030), *range(3030)]


def test_a_queue_name_that_is_no_text(rig: RedisRig) -> None:
    """A queue name that UTF-8 can't hold is refused before anything is sent."""

    async def story() -> None:
        broker = rig.broker()
        with pytest.raises(EncodeError):
            await broker.publish([envelope("a", "\ud800")])
        await broker.close()

    asyncio.run(story())
    sender = rig.sender()
    with pytest.raises(EncodeError):
        sender.publish([envelope("a", "\ud800")], 5)
    sender.publish([envelope("a")], 5)
    sender.close()
