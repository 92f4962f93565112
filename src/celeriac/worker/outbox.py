"""Completions that wait to be committed. They outlive a connection: what was not answered is offered again."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from celeriac.drivers.publish_ids import can_come_again
from celeriac.model.message import Completion, Envelope, Receipt, Settlement
from celeriac.model.outcome import TaskTraits
from celeriac.wire import frame
from celeriac.wire.task import Head


class Complete(msgspec.Struct, frozen=True, gc=False):
    """A chord that is complete and ours."""

    group: str
    token: str
    body: bytes
    member: str
    """Task id of the member that completed it."""


class Join(msgspec.Struct, gc=False):
    """What is to be done before a message is settled."""

    chords: list[Complete]
    settlement: Settlement
    losses: int = 0
    """How often a child was lost over the first of them."""


class Held(msgspec.Struct, gc=False):
    """What the worker knows of one message that it has claimed."""

    receipt: Receipt | None
    """None once it was acknowledged early."""
    head: Head
    traits: TaskTraits | None
    capped: str = ""
    """Why it is to be dead-lettered, when a loss cap was passed."""
    acking: bool = False
    """Its early acknowledgement is on the way; it runs when that is committed."""
    finishing: bool = False
    """Its completion is in the outbox."""
    blob: bytes = b""
    """The message; kept only of those that may be members of a chord."""
    join: Join | None = None
    """It completed chords."""


def once(envelopes: Iterable[Envelope]) -> tuple[Envelope, ...]:
    """What is published before its message is settled comes again when somebody dies in between: it is to be dropped
    then. A random name never comes again."""
    return tuple(msgspec.structs.replace(e, once=True) if can_come_again(e.publish_id) else e for e in envelopes)


def doubted(envelopes: Iterable[Envelope]) -> tuple[Envelope, ...]:
    """What follows from a message that was delivered before may have been published before. Where the broker has not
    dropped it, whoever gets it is to ask the result backend first, as if it had been delivered before itself."""
    return tuple(
        msgspec.structs.replace(e, blob=frame.with_headers(e.blob, redelivered=True))
        if can_come_again(e.publish_id) else e
        for e in envelopes
    )  # fmt: skip


class Outbox:
    """A list of completions and of whom they belong to."""

    __slots__ = ("completions", "held", "uncertain")

    def __init__(self) -> None:
        self.completions: list[Completion] = []
        self.held: list[Held | None] = []
        self.uncertain = 0
        """The first so many may have been carried out already: their answer was lost with a connection."""

    def __len__(self) -> int:
        return len(self.completions)

    def add(self, completion: Completion, held: Held | None) -> None:
        """Offer a completion with the next cycle."""
        self.completions.append(completion)
        self.held.append(held)

    def take(self, limit: int) -> tuple[list[Completion], list[Held | None], int]:
        """At most `limit` completions, their owners, and how many of them are uncertain."""
        completions, held, uncertain = self.completions, self.held, self.uncertain
        if len(completions) <= limit:
            self.completions, self.held, self.uncertain = [], [], 0
            return completions, held, uncertain
        self.completions, self.held = completions[limit:], held[limit:]
        self.uncertain = max(0, uncertain - limit)
        return completions[:limit], held[:limit], min(uncertain, limit)

    def put_back(self, completions: list[Completion], held: list[Held | None]) -> None:
        """Offer again what had no answer."""
        self.completions[:0] = completions
        self.held[:0] = held
        self.uncertain += len(completions)
