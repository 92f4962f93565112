"""`with app.transaction(connection):` what is sent inside exists if and only if that transaction commits."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

_current: ContextVar[tuple[Any, Any] | None] = ContextVar("celeriac_transaction", default=None)


@contextmanager
def transaction(app: Any, connection: Any) -> Iterator[None]:
    """See `Celeriac.transaction`."""
    token = _current.set((app, app.wiring.within(connection)))
    try:
        yield
    finally:
        _current.reset(token)


def outlet(app: Any) -> Any:
    """Where an app's messages go instead of its broker, here; None: to the broker."""
    found = _current.get()
    return found[1] if found is not None and found[0] is app else None
