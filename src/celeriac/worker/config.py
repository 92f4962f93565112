"""What a worker is told at its start. The app fills it in; nothing here is looked up later."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from celeriac.model.message import CHILD_LOSS_CAP, WORKER_LOSS_CAP
from celeriac.ports import Broker, Relay, ResultBackend


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerConfig:
    """Durations are seconds."""

    hostname: str
    queues: tuple[str, ...]
    make_broker: Callable[[], Broker]
    make_backend: Callable[[], ResultBackend | None]
    make_relay: Callable[[], Relay | None] = lambda: None
    loader: str
    spec: dict[str, Any]
    """What the template is given to import the app."""
    pool: str = "prefork"
    concurrency: int = 1
    lease: float = 30.0
    result_expires: float | None = 86400.0
    failure_expires: float | None = 86400.0
    result_serializer: str = "json"
    result_compression: str | None = None
    unknown_patience: float = 600.0
    child_loss_cap: int = CHILD_LOSS_CAP
    worker_loss_cap: int = WORKER_LOSS_CAP
    time_limit: float | None = None
    soft_time_limit: float | None = None
    max_tasks_per_child: int | None = None
    max_memory_per_child: int | None = None
    """KiB of resident memory."""
    start_limit: float | None = None
    """How long a child may take to be ready; None: without bound."""
    rate_limits: bool = True
    prefetch: int | None = None
    """A fixed number of messages to hold ahead per seat; None: adaptive."""
    events: bool = False
    heartbeat: float | None = 2.0
    control_exchange: str = "celery"
    event_exchange: str = "celeryev"
    remote_control: bool = True
    soft_shutdown_timeout: float = 0.0
    in_process: bool = False
    control: Mapping[str, Callable[..., Any]] = field(default_factory=dict)
    """Control commands beside the built-in ones: name -> function(worker, **arguments)."""
