"""What a broker sees of a task message. A broker moves blobs; only `wire` looks into one."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

CHILD_LOSS_CAP = 3
"""How often a child may be lost while it ran a message before the message is dead-lettered."""
WORKER_LOSS_CAP = 10
"""How often a worker may be lost while a message was marked as running before the message is dead-lettered."""


class Envelope(msgspec.Struct, frozen=True, gc=False):
    """One message on its way to a broker."""

    id: str
    """The task id."""
    publish_id: str
    """Names this act of publishing; a broker that can drops a second one of that name. Also kombu's delivery_tag."""
    queue: str
    blob: bytes
    """The whole message: kombu's JSON envelope (body, content-encoding, content-type, headers, properties)."""
    priority: int = 0
    """Celery's number, uninterpreted: the broker's adapter says what it means."""
    not_before: float | None = None
    """Unix seconds of the broker's clock: put it into the durable schedule until then. None: ready now."""
    exchange: str = ""
    routing_key: str = ""


class Receipt(msgspec.Struct, frozen=True, gc=False):
    """Names one claimed delivery. Made by the claim, never read from the message; only its Consumer looks inside."""

    queue: str
    tag: str


class Delivery(msgspec.Struct, frozen=True, gc=False):
    """A claimed message."""

    receipt: Receipt
    blob: bytes


class Ack(msgspec.Struct, frozen=True, gc=False, tag=True):
    """Done with: remove the in-flight entry."""


class Return(msgspec.Struct, frozen=True, gc=False, tag=True):
    """Back to the head of its queue, uncounted. `blob` replaces the message (a loss counter was raised)."""

    blob: bytes | None = None


class Requeue(msgspec.Struct, frozen=True, gc=False, tag=True):
    """Back to the tail of its queue."""

    blob: bytes | None = None


class Delay(msgspec.Struct, frozen=True, gc=False, tag=True):
    """Into the durable schedule until `until` (Unix seconds of the broker's clock)."""

    until: float
    blob: bytes | None = None


class Park(msgspec.Struct, frozen=True, gc=False, tag=True):
    """To the end of the list of a limit key, to be claimed from there by `Demand.parked`."""

    key: str


class Dead(msgspec.Struct, frozen=True, gc=False, tag=True):
    """To the dead letter queue, with the reason."""

    reason: str


Settlement = Ack | Return | Requeue | Delay | Park | Dead

ACK = Ack()
RETURN = Return()
REQUEUE = Requeue()


class Store(msgspec.Struct, frozen=True, gc=False):
    """One result document to be stored."""

    id: str
    """The task id."""
    document: bytes
    """The finished bytes, in the result serializer's form (compressed if so configured)."""
    state: str
    expires: float | None = None
    """Seconds until the store may forget it. None: never."""
    guard: bool = False
    """Look first: a stored SUCCESS is never overwritten. Off where no second run is possible."""


class Completion(msgspec.Struct, frozen=True, gc=False):
    """One finished (or given back) delivery, to be carried out as one commit: store, publish, settle."""

    receipt: Receipt | None
    """None: the delivery was acknowledged early, there is nothing to settle and no fence."""
    settlement: Settlement = ACK
    store: Store | None = None
    publish: tuple[Envelope, ...] = ()


class Verdict(msgspec.Struct, frozen=True, gc=False):
    """What became of one Completion. `ok`: carried out. `lost`: the in-flight entry was not ours any more, nothing
    was done. Otherwise `error` says why this one failed (nothing of it was done, the entry is in the dead letters)."""

    ok: bool
    lost: bool = False
    error: str = ""


DONE = Verdict(True)
LOST = Verdict(False, lost=True)


class Demand(msgspec.Struct, frozen=True, gc=False):
    """What a worker can use now."""

    count: int
    """At most so many deliveries; 0: only settle."""
    size: int = 64 << 20
    """Stop claiming once so many bytes are claimed (the message that passes it still comes)."""
    parked: Mapping[str, int] = {}
    """Limit key -> how many of its parked messages to claim first, beside `count`."""


class Turn(msgspec.Struct, frozen=True, gc=False):
    """What one `Consumer.cycle` brought."""

    deliveries: tuple[Delivery, ...] | list[Delivery]
    verdicts: tuple[Verdict, ...] | list[Verdict]
    """One per Completion, in order."""
    next_due: float | None = None
    """Broker's Unix seconds at which the next scheduled message of these queues is due."""
    now: float = 0.0
    """The broker's clock, Unix seconds, at this turn."""
    cancelled: int = 0
    """Version of the durable cancel list; when it changes, ask `Broker.cancelled`."""
    more: bool = False
    """There was more to claim than the demand took."""


class Counts(msgspec.Struct, frozen=True, gc=False):
    """How much of a queue lies where."""

    ready: int = 0
    scheduled: int = 0
    in_flight: int = 0
    parked: int = 0
    dead: int = 0
    oldest: float | None = None
    """Age in seconds of the oldest ready message, where the broker knows it."""


class Item(msgspec.Struct, frozen=True, gc=False):
    """One message as `browse` shows it."""

    id: str
    """What `remove` takes: the broker's own name of the entry."""
    blob: bytes
    due: float | None = None
    reason: str = ""
    key: str = ""
    """The limit key of a parked message."""
    owner: str = ""
    """The worker epoch that holds an in-flight message."""


class Page(msgspec.Struct, frozen=True, gc=False):
    """A page of `browse`. `cursor` is empty when there is no more."""

    items: tuple[Item, ...] | list[Item]
    cursor: str = ""
