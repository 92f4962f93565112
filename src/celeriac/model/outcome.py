"""What came of running one message: the child's Report, and the admission data of a task that the parent needs."""

from __future__ import annotations

import msgspec

from celeriac.model.message import ACK, Chord, Envelope, Part, Settlement, Store


class Report(msgspec.Struct, frozen=True, gc=False):
    """What a child says of one call. The parent carries it out as one commit."""

    seq: int
    state: str
    """SUCCESS, FAILURE, RETRY, REVOKED, REJECTED or IGNORED."""
    settlement: Settlement = ACK
    store: Store | None = None
    publish: tuple[Envelope, ...] = ()
    runtime: float = 0.0
    """Seconds inside the task's function."""
    result: str = ""
    """Shortened repr of the return value, or of the exception; for events and logs."""
    traceback: str = ""
    more: tuple[Store, ...] = ()
    """Documents of other tasks: later steps of a chain, which fail with this one."""
    chords: tuple[Chord, ...] = ()
    """Chords whose members are in `publish`."""
    parts: tuple[Part, ...] = ()
    """Members of chords that have ended with this: the task itself, and later steps of its chain."""


class TaskTraits(msgspec.Struct, frozen=True, gc=False):
    """The options of one registered task that the parent needs to admit a message. Values are resolved: defaults of
    the settings are filled in."""

    name: str
    acks_late: bool = True
    acks_on_failure: bool = True
    acks_on_timeout: bool = True
    reject_on_worker_lost: bool = True
    time_limit: float | None = None
    soft_time_limit: float | None = None
    rate_limit: str | None = None
    ignore_result: bool = False
    track_started: bool = False
    send_events: bool = True
    is_async: bool = False


class Catalogue(msgspec.Struct, frozen=True):
    """What the template process says after it has imported the app."""

    tasks: tuple[TaskTraits, ...]
    threads: tuple[str, ...] = ()
    """Names of threads that run after the import: forking would be unsafe."""
