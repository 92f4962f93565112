"""`celeriac worker`: reads the options and hands them to the start of a worker."""

from __future__ import annotations

import math
import os
import socket
from collections.abc import Callable
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any, TypeVar

import click

from celeriac.cli.pidfile import pidfile
from celeriac.cli.session import Session
from celeriac.errors import ImproperlyConfigured
from celeriac.model.worker_options import POOLS, WorkerOptions, expand, node_name

LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL", "FATAL")

REFUSED = {
    ("-B", "--beat"): "periodic tasks are not part of this version; run Celery's beat beside the worker",
    ("-s", "--schedule-filename", "--schedule"): "periodic tasks are not part of this version",
    ("--scheduler",): "periodic tasks are not part of this version",
    ("--autoscale",): "autoscaling is not part of this version; choose -c",
    ("-D", "--detach"): "let a supervisor (systemd, Kubernetes) keep the worker in the background",
    ("--uid",): "let a supervisor choose the user",
    ("--gid",): "let a supervisor choose the group",
    ("--umask",): "let a supervisor choose the umask",
    ("--executable",): "let a supervisor choose the Python",
}
"""Options of Celery's worker that are not here, and what to do instead."""

NEEDLESS = {
    ("-S", "--statedb"): "the broker keeps revoked ids",
    ("-O", "--optimization"): "a task always goes to a child that is free",
    ("--without-gossip",): "workers don't gossip",
    ("--without-mingle",): "workers don't mingle",
}
"""Options of Celery's worker that have nothing to switch here. They are read, and one line says why."""

FLAGS = {"--beat", "--detach", "--without-gossip", "--without-mingle"}

Command = TypeVar("Command", bound=Callable[..., Any])


def celerys_others(function: Command) -> Command:
    """Add the options of Celery's worker that are refused or needless."""
    for names in REFUSED:
        function = _hidden(names, _refuse)(function)
    for names in NEEDLESS:
        function = _hidden(names, _needless)(function)
    return function


def _hidden(names: tuple[str, ...], callback: Callable[..., None]) -> Callable[[Command], Command]:
    flag = bool(FLAGS & set(names))
    return click.option(
        *names, is_flag=flag, default=False if flag else None, hidden=True, expose_value=False, callback=callback
    )


def _refuse(ctx: click.Context, parameter: click.Parameter, value: Any) -> None:
    if value not in (None, False) and not ctx.resilient_parsing:
        names = tuple(parameter.opts)
        raise click.UsageError(f"there is no {names[-1]}: {REFUSED[names]}", ctx)


def _needless(ctx: click.Context, parameter: click.Parameter, value: Any) -> None:
    if value not in (None, False) and not ctx.resilient_parsing:
        names = tuple(parameter.opts)
        click.echo(f"celeriac: {names[-1]} is not needed: {NEEDLESS[names]}", err=True)


def comma_list(_ctx: click.Context, _parameter: click.Parameter, value: str | None) -> tuple[str, ...]:
    """Read `a,b` as a tuple of words."""
    return tuple(word.strip() for word in (value or "").split(",") if word.strip())


def _concurrency(_ctx: click.Context, _parameter: click.Parameter, value: str | None) -> int | None:
    if value is None:
        return None
    if value == "auto":
        return processors()
    if not value.isdigit() or int(value) < 1:
        raise click.BadParameter(f"{value!r} is neither a number above 0 nor `auto`")
    return int(value)


def processors() -> int:
    """How many processors this process may use, by its affinity and by the quota of its control group."""
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with suppress(OSError, ValueError, ZeroDivisionError):
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        count = min(count, max(1, math.ceil(int(quota) / int(period))))  # "max" is no number: no quota
    return count


