"""The direct path of `delay`: what can be known of a task's messages before there are arguments."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from celeriac.app import publish
from celeriac.model.message import Envelope
from celeriac.ports import StreamingSender
from celeriac.wire.task import Template


class Plan:
    """How `delay` of one task is sent, worked out once, as long as the app's settings stay."""

    __slots__ = (
        "arity", "exchange", "ignored", "pack", "priority", "queue", "result", "routing_key", "send_task", "sender",
        "stamp", "stream", "timeout",
    )  # fmt: skip

    def __init__(self, stamp: Any) -> None:
        self.stamp = stamp
        """Another one at the app means: make the plan anew."""
        self.pack: Callable[..., bytes] | None = None
        """None: this task takes the long way."""
        self.arity: int | None = None
        """So many positional arguments need no further check; -1: check closely; None: don't check."""
        self.queue = self.exchange = self.routing_key = ""
        self.priority = 0
        self.ignored = False
        self.timeout = 0.0
        self.sender: Any = None
        self.stream: Callable[[Iterator[Envelope], float], None] | None = None
        """How the sender takes messages while they are made, if it can."""
        self.send_task: Any = None
        self.result: Any = None


def make_plan(task: Any) -> Plan:
    """Work out the direct path of a task, if it has one: its message may depend on nothing but ids and arguments."""
    app = task.app
    app.prepare_task(task)
    plan = Plan(app.stamp)
    plan.send_task = app.plain_send_task.__func__
    conf = app.conf
    options = app.task_options(task)
    if (
        not app.router.is_static
        or options.get("serializer", "json") != "json"
        or options.get("compression")
        or conf["task_compression"]
        or options.get("expires") is not None
        or task.link
        or task.link_error
        or conf["task_protocol"] != 2
        or conf["task_send_sent_event"]
        or conf["task_inherit_parent_priority"]
        or task.computes_shadow
        or task.makes_results
    ):
        return plan
    outgoing = publish.prepare(app, task.name, (), {}, {}, task)
    if len(outgoing.envelopes) != 1:
        return plan
    sample = outgoing.envelopes[0]
    template = Template(
        outgoing.message, queue=sample.queue, exchange=sample.exchange, routing_key=sample.routing_key,
        priority=sample.priority, repr_levels=conf["task_repr_maxlevels"],
    )  # fmt: skip
    plan.pack = template.pack
    plan.queue, plan.exchange, plan.routing_key = sample.queue, sample.exchange, sample.routing_key
    plan.priority, plan.timeout = sample.priority, outgoing.timeout
    plan.ignored = bool(outgoing.message.ignore_result)
    plan.sender, plan.result = app.wiring.sender, app.AsyncResult
    if isinstance(plan.sender, StreamingSender):
        plan.stream = plan.sender.stream
    plan.arity = task.shape.plain if task.checks_arguments else None
    return plan
