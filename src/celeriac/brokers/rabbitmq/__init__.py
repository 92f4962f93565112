"""RabbitMQ as a broker, with Celery's exchanges, queues and messages."""

from celeriac.brokers.rabbitmq.sender import RabbitmqSender

__all__ = ["RabbitmqSender"]
