"""The parent's side of the pool: children and what each of them holds.

A call goes ready -> sent -> started -> reported. What is ready lies here, not in a child; a child gets a few
milliseconds of work ahead, and gets it taken back when it sits on one call for long. Which call a child runs, and
since when, stands in shared memory, so limits and the cause of a crash are known without a message from the child.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import struct
import time
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any

import msgspec

from celeriac import errors
from celeriac.model.outcome import Catalogue, Report
from celeriac.pools.forge import Forge
from celeriac.pools.frames import SEQ, Answer, Ask, Down, Up, frame, run_frame
from celeriac.pools.handle import Call, Child, Listener, send
from celeriac.pools.watch import STUCK_SECONDS, Watchman, seconds_text

log = logging.getLogger("celeriac.pool")

AHEAD_SECONDS = 0.005
"""Work that a child may hold ahead, as far as its tasks are known to be short."""
AHEAD_CALLS = 128
IGNORED = frozenset({signal.SIGTERM, signal.SIGINT, signal.SIGQUIT, signal.SIGHUP})
"""Signals that children leave to the parent; an operator who sends one means that the task is to end."""
FLOOR_SECONDS = 15e-6
"""What the cheapest call costs a child, all bookkeeping included."""

_DONE_BODY: Callable[[bytes], tuple[int, int, float]] = struct.Struct("<QBf").unpack_from
"""seq, flags, runtime: the head of a DONE payload."""


class Pool:
    """N children of one kind. `kind`: prefork, solo (one seat each), threads, asyncio, gevent, eventlet (many)."""

    def __init__(
        self,
        listener: Listener,
        *,
        kind: str,
        processes: int,
        seats: int,
        loader: str,
        spec: dict[str, Any],
        max_tasks: int | None = None,
        max_memory: int | None = None,
        start_limit: float | None = None,
    ) -> None:
        self.listener = listener
        self.kind = kind
        self.processes = processes
        self.seats = seats
        self.single = seats == 1
        self.max_tasks = max_tasks
        self.max_memory = max_memory
        self.start_limit = start_limit
        self.ready: deque[Call] = deque()
        self.quarantine: deque[Call] = deque()
        self.children: dict[int, Child] = {}
        self.pace: dict[str, float] = {}
        self.cost = 1.0
        self.total = 0
        self.lost = 0
        self._seq = 0
        self._target = processes
        self._closing = False
        self._watchman = Watchman(self)
        self._failures = 0
        self._forge = Forge(self, kind, loader, spec, blocks=processes * 2 + 10, seats=seats, child=Child)
        self._reports = msgspec.msgpack.Decoder(Report)
        self._asks: set[asyncio.Task[None]] = set()

    # --- life

    async def start(self) -> Catalogue:
        """Start the template process, wait for its catalogue, fork the children. Raises ImproperlyConfigured with the
        text of the import error when the app can't be imported."""
        self._loop = asyncio.get_running_loop()
        catalogue = await self._forge.start()
        for _ in range(self._target):
            self._spawn()
        return catalogue

    async def stop(self, grace: float | None) -> None:
        """Take no more; wait at most `grace` seconds (None: without bound) for what runs; end all processes."""
        self._closing = True
        with contextlib.suppress(asyncio.TimeoutError):
            async with asyncio.timeout(grace):
                while any(c.sent for c in self.children.values()):
                    await asyncio.sleep(0.02)
        for child in list(self.children.values()):
            child.stopping = True
            if not child.sent:
                self.write(child, frame(Down.STOP, b""))
        with contextlib.suppress(asyncio.TimeoutError):
            async with asyncio.timeout(3.0 if grace is None or grace > 0 else 0.05):
                while any(not c.sent for c in self.children.values()):
                    await asyncio.sleep(0.01)
        await self._forge.stop()
        for child in list(self.children.values()):
            self._discard(child)
        self._watchman.stop()

    # --- intake

    def submit(self, call: Call) -> None:
        """Queue a call. Runs as soon as a child has room; in the order of submission."""
        (self.quarantine if call.alone and not self.single else self.ready).append(call)

    def hunger(self) -> int:
        """How many more calls the pool can use soon: free seats, and a little ahead while tasks are short."""
        if self._closing:
            return 0
        now = time.monotonic()
        cost = self.cost
        ahead = min(200, int(AHEAD_SECONDS / cost)) if cost < AHEAD_SECONDS / 2 else 0
        room = 0
        for child in self.children.values():
            if child.room() and not child.quarantine:
                held = len(child.sent)
                if held and now - child.progress > STUCK_SECONDS:
                    room += max(0, child.seats - held)
                else:
                    room += child.seats + ahead - held
        return max(0, room - len(self.ready))

    def held(self) -> int:
        """Calls in the pool, waiting or running."""
        return len(self.ready) + len(self.quarantine) + sum(len(c.sent) for c in self.children.values())

    def busy(self) -> list[Call]:
        """Calls that run now, or are sent to a child."""
        return [call for child in self.children.values() for call in child.sent.values()]

    def running(self) -> list[tuple[Call, float, int]]:
        """`(call, seconds since it started, pid)` of what really runs."""
        now = time.monotonic_ns()
        found = []
        for child in self.children.values():
            for seq, since in child.slots.running():
                call = child.sent.get(seq)
                if call is not None:
                    found.append((call, (now - since) / 1e9, child.pid))
        return found

    def first(self, call: Call) -> None:
        """Take a call before all others."""
        self.ready.appendleft(call)

    def drain(self) -> list[Call]:
        """Take back what no child has got yet."""
        calls = [*self.ready, *self.quarantine]
        self.ready.clear()
        self.quarantine.clear()
        return calls

    def feed(self) -> None:
        """Hand ready calls to children with room."""
        if self.quarantine:
            self._feed_quarantine()
        ready = self.ready
        if not ready:
            return
        children = [c for c in self.children.values() if c.room() and not c.quarantine]
        if not children:
            return
        children.sort(key=_load)
        share = -(-len(ready) // len(children))
        now = time.monotonic()
        for child in children:
            sent = child.sent
            if sent and now - child.progress > STUCK_SECONDS and len(sent) >= child.seats:
                continue
            out = []
            budget = AHEAD_SECONDS * child.seats - child.load
            count = 0
            while ready and count < share:
                call = ready[0]
                cost = self.pace.get(call.task, 1.0)
                if len(sent) >= child.seats and (cost > budget or len(sent) >= AHEAD_CALLS + child.seats):
                    break
                ready.popleft()
                out.append(self._assign(child, call, cost))
                budget -= cost
                count += 1
            if out:
                if len(sent) == count:
                    child.progress = now
                self.write(child, b"".join(out))
        self._watchman.arm()

    def _assign(self, child: Child, call: Call, cost: float) -> bytes:
        self._seq = seq = self._seq + 1
        call.seq = seq
        call.cost = cost
        child.sent[seq] = call
        child.load += cost
        if call.end is not None:
            return frame(Down.END, msgspec.msgpack.encode((seq, call.blob, *call.end)))
        if call.replay is not None:
            return frame(Down.REPLAY, msgspec.msgpack.encode((seq, call.blob, call.replay)))
        return run_frame(seq, call.blob)

    def _feed_quarantine(self) -> None:
        """Suspects run one at a time, each in a child where nothing else runs."""
        cells = [c for c in self.children.values() if c.quarantine and not c.retiring]
        for cell in cells:
            if cell.ready and not cell.sent and self.quarantine:
                self.write(cell, self._assign(cell, self.quarantine.popleft(), 1.0))
        missing = min(4, len(self.quarantine)) - sum(not c.ready for c in cells)
        for _ in range(min(missing, 4 - len(cells))):
            self._spawn(quarantine=True)
        self._watchman.arm()

    # --- orders

    def cancel(self, owner_matches: Callable[[Call], bool], why: str, detail: str, signum: int) -> int:
        """Terminate what matches and was handed to a child. Returns how many. What is still ready is the worker's."""
        count = 0
        for child in list(self.children.values()):
            running = {seq for seq, _ in child.slots.running()}
            for seq, call in list(child.sent.items()):
                if not owner_matches(call) or call.end is not None:
                    continue
                count += 1
                call.doomed = why
                if child.seats == 1:
                    if seq in running:
                        child.signal(signal.SIGKILL if signum in IGNORED else signum)
                else:
                    self.write(child, frame(Down.CANCEL, msgspec.msgpack.encode((seq, "terminate"))))
        return count

    # --- children

    def _spawn(self, quarantine: bool = False) -> None:
        try:
            child = self._forge.request(quarantine)
        except (OSError, errors.OperationalError) as error:
            self.on_failed(-1, str(error))
            return
        self.children[child.index] = child
        self._loop.add_reader(child.work.fileno(), self._read_work, child)
        self._loop.add_reader(child.side.fileno(), self._read_side, child)
        self._watchman.arm()

    def balance(self) -> None:
        """Start or retire children until there are as many as wanted."""
        live = [c for c in self.children.values() if not c.retiring and not c.quarantine]
        for _ in range(self._target - len(live)):
            self._spawn()
        for child in sorted(live, key=_load)[: max(0, len(live) - self._target)]:
            self.retire(child)

    def retire(self, child: Child) -> None:
        """Give a child no more calls, and end it when it has none."""
        child.retiring = True
        if not child.sent and not child.stopping:
            child.stopping = True
            self.write(child, frame(Down.STOP, b""))

    def _discard(self, child: Child) -> None:
        if self.children.pop(child.index, None) is None:
            return
        for sock in (child.work, child.side):
            self._loop.remove_reader(sock.fileno())
            self._loop.remove_writer(sock.fileno())
            sock.close()
        self._forge.reclaim(child.index)

    def on_forked(self, index: int, pid: int) -> None:
        """A child has got its process."""
        child = self.children.get(index)
        if child is not None:
            child.pid = pid

    def on_failed(self, index: int, text: str) -> None:
        """A child could not be made: try again with growing pauses, then give up for good."""
        child = self.children.get(index)
        if child is not None:
            self._discard(child)
        self._failures += 1
        log.error("a pool child could not be started: %s", text)
        if self._failures > 20:
            self.listener.on_broken(f"no pool child can be started: {text}")
        elif not self._closing:
            self._loop.call_later(min(5.0, 0.05 * 2**self._failures), self.balance)

    def on_exited(self, index: int, pid: int, status: int) -> None:
        """The template reaped a child. Everything it had written is read first."""
        child = self.children.get(index)
        if child is None or (child.pid and child.pid != pid):
            return
        with contextlib.suppress(OSError):
            while self._read_work(child):
                pass
        self._bury(child, _describe(status))

    def on_template_lost(self) -> None:
        """The template died, and its children with it. Nothing of it is a message's fault."""
        for child in list(self.children.values()):
            calls = list(child.sent.values())
            child.sent.clear()
            self.ready.extendleft(reversed(calls))
            self._discard(child)
        if not self._closing:
            log.warning("the template process was lost; starting a new one")
            task = self._loop.create_task(self._restart())
            self._asks.add(task)
            task.add_done_callback(self._asks.discard)

    async def _restart(self) -> None:
        try:
            self.listener.on_catalogue(await self._forge.start())
        except errors.CeleryError as error:
            self.listener.on_broken(str(error))
            return
        self.balance()
        self.listener.on_progress()

    def _bury(self, child: Child, reason: str) -> None:
        running = {seq for seq, _ in child.slots.running()}
        calls = list(child.sent.values())
        child.sent.clear()
        expected = child.stopping and not calls
        self._discard(child)
        back: list[Call] = []
        for call in calls:
            if call.doomed:
                call.end = (call.doomed, seconds_text(call.hard) if call.doomed == "timeout" else "")
                call.doomed = ""
                back.append(call)
            elif call.seq in running and not child.given_up:
                self.lost += 1
                self.listener.on_lost(call, reason)
            else:
                back.append(call)
        self.ready.extendleft(reversed(back))
        if not expected and not self._closing:
            log.warning("pool child %d was lost (%s) while it ran %d task(s)", child.pid, reason, len(running))
        if not self._closing:
            if not child.ready:
                # died before it was ready: pause, or a broken app would fork without end
                self.on_failed(-1, f"the child ended while it started ({reason})")
            elif not child.quarantine:
                self.balance()
        self.listener.on_progress()

    # --- reading

    def _read_work(self, child: Child) -> bool:
        try:
            data = child.work.recv(262144)
        except BlockingIOError:
            return False
        except OSError:
            data = b""
        if not data:
            # the exit status comes from the template; a child that only closed its pipe is of no use either
            self._loop.remove_reader(child.work.fileno())
            self._loop.call_later(1.0, self._signal_if_there, child, child.pid)
            return False
        child.progress = time.monotonic()
        sent = child.sent
        listener = self.listener
        pace = self.pace
        for kind, payload in child.splitter.feed(data):
            if kind == Up.DONE:
                seq, flags, runtime = _DONE_BODY(payload)
                call = sent.pop(seq, None)
                if call is None:
                    continue
                child.load -= call.cost
                child.done += 1
                cost = runtime + FLOOR_SECONDS
                old = pace.get(call.task)
                pace[call.task] = cost if old is None else old + 0.2 * (cost - old)
                self.cost += 0.1 * (cost - self.cost)
                listener.on_done(call, payload[13:] if flags & 1 else None, runtime)
            elif kind == Up.REPORT:
                self._on_report(child, payload)
            else:
                self._on_other(child, kind, payload)
        if not sent:
            child.load = 0.0
        if child.retiring and not sent:
            self.retire(child)
        elif self.max_tasks is not None and child.done >= self.max_tasks and not child.retiring:
            self.retire(child)
            self.balance()
        listener.on_progress()
        return True

    def _signal_if_there(self, child: Child, pid: int) -> None:
        if self.children.get(child.index) is child and child.pid == pid:
            child.kill()

    def _on_report(self, child: Child, payload: bytes) -> None:
        report = self._reports.decode(payload)
        call = child.sent.pop(report.seq, None)
        if call is None:
            return
        child.load -= call.cost
        child.done += 1
        if call.end is None:
            cost = report.runtime + FLOOR_SECONDS
            old = self.pace.get(call.task)
            self.pace[call.task] = cost if old is None else old + 0.2 * (cost - old)
            self.cost += 0.1 * (cost - self.cost)
        self.listener.on_report(call, report)

    def _on_other(self, child: Child, kind: int, payload: bytes) -> None:
        if kind == Up.SKIPPED:
            call = child.sent.pop(SEQ.unpack(payload)[0], None)
            if call is not None:
                child.load -= call.cost
                self.ready.appendleft(call)
        elif kind == Up.READY:
            _, child.pid = msgspec.msgpack.decode(payload)
            child.ready = True
            self._failures = 0
        elif kind == Up.STARTED:
            self.listener.on_store(payload)
        elif kind == Up.EVENTS:
            self.listener.on_events(msgspec.msgpack.decode(payload))
        elif kind == Up.CATALOGUE:
            self.listener.on_catalogue(msgspec.msgpack.decode(payload, type=Catalogue))

    def _read_side(self, child: Child) -> None:
        try:
            data = child.side.recv(262144)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._loop.remove_reader(child.side.fileno())
            return
        for kind, payload in child.side_splitter.feed(data):
            task = self._loop.create_task(self._answer(child, kind, payload))
            self._asks.add(task)
            task.add_done_callback(self._asks.discard)

    async def _answer(self, child: Child, kind: int, payload: bytes) -> None:
        waits = kind == Ask.WATCH
        child.asking += waits
        try:
            args = msgspec.msgpack.decode(payload[8:])
            value = await self.listener.ask(Ask(kind), args)
            answer = frame(Answer.OK, payload[:8] + msgspec.msgpack.encode(value))
        except Exception as error:  # every error belongs to the task that asked
            answer = frame(Answer.ERROR, payload[:8] + msgspec.msgpack.encode((type(error).__name__, str(error))))
        finally:
            child.asking -= waits
        if self.children.get(child.index) is child:
            send(self._loop, child.side, child.side_out, answer)

    def free_seats(self) -> int:
        """Seats of this worker that are free for other work while tasks wait for results."""
        # a task may wait for many results at once, but it takes one seat
        return sum(c.seats - min(c.asking, len(c.slots.running())) for c in self.children.values() if c.room())

    # --- writing

    def write(self, child: Child, data: bytes) -> None:
        """Write to the work pair of a child without blocking."""
        send(self._loop, child.work, child.out, data)

    def kill(self, calls: Iterable[Call]) -> None:
        """End the children that hold these calls at once (cold shutdown)."""
        wanted = {id(c) for c in calls}
        for child in self.children.values():
            if any(id(c) in wanted for c in child.sent.values()):
                child.kill()


def _load(child: Child) -> float:
    return child.load + len(child.sent) * 1e-6


def _describe(status: int) -> str:
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        with contextlib.suppress(ValueError):
            return f"signal {number} ({signal.Signals(number).name})"
        return f"signal {number}"
    return f"exitcode {os.waitstatus_to_exitcode(status)}"
