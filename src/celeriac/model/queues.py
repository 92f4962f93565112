"""Queues and exchanges, as settings name them and as messages reach them.

Our own are light and have kombu's attributes; objects of kombu are read by these, so a configuration that imports kombu
loads unchanged.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from copy import copy
from typing import Any, NamedTuple

from celeriac.errors import ImproperlyConfigured, QueueNotFound

DIRECT = "C.dq2"
"""Celery's exchange of the queues that belong to one worker each."""


def worker_direct(hostname: str) -> Queue:
    """The queue of one worker alone. `hostname` is its node name, and the routing key."""
    return Queue(_direct(hostname), Exchange(DIRECT), hostname)


def _direct(hostname: str) -> str:
    return f"{hostname}.dq2"


class Exchange:
    """An exchange: where messages are sent to, and by which rule they reach queues. Compares by value."""

    __slots__ = (
        "arguments", "auto_delete", "delivery_mode", "durable", "name", "no_declare", "passive", "type",
    )  # fmt: skip

    def __init__(
        self,
        name: str = "",
        type: str = "direct",
        *,
        durable: bool = True,
        auto_delete: bool = False,
        delivery_mode: int | str | None = None,
        arguments: Mapping[str, Any] | None = None,
        passive: bool = False,
        no_declare: bool = False,
    ) -> None:
        self.name = name
        self.type = type or "direct"
        self.durable = durable
        self.auto_delete = auto_delete
        self.delivery_mode = delivery_mode
        self.arguments = arguments
        self.passive = passive
        self.no_declare = no_declare

    @classmethod
    def of(cls, value: Any) -> Exchange:
        """An exchange of a name, an Exchange, or an object with kombu's attributes."""
        if isinstance(value, Exchange):
            return value
        if isinstance(value, str):
            return cls(value)
        return cls(
            value.name,
            getattr(value, "type", "direct"),
            **{name: getattr(value, name) for name in _EXCHANGE_OPTIONS if hasattr(value, name)},
        )

    def as_dict(self) -> dict[str, Any]:
        """As remote control's `active_queues` shows it."""
        return {name: getattr(self, name) for name in ("name", "type", *_EXCHANGE_OPTIONS)}

    def __eq__(self, other: object) -> bool:
        return self.as_dict() == other.as_dict() if isinstance(other, Exchange) else NotImplemented

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"<Exchange {self.name}({self.type})>"


_EXCHANGE_OPTIONS = ("arguments", "durable", "passive", "auto_delete", "delivery_mode", "no_declare")


