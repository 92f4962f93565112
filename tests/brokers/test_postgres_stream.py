"""Envelopes that are made while the database works on those before."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator

import pytest

from celeriac.brokers.postgres import PostgresSender
from celeriac.errors import EncodeError, OperationalError
from celeriac.model.message import Envelope
from celeriac.ports import Place
from celeriac.testing.rigs import envelope, name_of
from tests.brokers.postgres_rig import PostgresRig
from tests.brokers.test_redis_stream import send_while_yielding
from tests.proxy import FreezeProxy
from tests.servers import PgBouncer, PostgresServer


@pytest.fixture
def rig(postgres_server: PostgresServer) -> PostgresRig:
    return PostgresRig(postgres_server.url)


def _waiting(rig: PostgresRig) -> list[str]:
    async def look() -> list[str]:
        async with rig.connected() as broker:
            return [name_of(item.blob) for item in (await broker.browse(Place.READY, "q", 10_000)).items]

    return asyncio.run(look())


@pytest.mark.parametrize("count", [0, 1, 250, 251, 1000])
def test_all_arrive_in_order(rig: PostgresRig, count: int) -> None:
    """Also over several statements."""
    sender = rig.sender()
    sender.stream((envelope(f"m{n}") for n in range(count)), 5.0)
    sender.close()
    assert _waiting(rig) == [f"m{n}" for n in range(count)]


def test_through_a_pooler(rig: PostgresRig, postgres_server: PostgresServer) -> None:
    """Which may not pass on what is sent before the answer to what was sent."""
    with PgBouncer(postgres_server) as pool:
        sender = PostgresSender(pool.url(rig.url), {})
        sender.stream((envelope(f"m{n}") for n in range(600)), 5.0)
        sender.close()
    assert _waiting(rig) == [f"m{n}" for n in range(600)]


def test_an_error_in_the_making_undoes_all(rig: PostgresRig) -> None:
    """What was sent before does not stand; the next publish is answered by its own answer."""
    sender = rig.sender()

    def making() -> Iterator[Envelope]:
        yield from (envelope(f"m{n}") for n in range(600))
        raise EncodeError("this one can't be written")

    with pytest.raises(EncodeError):
        sender.stream(making(), 5.0)
    sender.publish([envelope("after")], 5.0)
    assert _waiting(rig) == ["after"]
    sender.close()


def test_what_no_database_can_keep(rig: PostgresRig) -> None:
    """A clear error, and nothing is there."""
    sender = rig.sender()
    with pytest.raises(EncodeError, match="can't be stored"):
        sender.stream(iter([*(envelope(f"m{n}") for n in range(300)), Envelope("i", "p", "q\0", b"{}")]), 5.0)
    assert _waiting(rig) == []
    sender.close()


def test_a_server_that_stops_answering(rig: PostgresRig, postgres_server: PostgresServer) -> None:
    """The deadline holds, also while there is more to send."""
    with FreezeProxy(postgres_server.port) as proxy:
        sender = PostgresSender(proxy.instead_of(rig.url), {})
        sender.publish([envelope("first")], 5.0)
        proxy.freeze()
        began = time.monotonic()
        with pytest.raises(OperationalError, match="did not answer"):
            sender.stream((Envelope("i", "p", "q", b"x" * 20_000) for _ in range(1000)), 0.7)
        assert time.monotonic() - began < 3
        sender.close()
    assert _waiting(rig) == ["first"]


def test_what_yields_the_calls_may_send_too(rig: PostgresRig) -> None:
    """Each call has its message."""
    send_while_yielding(rig.url)

    async def count() -> int:
        async with rig.connected() as broker:
            return (await broker.count("celery")).ready

    assert asyncio.run(count()) == 2507
