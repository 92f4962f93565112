"""The runtime of a threads child: the main thread reads the pipe, K threads run calls."""

from __future__ import annotations

import socket
from time import monotonic, monotonic_ns
from typing import Any

import msgspec

from celeriac.pools.crew import Crew, Seat
from celeriac.pools.frames import SEQ, Down, Splitter
from celeriac.pools.outbox import BATCH_SECONDS, Outbox, report_frame, skipped_frame, started_frame
from celeriac.pools.program import ParentGone, Ran, Runner
from celeriac.pools.slots import Slots


class Loop:
    """Reads calls for the threads."""

    def __init__(self, work: socket.socket, slots: Slots, runner: Runner) -> None:
        self._work = work
        self._slots = slots
        self._outbox = Outbox(work, runner.flush_lines)
        runner.on_started = lambda store: self._outbox.add(started_frame(store), True)
        runner.before_slow = self._outbox.flush_if_any
        self._crew = Crew(slots.seats, runner, self._handle)
        self._waiting: set[int] = set()
        self._terminated: set[int] = set()

    def serve(self) -> None:
        """Until STOP. Raises ParentGone."""
        splitter = Splitter()
        while True:
            try:
                data = self._work.recv(65536)
            except OSError:
                data = b""
            if not data:
                raise ParentGone
            for kind, payload in splitter.feed(data):
                if kind == Down.RUN:
                    self._take(kind, SEQ.unpack_from(payload)[0], payload[8:])
                elif kind in (Down.END, Down.REPLAY):
                    seq, *rest = msgspec.msgpack.decode(payload)
                    self._take(kind, seq, rest)
                elif kind == Down.CANCEL:
                    self._cancel(*msgspec.msgpack.decode(payload))
                elif kind == Down.STOP:
                    self._crew.close()
                    self._outbox.close()
                    return

    def _take(self, kind: int, seq: int, rest: Any) -> None:
        self._waiting.add(seq)
        self._crew.submit((kind, seq, rest))

    def _cancel(self, seq: int, how: str) -> None:
        if not self._crew.strike(seq, how) and how == "terminate" and seq in self._waiting:
            self._terminated.add(seq)

    def _handle(self, seat: Seat, item: tuple[int, int, Any]) -> None:
        kind, seq, rest = item
        self._waiting.discard(seq)
        began = monotonic_ns()
        if not self._slots.start(seat.number, seq, began):
            self._outbox.add(skipped_frame(seq), False)
            return
        runner = seat.runner
        ran: Ran
        if self._terminated and seq in self._terminated:
            self._terminated.discard(seq)
            ran = runner.end(seq, rest if kind == Down.RUN else rest[0], "terminated", "")
        elif kind == Down.RUN:
            ran = runner.run(seq, rest)
        elif kind == Down.END:
            ran = runner.end(seq, *rest)
        else:
            ran = runner.replay(seq, *rest)
        self._slots.stop(seat.number)
        urgent = self._crew.idle() or monotonic() - began * 1e-9 >= BATCH_SECONDS
        self._outbox.add(report_frame(seq, ran), urgent)


def serve(work: socket.socket, slots: Slots, runner: Runner) -> None:
    """Run calls until STOP. Raises ParentGone."""
    Loop(work, slots, runner).serve()
