"""The protocols by which the wings meet. Small enough for a stranger to implement; `testing/` has contract suites."""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from enum import StrEnum
from typing import Protocol, runtime_checkable

import msgspec

from celeriac.model.message import (
    Chord,
    Completion,
    Counts,
    Demand,
    Envelope,
    Fire,
    Page,
    Part,
    Receipt,
    Standing,
    Store,
    Turn,
    Verdict,
)


class Place(StrEnum):
    """Where a message can lie."""

    READY = "ready"
    SCHEDULED = "scheduled"
    IN_FLIGHT = "in flight"
    PARKED = "parked"
    DEAD = "dead"


class Capabilities(msgspec.Struct, frozen=True):
    """What a broker can do. Shown in the documentation, asked by the worker; never a version number."""

    delay: bool
    """Has a durable schedule."""
    lease: bool
    """In-flight entries belong to a lease of the worker process (otherwise the broker owns delivery)."""
    priority: bool
    fanout: bool
    durable: bool
    idempotent_publish: bool
    """Drops a second envelope with a publish id that it has seen."""
    peers: bool
    """Real Celery can stand on the other side."""


class Keeping(msgspec.Struct, frozen=True):
    """What a result backend can do: the `keeping` of its class, shown in the documentation."""

    waits: str
    """How whoever waits for a result hears of it."""
    forgets: str
    """What makes a result go whose time is over."""
    chords: str
    """How the members of a chord are counted."""
    layout: str
    """Whose names and bytes it writes."""


class Consumer(Protocol):
    """A worker's claim on some queues. Every method belongs to the loop that made it; one `cycle` in flight at a time.

    A broken connection raises OperationalError; the worker makes a new Consumer of the same epoch, whose first act is
    to renew the lease: entries that still stand are still ours.
    """

    @property
    def ahead(self) -> bool:
        """Something was claimed ahead, because it came when there was nothing else to do: the next `cycle` brings it,
        and has to be called, though it may ask for nothing."""
        ...

    async def cycle(self, finished: Sequence[Completion], want: Demand) -> Turn:
        """Settle what is finished and claim what is wanted, in one round trip and one atomic step each.

        Stores, envelopes and what is said of chords in `finished` are carried out in the same step; a caller whose
        result backend is another server takes stores and chords out before. Each completion gets its own verdict. A
        chord that is complete is held for `max(2, lease / 2)` seconds."""
        ...

    async def wait(self) -> None:
        """Return when there may be something to claim: after a push to one of the queues, or now and then. Never pops.
        Cancellable at any time without harm."""
        ...

    async def renew(self, running: Sequence[Receipt]) -> bool:
        """Prolong the lease of this epoch and mark what runs. On a connection of its own, beside a `cycle` in flight.
        False: the lease had ended; entries that were taken from us are gone (their completions will be `lost`)."""
        ...

    async def recover(self) -> int:
        """Give back the in-flight messages of dead workers (lease ended), kombu's `unacked` of dead peers too.
        Returns how many. Safe to call from every worker: one does it at a time. Marks all as redelivered, and
        raises the worker-loss counter of those that were marked as running (`wire.frame.with_losses`)."""
        ...

    async def adopt(self, known: Collection[Receipt]) -> int:
        """Return to the heads of their queues what is in flight under this epoch but not in `known`: claims whose
        answer was lost with the connection. Called after a reconnect, before the first `cycle`. Returns how many."""
        ...

    async def standing(self, receipts: Collection[Receipt]) -> frozenset[Receipt]:
        """Those of `receipts` whose in-flight entries are still ours. Asked after the lease had ended, before results
        go to another server, which can't see the fence."""
        ...

    async def change(self, queues: Sequence[str]) -> None:
        """Consume other queues from now on; open receipts stay good."""
        ...

    async def leave(self) -> None:
        """Return to the heads of their queues what is still in flight, uncounted, and end the lease."""
        ...

    async def close(self) -> None:
        """Close the connections. The lease stays as it is."""
        ...


