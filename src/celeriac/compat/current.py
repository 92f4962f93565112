"""`current_app` and `current_task`: what they stand for is looked up at each use."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from celeriac.app import registry
from celeriac.app.app import Celeriac
from celeriac.compat.proxy import Proxy

__all__ = ["app_or_default", "current_app", "current_task", "get_current_app", "get_current_task", "set_default_app"]


def get_current_app() -> Celeriac:
    """The current app of this thread; see `Celeriac.set_current`."""
    app: Celeriac = registry.current()
    return app


def get_current_task() -> Any:
    """The task that runs here now, or None."""
    app = registry.current_or_none()
    return None if app is None else app.current_task


def set_default_app(app: Celeriac) -> None:
    """Make an app the current one of every thread that has none of its own."""
    registry.set_default(app)


def app_or_default(app: Any = None) -> Any:
    """The app given, or the current one."""
    return registry.app_or_default(app)


if TYPE_CHECKING:
    current_app: Celeriac
    current_task: Any
else:
    current_app = Proxy(get_current_app)
    current_task = Proxy(get_current_task)
