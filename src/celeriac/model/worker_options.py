"""How one worker is to run: what `celeriac worker` was told, before the app's settings fill in what was not said."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from celeriac.errors import ImproperlyConfigured

DEFAULT_NAME = "celery"
"""The part of a node name before the `@` when none is given; Celery's, so that monitors group both kinds together."""
POOLS = ("prefork", "threads", "asyncio", "gevent", "eventlet", "solo")
"""Kinds of pool. Celery's `processes` is read as prefork."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerOptions:
    """Options of one worker. None means: not said, the app's setting decides."""

    hostname: str = ""
    """The whole node name, `name@host`, its formats expanded (see `node_name`). Empty: `celery@<this host>`."""
    concurrency: int | None = None
    """How many tasks may run at once. None: `worker_concurrency`, else what the pool takes by itself."""
    pool: str | None = None
    """One of POOLS. None: `worker_pool`."""
    queues: tuple[str, ...] = ()
    """Consume these only. Empty: every queue of `task_queues`, else `task_default_queue`."""
    exclude_queues: tuple[str, ...] = ()
    include: tuple[str, ...] = ()
    """Modules to import beside those of the app's settings."""
    loglevel: str = "WARNING"
    """A name of logging, in capitals."""
    logfile: str | None = None
    """Write the log here instead of to stderr. `%n`, `%h`, `%i` and `%I` are expanded by who opens it."""
    color: bool | None = None
    """Colour in the log. None: when it goes to a terminal."""
    quiet: bool = False
    """No banner."""
    task_events: bool | None = None
    """Send task events. None: `worker_send_task_events`."""
    time_limit: float | None = None
    """Hard limit of every task without one of its own, in seconds."""
    soft_time_limit: float | None = None
    """Soft limit of every task without one of its own, in seconds."""
    max_tasks_per_child: int | None = None
    max_memory_per_child: int | None = None
    """KiB of resident memory after which a child is replaced."""
    prefetch_multiplier: int | None = None
    """Upper bound of messages held per seat, the running one counted in. 0: as many as tasks are short."""
    disable_prefetch: bool = False
    """Claim a message only when a seat is free."""
    start_method: str | None = None
    """`fork` or `spawn`. None: as `worker_pool_start_method` says. Spawn anyway when the app has started threads."""
    purge: bool = False
    """Delete what is ready in the consumed queues first."""
    in_process: bool = False
    """Run tasks in the worker's own process, one at a time and without limits: for debuggers."""
    heartbeat: bool = True
    """Send heartbeat events."""
    heartbeat_interval: float = 2.0
    """Seconds between two heartbeat events."""
    lease: float | None = None
    """Seconds for which a claim stays ours without a sign of life. None: `worker_lease_seconds`."""
    settings: tuple[str, ...] = ()
    """`key=value` words of the command line, for `app.conf.read_words(words, "worker")`: they win over the app's
    settings, in the parent and in the children."""
    app_spec: str = ""
    """The text of `-A`, by which children find the same app again. Empty: the app was handed over as an object."""
    workdir: str = ""
    """The absolute folder in which `app_spec` was found; children start there."""


def node_name(given: str, host: str) -> str:
    """The node name that `-n` means on `host`: `%h` is the host's full name, `%n` its first part, `%d` the rest, `%i`
    is 0, `%I` nothing. A word without `@` is the part behind it, as Celery reads it (`w1` is `celery@w1`). Raises
    ImproperlyConfigured for an unknown format."""
    first, _, domain = host.partition(".")
    text = expand(given, {"h": host, "n": first, "d": domain, "i": "0", "I": ""})
    name, at, place = text.rpartition("@")
    return f"{name or DEFAULT_NAME}@{place or host}" if at else f"{DEFAULT_NAME}@{text or host}"


def expand(text: str, values: Mapping[str, str]) -> str:
    """Put `values` in for `%x` marks; `%%` is a percent sign. Raises ImproperlyConfigured for an unknown mark."""

    def put(mark: re.Match[str]) -> str:
        letter = mark.group(1)
        if letter == "%":
            return letter
        if letter not in values:
            known = " ".join(f"%{name}" for name in values)
            raise ImproperlyConfigured(f"unknown format %{letter} in {text!r}: use {known}, or %% for a percent sign")
        return values[letter]

    return re.sub(r"%(.?)", put, text)