class Queue:
    """A queue: its name, and by which exchange and routing key messages reach it. Compares by value.

    An exchange or routing key that is not given is filled in from the settings when the queue is taken in by
    `Queues`. `expires` and `message_ttl` are seconds.
    """

    __slots__ = (
        "alias", "auto_delete", "binding_arguments", "bindings", "consumer_arguments", "durable", "exchange",
        "exclusive", "expires", "max_length", "max_length_bytes", "max_priority", "message_ttl", "name", "no_ack",
        "no_declare", "queue_arguments", "routing_key",
    )  # fmt: skip

    def __init__(
        self,
        name: str = "",
        exchange: Exchange | str | None = None,
        routing_key: str | None = None,
        *,
        durable: bool = True,
        exclusive: bool = False,
        auto_delete: bool = False,
        no_ack: bool = False,
        alias: str | None = None,
        queue_arguments: Mapping[str, Any] | None = None,
        binding_arguments: Mapping[str, Any] | None = None,
        consumer_arguments: Mapping[str, Any] | None = None,
        bindings: Iterable[Any] = (),
        no_declare: bool | None = None,
        expires: float | None = None,
        message_ttl: float | None = None,
        max_length: int | None = None,
        max_length_bytes: int | None = None,
        max_priority: int | None = None,
    ) -> None:
        self.name = name
        self.exchange = None if not exchange else Exchange.of(exchange)
        self.routing_key = routing_key or None
        self.durable = durable
        self.exclusive = exclusive
        self.auto_delete = auto_delete
        self.no_ack = no_ack
        self.alias = alias
        self.queue_arguments = queue_arguments
        self.binding_arguments = binding_arguments
        self.consumer_arguments = consumer_arguments
        self.bindings = list(bindings)
        self.no_declare = no_declare
        self.expires = expires
        self.message_ttl = message_ttl
        self.max_length = max_length
        self.max_length_bytes = max_length_bytes
        self.max_priority = max_priority

    @classmethod
    def of(cls, value: Any) -> Queue:
        """A queue of a name, a Queue, or an object with kombu's attributes. Raises ImproperlyConfigured."""
        if isinstance(value, Queue):
            return value
        if isinstance(value, str):
            return cls(value)
        if not isinstance(getattr(value, "name", None), str):
            raise ImproperlyConfigured(f"{value!r} is no queue: use a Queue, or a name")
        exchange = getattr(value, "exchange", None)
        if exchange is not None and not isinstance(exchange, str) and not getattr(exchange, "name", ""):
            exchange = None
        return cls(
            value.name,
            exchange,
            getattr(value, "routing_key", None),
            **{name: getattr(value, name) for name in _QUEUE_OPTIONS if hasattr(value, name)},
        )

    @property
    def is_broadcast(self) -> bool:
        """Every worker has a queue of its own on this fanout exchange."""
        return self.exchange is not None and self.exchange.type == "fanout"

    def as_dict(self) -> dict[str, Any]:
        """As remote control's `active_queues` shows it."""
        return {
            "name": self.name,
            "exchange": self.exchange.as_dict() if self.exchange else None,
            "routing_key": self.routing_key,
            **{name: getattr(self, name) for name in _QUEUE_OPTIONS},
        }

    def __eq__(self, other: object) -> bool:
        return self.as_dict() == other.as_dict() if isinstance(other, Queue) else NotImplemented

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"<Queue {self.name} -> {self.exchange!r} -> {self.routing_key}>"


_QUEUE_OPTIONS = (
    "queue_arguments", "binding_arguments", "consumer_arguments", "durable", "exclusive", "auto_delete", "no_ack",
    "alias", "bindings", "no_declare", "expires", "message_ttl", "max_length", "max_length_bytes", "max_priority",
)  # fmt: skip


class Broadcast(Queue):
    """A queue of which every worker has one of its own: each message reaches all of them.

    `name` is the name of the fanout exchange, by which tasks are routed here too. The queue gets a random name,
    unless `queue` gives one (`unique` makes a random name of it again)."""

    __slots__ = ()

    def __init__(
        self,
        name: str | None = None,
        queue: str | None = None,
        unique: bool = False,
        auto_delete: bool = True,
        exchange: Exchange | str | None = None,
        alias: str | None = None,
        **options: Any,
    ) -> None:
        if unique or not queue:
            from uuid import uuid4

            queue = f"{queue if unique and queue else 'bcast'}.{uuid4()}"
        super().__init__(
            queue,
            exchange or (Exchange(name, "fanout") if name else None),
            alias=alias or name,
            auto_delete=auto_delete,
            **options,
        )


class QueueDefaults(NamedTuple):
    """The settings that queues take what they don't say from."""

    queue: str = "celery"
    exchange: str = ""
    """Empty: named as the queue."""
    exchange_type: str = "direct"
    routing_key: str = ""
    """Empty: named as the queue."""
    queue_type: str = "classic"
    create_missing: bool = True
    missing_queue_type: str = "classic"
    missing_exchange_type: str = ""
    max_priority: int | None = None

    @classmethod
    def from_settings(cls, conf: Mapping[str, Any]) -> QueueDefaults:
        """Out of the app's settings."""
        return cls(
            queue=conf["task_default_queue"],
            exchange=conf["task_default_exchange"] or "",
            exchange_type=conf["task_default_exchange_type"] or "direct",
            routing_key=conf["task_default_routing_key"] or "",
            queue_type=conf["task_default_queue_type"] or "classic",
            create_missing=conf["task_create_missing_queues"],
            missing_queue_type=conf["task_create_missing_queue_type"] or "classic",
            missing_exchange_type=conf["task_create_missing_queue_exchange_type"] or "",
            max_priority=conf["task_queue_max_priority"],
        )


