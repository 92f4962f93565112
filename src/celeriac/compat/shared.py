"""`@shared_task`: a task of every app, those that are made later included; for packages that know no app."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Concatenate, Literal, ParamSpec, TypeVar, cast, overload

from celeriac.app import app as _app  # noqa: F401 - it says how the default app is made
from celeriac.app import registry
from celeriac.app.task import Task
from celeriac.compat.proxy import Proxy

P = ParamSpec("P")
R = TypeVar("R")


@overload
def shared_task(fun: Callable[P, R], /) -> Task[P, R]: ...


@overload
def shared_task(*, bind: Literal[True], **opts: Any) -> Callable[[Callable[Concatenate[Any, P], R]], Task[P, R]]: ...


@overload
def shared_task(*, bind: Literal[False] = False, **opts: Any) -> Callable[[Callable[P, R]], Task[P, R]]: ...


def shared_task(*args: Any, **opts: Any) -> Any:
    """Make a task of a function for whichever app is current when it is used. Options are those of `Celeriac.task`.
    Raises TypeError for a function that is a task already."""
    if len(args) > 1:
        raise TypeError(f"@shared_task takes one function, not {len(args)} arguments")
    if not args:
        return lambda fun: _share(fun, opts)
    if not callable(args[0]):
        raise TypeError("@shared_task takes a function, and options by name: @shared_task(name='...')")
    return _share(args[0], opts)


def _share(fun: Callable[..., Any], opts: dict[str, Any]) -> Any:
    if isinstance(fun, Task) or type(fun) is Proxy:
        raise TypeError(f"{fun!r} is a task already: decorate the function once")
    given = {key: value for key, value in opts.items() if key not in ("lazy", "shared")}

    def take_in(app: Any) -> Any:
        return app.task_from_fun(fun, warn=False, **given)

    registry.on_finalize(take_in)

    def look() -> Any:
        app = registry.current()
        name = given.get("name") or app.gen_task_name(fun.__name__, fun.__module__)
        task = app.known_task(name)
        return take_in(app) if task is None else task

    return cast(Any, Proxy(look))
