"""Redis and Valkey as a result backend, in Celery's form: SET with an expiry, and PUBLISH of the same bytes on the
channel of the same name. A reader subscribes first and reads then, so that it misses nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from celeriac.backends.redis.backend import RedisBackend as RedisBackend
    from celeriac.backends.redis.reader import RedisReader as RedisReader

__all__ = ["RedisBackend", "RedisReader"]


def __getattr__(name: str) -> Any:
    if name == "RedisBackend":
        from celeriac.backends.redis.backend import RedisBackend

        return RedisBackend
    if name == "RedisReader":  # a caller without a loop needs no asyncio
        from celeriac.backends.redis.reader import RedisReader

        return RedisReader
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
