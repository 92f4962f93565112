"""Redis and Valkey as a broker, on kombu's lists, with keys of our own for what is in flight, due later, parked or
dead.

Delivery is at least once, and so is publishing: a publish whose answer was lost may have been carried out, and
repeating it adds a second message (of the same task id and publish id).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from celeriac.brokers.redis.broker import RedisBroker as RedisBroker
    from celeriac.brokers.redis.sender import RedisSender as RedisSender

__all__ = ["RedisBroker", "RedisSender"]


def __getattr__(name: str) -> Any:
    if name == "RedisBroker":
        from celeriac.brokers.redis.broker import RedisBroker

        return RedisBroker
    if name == "RedisSender":  # a caller that only publishes needs no asyncio
        from celeriac.brokers.redis.sender import RedisSender

        return RedisSender
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
