"""What a worker has claimed, by receipt. Outlives a connection: what the worker still runs is recognised when
the server gives it out again."""

from __future__ import annotations

from itertools import count

from celeriac.brokers.rabbitmq.messages import Message
from celeriac.model.message import Receipt


class Claims:
    """Of one epoch."""

    def __init__(self, epoch: str) -> None:
        self.epoch = epoch
        self.open: dict[str, Message] = {}
        """Tag of the receipt -> the message as it was delivered last."""
        self._numbers = count(1)
        self._generations = count(1)

    def begin(self) -> int:
        """The number of another connection: a delivery tag means something on that one only."""
        return next(self._generations)

    def claim(self, message: Message) -> Receipt:
        """A new receipt."""
        tag = str(next(self._numbers))
        self.open[tag] = message
        return Receipt(message.queue, tag)
