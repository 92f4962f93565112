"""Starts a worker for an app: fills in what the options leave open, shows the banner, runs the loop."""

from __future__ import annotations

import asyncio
import logging
import os
import platform
import signal
import socket
import sys
from collections.abc import Iterable
from typing import Any, Protocol

from celeriac import telemetry
from celeriac.app import log
from celeriac.errors import ImproperlyConfigured
from celeriac.model.settings import without_effect
from celeriac.model.worker_options import POOLS, WorkerOptions, node_name
from celeriac.ports import Broker, Relay, ResultBackend
from celeriac.worker.config import WorkerConfig
from celeriac.worker.worker import Worker


class WorkedApp(Protocol):
    """The app, as far as a worker's start needs it."""

    main: Any
    conf: Any

    @property
    def oid(self) -> str:
        """Names this app in this process."""
        ...

    def broker(self) -> Broker:
        """A new adapter of the broker."""
        ...

    def make_relay(self) -> Relay | None:
        """What sends from the outbox."""
        ...

    def make_backend(self) -> ResultBackend | None:
        """A new adapter of the result backend, or None."""
        ...

    def queue_names(self) -> Iterable[str]:
        """The queues that a worker consumes when nobody says."""
        ...

    def direct_queue(self, hostname: str) -> str:
        """Make the queue of the worker of this node name known; its name."""
        ...


ASYNC_SEATS = 100
"""Tasks at once in an asyncio, gevent or eventlet child when nobody says."""


def run_worker(app: WorkedApp, options: WorkerOptions) -> int:
    """Run a worker until it is stopped; return the exit code. Raises ImproperlyConfigured for what can't be used."""
    conf = app.conf
    log.setup(conf, options.loglevel, options.logfile, options.color)
    if missing := without_effect(conf):
        logging.getLogger("celeriac.worker").warning("settings without effect, for it is not built yet: %s", missing)
    config = worker_config(app, options)
    telemetry.celeryd_init.send(config.hostname, instance=None, conf=conf, options={})
    if options.purge:
        asyncio.run(_purge(app, config.queues))
    worker = Worker(config)
    telemetry.celeryd_after_setup.send(config.hostname, instance=worker, conf=conf)
    telemetry.worker_init.send(worker)
    banner = "" if options.quiet else _banner(app, config)
    try:
        return _loop(_run(worker, config, banner))
    finally:
        telemetry.worker_shutdown.send(worker)


def worker_config(app: WorkedApp, options: WorkerOptions) -> WorkerConfig:
    """Everything that the worker needs, from options first and settings second."""
    conf = app.conf
    hostname = options.hostname or node_name("", socket.gethostname())
    pool = options.pool or _pool_name(conf.worker_pool)
    if not options.app_spec:
        raise ImproperlyConfigured("the worker's children have to import the app: name it with -A module:attribute")
    lease = options.lease or conf.worker_lease_seconds
    if lease < 1:
        raise ImproperlyConfigured(f"worker_lease_seconds is {lease:g}; it must be at least 1")
    multiplier = conf.worker_prefetch_multiplier if options.prefetch_multiplier is None else options.prefetch_multiplier
    # Celery counts the running message in; 0 is its word for no bound, which here is the adaptive one
    prefetch = 0 if options.disable_prefetch or conf.worker_disable_prefetch else multiplier - 1 if multiplier else None
    expires = _seconds(conf.result_expires)
    events = bool(conf.worker_send_task_events if options.task_events is None else options.task_events)
    return WorkerConfig(
        hostname=hostname,
        queues=(*_queues(app, options), *([app.direct_queue(hostname)] if conf.worker_direct else ())),
        make_broker=app.broker,
        make_backend=app.make_backend,
        make_relay=app.make_relay,
        loader="celeriac.app.program:load",
        spec={
            "app": options.app_spec,
            "workdir": options.workdir or os.getcwd(),
            "include": list(options.include),
            "settings": list(options.settings),
            "hostname": hostname,
            "loglevel": options.loglevel,
            "logfile": options.logfile,
            "color": options.color,
            "pool": pool,
            "start_method": options.start_method or conf.worker_pool_start_method,
            "in_process": options.in_process,
            "time_limit": options.time_limit,
            "soft_time_limit": options.soft_time_limit,
            "events": events,
            "oid": app.oid,
        },
        pool=pool,
        concurrency=options.concurrency or _concurrency(conf.worker_concurrency, pool),
        lease=float(lease),
        result_expires=expires,
        failure_expires=_seconds(conf.result_failure_expires) or expires,
        result_serializer=conf.result_serializer,
        result_compression=conf.result_compression,
        unknown_patience=float(conf.task_unknown_patience),
        child_loss_cap=conf.task_child_loss_cap,
        worker_loss_cap=conf.task_worker_loss_cap,
        time_limit=options.time_limit or conf.task_time_limit,
        soft_time_limit=options.soft_time_limit or conf.task_soft_time_limit,
        max_tasks_per_child=options.max_tasks_per_child or conf.worker_max_tasks_per_child,
        max_memory_per_child=options.max_memory_per_child or conf.worker_max_memory_per_child,
        start_limit=conf.seconds("worker_proc_alive_timeout"),
        rate_limits=not conf.worker_disable_rate_limits,
        prefetch=prefetch,
        events=events,
        heartbeat=options.heartbeat_interval if options.heartbeat else None,
        control_exchange=conf.control_exchange,
        event_exchange=conf.event_exchange,
        remote_control=conf.worker_enable_remote_control,
        soft_shutdown_timeout=conf.worker_soft_shutdown_timeout or 0.0,
        in_process=options.in_process,
    )


