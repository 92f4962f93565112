"""The runtime of a prefork (or solo) child: one call at a time, on the main thread, in the order of arrival."""

from __future__ import annotations

import signal
import socket
from time import monotonic, monotonic_ns
from typing import Any

import msgspec

from celeriac.errors import SoftTimeLimitExceeded
from celeriac.model.message import Store
from celeriac.pools.frames import SEQ, Down, Splitter
from celeriac.pools.outbox import BATCH_BYTES, BATCH_SECONDS, report_frame, skipped_frame, started_frame
from celeriac.pools.program import ParentGone, Runner
from celeriac.pools.shield import protect
from celeriac.pools.slots import Slots

_RUN = int(Down.RUN)
_sequence = SEQ.unpack_from


class Loop:
    """Reads calls, runs them, writes reports in batches."""

    def __init__(self, work: socket.socket, slots: Slots, runner: Runner) -> None:
        self._work = work
        self._slots = slots
        self._runner = runner
        self._out: list[bytes] = []
        self._size = 0
        self._first = 0.0
        self._struck = 0
        self._shield = protect()
        runner.on_started = self._on_started
        runner.before_slow = self.flush
        signal.signal(signal.SIGUSR1, self._on_signal)

    def serve(self) -> None:
        """Until STOP. Raises ParentGone."""
        receive, feed = self._work.recv, Splitter().feed
        out = self._out
        while True:
            if out:
                self.flush()
            try:
                data = receive(65536)
            except OSError:
                raise ParentGone from None
            if not data:
                raise ParentGone
            for kind, payload in feed(data):
                if kind == _RUN:
                    self._run(_sequence(payload)[0], payload[8:])
                elif not self._other(kind, payload):
                    return

    def _run(self, seq: int, blob: bytes) -> None:
        slots = self._slots
        began = monotonic_ns()
        if not slots.start(0, seq, began):
            self._add(skipped_frame(seq))
            return
        ran = self._runner.run(seq, blob)
        slots.stop(0)
        data = report_frame(seq, ran)
        out = self._out
        out.append(data)
        self._size += len(data)
        now = monotonic()
        if len(out) == 1:
            self._first = now
        if self._size >= BATCH_BYTES or now - self._first >= BATCH_SECONDS or now - began * 1e-9 >= BATCH_SECONDS:
            self.flush()

    def _other(self, kind: int, payload: bytes) -> bool:
        if kind == Down.STOP:
            self.flush()
            return False
        if kind in (Down.END, Down.REPLAY):
            self.flush()
            seq, *rest = msgspec.msgpack.decode(payload)
            if not self._slots.start(0, seq, monotonic_ns()):
                self._add(skipped_frame(seq))
                return True
            report = self._runner.end(seq, *rest) if kind == Down.END else self._runner.replay(seq, *rest)
            self._slots.stop(0)
            self._add(report_frame(seq, report))
            self.flush()
        return True

    def _add(self, data: bytes) -> None:
        self._out.append(data)
        self._size += len(data)

    def flush(self) -> None:
        """Write what is there to be said."""
        self._runner.flush_lines()
        if self._out:
            data = b"".join(self._out)
            self._out.clear()
            self._size = 0
            self._work.sendall(data)

    def _on_started(self, store: Store) -> None:
        self._add(started_frame(store))
        self.flush()

    def _on_signal(self, signum: int, frame: Any) -> None:
        """SIGUSR1 while a task runs: say what is finished; and if the parent aims at this call, its soft limit has
        passed. At any other time the signal means nobody."""
        seq = self._runner.armed
        if not seq:
            return
        self.flush()
        if self._slots.aimed() != seq or self._struck == seq:
            return
        self._struck = seq
        error = SoftTimeLimitExceeded()
        if not self._runner.interrupt(seq, error) and self._shield.strike(error):
            raise error


def serve(work: socket.socket, slots: Slots, runner: Runner) -> None:
    """Run calls until STOP. Raises ParentGone."""
    Loop(work, slots, runner).serve()