class Broker(Protocol):
    """The asynchronous side of a broker, used by a worker's parent and by async callers. Bound to one event loop."""

    capabilities: Capabilities

    def describe(self) -> str:
        """The URL without its password, or the absolute path of the file."""
        ...

    async def publish(self, envelopes: Sequence[Envelope]) -> None:
        """Hand over envelopes. On return the broker has all of them safe. Raises OperationalError otherwise."""
        ...

    def subscribe(self, queues: Sequence[str], *, epoch: str, lease: float) -> AbstractAsyncContextManager[Consumer]:
        """A Consumer. `epoch` (node name + boot id) names the lease, `lease` is its length in seconds. Leaving the
        context closes the connections."""
        ...

    async def same_server(self, backend: ResultBackend) -> bool:
        """True: stores may travel in `Consumer.cycle`, atomically."""
        ...

    async def browse(self, where: Place, queue: str, limit: int, cursor: str = "") -> Page: ...

    async def remove(self, where: Place, queue: str, ids: Sequence[str]) -> int:
        """Delete entries by `Item.id`. Returns how many there were."""
        ...

    async def restore(self, where: Place, queue: str, ids: Sequence[str]) -> int:
        """Put entries of `where` (scheduled, parked, dead) back to the ready list. Returns how many."""
        ...

    async def cancel(self, ids: Sequence[str], ttl: float) -> None:
        """Store task ids as cancelled for `ttl` seconds. Raises the version that `Turn.cancelled` carries."""
        ...

    async def cancelled(self) -> tuple[int, frozenset[str]]:
        """The version and all ids of the durable cancel list."""
        ...

    async def queues(self) -> Sequence[str]:
        """Names of all queues that the broker knows of."""
        ...

    async def count(self, queue: str) -> Counts: ...

    async def purge(self, queue: str) -> int:
        """Delete what is ready. Returns how many."""
        ...

    async def release(self, queue: str) -> int:
        """Move everything private (schedule, parked, in flight of dead workers) back to where a Celery peer finds it.
        Returns how many. Scheduled messages keep their eta header."""
        ...

    async def close(self) -> None: ...


@runtime_checkable
class Bus(Protocol):
    """Fanout: remote control and events, as kombu lays them out. May be missing (`Broker.capabilities.fanout`)."""

    async def broadcast(self, exchange: str, routing_key: str, payload: bytes) -> None: ...

    def listen(self, exchange: str, pattern: str) -> AbstractAsyncContextManager[AsyncIterator[bytes]]: ...

    async def reply(self, queue: str, payload: bytes) -> None: ...


class ResultBackend(Protocol):
    """The asynchronous side of a result backend. Bound to one event loop."""

    persistent: bool

    def describe(self) -> str: ...

    async def store(self, stores: Sequence[Store], deadline: float | None = None) -> Sequence[Verdict]:
        """Store documents. `deadline` (Unix seconds of the *store's* clock): refuse what arrives later, with `lost`."""
        ...

    async def clock(self) -> float:
        """The store's clock, Unix seconds."""
        ...

    async def fetch(self, ids: Sequence[str]) -> Mapping[str, bytes]:
        """Documents of those ids that have one."""
        ...

    def watch(self, ids: Sequence[str]) -> AbstractAsyncContextManager[AsyncIterator[tuple[str, bytes]]]:
        """The documents as they are now, then each change. No change after entering is missed."""
        ...

    async def forget(self, ids: Sequence[str]) -> None: ...

    async def save_group(self, group_id: str, document: bytes, expires: float | None) -> None: ...

    async def fetch_group(self, group_id: str) -> bytes | None: ...

    async def forget_group(self, group_id: str) -> None: ...

    async def open_chords(self, chords: Sequence[Chord]) -> None:
        """Make chords known whose members are about to be published. What was counted already stays counted; a chord of
        that name that was held or done is open again. May be repeated. A chord's data is forgotten `Chord.expires`
        seconds after its last movement; that of one that nobody has opened yet after a day."""
        ...

    async def add_to_chord(self, group: str, members: Sequence[str]) -> None:
        """These members (`task id:index`) too have to end before this chord is complete. May be repeated: each is
        waited for once. All or none; nothing happens to a chord that is done."""
        ...

    async def count(self, parts: Sequence[Part], hold: float) -> Sequence[bool]:
        """Count members, each once, where no `Consumer.cycle` does it. True: its chord is complete and held by the
        part's token for `hold` seconds, which are counted anew when it held it before."""
        ...

    async def chord(self, group: str) -> Standing | None:
        """A chord as it stands; None: nothing is known of it. Of one that is done only
        that, its body and its members are kept, as long as results are."""
        ...

    async def fire(self, fires: Sequence[Fire], hold: float) -> Sequence[bool]:
        """End chords. True: the token held it, or nobody did while the data of the opened chord stood; now it is done:
        its data is gone, and for `max(300, 2 * hold)` seconds late members are ignored. False: nothing was done."""
        ...

    async def hold(self, fire: Fire, hold: float) -> bool:
        """Take a chord, or keep it. True: it is complete, and held by this token for the next `hold` seconds."""
        ...

    async def standing(self, idle: float, limit: int) -> Sequence[Standing]:
        """At most `limit` chords that are not done and have not moved for `idle` seconds, the oldest first. To be
        opened, counted, added to, taken or kept is to move; to be listed is not, but renews the time until the data
        is forgotten."""
        ...

    async def close(self) -> None: ...


