"""A pool child: from its birth to its end. Forked by the template, or started afresh (`python -m celeriac.pools.child`)
where a fork would be unsafe."""

from __future__ import annotations

import atexit
import contextlib
import gc
import importlib
import logging
import mmap
import os
import random
import socket
import sys
import traceback
from dataclasses import dataclass
from typing import Any, cast

import msgspec

from celeriac.pools.frames import Up, frame
from celeriac.pools.link import Link
from celeriac.pools.mortal import default_signals, die_with_parent, leave_signals_to_parent
from celeriac.pools.outbox import ready_frame
from celeriac.pools.program import Loader, ParentGone, Program, Runner
from celeriac.pools.slots import Slots, block_size

GREEN = frozenset({"gevent", "eventlet"})
FORMAT = "[%(asctime)s: %(levelname)s/%(processName)s] %(message)s"


@dataclass(slots=True)
class Birth:
    """What a child starts with."""

    kind: str
    index: int
    """Its block of the shared memory."""
    seats: int
    work: int
    side: int
    """File descriptors."""
    memory: mmap.mmap
    known: frozenset[str]
    """Names of the tasks that the parent has been told."""


def load(loader: str, spec: dict[str, Any], loglevel: int = logging.WARNING) -> Program:
    """Import the app by `module:function`. Raises whatever that raises."""
    module, _, name = loader.partition(":")
    program = cast(Loader, getattr(importlib.import_module(module), name))(spec)
    root = logging.getLogger()
    if not root.handlers:
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(logging.Formatter(FORMAT))
        handler.celeriac_plain_fd = 2  # type: ignore[attr-defined]
        root.addHandler(handler)
        root.setLevel(loglevel or logging.WARNING)
    return program


def live(program: Program, birth: Birth) -> int:
    """Be a child, until STOP. Returns the exit code."""
    default_signals()
    leave_signals_to_parent()
    open_output()
    _name_process(birth.kind, birth.index)
    work = socket.socket(fileno=birth.work)
    link = Link(socket.socket(fileno=birth.side))
    slots = Slots(birth.memory, birth.index, birth.seats)
    try:
        runner = program.runner(link)
        program.on_process_init()
        catalogue = program.catalogue()
        if any(task.name not in birth.known for task in catalogue.tasks):
            work.sendall(frame(Up.CATALOGUE, msgspec.msgpack.encode(catalogue)))
        runner.begin()
        gc.freeze()
        work.sendall(ready_frame())
        _serve(birth.kind, work, slots, runner)
        program.on_process_shutdown()
    except (ParentGone, BrokenPipeError):
        return 0
    except BaseException:
        logging.getLogger("celeriac.pool").critical("a pool child ends by an error\n%s", traceback.format_exc())
        return 1
    return 0


def _serve(kind: str, work: socket.socket, slots: Slots, runner: Runner) -> None:
    if kind == "threads":
        from celeriac.pools import threads

        threads.serve(work, slots, runner)
    elif kind == "asyncio":
        from celeriac.pools import aio

        aio.serve(work, slots, runner)
    elif kind in GREEN:
        from celeriac.pools import green

        green.serve(work, slots, runner, kind)
    else:
        from celeriac.pools import prefork

        prefork.serve(work, slots, runner)


def leave(code: int) -> None:
    """End this process at once: exit handlers of this process and what is buffered, nothing else."""
    run = getattr(atexit, "_run_exitfuncs", None)
    if run is not None:
        with contextlib.suppress(BaseException):
            run()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):
            stream.flush()
    os._exit(code)


def reseed() -> None:
    """After a fork: children must not draw the same random numbers. (`random` and our own ids see to it themselves.)"""
    random.seed()
    numpy_random = sys.modules.get("numpy.random")
    if numpy_random is not None:
        with contextlib.suppress(Exception):
            numpy_random.seed()


def open_output() -> None:
    """No input; what tasks print goes to stderr, line by line."""
    null = os.open(os.devnull, os.O_RDONLY)
    if null:
        os.dup2(null, 0)
        os.close(null)
    with contextlib.suppress(Exception):
        sys.stdout.flush()
    with contextlib.suppress(OSError):
        os.dup2(2, 1)
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):
            stream.reconfigure(line_buffering=True)  # type: ignore[union-attr]


def _name_process(kind: str, index: int) -> None:
    module = sys.modules.get("multiprocessing")
    if module is not None:
        # the name that log lines of a worker show
        module.current_process().name = f"ForkPoolWorker-{index + 1}"
    with contextlib.suppress(ImportError):
        title = importlib.import_module("setproctitle")
        title.setproctitle(f"celeriac: {kind} child {index + 1}")


def main() -> None:
    """Started afresh: the birth certificate lies in the file behind the descriptor that is the only argument."""
    with os.fdopen(int(sys.argv[1]), "rb") as file:
        order = msgspec.msgpack.decode(file.read())
    die_with_parent(order["parent"])
    try:
        import multiprocessing  # noqa: F401  for the name of this process in log lines

        program = load(order["loader"], order["spec"], order["loglevel"])
    except BaseException:
        logging.getLogger("celeriac.pool").critical("a pool child can't import the app\n%s", traceback.format_exc())
        os._exit(1)
    memory = mmap.mmap(order["memory_fd"], order["blocks"] * block_size(order["seats"]))
    known = frozenset(order["known"])
    birth = Birth(order["kind"], order["index"], order["seats"], order["work"], order["side"], memory, known)
    leave(live(program, birth))


if __name__ == "__main__":
    main()
