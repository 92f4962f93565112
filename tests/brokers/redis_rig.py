"""Redis and Valkey for the contract suites: plain, and with key prefixes and results in another database."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from celeriac.backends.redis import RedisBackend
from celeriac.brokers.redis import RedisBroker, RedisSender
from celeriac.model.message import Envelope, Store
from celeriac.ports import Broker, Consumer
from celeriac.testing.rigs import LONG, BrokerRig, envelope
from tests.servers import command


class RedisRig(BrokerRig):
    """One server. `apart`: with a prefix, results with another prefix in database 1."""

    def __init__(self, url: str, *, apart: bool = False) -> None:
        self.url = url
        self.apart = apart
        self.options: dict[str, Any] = {"global_keyprefix": "app."} if apart else {}
        command(url, "FLUSHALL")

    def broker(self) -> RedisBroker:
        return RedisBroker(self.url, self.options)

    def sender(self) -> RedisSender:
        return RedisSender(self.url, self.options)

    def backend(self) -> RedisBackend:
        if self.apart:
            return RedisBackend(self.url.rpartition("/")[0] + "/1", {"global_keyprefix": "results"})
        return RedisBackend(self.url)

    async def poison(self, broker: Broker) -> tuple[Store | None, tuple[Envelope, ...]]:
        command(self.url, "SET", f"{self.options.get('global_keyprefix', '')}poisoned", "not a list")
        return None, (envelope("x", "third"), envelope("y", "poisoned"))

    async def cut(self, consumer: Consumer) -> None:
        hot: Any = consumer
        hot._hot._transport.abort()

    @asynccontextmanager
    async def consuming(
        self, *queues: str, epoch: str | None = None, lease: float = LONG
    ) -> AsyncIterator[tuple[Broker, Consumer]]:
        async with super().consuming(*queues, epoch=epoch, lease=lease) as (broker, consumer):
            if self.apart:
                backend = self.backend()
                assert await broker.same_server(backend)
                await backend.close()
            yield broker, consumer
