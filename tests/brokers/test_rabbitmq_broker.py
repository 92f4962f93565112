"""RabbitMQ keeps the contract of brokers."""

from __future__ import annotations

import pytest

from celeriac.testing.contract_broker import BrokerContract, BusContract, SenderContract
from celeriac.testing.contract_consumer import ConsumerContract
from tests.brokers.rabbitmq_rig import RabbitmqRig
from tests.rabbit import RabbitServer


class _OnServer:
    @pytest.fixture(params=["classic", pytest.param("quorum", marks=pytest.mark.full)])
    def rig(self, rabbit: RabbitServer, request: pytest.FixtureRequest) -> RabbitmqRig:
        return RabbitmqRig(rabbit, request.param)


class TestRabbitmqBroker(_OnServer, BrokerContract):
    """Publishing and operating."""


class TestRabbitmqConsumer(_OnServer, ConsumerContract):
    """Claiming and settling."""


class TestRabbitmqSender(_OnServer, SenderContract):
    """Publishing without a loop."""


class TestRabbitmqBus(_OnServer, BusContract):
    """Fanout."""
