"""RabbitMQ for the contract suites."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import msgspec

from celeriac.brokers.rabbitmq import RabbitmqBroker, RabbitmqConsumer, RabbitmqSender
from celeriac.model.message import Counts, Envelope, Store
from celeriac.model.queues import QueueDefaults, Queues
from celeriac.ports import Broker, Consumer
from celeriac.testing.rigs import BrokerRig, envelope
from tests.rabbit import RabbitServer


class _Quorum(RabbitmqBroker):
    """Quorum queues have no priorities before 4.3, or two of them, and their counts lag."""

    capabilities = msgspec.structs.replace(RabbitmqBroker.capabilities, priority=False)

    async def count(self, queue: str) -> Counts:
        await asyncio.sleep(0.2)
        return await super().count(queue)


class RabbitmqRig(BrokerRig):
    """A virtual host of its own. `kind`: type of its queues."""

    lower_first = False

    def __init__(self, server: RabbitServer, kind: str = "classic", **options: Any) -> None:
        self.server = server
        self.kind = kind
        self.keeps_order = kind == "classic"
        self.url = server.vhost()
        defaults = QueueDefaults(missing_queue_type=kind, max_priority=9 if kind == "classic" else None)
        self.options: dict[str, Any] = {"queues": Queues(None, defaults), **options}

    def broker(self) -> RabbitmqBroker:
        return RabbitmqBroker(self.url, self.options) if self.kind == "classic" else _Quorum(self.url, self.options)

    def sender(self) -> RabbitmqSender:
        return RabbitmqSender(self.url, self.options)

    def kept(self, blob: bytes) -> bytes:
        try:
            outer = json.loads(blob)
            properties = outer["properties"]
        except (ValueError, TypeError, KeyError):
            return blob
        for name in ("delivery_tag", "priority", "delivery_info", "reply_to"):  # the broker's, or not in every message
            properties.pop(name, None)
        return json.dumps(outer, sort_keys=True).encode()

    async def poison(self, broker: Broker) -> tuple[Store | None, tuple[Envelope, ...]]:
        return None, (envelope("x", "third"), envelope("y", "q" * 300))

    async def cut(self, consumer: Consumer) -> None:
        assert isinstance(consumer, RabbitmqConsumer)
        connection = consumer.lease.link.current
        assert connection is not None
        connection.fail(connection.error())
