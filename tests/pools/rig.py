"""A template and its children, without a worker: what the parent does is done by the test."""

from __future__ import annotations

import contextlib
import mmap
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Self

import msgspec

from celeriac.model.message import Store
from celeriac.model.outcome import Catalogue, Report
from celeriac.pools.frames import HAS_DOCUMENT, SEQ, Answer, Ask, Down, Splitter, Up, frame, run_frame
from celeriac.pools.slots import Slots, block_size
from tests.runtime.fakes import blob

ROOT = Path(__file__).resolve().parents[2]
BLOCKS = 32


class Rig:
    """A template process. Use as a context."""

    def __init__(self, kind: str = "prefork", seats: int = 1, loglevel: int = 0, **spec: Any) -> None:
        self.seats = seats
        self.errors = tempfile.TemporaryFile()  # noqa: SIM115  closed in __exit__
        fd = os.memfd_create("slots", 0)
        os.ftruncate(fd, BLOCKS * block_size(seats))
        self.memory = mmap.mmap(fd, BLOCKS * block_size(seats))
        self.control, theirs = socket.socketpair()
        self.control.settimeout(10)
        self._splitter = Splitter()
        self.messages: list[Any] = []
        self.children: list[Child] = []
        environment = {**os.environ, "PYTHONPATH": f"{ROOT / 'src'}:{ROOT}"}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "celeriac.pools.template", "--control-fd", str(theirs.fileno())],
            pass_fds=(theirs.fileno(), fd), stdin=subprocess.DEVNULL, stdout=self.errors, stderr=self.errors,
            env=environment,
        )  # fmt: skip
        theirs.close()
        self.say(
            {
                "loader": "tests.pools.sample:load", "spec": spec, "kind": kind, "seats": seats, "blocks": BLOCKS,
                "memory_fd": fd, "loglevel": loglevel,
            }
        )  # fmt: skip
        self._fd = fd

    def say(self, value: Any, fds: list[int] | None = None) -> None:
        data = frame(0, msgspec.msgpack.encode(value))
        if fds:
            socket.send_fds(self.control, [data], fds)
        else:
            self.control.sendall(data)

    def hear(self, word: str, seconds: float = 10.0) -> Any:
        """The next message that begins with `word`."""
        end = time.monotonic() + seconds
        while True:
            for number, message in enumerate(self.messages):
                if message[0] == word:
                    return self.messages.pop(number)
            self.control.settimeout(max(0.01, end - time.monotonic()))
            data = self.control.recv(65536)
            if not data:
                raise EOFError(self.output())
            self.messages += [msgspec.msgpack.decode(payload) for _, payload in self._splitter.feed(data)]

    def catalogue(self) -> Catalogue:
        return msgspec.convert(self.hear("catalogue")[1], Catalogue)

    def child(self, ready: bool = True) -> Child:
        """Have a child made."""
        child = Child(self, len(self.children))
        self.children.append(child)
        if ready:
            child.wait_ready()
        return child

    def output(self) -> str:
        """What template and children have written."""
        self.errors.seek(0)
        return self.errors.read().decode(errors="replace")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.control.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(5)
        self.process.kill()
        self.process.wait()
        for child in self.children:
            child.close()
        self.memory.close()
        os.close(self._fd)
        self.errors.close()