class Queues(dict[str, Queue]):
    """The queues that an app knows, by name, in order. A name that is missing is made on demand where the settings
    allow it; otherwise looking it up raises QueueNotFound (a KeyError)."""

    def __init__(self, task_queues: Any = None, defaults: QueueDefaults | None = None) -> None:
        """`task_queues`: what the setting holds: an iterable of queues or names, or a dict name -> options."""
        super().__init__()
        self.defaults = QueueDefaults() if defaults is None else defaults
        self.aliases: dict[str, Queue] = {}
        self._selected: dict[str, Queue] | None = None
        if not isinstance(task_queues, Mapping):
            task_queues = () if task_queues is None else tuple(task_queues)
        if not task_queues:
            base = self.defaults
            arguments = None if base.queue_type == "classic" else {"x-queue-type": base.queue_type}
            self.add(Queue(base.queue, queue_arguments=arguments))
        elif isinstance(task_queues, Mapping):
            for name, value in task_queues.items():
                self.add(self._from_dict(name, value) if isinstance(value, Mapping) else value)
        else:
            for value in task_queues:
                self.add(value)

    def add(self, queue: Any, **options: Any) -> Queue:
        """Take a queue in, with what it does not say filled in. `options` are those of the dict form."""
        if isinstance(queue, str):
            filled = self._fill(self._from_dict(queue, options)) if options else self._make(queue)
        else:
            filled = self._fill(Queue.of(queue))
        if not filled.name:
            raise ImproperlyConfigured("a queue needs a name")
        self[filled.name] = filled
        if filled.alias:
            self.aliases[filled.alias] = filled
        if self._selected is not None:
            self._selected[filled.name] = filled
        return filled

    def __missing__(self, name: str) -> Queue:
        found = self.aliases.get(name)
        if found is not None:
            return found
        if not self.defaults.create_missing:
            raise QueueNotFound(f"there is no queue {name!r} in task_queues, and task_create_missing_queues is off")
        made = self[name] = self._make(name)
        return made

    @property
    def consume_from(self) -> Mapping[str, Queue]:
        """The queues that a worker consumes: those selected, else all."""
        return self if self._selected is None else self._selected

    def select(self, names: Iterable[str] | str | None) -> None:
        """Consume these alone."""
        if names:
            self._selected = {self[name].name: self[name] for name in _words(names)}

    def select_add(self, queue: Any, **options: Any) -> Queue:
        """Consume this one as well."""
        return self.add(queue, **options)

    def deselect(self, names: Iterable[str] | str | None) -> None:
        """Don't consume these; a name that is not consumed anyway is passed over."""
        if names:
            out = {self.aliases[name].name if name in self.aliases else name for name in _words(names)}
            self._selected = {name: queue for name, queue in self.consume_from.items() if name not in out}

    def bound(self, exchange: str, routing_key: str) -> tuple[str, ...]:
        """Names of the known queues that a message for this exchange and routing key reaches, in order."""
        if not exchange:
            return (routing_key,)
        if exchange == DIRECT:
            return (_direct(routing_key),)
        return tuple(queue.name for queue in self.values() if _reaches(queue, exchange, routing_key))

    def bindings(self) -> dict[str, list[tuple[str, str, str]]]:
        """Name of a queue -> (exchange, routing key, pattern) of each of its bindings, as kombu keeps them on Redis."""
        return {name: list(_bindings(queue)) for name, queue in self.items()}

    def format(self, indent: int = 0, indent_first: bool = True) -> str:
        """The consumed queues as lines to read."""
        lines = [
            f".> {name:<16} exchange={queue.exchange.name if queue.exchange else ''}"
            f"({queue.exchange.type if queue.exchange else 'direct'}) key={queue.routing_key}"
            for name, queue in sorted(self.consume_from.items())
        ]
        space = " " * indent
        return f"\n{space}".join([space + lines[0] if indent_first else lines[0], *lines[1:]]) if lines else ""

    def _from_dict(self, name: str, options: Mapping[str, Any]) -> Queue:
        known = {key: options[key] for key in _QUEUE_OPTIONS if key in options}
        exchange = options.get("exchange")
        kind = options.get("exchange_type")
        if isinstance(exchange, str) and exchange:
            exchange = Exchange(exchange, kind or self.defaults.exchange_type)
        elif not exchange and kind:
            exchange = Exchange(self.defaults.exchange or self.defaults.queue, kind)
        return Queue(name, exchange, options.get("binding_key") or options.get("routing_key") or name, **known)

    def _make(self, name: str) -> Queue:
        base = self.defaults
        arguments = None if base.missing_queue_type == "classic" else {"x-queue-type": base.missing_queue_type}
        exchange = Exchange(name, base.missing_exchange_type or "direct")
        return self._fill(Queue(name, exchange, name, queue_arguments=arguments))

    def _fill(self, queue: Queue) -> Queue:
        base = self.defaults
        queue = copy(queue)  # the same object may be in the settings of two apps
        if queue.exchange is None:
            queue.exchange = Exchange(base.exchange or base.queue, base.exchange_type)
        if queue.routing_key is None:
            queue.routing_key = base.routing_key or base.queue
        if base.max_priority is not None and queue.max_priority is None:
            queue.queue_arguments = {"x-max-priority": base.max_priority, **(queue.queue_arguments or {})}
        return queue


