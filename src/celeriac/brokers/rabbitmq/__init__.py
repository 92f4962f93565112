"""RabbitMQ as a broker, with Celery's exchanges, queues and messages."""

from celeriac.brokers.rabbitmq.broker import RabbitmqBroker
from celeriac.brokers.rabbitmq.consumer import RabbitmqConsumer
from celeriac.brokers.rabbitmq.sender import RabbitmqSender

__all__ = ["RabbitmqBroker", "RabbitmqConsumer", "RabbitmqSender"]
