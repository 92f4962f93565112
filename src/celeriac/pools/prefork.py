"""The runtime of a prefork (or solo) child: one call at a time, on the main thread, in the order of arrival."""

from __future__ import annotations

import signal
import socket
from time import monotonic_ns
from typing import Any

import msgspec

from celeriac.errors import SoftTimeLimitExceeded
from celeriac.model.message import Store
from celeriac.pools.frames import DONE, HEADER, MAX_FRAME, SEQ, Down, Up
from celeriac.pools.memory import HUGE, trim
from celeriac.pools.outbox import BATCH_BYTES, BATCH_SECONDS, report_frame, skipped_frame, started_frame
from celeriac.pools.program import ParentGone, Runner
from celeriac.pools.shield import protect
from celeriac.pools.slots import Slots

BATCH_NANOS = int(BATCH_SECONDS * 1e9)
_RUN = int(Down.RUN)
_DONE = int(Up.DONE)
_done = DONE.pack
_header = HEADER.unpack_from
_sequence = SEQ.unpack_from


class Loop:
    """Reads calls, runs them, writes reports in batches."""

    def __init__(self, work: socket.socket, slots: Slots, runner: Runner) -> None:
        self._work = work
        self._slots = slots
        self._runner = runner
        self._out: list[bytes] = []
        self._size = 0
        self._first = 0
        self._struck = 0
        self._shield = protect()
        runner.on_started = self._on_started
        runner.before_slow = self.flush
        signal.signal(signal.SIGUSR1, self._on_signal)

    def serve(self) -> None:
        """Until STOP. Raises ParentGone."""
        out, add, slots, run = self._out, self._out.append, self._slots, self._runner.run
        start, stop = slots.start, slots.stop
        data, position, end = b"", 0, 0
        while True:
            if out:
                self.flush()
            data = self._receive(data[position:] if position < end else b"")
            position, end = 0, len(data)
            while end - position >= 5:
                length, kind = _header(data, position)
                after = position + 4 + length
                if after > end:
                    break
                if kind != _RUN:
                    if not self._other(kind, data[position + 5 : after]):
                        return
                    position = after
                    continue
                seq = _sequence(data, position + 5)[0]
                blob = data[position + 13 : after]
                position = after
                began = monotonic_ns()
                if out and (began - self._first > BATCH_NANOS or self._size >= BATCH_BYTES):
                    self.flush()
                if not start(0, seq, began):
                    self._add(skipped_frame(seq))
                    continue
                ran = run(seq, blob)
                stop(0)
                if not out:
                    self._first = began
                if isinstance(ran, tuple):
                    document, runtime = ran
                    # by hand what report_frame does: this is the hottest place of a child
                    if document is None:
                        add(_done(14, _DONE, seq, 0, runtime))
                        self._size += 18
                    else:
                        size = 14 + len(document)
                        add(_done(size, _DONE, seq, 1, runtime) + document)
                        self._size += size + 4
                    if runtime >= BATCH_SECONDS:
                        self.flush()
                else:
                    self._add(report_frame(seq, ran))
                    if ran.runtime >= BATCH_SECONDS:
                        self.flush()

    def _receive(self, begun: bytes) -> bytes:
        """What is there to read, behind the frame that has begun; at least all of that frame."""
        parts, size, wanted = [begun], len(begun), 0
        if size >= 5:
            wanted = 4 + _header(begun, 0)[0]
            if wanted > MAX_FRAME + 4:
                raise ValueError(f"a frame of {wanted} bytes")
        while True:
            try:
                data = self._work.recv(max(65536, min(wanted - size, 1 << 20)))
            except OSError:
                data = b""
            if not data:
                raise ParentGone
            parts.append(data)
            size += len(data)
            if size >= wanted:
                return b"".join(parts) if begun else data

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
        if not self._out:
            self._first = monotonic_ns()
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
            if len(data) > HUGE:
                del data
                trim()

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
