"""Where a task's message goes: its route, and the exchange and routing key that the wire wants.

Rules: contract of protocol 2. A queue on a direct exchange is sent to through the default exchange (`""`, routing key =
name of the queue) unless exchange *and* routing key are given; other exchanges get their own name and routing key.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from celeriac.errors import ImproperlyConfigured
from celeriac.model.queues import Broadcast, Exchange, Queue, QueueDefaults, Queues

__all__ = [
    "Broadcast",
    "Destination",
    "Exchange",
    "Queue",
    "QueueDefaults",
    "Queues",
    "RouteMap",
    "Router",
    "destination",
]


class Destination(NamedTuple):
    """Where a message is sent."""

    queues: tuple[str, ...]
    """The known queues that it reaches; empty when the exchange is none of ours: the broker's own bindings decide."""
    exchange: str
    routing_key: str
    queue: Queue | None = None
    """The queue that was named, to be declared first."""
    delivery_mode: int | str | None = None
    """What the exchange says of it."""


class Router:
    """Finds the queue of a task: call options, then routes in order, then the default queue."""

    def __init__(self, routes: Any, queues: Queues, resolve: Callable[[str], Any] | None = None) -> None:
        """`routes`: what `task_routes` holds. `resolve` finds what a text such as `module:function` names. Raises
        ImproperlyConfigured for what is no route."""
        self.queues = queues
        self.routes = tuple(_routers(routes, resolve))
        self.is_static = all(isinstance(route, RouteMap) for route in self.routes)
        """The route depends on the task's name alone, so it may be remembered."""

    def route(
        self,
        options: Mapping[str, Any],
        name: str,
        args: Any = (),
        kwargs: Mapping[str, Any] | None = None,
        task: Any = None,
    ) -> dict[str, Any]:
        """The options with those of the route filled in, `queue` as a Queue. What the caller gave wins; None counts as
        not given. Raises QueueNotFound."""
        given = {key: value for key, value in options.items() if value is not None}
        found = self._look_up(name, args, kwargs or {}, given, task)
        merged = {**found, **given} if found else given
        queue = merged.get("queue")
        if queue is None:
            if not ("exchange" in merged or "routing_key" in merged):
                merged["queue"] = self.queues[self.queues.defaults.queue]
        elif isinstance(queue, str):
            merged["queue"] = self.queues[queue]
        elif not isinstance(queue, Queue) or queue.exchange is None or queue.routing_key is None:
            merged["queue"] = self.queues.add(queue)
        return merged

    def destination(
        self,
        options: Mapping[str, Any],
        name: str,
        args: Any = (),
        kwargs: Mapping[str, Any] | None = None,
        task: Any = None,
    ) -> tuple[Destination, dict[str, Any]]:
        """Where the message goes, and the options that are left (without queue, exchange, exchange_type and
        routing_key). Raises QueueNotFound."""
        merged = self.route(options, name, args, kwargs, task)
        target = destination(
            merged.pop("queue", None),
            merged.pop("exchange", None),
            merged.pop("routing_key", None),
            merged.pop("exchange_type", None),
            self.queues,
        )
        return target, merged

    def _look_up(self, name: str, args: Any, kwargs: Any, options: Mapping[str, Any], task: Any) -> dict[str, Any]:
        for router in self.routes:
            if isinstance(router, RouteMap):
                found = router(name)
            else:
                found = router(name, args, kwargs, dict(options), task=task)
            if found is not None:
                route = {"queue": found} if isinstance(found, str | Queue) or hasattr(found, "routing_key") else found
                return {key: value for key, value in route.items() if value is not None}
        return {}


class RouteMap:
    """Names, globs (with `*`) and regular expressions, each with its route. The exact name wins, then the first
    pattern that fits. A regular expression must fit from the beginning of the name."""

    def __init__(self, rules: Mapping[Any, Any] | Iterable[tuple[Any, Any]]) -> None:
        self._exact: dict[str, Any] = {}
        self._patterns: list[tuple[re.Pattern[str], Any]] = []
        for pattern, route in rules.items() if isinstance(rules, Mapping) else rules:
            if isinstance(pattern, re.Pattern):
                self._patterns.append((pattern, route))
            elif not isinstance(pattern, str):
                raise ImproperlyConfigured(f"{pattern!r} in task_routes is neither a name nor a regular expression")
            elif "*" in pattern:
                self._patterns.append((re.compile(fnmatch.translate(pattern)), route))
            else:
                self._exact[pattern] = route

    def __call__(self, name: str) -> Any:
        """The route, or None."""
        if name in self._exact:
            return self._exact[name]
        for pattern, route in self._patterns:
            if pattern.match(name):
                return route
        return None


def destination(
    queue: Queue | None, exchange: Any, routing_key: str | None, exchange_type: str | None, queues: Queues
) -> Destination:
    """The exchange and routing key of a message by the rules of protocol 2, and the queues that it reaches."""
    if exchange is not None and not isinstance(exchange, str):
        exchange_type = exchange_type or exchange.type
        exchange = exchange.name
    if queue is None:
        if exchange and (routing_key or exchange_type not in (None, "direct")):
            key = routing_key or queues.defaults.routing_key or queues.defaults.queue
            return Destination(queues.bound(exchange, key), exchange, key)
        # An exchange or a routing key alone says nothing on a direct exchange.
        queue = queues[queues.defaults.queue]
    own = queue.exchange
    mode = own.delivery_mode if own is not None else None
    kind = exchange_type or (own.type if own is not None else "direct")
    if kind == "direct" and not (exchange and routing_key):
        return Destination((queue.name,), "", queue.name, queue, mode)
    place = exchange or (own.name if own is not None else "")
    key = routing_key or queue.routing_key or ""
    return Destination(queues.bound(place, key) or (queue.name,), place, key, queue, mode)


def _routers(routes: Any, resolve: Callable[[str], Any] | None) -> Iterator[Any]:
    if routes is None:
        return
    if isinstance(routes, list | tuple):
        pairs: list[tuple[Any, Any]] = []
        for route in routes:
            if _is_pair(route):
                pairs.append(route)
                continue
            if pairs:
                yield RouteMap(pairs)
                pairs = []
            yield _router(route, resolve)
        if pairs:
            yield RouteMap(pairs)
    elif routes:
        yield _router(routes, resolve)


def _router(route: Any, resolve: Callable[[str], Any] | None) -> Any:
    if isinstance(route, str):
        if resolve is None:
            raise ImproperlyConfigured(f"the router {route!r} is the name of one, and nothing here can look it up")
        route = resolve(route)
    if isinstance(route, Mapping):
        return RouteMap(route)
    if isinstance(route, list | tuple):
        return RouteMap(route)
    if isinstance(route, type) and hasattr(route, "route_for_task"):
        route = route()
    if hasattr(route, "route_for_task"):
        return _ask(route)
    if callable(route):
        return route
    raise ImproperlyConfigured(f"{route!r} in task_routes is no route: use a dict, a function, or route_for_task()")


def _ask(router: Any) -> Callable[..., Any]:
    def ask(name: str, args: Any, kwargs: Any, options: Any, task: Any = None) -> Any:
        return router.route_for_task(name, args, kwargs)

    return ask


def _is_pair(value: Any) -> bool:
    return isinstance(value, tuple) and len(value) == 2 and isinstance(value[0], str | re.Pattern)