def _words(names: Iterable[str] | str) -> list[str]:
    return [word for word in re.split(r"[,\s]+", names) if word] if isinstance(names, str) else list(names)


def _bindings(queue: Queue) -> Iterator[tuple[str, str, str]]:
    for bound in (queue, *queue.bindings):
        exchange = getattr(bound, "exchange", None)
        if exchange is not None:
            exchange = Exchange.of(exchange)
            key = getattr(bound, "routing_key", None) or ""
            yield exchange.name, key, topic_pattern(key) if exchange.type == "topic" else ""


def _reaches(queue: Queue, exchange: str, routing_key: str) -> bool:
    for bound in (queue, *queue.bindings):
        own = getattr(bound, "exchange", None)
        if own is not None and Exchange.of(own).name == exchange:
            key = getattr(bound, "routing_key", None) or ""
            if _fits(Exchange.of(own).type, key, routing_key):
                return True
    return False


def _fits(kind: str, bound: str, routing_key: str) -> bool:
    match kind:
        case "fanout":
            return True
        case "topic":
            return topic_fits(bound, routing_key)
        case _:
            return bound == routing_key


def topic_pattern(routing_key: str) -> str:
    """The regular expression that kombu keeps beside a topic binding."""
    parts = {"*": r"[^\.]+", "#": ".*?"}
    return "^" + r"\.".join(parts.get(word) or re.escape(word) for word in routing_key.split(".")) + "$"


def topic_fits(pattern: str, routing_key: str) -> bool:
    """True when a topic binding lets a routing key through: `*` is one word, `#` any number of them."""
    if pattern == routing_key:
        return True
    words = routing_key.split(".")
    reach = {0}
    for part in pattern.split("."):
        if part == "#":
            reach = set(range(min(reach), len(words) + 1))
        else:
            reach = {at + 1 for at in reach if at < len(words) and part in ("*", words[at])}
        if not reach:
            return False
    return len(words) in reach
