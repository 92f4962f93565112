"""What time brings to the pool: limits that pass, children that sit on one call, children that grow too large."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import time
from collections import deque
from typing import Protocol

import msgspec

from celeriac.pools.frames import Down, frame
from celeriac.pools.handle import Call, Child, Listener

log = logging.getLogger("celeriac.pool")

STUCK_SECONDS = 0.02
"""A child that made no progress for so long gets its unstarted calls taken back."""
TICK_SECONDS = 0.02
RECALL_SECONDS = 0.002
"""Between writing a recall and reading the seats: far longer than a store takes to become visible."""
CANCEL_SECONDS = 1.0
"""How long a cancelled call of a many-seat child may take to end before the child is given up."""
NEIGHBOUR_SECONDS = 10.0
"""Grace of the other calls in a child that is given up."""
MEMORY_SECONDS = 0.5


class Watched(Protocol):
    """The pool, as far as it is watched."""

    children: dict[int, Child]
    ready: deque[Call]
    quarantine: deque[Call]
    listener: Listener
    max_memory: int | None
    start_limit: float | None

    def retire(self, child: Child) -> None:
        """Give a child no more calls."""
        ...

    def balance(self) -> None:
        """Start what is missing."""
        ...

    def write(self, child: Child, data: bytes) -> None:
        """Write to the work pair of a child."""
        ...


class Watchman:
    """Looks at the children every 20 ms while there is anything to look at, and never otherwise."""

    def __init__(self, pool: Watched) -> None:
        self._pool = pool
        self._tick: asyncio.TimerHandle | None = None
        self._memory_checked = 0.0

    def arm(self) -> None:
        """There is something to look at."""
        if self._tick is None:
            self._tick = asyncio.get_running_loop().call_later(TICK_SECONDS, self._on_tick)

    def stop(self) -> None:
        """Look no more."""
        if self._tick is not None:
            self._tick.cancel()

    def _on_tick(self) -> None:
        self._tick = None
        pool = self._pool
        now = time.monotonic()
        stuck = True
        for child in list(pool.children.values()):
            if not child.ready:
                stuck = False
                if pool.start_limit and now - child.started_at > pool.start_limit and child.pid and not child.stopping:
                    child.stopping = True
                    log.error("child %d was not ready after %g s; killing it", child.pid, pool.start_limit)
                    child.kill()
                continue
            if len(child.sent) < child.seats or now - child.progress < STUCK_SECONDS * 2:
                stuck = stuck and child.quarantine
            elif len(child.sent) > child.seats and not child.recalling:
                self._recall(child)
            if child.sent:
                self._tell_started(child)
                self._check_limits(child, now)
            if child.quarantine and not child.sent and not pool.quarantine:
                pool.retire(child)
        if stuck and pool.ready and pool.children:
            self._give_back()
        if pool.max_memory is not None and now - self._memory_checked > MEMORY_SECONDS:
            self._memory_checked = now
            self._check_memory(pool.max_memory)
        if pool.ready or pool.quarantine or any(c.sent or not c.ready or c.quarantine for c in pool.children.values()):
            self.arm()

    def _give_back(self) -> None:
        """Every child is stuck: what waits here waits better in the broker, where another worker sees it."""
        pool = self._pool
        calls = [c for c in pool.ready if c.end is None]
        if calls:
            kept = [c for c in pool.ready if c.end is not None]
            pool.ready.clear()
            pool.ready.extend(kept)
            pool.listener.on_surplus(calls)

    def _tell_started(self, child: Child) -> None:
        for seq, _ in child.slots.running():
            call = child.sent.get(seq)
            if call is not None and not call.told:
                call.told = True
                self._pool.listener.on_started(call)

    def _recall(self, child: Child) -> None:
        if child.seats == 1 and child.recalled != child.slots.last_started():
            # it sits on one call: let it say what it has finished before that
            child.recalled = child.slots.last_started()
            child.slots.aim(0)
            child.signal(signal.SIGUSR1)
        first = child.slots.last_started() + 1
        last = max(child.sent)
        if last < first:
            return
        child.recalling = True
        child.slots.recall(first, last)
        asyncio.get_running_loop().call_later(RECALL_SECONDS, self._finish_recall, child, last)

    def _finish_recall(self, child: Child, last: int) -> None:
        child.recalling = False
        if self._pool.children.get(child.index) is not child:
            return
        started = child.slots.last_started()
        back = [seq for seq in child.sent if started < seq <= last]
        for seq in reversed(back):
            call = child.sent.pop(seq)
            child.load -= call.cost
            self._pool.ready.appendleft(call)
        self._pool.listener.on_progress()  # also without: meanwhile the child got nothing

    def _check_limits(self, child: Child, now: float) -> None:
        if child.given_up:
            if now - child.given_up > NEIGHBOUR_SECONDS or not child.sent:
                child.kill()
            return
        nanos = time.monotonic_ns()
        for seq, since in child.slots.running():
            call = child.sent.get(seq)
            if call is None or (call.soft is None and call.hard is None) or call.doomed == "terminated":
                continue
            seconds = (nanos - since) / 1e9
            if call.hard is not None and seconds >= call.hard:
                self._enforce(child, call, now)
            elif call.soft is not None and seconds >= call.soft and not call.soft_sent:
                call.soft_sent = True
                if child.seats == 1:
                    child.slots.aim(seq)
                    child.signal(signal.SIGUSR1)
                else:
                    self._pool.write(child, frame(Down.CANCEL, msgspec.msgpack.encode((seq, "soft"))))

    def _enforce(self, child: Child, call: Call, now: float) -> None:
        if child.seats == 1:
            if not call.doomed:
                call.doomed = "timeout"
                log.error(
                    "hard time limit (%ss) exceeded for %s; killing child %d",
                    seconds_text(call.hard),
                    call.task,
                    child.pid,
                )
                child.kill()
        elif not call.hard_at:
            call.hard_at = now
            self._pool.write(child, frame(Down.CANCEL, msgspec.msgpack.encode((call.seq, "hard"))))
        elif now - call.hard_at > CANCEL_SECONDS:
            log.error(
                "hard time limit (%ss) exceeded for %s, which can't be cancelled; child %d takes no more work and is "
                "ended in %.0f s",
                seconds_text(call.hard),
                call.task,
                child.pid,
                NEIGHBOUR_SECONDS,
            )
            child.sent.pop(call.seq)
            call.end = ("timeout", seconds_text(call.hard))
            self._pool.ready.appendleft(call)
            child.given_up = now
            child.retiring = True
            self._pool.balance()
            self._pool.listener.on_progress()

    def _check_memory(self, limit: int) -> None:
        for child in list(self._pool.children.values()):
            if child.pid and not child.retiring:
                with contextlib.suppress(OSError, ValueError), open(f"/proc/{child.pid}/statm", "rb") as file:
                    if int(file.read().split()[1]) * (os.sysconf("SC_PAGE_SIZE") // 1024) > limit:
                        self._pool.retire(child)
                        self._pool.balance()


def seconds_text(seconds: float | None) -> str:
    """A limit as text: 1, 1.5."""
    return f"{seconds:g}" if seconds is not None else ""