class Child:
    """One child, as the parent sees it."""

    def __init__(self, rig: Rig, index: int) -> None:
        self.rig = rig
        self.index = index
        self.slots = Slots(rig.memory, index, rig.seats)
        self.slots.reset()
        self.work, work_end = socket.socketpair()
        self.side, side_end = socket.socketpair()
        rig.say(["fork", index, rig.seats], [work_end.fileno(), side_end.fileno()])
        work_end.close()
        side_end.close()
        self.frames: list[tuple[int, bytes]] = []
        self._splitter = Splitter()
        self.pid = 0
        self.seq = index * 1000
        self.asked: list[tuple[Ask, Any]] = []
        self.answer: Callable[[Ask, Any], Any] = lambda op, args: args
        self._thread = threading.Thread(target=self._answer_side, daemon=True)
        self._thread.start()

    def _answer_side(self) -> None:
        splitter = Splitter()
        with contextlib.suppress(OSError):
            while data := self.side.recv(65536):
                for kind, payload in splitter.feed(data):
                    op, args = Ask(kind), msgspec.msgpack.decode(payload[8:])
                    self.asked.append((op, args))
                    if args != "never":
                        value = msgspec.msgpack.encode(self.answer(op, args))
                        self.side.sendall(frame(Answer.OK, payload[:8] + value))

    def wait_ready(self) -> None:
        _, self.pid = msgspec.msgpack.decode(self.next(Up.READY))
        assert self.rig.hear("forked") == ["forked", self.index, self.pid]

    def call(self, task: str, *args: Any, **fields: Any) -> bytes:
        """A RUN frame; `self.seq` is its number."""
        self.seq += 1
        return run_frame(self.seq, blob(task, *args, **fields))

    def send(self, *data: bytes) -> None:
        self.work.sendall(b"".join(data))

    def run(self, task: str, *args: Any, **fields: Any) -> int:
        """Send one call; its number."""
        self.send(self.call(task, *args, **fields))
        return self.seq

    def cancel(self, seq: int, how: str) -> None:
        self.send(frame(Down.CANCEL, msgspec.msgpack.encode((seq, how))))

    def stop(self) -> int:
        """STOP, and the exit status."""
        self.send(frame(Down.STOP, b""))
        _, index, pid, status = self.rig.hear("exited")
        assert (index, pid) == (self.index, self.pid)
        return int(status)

    def aim(self, seq: int) -> None:
        """What the parent does when a soft limit has passed."""
        self.slots.aim(seq)
        os.kill(self.pid, signal.SIGUSR1)

    def fill(self, seconds: float) -> None:
        """Read what is there."""
        self.work.settimeout(max(0.001, seconds))
        data = self.work.recv(262144)
        if not data:
            raise EOFError(self.rig.output())
        self.frames += self._splitter.feed(data)

    def next(self, kind: int, seconds: float = 10.0) -> bytes:
        """The payload of the next frame of a kind."""
        end = time.monotonic() + seconds
        while True:
            for number, (found, payload) in enumerate(self.frames):
                if found == kind:
                    del self.frames[number]
                    return payload
            try:
                self.fill(end - time.monotonic())
            except TimeoutError:
                raise AssertionError(f"no frame {Up(kind).name}; {self.frames}; {self.rig.output()}") from None

    def outcome(self, seq: int, seconds: float = 10.0) -> Any:
        """The result of a call: the value for SUCCESS, the Report otherwise."""
        end = time.monotonic() + seconds
        while True:
            for number, (kind, payload) in enumerate(self.frames):
                if kind in (Up.DONE, Up.SKIPPED) and SEQ.unpack_from(payload)[0] == seq:
                    del self.frames[number]
                    if kind == Up.SKIPPED:
                        return "skipped"
                    if not payload[8] & HAS_DOCUMENT:
                        return None
                    return msgspec.json.decode(payload[13:])["result"]
                if kind == Up.REPORT:
                    report = msgspec.msgpack.decode(payload, type=Report)
                    if report.seq == seq:
                        del self.frames[number]
                        return report
            try:
                self.fill(end - time.monotonic())
            except TimeoutError:
                raise AssertionError(f"no outcome of {seq}; {self.frames}; {self.rig.output()}") from None

    def started(self) -> Store:
        return msgspec.msgpack.decode(self.next(Up.STARTED), type=Store)

    def until_running(self, seq: int, seconds: float = 5.0) -> None:
        end = time.monotonic() + seconds
        while not any(found == seq for found, _ in self.slots.running()):
            assert time.monotonic() < end, f"{seq} does not start"
            time.sleep(0.001)
        time.sleep(0.02)

    def close(self) -> None:
        self.work.close()
        self.side.close()


def gone(pid: int, seconds: float = 5.0) -> bool:
    """Whether a process ends in time."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            with open(f"/proc/{pid}/stat") as file:
                if file.read().split()[2] == "Z":
                    return True
        except FileNotFoundError:
            return True
        time.sleep(0.01)
    return False


def rigs(kind: str = "prefork", seats: int = 1, **spec: Any) -> Iterator[Rig]:
    """For fixtures."""
    with Rig(kind, seats, **spec) as rig:
        rig.catalogue()
        yield rig
