"""What a task message is, once it is read: the head that a parent sees, and the whole."""

from __future__ import annotations

from typing import Any

import msgspec
from msgspec import field

Limit = int | float | None


class Head(msgspec.Struct, frozen=True, gc=False):
    """What a worker's parent knows of a message: everything but arguments, links and custom headers."""

    id: str
    task: str
    retries: int = 0
    eta: float | None = None
    """Unix seconds. A naive date is read as UTC."""
    expires: float | None = None
    """Unix seconds. A naive date is read as UTC."""
    timelimit: tuple[Limit, Limit] | None = None
    """(hard, soft) in seconds. None when neither is given."""
    group: str | None = None
    root_id: str | None = None
    parent_id: str | None = None
    stamps: dict[str, Any] | None = None
    """None when there are none."""
    stamped_headers: list[str] | None = None
    argsrepr: str = ""
    kwargsrepr: str = ""
    reply_to: str = ""
    correlation_id: str = ""
    priority: int = 0
    """Celery's number, uninterpreted."""
    content_type: str | None = None
    content_encoding: str | None = None
    ignore_result: bool | None = None
    """None: the task's own option decides."""
    shadow: str | None = None
    origin: str = ""
    losses: tuple[int, int] | None = None
    """(child, worker): how often each was lost while this message was running. None when never."""
    redelivered: bool = False
    protocol: int = 2
    exchange: str = ""
    routing_key: str = ""
    delivery_tag: str = ""
    eta_text: str | None = None
    expires_text: str | None = None


class TaskMessage(msgspec.Struct, gc=False):
    """A whole task message, of whatever protocol it came in."""

    id: str
    task: str
    args: list[Any] | tuple[Any, ...] = ()
    kwargs: dict[str, Any] = field(default_factory=dict)
    callbacks: list[Any] | None = None
    errbacks: list[Any] | None = None
    chain: list[Any] | None = None
    """The steps that follow, the next one last."""
    chord: Any = None
    """The body signature of the chord whose member this is."""
    embed_extra: dict[str, Any] | None = None
    """What else stood beside the four fields above."""
    retries: int = 0
    eta: str | None = None
    """ISO 8601."""
    expires: str | None = None
    """ISO 8601."""
    timelimit: tuple[Limit, Limit] | list[Limit] = (None, None)
    """hard, soft: seconds."""
    group: str | None = None
    group_index: int | None = None
    root_id: str | None = None
    """None: the task's own id."""
    parent_id: str | None = None
    argsrepr: str | None = None
    """None: `pack` makes it."""
    kwargsrepr: str | None = None
    origin: str = ""
    shadow: str | None = None
    ignore_result: bool | None = False
    """None: the message does not say, the task's own option decides."""
    replaced_task_nesting: int = 0
    stamped_headers: list[str] | None = None
    stamps: dict[str, Any] | None = None
    headers: dict[str, Any] | None = None
    """Custom headers only."""
    properties: dict[str, Any] | None = None
    """Message properties beyond those that have a field here, e.g. `expiration`, `MessageGroupId`."""
    content_type: str | None = None
    content_encoding: str | None = None
    queue: str = ""
    exchange: str = ""
    routing_key: str = ""
    priority: int = 0
    reply_to: str = ""
    correlation_id: str = ""
    """Empty: the task's id."""
    delivery_mode: int = 2
    redelivered: bool = False
    losses: tuple[int, int] | None = None
    """(child, worker), see `Head.losses`."""
    delivery_tag: str = ""
    compression: str | None = None
    """Header value of the compression that the body came in."""
    protocol: int = 2


RUN = "x-celeriac-run"
"""Message property of what takes the place of a run: what named that."""


def run_name(message: TaskMessage) -> str:
    """What the ids of all that follows from a message are made of. A message that is delivered again, and what takes
    its place (`Task.replace`), have the same; one that is sent again under the same task id has another."""
    sent = (message.properties or {}).get(RUN) or message.delivery_tag
    return f"{sent}\n{message.id}" if sent else message.id
