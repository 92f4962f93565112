"""The template process: imports the app once, forks children on request, reaps them. `python -m
celeriac.pools.template --control-fd N`.

It has no thread and no connection, so that a fork of it is safe. When other threads run after the import, children are
started afresh instead. The end of the control socket ends it, and the kernel ends the children with it.
"""

from __future__ import annotations

import argparse
import atexit
import contextlib
import gc
import mmap
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import traceback
from typing import Any

import msgspec

from celeriac.model.outcome import Catalogue
from celeriac.pools.child import GREEN, Birth, leave, live, load, open_output, reseed
from celeriac.pools.frames import Splitter, frame
from celeriac.pools.mortal import die_with_parent, leave_signals_to_parent
from celeriac.pools.program import Program
from celeriac.pools.slots import block_size

MAX_FDS = 64


class Template:
    """One template process."""

    def __init__(self, control: socket.socket) -> None:
        self._control = control
        self._splitter = Splitter()
        self._fds: list[int] = []
        self._children: dict[int, int] = {}
        self._started: dict[int, subprocess.Popen[bytes]] = {}
        self._order: dict[str, Any] = {}
        self._program: Program | None = None
        self._known: frozenset[str] = frozenset()
        self._spawns = False
        self._wake, self._waker = os.pipe()
        for end in (self._wake, self._waker):
            os.set_blocking(end, False)

    def run(self) -> int:
        """Until the parent closes the control socket. Returns the exit code."""
        order = self._receive()
        if order is None:
            return 0
        self._order = order[0]
        if not self._import():
            return 1
        leave_signals_to_parent()  # once more: the app may have set handlers of its own
        signal.signal(signal.SIGCHLD, lambda signum, frame: None)
        signal.set_wakeup_fd(self._waker, warn_on_full_buffer=False)
        poll = select.poll()
        poll.register(self._control, select.POLLIN)
        poll.register(self._wake, select.POLLIN)
        for request in order[1:]:
            self._fork(*request[1:])
        while True:
            for found, _ in poll.poll():
                if found == self._wake:
                    with contextlib.suppress(BlockingIOError):
                        os.read(self._wake, 4096)
                    self._reap()
                elif not self._obey():
                    self._end()
                    return 0

    # --- the control socket

    def _receive(self) -> list[Any] | None:
        """The messages that have come, at least one; None at the end."""
        while True:
            try:
                data, fds, _, _ = socket.recv_fds(self._control, 65536, MAX_FDS)
            except ConnectionError:
                return None
            for fd in fds:
                os.set_inheritable(fd, False)
            self._fds += fds
            if not data:
                return None
            messages = [msgspec.msgpack.decode(payload) for _, payload in self._splitter.feed(data)]
            if messages:
                return messages

    def _obey(self) -> bool:
        messages = self._receive()
        for message in messages or ():
            if message[0] == "fork":
                self._fork(*message[1:])
        return messages is not None

    def _say(self, *message: Any) -> None:
        with contextlib.suppress(OSError):
            self._control.sendall(frame(0, msgspec.msgpack.encode(message)))

    # --- the app

    def _import(self) -> bool:
        order = self._order
        try:
            import multiprocessing  # noqa: F401  children get a name of their own in log lines

            self._program = program = load(order["loader"], order["spec"], order["loglevel"])
            catalogue = program.catalogue()
        except BaseException as error:
            text = f"the app can't be imported: {type(error).__name__}: {error}\n{traceback.format_exc()}"
            self._say("failed", -1, text.encode("utf-8", "backslashreplace").decode())
            return False
        others = tuple(t.name for t in threading.enumerate() if t is not threading.main_thread())
        spawn = order["spec"].get("start_method") == "spawn"
        self._spawns = spawn or bool(others) or order["kind"] in GREEN or not hasattr(os, "fork")
        self._known = frozenset(task.name for task in catalogue.tasks)
        self._say("catalogue", Catalogue(catalogue.tasks, others))
        # what is there now is shared by all children: a collection must not touch (and so copy) its pages
        gc.collect()
        gc.freeze()
        return True

    # --- children

    def _fork(self, index: int, seats: int) -> None:
        work, side = self._fds[:2]
        del self._fds[:2]
        try:
            pid = self._start(index, seats, work, side) if self._spawns else self._split(index, seats, work, side)
        except OSError as error:
            self._say("failed", index, f"no process can be made: {error}")
            return
        finally:
            os.close(work)
            os.close(side)
        self._children[pid] = index
        self._say("forked", index, pid)

    def _split(self, index: int, seats: int, work: int, side: int) -> int:
        template = os.getpid()
        for stream in (sys.stdout, sys.stderr):
            stream.flush()  # or the child would write it too
        pid = os.fork()
        if pid:
            return pid
        code = 1
        try:
            die_with_parent(template)
            signal.set_wakeup_fd(-1)
            atexit._clear()
            self._control.close()
            os.close(self._wake)
            os.close(self._waker)
            for fd in self._fds:
                os.close(fd)
            reseed()
            assert self._program is not None
            memory = mmap.mmap(self._order["memory_fd"], self._order["blocks"] * block_size(self._order["seats"]))
            code = live(self._program, Birth(self._order["kind"], index, seats, work, side, memory, self._known))
        except BaseException:
            traceback.print_exc()
        finally:
            leave(code)
        raise AssertionError("unreachable")

    def _start(self, index: int, seats: int, work: int, side: int) -> int:
        order = self._order
        letter = {
            "loader": order["loader"], "spec": order["spec"], "kind": order["kind"], "loglevel": order["loglevel"],
            "blocks": order["blocks"], "memory_fd": order["memory_fd"], "index": index, "seats": seats,
            "work": work, "side": side, "parent": os.getpid(),
            "known": list(self._known),
        }  # fmt: skip
        with tempfile.TemporaryFile() as file:
            file.write(msgspec.msgpack.encode(letter))
            file.seek(0)
            command = [sys.executable, "-m", "celeriac.pools.child", str(file.fileno())]
            if order["kind"] in GREEN:
                command[2:3] = ["celeriac.pools.greenchild", order["kind"]]
            process = subprocess.Popen(
                command, pass_fds=(file.fileno(), order["memory_fd"], work, side), stdin=subprocess.DEVNULL
            )
        self._started[process.pid] = process
        return process.pid

    def _reap(self) -> None:
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if not pid:
                return
            process = self._started.pop(pid, None)
            if process is not None:
                process.returncode = os.waitstatus_to_exitcode(status)
            index = self._children.pop(pid, None)
            if index is not None:
                self._say("exited", index, pid, status)

    def _end(self) -> None:
        for pid in self._children:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def main() -> None:
    """Entry of `python -m celeriac.pools.template`."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--control-fd", type=int, required=True)
    fd = parser.parse_args().control_fd
    die_with_parent(0)
    leave_signals_to_parent()
    open_output()
    os.set_inheritable(fd, False)
    code = Template(socket.socket(fileno=fd)).run()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    main()