@runtime_checkable
class Cleaned(Protocol):
    """A ResultBackend that does not forget by itself what has expired."""

    async def clean_up(self) -> None:
        """Delete what has expired."""
        ...


@runtime_checkable
class Prepared(Protocol):
    """A ResultBackend that may have something to make before its first use. A worker lets it at its start."""

    async def prepare(self) -> None:
        """Make what is missing. What can't be made now is made at the first use."""
        ...


@runtime_checkable
class CleanedReader(Protocol):
    """The same on the synchronous side."""

    def clean_up(self) -> None:
        """Delete what has expired."""
        ...


class Sender(Protocol):
    """The synchronous side of a broker: what `delay()` uses. Safe for threads, greenlets and forks."""

    def publish(self, envelopes: Sequence[Envelope], timeout: float) -> None:
        """Hand over envelopes within `timeout` seconds in all, or raise OperationalError. On return all are safe."""
        ...

    def close(self) -> None: ...


@runtime_checkable
class StreamingSender(Sender, Protocol):
    """A sender whose broker works on envelopes while the next ones are made."""

    def stream(self, envelopes: Iterator[Envelope], timeout: float) -> None:
        """As `publish`, of envelopes for one queue and priority that are to be had at once. What makes them must not
        send anything itself. When it raises, those that were made may have been sent."""
        ...


class Reader(Protocol):
    """The synchronous side of a result backend. Safe for threads, greenlets and forks."""

    def fetch(self, ids: Sequence[str]) -> Mapping[str, bytes]: ...

    def watch(self, ids: Sequence[str], timeout: float | None) -> AbstractContextManager[Iterator[tuple[str, bytes]]]:
        """As ResultBackend.watch. The iterator ends when `timeout` seconds have passed since entering."""
        ...

    def store(self, stores: Sequence[Store]) -> None: ...

    def forget(self, ids: Sequence[str]) -> None: ...

    def save_group(self, group_id: str, document: bytes, expires: float | None) -> None: ...

    def fetch_group(self, group_id: str) -> bytes | None: ...

    def forget_group(self, group_id: str) -> None: ...

    def open_chords(self, chords: Sequence[Chord]) -> None:
        """As ResultBackend.open_chords."""
        ...

    def add_to_chord(self, group: str, members: Sequence[str]) -> None:
        """As ResultBackend.add_to_chord."""
        ...

    def close(self) -> None: ...


class Relay(Protocol):
    """Sends what transactions of users have left in an outbox."""

    async def run(self, broker: Broker) -> None:
        """Send to `broker` until cancelled."""
        ...
