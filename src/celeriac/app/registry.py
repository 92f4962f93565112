"""Which tasks an app has, and which apps a process has. The only globals of the package, behind functions.

Nothing here knows the app class: `celeriac.app.app` plants the maker of the default app (see `set_maker`).
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Iterator
from typing import Any

from celeriac.errors import InvalidTaskError, NotRegistered


class TaskRegistry(dict[str, Any]):
    """Task name -> task. A missing name raises NotRegistered."""

    NotRegistered = NotRegistered

    def __missing__(self, key: str) -> Any:
        raise NotRegistered(key)

    def register(self, task: Any) -> None:
        """Register a task instance, or an instance of a task class, by its name. The last one stays."""
        made = task() if isinstance(task, type) else task
        if not made.name:
            raise InvalidTaskError(f"task class {type(made).__name__!r} must have a name to be registered")
        self[made.name] = made

    def unregister(self, name: Any) -> None:
        """Remove a task by name or by the task itself. Raises NotRegistered."""
        name = getattr(name, "name", name)
        try:
            del self[name]
        except KeyError:
            raise NotRegistered(name) from None

    def regular(self) -> Iterator[tuple[str, Any]]:
        """All tasks with their names."""
        return iter(self.items())


class _PerThread(threading.local):
    app: Any = None


_lock = threading.RLock()
_thread = _PerThread()
_apps: weakref.WeakSet[Any] = weakref.WeakSet()
_default: Any = None
_made: Any = None
"""The app that was made because one was asked for; any other goes before it."""
_latest: Any = None
_earlier: list[weakref.ref[Any]] = []
"""Apps that were current before the latest one, to fall back on when that is closed."""
_make_default: Callable[[], Any] | None = None
_finalizers: dict[Callable[[Any], Any], None] = {}


def set_maker(make: Callable[[], Any]) -> None:
    """Say how the default app is made when a current app is asked for before there is one."""
    global _make_default
    _make_default = make


def add(app: Any) -> None:
    """Remember an app (weakly), so that shared tasks reach it."""
    with _lock:
        _apps.add(app)


def discard(app: Any) -> None:
    """Forget an app that was closed."""
    global _default, _latest, _made
    with _lock:
        _apps.discard(app)
        if _made is app:
            _made = None
        if _default is app:
            _default = None
        _earlier[:] = [ref for ref in _earlier if ref() is not None and ref() is not app]
        if _latest is app:
            _latest = _earlier.pop()() if _earlier else None
    if _thread.app is app:
        _thread.app = None


def after_fork() -> None:
    """This is a forked child: another thread may have held the lock."""
    global _lock
    _lock = threading.RLock()


def apps() -> list[Any]:
    """The apps that live."""
    with _lock:
        return list(_apps)


def set_current(app: Any) -> None:
    """Make an app the current one of this thread, and of threads that never set one."""
    global _latest
    _thread.app = app
    with _lock:
        if _latest is not app:
            _earlier[:] = [ref for ref in _earlier if ref() is not None and ref() is not app]
            if _latest is not None:
                _earlier.append(weakref.ref(_latest))
            _latest = app


def set_default(app: Any) -> None:
    """Make an app the current one of every thread that has none of its own."""
    global _default
    _default = app


def current_or_none() -> Any:
    """The current app: this thread's, else the default one, else the last that was made current in any thread."""
    return _thread.app or _default or _latest or _made


def current() -> Any:
    """The current app. When there is none, one is made from the environment, and stands back when there is another."""
    global _made
    app = current_or_none()
    if app is None:
        with _lock:
            app = current_or_none()
            if app is None:
                if _make_default is None:
                    raise RuntimeError("there is no current app: make one with celeriac.Celeriac() first")
                app = _made = _make_default()
    return app


def app_or_default(app: Any = None) -> Any:
    """The app given, or the current one."""
    return current() if app is None else app


def on_finalize(make: Callable[[Any], Any]) -> None:
    """Call `make(app)` for each app that is finalized from now on, and at once for those that are: how a shared task
    comes into every app."""
    with _lock:
        _finalizers[make] = None
        done = [app for app in _apps if app.finalized]
    for app in done:
        make(app)


def finalizers() -> list[Callable[[Any], Any]]:
    """The functions of `on_finalize`, in order."""
    with _lock:
        return list(_finalizers)
