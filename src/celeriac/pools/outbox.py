"""What a child has to say, gathered into few writes: at most 64 KiB or 1 ms together."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
from collections.abc import Callable
from time import sleep

import msgspec

from celeriac.model.message import Dead, Store
from celeriac.model.outcome import Report
from celeriac.pools.frames import DONE, HAS_DOCUMENT, SEQ, VERSION, Up, frame
from celeriac.pools.program import Ran

BATCH_BYTES = 65536
BATCH_SECONDS = 0.001
_DONE = int(Up.DONE)
_REPORT = int(Up.REPORT)
_encode = msgspec.msgpack.Encoder().encode
_pack_done = DONE.pack


def report_frame(seq: int, ran: Ran) -> bytes:
    """The frame that tells how a run ended."""
    if isinstance(ran, tuple):
        document, runtime = ran
        if document is None:
            return _pack_done(14, _DONE, seq, 0, runtime)
        return _pack_done(14 + len(document), _DONE, seq, HAS_DOCUMENT, runtime) + document
    try:
        return frame(_REPORT, _encode(ran))
    except (UnicodeEncodeError, msgspec.MsgspecError, TypeError):
        return frame(_REPORT, _encode(_printable(ran)))


def _printable(report: Report) -> Report:
    """Without the lone surrogates that texts of users may carry and msgpack can't."""
    settlement = report.settlement
    if isinstance(settlement, Dead):
        settlement = Dead(_clean(settlement.reason))
    return msgspec.structs.replace(
        report, result=_clean(report.result), traceback=_clean(report.traceback), settlement=settlement
    )


def _clean(text: str) -> str:
    return text.encode("utf-8", "backslashreplace").decode()


def skipped_frame(seq: int) -> bytes:
    """A call was recalled before it started."""
    return frame(Up.SKIPPED, SEQ.pack(seq))


def started_frame(store: Store) -> bytes:
    """A STARTED document."""
    return frame(Up.STARTED, _encode(store))


def ready_frame() -> bytes:
    """The child waits for calls."""
    return frame(Up.READY, _encode((VERSION, os.getpid())))


class Outbox:
    """For children with several threads: frames are gathered under a lock, and a thread of its own writes what nobody
    wrote within a millisecond."""

    def __init__(self, sock: socket.socket, flush_lines: Callable[[], None]) -> None:
        self._socket = sock
        self._flush_lines = flush_lines
        self._parts: list[bytes] = []
        self._size = 0
        self._lock = threading.Lock()
        self._bell = threading.Semaphore(0)
        self._closed = False
        self._thread = threading.Thread(target=self._late, name="celeriac-reports", daemon=True)
        self._thread.start()

    def add(self, data: bytes, urgent: bool) -> None:
        """Say it: now if it is urgent, else soon."""
        with self._lock:
            first = not self._parts
            self._parts.append(data)
            self._size += len(data)
            if not (urgent or self._size >= BATCH_BYTES):
                if first:
                    self._bell.release()
                return
        self.flush()

    def flush(self) -> None:
        """Write everything."""
        self._flush_lines()
        with self._lock:
            if self._parts:
                parts, self._parts, self._size = self._parts, [], 0
                with contextlib.suppress(OSError):
                    self._socket.sendall(b"".join(parts))

    def flush_if_any(self) -> None:
        """Write, if there is anything to be said."""
        if self._parts:
            self.flush()

    def close(self) -> None:
        """Write everything and end the thread."""
        self._closed = True
        self._bell.release()
        self._thread.join(1.0)
        self.flush()

    def _late(self) -> None:
        while not self._closed:
            self._bell.acquire()
            sleep(BATCH_SECONDS)
            self.flush()
