"""The current task: what `self.request` is, and one context variable that says which one it is now.

A Context is made for every run, so making it costs two attributes; its fields are read from the message when asked.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextvars import ContextVar
from typing import Any

from celeriac.model.message import Chord, Envelope
from celeriac.wire.task import TaskMessage


class _Field:
    """A field that is read from the message until somebody sets it: no data descriptor, so the instance wins."""

    __slots__ = ("default", "name")

    def __init__(self, default: Any = None, name: str = "") -> None:
        self.default = default
        self.name = name

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = self.name or name

    def __get__(self, context: Context | None, owner: type | None = None) -> Any:
        if context is None or context._message is None:
            return self.default
        return getattr(context._message, self.name)


class _Derived:
    """A field that is worked out at its first use and kept."""

    __slots__ = ("function", "name")

    def __init__(self, function: Any) -> None:
        self.function = function

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    def __get__(self, context: Context | None, owner: type | None = None) -> Any:
        if context is None:
            return None
        value = context.__dict__[self.name] = self.function(context)
        return value


class Context:
    """`Task.request`. Without a message all fields have Celery's defaults; any attribute may be set."""

    id: Any = _Field()
    task: Any = _Field()
    args: Any = _Field()
    kwargs: Any = _Field()
    retries: Any = _Field(0)
    eta: Any = _Field()
    expires: Any = _Field()
    group: Any = _Field()
    group_index: Any = _Field()
    chord: Any = _Field()
    chain: Any = _Field()
    callbacks: Any = _Field()
    errbacks: Any = _Field()
    root_id: Any = _Field()
    parent_id: Any = _Field()
    correlation_id: Any = _Field()
    reply_to: Any = _Field()
    origin: Any = _Field()
    headers: Any = _Field()
    properties: Any = _Field()
    timelimit: Any = _Field()
    shadow: Any = _Field()
    argsrepr: Any = _Field()
    kwargsrepr: Any = _Field()
    replaced_task_nesting: Any = _Field(0)
    stamped_headers: Any = _Field()
    stamps: Any = _Field()

    hostname: str | None = None
    is_eager: bool = False
    called_directly: bool = True
    loglevel: int | None = None
    logfile: str | None = None
    taskset: Any = None
    utc: bool | None = None
    instance: Any = None
    """The Task object that runs."""
    replaced: bool = False
    """Another task goes on under this one's id."""
    added: int = 0
    """How many tasks this run has added to its chord (`Task.add_to_chord`)."""
    opened: list[Chord] | None = None
    """Chords whose members are in the outbox."""
    outbox: list[Envelope] | None = None
    """Messages that are to be published in the same commit as the outcome (`Task.replace` and the like)."""
    _message: TaskMessage | None = None
    _children: list[Any] | None = None

    def __init__(self, source: Any = None, /, **fields: Any) -> None:
        """`source`: a TaskMessage, a mapping of fields, or pairs of them."""
        if isinstance(source, TaskMessage):
            self._message = source
            self.called_directly = False
        elif source is not None:
            self.update(source)
        if fields:
            self.update(fields)

    @staticmethod
    def of(message: TaskMessage, instance: Any, hostname: str | None) -> Context:
        """The request of a message that a worker runs."""
        return Sent(message, instance, hostname)

    @_Derived
    def ignore_result(self) -> bool:
        """Whether the result is thrown away; the message's word counts more than the task's."""
        given = self._message.ignore_result if self._message is not None else None
        return bool(given if given is not None else getattr(self.instance, "ignore_result", False))

    @_Derived
    def delivery_info(self) -> dict[str, Any] | None:
        """`{exchange, routing_key, priority, redelivered}`."""
        message = self._message
        if message is None:
            return None
        return {
            "exchange": message.exchange,
            "routing_key": message.routing_key,
            "priority": message.priority,
            "redelivered": message.redelivered,
        }

    @_Derived
    def time_limit(self) -> float | None:
        """The hard limit that the message carries, in seconds."""
        limits = self.timelimit
        return limits[0] if limits else None

    @_Derived
    def soft_time_limit(self) -> float | None:
        """The soft limit that the message carries, in seconds."""
        limits = self.timelimit
        return limits[1] if limits else None

    @property
    def children(self) -> list[Any]:
        """Results of the tasks that this one has sent; they are stored with its own result."""
        found = self._children
        if found is None:
            found = self._children = []
        return found

    @children.setter
    def children(self, value: list[Any] | None) -> None:
        self._children = value

    def __getattr__(self, name: str) -> Any:
        """Custom headers and unknown parts of the message are fields too, as in Celery."""
        message = self.__dict__.get("_message")
        if message is not None:
            for extra in (message.headers, message.embed_extra):
                if extra and name in extra:
                    return extra[name]
        raise AttributeError(f"the request has no field {name!r}")

    def get(self, key: str, default: Any = None) -> Any:
        """A field by name."""
        return getattr(self, key, default)

    def update(self, source: Mapping[str, Any] | Iterable[tuple[str, Any]] = (), /, **fields: Any) -> None:
        """Set many fields."""
        new = dict(source, **fields)
        if "timelimit" in new:
            limits = new["timelimit"]
            pair = tuple(limits) if isinstance(limits, list | tuple) and len(limits) >= 2 else (None, None)
            new.setdefault("time_limit", pair[0])
            new.setdefault("soft_time_limit", pair[1])
        children = new.pop("children", None)
        self.__dict__.update(new)
        if children is not None:
            self._children = children

    def clear(self) -> None:
        """Back to the defaults."""
        self.__dict__.clear()

    def as_execution_options(self) -> dict[str, Any]:
        """Options of `apply_async` that send this task once more as it is."""
        hard, soft = (self.timelimit or (None, None))[:2]
        headers = self.headers
        options = {
            "task_id": self.id,
            "root_id": self.root_id,
            "parent_id": self.parent_id,
            "group_id": self.group,
            "group_index": self.group_index,
            "shadow": self.shadow,
            "chord": self.chord,
            "chain": self.chain,
            "link": self.callbacks,
            "link_error": self.errbacks,
            "expires": self.expires,
            "soft_time_limit": soft,
            "time_limit": hard,
            # RabbitMQ's trace of earlier deaths would count against the new message
            "headers": {k: v for k, v in headers.items() if not k.startswith("x-death")} if headers else headers,
            "retries": self.retries,
            "reply_to": self.reply_to,
            "replaced_task_nesting": self.replaced_task_nesting,
            "origin": self.origin,
        }
        if self.stamps and self.stamped_headers is not None:
            options["stamped_headers"] = self.stamped_headers
            options.update({k: v for k, v in self.stamps.items() if k in self.stamped_headers})
        return options

    def __repr__(self) -> str:
        return f"<Context: {self.task}[{self.id}] retries={self.retries}>"


class Sent(Context):
    """The request of a message that a worker runs."""

    called_directly: bool = False

    def __init__(self, message: TaskMessage, instance: Any, hostname: str | None) -> None:
        # one is made for every run: three stores, and nothing is called
        self._message = message
        self.instance = instance
        self.hostname = hostname


current: ContextVar[Context | None] = ContextVar("celeriac.current", default=None)
"""The request of the task that runs here now: in this thread, coroutine or greenlet."""
