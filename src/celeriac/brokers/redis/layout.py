"""Where everything lies: kombu's keys and ours. Pure.

kombu's: a list for each queue and priority step, pushed at the left and served from the right; binding sets; `unacked`.
Ours, under `<global_keyprefix>celeriac:1:`, so that a server shared with Celery stays readable for it.
"""

from __future__ import annotations

import json
from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from celeriac.brokers.dead_letters import limit_of
from celeriac.drivers.redis.protocol import Words
from celeriac.drivers.redis.url import flag
from celeriac.errors import ImproperlyConfigured, LayoutTooNew
from celeriac.model.message import Envelope

VERSION = 1
"""Of our keys. A server whose `layout` is newer is refused."""
STEPS = (0, 3, 6, 9)
"""kombu's default priority steps."""
SEPARATOR = "\x06\x16"
"""Between a queue and its step, and inside members of binding sets."""
LPUSH_VALUES = 64
"""Messages in one LPUSH: enough to be cheap, few enough not to hold the server up."""
LPUSH_BYTES = 4 << 20
"""Bytes in one LPUSH of several messages."""


class Layout:
    """The names of keys, by the transport options `global_keyprefix`, `priority_steps`, `sep`, `fanout_prefix`,
    `fanout_patterns`, `unacked_key`, `queue_order_strategy`, `visibility_timeout` ..., as kombu has them, and by our
    own `dead_letter_limit`, `celery_peers`, `queue_bindings` (queue -> [(exchange, routing key, pattern)])."""

    def __init__(self, options: Mapping[str, Any], db: int = 0) -> None:
        get = options.get
        self.prefix = str(get("global_keyprefix") or "")
        self.private = f"{self.prefix}celeriac:{VERSION}:"
        self.separator = str(get("sep") or SEPARATOR)
        self.steps = _steps(get("priority_steps"))
        self.strategy = str(get("queue_order_strategy") or "round_robin")
        if self.strategy not in ("round_robin", "priority", "sorted"):
            raise ImproperlyConfigured(
                f"queue_order_strategy must be round_robin, priority or sorted, not {self.strategy!r}"
            )
        self.peers = flag(options, "celery_peers", True)
        self.dead_limit = limit_of(options)
        self.unacked = self.prefix + str(get("unacked_key") or "unacked")
        self.unacked_index = self.prefix + str(get("unacked_index_key") or "unacked_index")
        self.unacked_mutex = self.prefix + str(get("unacked_mutex_key") or "unacked_mutex")
        self.unacked_mutex_expire = _number(options, "unacked_mutex_expire", 300.0)
        self.unacked_restore_limit = int(get("unacked_restore_limit") or 0)
        self.visibility_timeout = _number(options, "visibility_timeout", 3600.0)
        # kombu looks ten times less often, because it takes the mutex for each look.
        self.restore_interval = min(_number(options, "unacked_restore_interval", 10.0), self.visibility_timeout / 3)
        self.fanout_patterns = flag(options, "fanout_patterns", True)
        fanout = get("fanout_prefix", True)
        if isinstance(fanout, str) and fanout.lower() in ("true", "false", "1", "0"):
            fanout = fanout.lower() in ("true", "1")
        template = fanout if isinstance(fanout, str) else "/{db}." if fanout else ""
        self.fanout_prefix = self.prefix + template.replace("{db}", str(db))
        self.reply_expires = _number(options, "reply_expires", 10.0)
        self._bindings: Mapping[str, Sequence[Sequence[str]]] = get("queue_bindings") or {}
        self._ready: dict[tuple[str, int], str] = {}
        self._step_of = tuple(self.steps[max(0, bisect_right(self.steps, n) - 1)] for n in range(10))

    def step(self, priority: int) -> int:
        """The priority step of Celery's number: the largest that is not above it."""
        return self._step_of[0 if priority < 0 else 9 if priority > 9 else priority]

    def ready(self, queue: str, step: int | str) -> str:
        """The list of a queue and step. Step 0 has no suffix."""
        return f"{self.prefix}{queue}{self.separator}{step}" if step and step != "0" else self.prefix + queue

    def ready_lists(self, queue: str) -> list[str]:
        """All lists of a queue, the one served first first."""
        return [self.ready(queue, step) for step in self.steps]

    def target(self, envelope: Envelope) -> str:
        """The list that an envelope goes to."""
        key = (envelope.queue, envelope.priority)
        found = self._ready.get(key)
        if found is None:
            if len(self._ready) > 10_000:
                self._ready.clear()
            found = self._ready[key] = self.ready(envelope.queue, self.step(envelope.priority))
        return found

    def entry(self, envelope: Envelope) -> str:
        """The id of an envelope in the schedule: it tells the step, and is the same when the envelope comes twice."""
        return f"{envelope.publish_id or envelope.id}.{self.step(envelope.priority)}"

    def base(self, queue: str) -> str:
        """What the private keys of a queue begin with. The braces keep them in one slot of a cluster."""
        return f"{self.private}{{{queue}}}:"

    def inflight(self, queue: str, epoch: str) -> str:
        """Hash of a worker: receipt tag -> message."""
        return f"{self.base(queue)}inflight:{epoch}"

    def declaration(self, queues: Iterable[str]) -> list[Words]:
        """Commands by which Celery, Flower and we ourselves know that queues exist, as kombu writes them."""
        commands: list[Words] = []
        for queue in queues:
            commands.append(("SADD", f"{self.private}queues", queue))
            for binding in self._bindings.get(queue) or ((queue, queue, ""),):
                exchange, routing_key, pattern = (*binding, "", "")[:3]
                member = self.separator.join((routing_key, pattern, queue))
                commands.append(("SADD", f"{self.prefix}_kombu.binding.{exchange}", member))
                commands.append(("SADD", f"{self.prefix}_kombu.binding_permanent.{exchange}", member))
        return commands

    def channel(self, exchange: str, routing_key: str) -> str:
        """The channel of a fanout exchange."""
        if routing_key and self.fanout_patterns:
            return f"{self.fanout_prefix}{exchange}/{routing_key}"
        return self.fanout_prefix + exchange

    def channel_pattern(self, exchange: str, pattern: str) -> str:
        """What PSUBSCRIBE takes to hear a fanout exchange. The exchange's name is meant literally."""
        literal = "".join(f"\\{c}" if c in "*?[]\\^" else c for c in self.fanout_prefix + exchange)
        if pattern and self.fanout_patterns:
            return f"{literal}/{pattern.replace('#', '*')}"
        return literal

    def pushes(self, envelopes: Sequence[Envelope]) -> tuple[list[Words], list[Words], list[Words]]:
        """What publishes envelopes: LPUSH commands (one for up to LPUSH_VALUES of one list), arguments of schedule.lua
        for those that wait, and of once.lua for those that are dropped when they come again. Each keeps the order."""
        lists: dict[str, list[str | bytes | int | float]] = {}
        later: list[str | bytes | int | float] = []
        once: list[str | bytes | int | float] = []
        target = self.target
        for envelope in envelopes:
            if envelope.once:
                due = envelope.not_before
                where = (target(envelope), "", "") if due is None else (envelope.queue, self.entry(envelope), repr(due))
                once += (envelope.publish_id, *where, envelope.blob)
                continue
            if envelope.not_before is not None:
                later += (envelope.queue, self.entry(envelope), repr(envelope.not_before), envelope.blob)
                continue
            key = target(envelope)
            values = lists.get(key)
            if values is None:
                lists[key] = values = []
            values.append(envelope.blob)
        commands: list[Words] = []
        for key, values in lists.items():
            for start in range(0, len(values), LPUSH_VALUES):
                words: Words = ("LPUSH", key, *values[start : start + LPUSH_VALUES])
                if weight(words) <= LPUSH_BYTES:
                    commands.append(words)
                else:
                    commands += [("LPUSH", key, value) for value in words[2:]]
        return commands, self._calls(later, 4), self._calls(once, 5)

    def _calls(self, words: Sequence[str | bytes | int | float], each: int) -> list[Words]:
        size = each * LPUSH_VALUES
        return [(self.prefix, *words[start : start + size]) for start in range(0, len(words), size)]


def too_new(where: str, version: int) -> LayoutTooNew:
    """The error to raise for keys of a layout that is not known here."""
    return LayoutTooNew(
        f"{where}: its data was written by a newer celeriac (layout {version}, this one knows {VERSION}); "
        "upgrade this installation"
    )


def weight(words: Words) -> int:
    """Bytes of the messages in an LPUSH."""
    return sum(len(value) for value in words[2:] if isinstance(value, bytes))


def _steps(value: Any) -> tuple[int, ...]:
    if value in (None, "", ()):
        return STEPS
    try:
        if isinstance(value, str):
            value = json.loads(value if value.lstrip().startswith("[") else f"[{value}]")
        steps = tuple(sorted({int(step) for step in value}))
    except (TypeError, ValueError):
        steps = ()
    if not steps or steps[0] < 0:
        raise ImproperlyConfigured(f"priority_steps must be a list of numbers from 0, as [0, 3, 6, 9], not {value!r}")
    return steps


def _number(options: Mapping[str, Any], name: str, default: float) -> float:
    value = options.get(name)
    if value is None:
        return default
    try:
        return float(value)
    except (TypeError, ValueError):
        raise ImproperlyConfigured(f"{name} must be a number, not {value!r}") from None