async def _run(worker: Worker, config: WorkerConfig, banner: str) -> int:
    loop = asyncio.get_running_loop()
    told = {"int": 0}

    def interrupted() -> None:
        told["int"] += 1
        worker.stop("Warm" if told["int"] == 1 else "Cold", signal.SIGINT)

    terminate = "Cold" if os.environ.get("REMAP_SIGTERM") == "SIGQUIT" else "Warm"
    loop.add_signal_handler(signal.SIGTERM, worker.stop, terminate, signal.SIGTERM)
    loop.add_signal_handler(signal.SIGQUIT, worker.stop, "Cold", signal.SIGQUIT)
    loop.add_signal_handler(signal.SIGINT, interrupted)

    def ready() -> None:
        if banner:
            print(banner, flush=True)
        print(f"{config.hostname} ready.", file=sys.stderr, flush=True)

    return await worker.run(ready)


def _loop(main: Any) -> int:
    try:
        import uvloop
    except ImportError:
        return int(asyncio.run(main))
    return int(uvloop.run(main))


async def _purge(app: WorkedApp, queues: tuple[str, ...]) -> None:
    broker = app.broker()
    try:
        for queue in queues:
            await broker.purge(queue)
    finally:
        await broker.close()


def _queues(app: WorkedApp, options: WorkerOptions) -> tuple[str, ...]:
    names = options.queues or tuple(app.queue_names())
    left = tuple(name for name in names if name not in options.exclude_queues)
    if not left:
        raise ImproperlyConfigured("no queue is left to consume: see -Q, -X and task_queues")
    return left


def _pool_name(value: Any) -> str:
    name = {"processes": "prefork", None: "prefork"}.get(value, value)
    if name not in POOLS:
        raise ImproperlyConfigured(f"worker_pool is {value!r}; choose one of {', '.join(POOLS)}")
    return str(name)


def _concurrency(setting: Any, pool: str) -> int:
    if pool == "solo":
        return 1
    if setting and setting != "auto":
        return int(setting)
    if pool in ("asyncio", "gevent", "eventlet"):
        return ASYNC_SEATS
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _seconds(value: Any) -> float | None:
    """A timedelta or a number; nothing and 0 mean: for ever."""
    if not value:
        return None
    return float(value.total_seconds()) if hasattr(value, "total_seconds") else float(value)


def _banner(app: WorkedApp, config: WorkerConfig) -> str:
    from celeriac.model.version import __version__

    backend = config.make_backend()
    rows = [
        ("app", f"{app.main or '__main__'}  ({config.spec['app'] or 'in process'})"),
        ("broker", config.make_broker().describe()),
        ("results", backend.describe() if backend is not None else "disabled"),
        (
            "pool",
            "in this process, one task at a time, without limits"
            if config.in_process
            else f"{config.pool} x {config.concurrency}",
        ),
        ("lease", f"{config.lease:g} s"),
        ("events", "ON" if config.events else "OFF (-E turns task events on)"),
        ("queues", ", ".join(config.queues)),
    ]
    title = f"celeriac {__version__}   {config.hostname}   {platform.system()}-{platform.release()}   pid {os.getpid()}"
    width = max(len(name) for name, _ in rows)
    return "\n".join([title, *(f"  {name:<{width}}  {value}" for name, value in rows), ""])