@click.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": False})
@click.option(
    "-n", "--hostname", default="", metavar="NAME",
    help="Node name, such as w1@%h: %h is the host, %n its first part, %d its domain.",
)
@click.option("-c", "--concurrency", callback=_concurrency, metavar="N", help="How many tasks run at once (or `auto`).")
@click.option(
    "-P", "--pool", type=click.Choice([*POOLS, "processes", "custom"]), metavar="KIND",
    help=f"How tasks run: {', '.join(POOLS)}. Default prefork.",
)
@click.option("-Q", "--queues", callback=comma_list, metavar="A,B", help="Consume these queues only.")
@click.option("-X", "--exclude-queues", callback=comma_list, metavar="A,B", help="Consume all but these queues.")
@click.option("-I", "--include", callback=comma_list, metavar="M,N", help="Import these modules too.")
@click.option(
    "-l", "--loglevel", type=click.Choice(LEVELS, case_sensitive=False), default="WARNING", show_default=True,
    metavar="LEVEL", help="What is logged: DEBUG, INFO, WARNING, ERROR, CRITICAL.",
)
@click.option("-f", "--logfile", metavar="FILE", help="Log here instead of to stderr.")
@click.option("-E", "--task-events", "--events", is_flag=True, default=None, help="Send task events, for monitors.")
@click.option("--time-limit", type=click.FloatRange(min=0, min_open=True), metavar="S", help="End tasks after that.")
@click.option(
    "--soft-time-limit", type=click.FloatRange(min=0, min_open=True), metavar="S",
    help="Raise SoftTimeLimitExceeded in tasks after S seconds.",
)
@click.option("--max-tasks-per-child", type=click.IntRange(min=1), metavar="N", help="Replace a child after N tasks.")
@click.option(
    "--max-memory-per-child", type=click.IntRange(min=1), metavar="KIB",
    help="Replace a child once it holds more than KIB of memory.",
)
@click.option(
    "--prefetch-multiplier", type=click.IntRange(min=0), metavar="N",
    help="Hold at most N waiting messages for each task that runs.",
)
@click.option("--disable-prefetch", is_flag=True, help="Claim a message only when it can start at once.")
@click.option(
    "--pool-start-method", "start_method", type=click.Choice(["fork", "spawn"]), help="How children are made."
)
@click.option("--purge", "--discard", is_flag=True, help="First delete what waits in the consumed queues.")
@click.option("--in-process", is_flag=True, help="Run tasks in this process, without limits: for debuggers.")
@click.option("--without-heartbeat", is_flag=True, help="Send no heartbeat events.")
@click.option(
    "--heartbeat-interval", type=click.FloatRange(min=0, min_open=True), default=2.0, show_default=True, metavar="S",
    help="Seconds between heartbeat events.",
)
@click.option(
    "--lease", type=click.FloatRange(min=1), metavar="S",
    help="Seconds without a sign of life after which other workers take over. Default: worker_lease_seconds (30).",
)
@click.option("--pidfile", "pid_path", metavar="FILE", help="Write the process id here, unless its owner runs.")
@celerys_others
@click.pass_context
def worker(
    ctx: click.Context,
    /,
    *,
    hostname: str,
    pool: str | None,
    loglevel: str,
    logfile: str | None,
    without_heartbeat: bool,
    pid_path: str | None,
    **options: Any,
) -> int:
    """Run tasks. Extra words `key=value` are settings, which win over the app's.

    TERM or Ctrl-C stops it warmly: what runs is finished first. A second Ctrl-C, or QUIT, stops it at once and gives
    back what it held.
    """
    session: Session = ctx.obj
    name = node_name(hostname, socket.gethostname())
    chosen = WorkerOptions(
        hostname=name,
        pool="prefork" if pool == "processes" else pool,
        loglevel=loglevel.upper().replace("FATAL", "CRITICAL"),
        logfile=_path(logfile, name),
        color=False if session.no_color else None,
        quiet=session.quiet,
        heartbeat=not without_heartbeat,
        settings=_settings(ctx),
        app_spec=session.app_spec,
        workdir=os.getcwd(),
        **options,
    )
    check(chosen)
    app = session.named_app
    if os.getuid() == 0 and "pickle" in _accepted(app) and not os.environ.get("C_FORCE_ROOT"):
        raise ImproperlyConfigured(
            "a worker that runs as root and accepts pickle lets whoever can send it a message do anything:"
            " run it as another user, take pickle out of accept_content, or set C_FORCE_ROOT=1"
        )
    app.conf.read_words(chosen.settings, "worker")
    from celeriac.app.start import run_worker

    path = _path(pid_path or _setting(app, "worker_pidfile"), name)
    with pidfile(path) if path else nullcontext():
        code: int = run_worker(app, chosen)
        return code


def check(options: WorkerOptions) -> None:
    """Refuse options that contradict each other."""
    if options.pool == "custom":
        raise click.UsageError("there is no pool `custom`: choose one of " + ", ".join(POOLS))
    hard, soft = options.time_limit, options.soft_time_limit
    if hard is not None and soft is not None and soft > hard:
        raise click.UsageError(f"--soft-time-limit ({soft:g}) must not be longer than --time-limit ({hard:g})")
    if both := set(options.queues) & set(options.exclude_queues):
        raise click.UsageError(f"queue {min(both)!r} is both in -Q and in -X")


def _settings(ctx: click.Context) -> tuple[str, ...]:
    for word in ctx.args:
        if "=" not in word:
            raise click.UsageError(f"{word!r} is neither an option nor a setting such as worker_concurrency=4", ctx)
    return tuple(ctx.args)


def _path(text: str | None, name: str) -> str | None:
    """A file name with the marks of node names put in: `%n` name part, `%h` host, `%p` the whole, `%i` and `%I`."""
    if not text:
        return None
    node, _, host = name.partition("@")
    return expand(text, {"n": node, "h": host, "p": name, "d": host.partition(".")[2], "i": "0", "I": ""})


def _accepted(app: Any) -> set[str]:
    return {str(name).replace("application/x-python-serialize", "pickle") for name in app.conf.accept_content or ()}


def _setting(app: Any, name: str) -> str | None:
    """A setting that need not be there."""
    value: Any = app.conf.get(name)
    return None if value is None else str(value)
