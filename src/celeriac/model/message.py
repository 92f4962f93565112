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
    once: bool = False
    """Also a broker that does not remember every publish id remembers this one, for a day: a second envelope of that id
    is dropped. For what follows from a run and is published before its message is settled."""


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
    reply_to: str = ""
    """The queue that the caller reads results from; for a backend that sends them there (`rpc://`)."""


class Part(msgspec.Struct, frozen=True, gc=False):
    """A member of a chord has ended, in whatever way. It counts once, also when another run gave another result."""

    group: str
    """The chord's group id."""
    id: str
    """The member's task id."""
    index: int | None
    """Its place in the header; None: behind all others."""
    entry: bytes
    """What Celery keeps of it: `[1, task id, state, result]` in the result serializer's form."""
    body: bytes
    """The chord's body as a signature (JSON). Kept with the chord from the first member on."""

    @property
    def member(self) -> str:
        """What is counted once: `task id:index`."""
        return f"{self.id}:{'+inf' if self.index is None else self.index}"

    @property
    def token(self) -> str:
        """Whose the chord is once this member has completed it; a second run of the same member has the same."""
        return f"celeriac:{self.id}"


class Chord(msgspec.Struct, frozen=True, gc=False):
    """A chord whose members are about to be published."""

    group: str
    size: int
    """How many members there are."""
    body: bytes
    """As in Part."""
    members: tuple[str, ...] = ()
    """`task id:index` of those whose end counts, as far as they are known."""
    structure: bytes = b""
    """The group's document (`wire.record.group_document`), where a member's result is a group itself."""
    expires: float | None = None
    """Seconds after the last movement until it may be forgotten. None: never."""


class Fire(msgspec.Struct, frozen=True, gc=False):
    """What follows from a complete chord, is carried out by whoever holds it: once. Then the chord is done."""

    group: str
    token: str


class Completion(msgspec.Struct, frozen=True, gc=False):
    """One finished (or given back) delivery, to be carried out as one commit: store, open, publish, count, settle."""

    receipt: Receipt | None
    """None: the delivery was acknowledged early, there is nothing to settle and no fence."""
    settlement: Settlement = ACK
    store: Store | None = None
    publish: tuple[Envelope, ...] = ()
    chords: tuple[Chord, ...] = ()
    """Chords whose members are in `publish`."""
    parts: tuple[Part, ...] = ()
    """Members of chords that end with this."""
    fire: Fire | None = None
    """Everything else of this completion is done only if its token holds the chord; the message is settled anyway."""


class Verdict(msgspec.Struct, frozen=True, gc=False):
    """What became of one Completion. `ok`: carried out. `lost`: the in-flight entry was not ours any more, nothing
    was done. Otherwise `error` says why this one failed (nothing of it was done, the entry is in the dead letters)."""

    ok: bool
    lost: bool = False
    error: str = ""
    complete: tuple[str, ...] = ()
    """Chords (group ids) that the parts completed and their tokens hold now. Everything else is carried out, but the
    message is **not** settled: it stays in flight until what follows from the chords is committed too. Who dies in
    between leaves it to be delivered again."""


DONE = Verdict(True)
LOST = Verdict(False, lost=True)


class Standing(msgspec.Struct, frozen=True, gc=False):
    """A chord as it stands."""

    group: str
    size: int
    """Members that have to end, later additions included; 0: not known yet."""
    body: bytes
    entries: tuple[bytes, ...]
    """Of the members that have ended, in the order of the header."""
    counted: tuple[str, ...]
    """`task id:index` of those; an index that is not known is `+inf`."""
    structure: bytes
    members: tuple[str, ...]
    """As in Chord, and those that were added since; none of the first where a Celery producer opened it."""
    idle: float
    """Seconds since its last movement."""
    held: str
    """The token that holds it; "done" when what follows was carried out."""


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
