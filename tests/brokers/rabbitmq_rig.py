"""RabbitMQ for the contract suites."""

from __future__ import annotations

import json
from typing import Any

import msgspec

from celeriac.brokers.rabbitmq import RabbitmqBroker, RabbitmqConsumer, RabbitmqSender
from celeriac.model.message import Envelope, Store
from celeriac.model.queues import QueueDefaults, Queues
from celeriac.ports import Broker, Consumer
from celeriac.testing.rigs import BrokerRig, envelope
from tests.rabbit import RabbitServer


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
        broker = RabbitmqBroker(self.url, self.options)
        if self.kind == "quorum":  # before 4.3 it has none, or two
            broker.capabilities = msgspec.structs.replace(broker.capabilities, priority=False)
        return broker

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
        connection = consumer._link.current
        assert connection is not None
        connection.fail(connection.error())
