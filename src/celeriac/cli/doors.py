"""How commands reach a broker: one connection for one command, closed at its end."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, TypeVar

from celeriac.ports import Broker

if TYPE_CHECKING:
    from celeriac.app.app import Celeriac

T = TypeVar("T")


def with_broker(app: Celeriac, act: Callable[[Broker], Awaitable[T]]) -> T:
    """Run `act` with the app's broker. Raises ImproperlyConfigured for a URL that can't be used and OperationalError
    when the broker can't be reached."""

    async def whole() -> T:
        broker = app.broker()
        try:
            return await act(broker)
        finally:
            await broker.close()

    return asyncio.run(whole())


def consumed_queues(app: Celeriac) -> list[str]:
    """The names of the queues that a worker of this app consumes when it is not told otherwise."""
    return list(app.queue_names())


async def queue_names(app: Celeriac, broker: Broker) -> list[str]:
    """Every queue that the broker knows of, and those of the app; not the mailboxes of remote control and events."""
    ours = (f"{app.conf.event_queue_prefix}.", f".{app.conf.control_exchange}.pidbox")
    known = {name for name in await broker.queues() if not name.startswith(ours[0]) and not name.endswith(ours[1])}
    return sorted({*known, *consumed_queues(app)})
