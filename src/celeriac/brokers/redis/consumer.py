"""A worker's claim on some queues: one script call per cycle on the hot connection, the lease on the control
connection."""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from functools import partial
from typing import Any

import msgspec

from celeriac.brokers.redis import recovery, scripts
from celeriac.brokers.redis.claiming import Grab, Plan, deliver
from celeriac.brokers.redis.control import Control
from celeriac.brokers.redis.doorbell import Doorbell
from celeriac.brokers.redis.settling import settle, settle_one_by_one
from celeriac.drivers.pipe import LONGEST_PENALTY
from celeriac.drivers.redis.aio import AsyncConnection
from celeriac.drivers.redis.protocol import failure
from celeriac.drivers.redis.script import unknown
from celeriac.drivers.redis.site import Site
from celeriac.errors import CeleryError, EncodeError, OperationalError
from celeriac.model.message import (
    DONE,
    LOST,
    Completion,
    Delivery,
    Demand,
    Receipt,
    Turn,
    Verdict,
)

log = logging.getLogger("celeriac.redis")

LONGEST_WAIT = 30.0
"""Seconds after which a wait ends even if nothing was told: a lost invalidation costs no more."""
AWAKE = 0.0006
"""Seconds for which an idle worker looks for the answer to a claim without sleeping."""
POLL = 1.0
"""Seconds between looks where the server refuses to tell of every list."""
RUNNING_KEPT = 86_400
"""Seconds that the marks of running receipts outlive the last renewal."""


_let_others_run: Callable[[], object] = getattr(os, "sched_yield", partial(time.sleep, 0))

_Ahead = tuple[Grab, str, int, "asyncio.Future[Any]"]


class RedisConsumer:
    """See `ports.Consumer`. Made by RedisBroker.subscribe."""

    def __init__(self, control: Control, queues: Sequence[str], epoch: str, lease: float) -> None:
        self.control = control
        self.epoch = epoch
        self.lease = lease
        self._name = _new_name()
        self._cycles = 0
        self._hot: AsyncConnection | None = None
        self._doorbell: Doorbell | None = None
        self._likeliest = ""
        """The list at which the doorbell listens: that of the last message."""
        self._plans: list[Plan] = []
        self._grabs: dict[bytes, Grab] = {}
        """The ready lists by their keys."""
        self._idle = False
        """Messages were asked for, the lists were found empty, and nothing was asked since."""
        self._ahead: _Ahead | None = None
        """What was sent when a push came, before the worker asked: the grab, its tag, the rings until then."""
        self._penalty = self._slept = 0
        """Claims after which the loop is not kept awake, and how many of them were."""
        self._next_due: float | None = None
        """When something of any queue is due, by the server's clock, as the last whole cycle has said."""
        self._turn = 0
        self._watched: frozenset[bytes] = frozenset()
        self._bell = asyncio.Event()
        self._bell.set()
        self._rings = 0
        self._due: float | None = None
        self._renewed = 0.0
        self._no_recovery_before = 0.0
        self._unacked_next = 0.0
        self._faults: set[bytes] = set()
        self._set_queues(queues)

    def _set_queues(self, queues: Sequence[str]) -> None:
        layout = self.control.layout
        queues = list(dict.fromkeys(queues))
        if layout.strategy == "sorted":
            queues.sort()
        self.queues = queues
        turns = len(queues) if layout.strategy == "round_robin" and len(queues) > 1 else 1
        orders = [queues[turn:] + queues[:turn] for turn in range(turns)]
        self._plans = [Plan(self.control, order, self.epoch, self.lease) for order in orders]
        self._turn = 0
        self._grabs = {
            layout.ready(queue, step).encode(): Grab(layout, queue, step, self.epoch, self.lease)
            for queue in queues
            for step in layout.steps
        }
        self._idle = False
        self._likeliest = self._plans[0].keys[0]
        self._watched = frozenset(key.encode() for key in self._plans[0].keys)
        self._ring()

    async def start(self) -> None:
        """Connect, begin the lease, make the queues known."""
        await self.control.declare(self.queues)
        self._hot = hot = await AsyncConnection.open(self.control.server, self._pushed, self._lost)
        told = await hot.send(hot.pack(("CLIENT", "TRACKING", "ON", "NOLOOP")))
        if isinstance(told, Exception):
            log.info("%s refuses CLIENT TRACKING (%s); some pushes are seen late", self.control.describe(), told)
            self._doorbell = Doorbell(self.control.server, self._ring)
        await self._renew(())

    # Cycle

    @property
    def ahead(self) -> bool:
        """See ports.Consumer."""
        return self._ahead is not None

    async def cycle(self, finished: Sequence[Completion], want: Demand) -> Turn:
        """See ports.Consumer. Cancelling it closes the connection: what it claimed would be known to nobody."""
        hot = self._hot
        if hot is None:
            raise OperationalError(f"{self.control.describe()}: the consumer is closed")
        ahead, self._ahead, self._idle = self._ahead, None, False
        if ahead is not None:
            turn = await self._claimed_ahead(hot, ahead)
            if not finished:
                return turn
            settled = await self._cycle(hot, finished, Demand(0))
            return msgspec.structs.replace(settled, deliveries=turn.deliveries, more=turn.more)
        turn = await self._cycle(hot, finished, want)
        self._idle = bool(want.count) and not want.parked and not turn.more and not turn.deliveries
        return turn

    def _claim_ahead(self, keys: Collection[bytes]) -> None:
        """One list was pushed to, and nothing was there before: claim at once. By the time that the worker asks, the
        answer is on its way."""
        hot = self._hot
        if not self._idle or hot is None or hot.broken:
            return
        rung = [grab for key in keys if (grab := self._grabs.get(key)) is not None]
        if len(rung) != 1:
            return
        self._idle = False
        self._cycles += 1
        tag = rung[0].tag(f"{self._name}{self._cycles}-")
        since = time.monotonic()
        answer = hot.send(rung[0].packed(tag))
        answer.add_done_callback(_look_away)
        self._ahead = (rung[0], tag, self._rings, answer)
        if self._slept >= self._penalty:
            self._slept = 0
            self._stay_awake(answer, since)
        else:
            self._slept += 1

    def _stay_awake(self, answer: asyncio.Future[Any], since: float) -> None:
        """Keep the loop from sleeping until the answer is here: a halted processor takes as long to wake. Where that is
        in vain (a server far away, processors that others want), it is tried ever more seldom."""
        if answer.done():
            self._penalty = 0
        elif time.monotonic() - since < AWAKE:
            _let_others_run()  # the server may be waiting for this very processor
            asyncio.get_running_loop().call_soon(self._stay_awake, answer, since)
        else:
            self._penalty = min(LONGEST_PENALTY, 2 * self._penalty or 1)

    async def _claimed_ahead(self, hot: AsyncConnection, ahead: _Ahead) -> Turn:
        grab, tag, rings, answer = ahead
        try:
            reply = await answer
            if unknown(reply):
                reply = await hot.send(hot.pack(grab.whole(tag)))
        except asyncio.CancelledError:
            hot.close()
            raise
        if isinstance(reply, Exception):
            raise failure(self.control.server, reply, "claiming")
        turn = grab.turn(tag, reply, self._next_due)
        self._likeliest = grab.key
        self._told(turn, rings)
        return turn

    def _told(self, turn: Turn, rings: int) -> None:
        """Wait for the server's word when it was the last word: nothing is left, and it has not rung since."""
        due = turn.next_due
        self._next_due = due
        self._due = None if due is None else asyncio.get_running_loop().time() + due - turn.now
        if turn.more or rings != self._rings:
            self._bell.set()
        else:
            self._bell.clear()  # the server will tell of the next push

    async def _cycle(self, hot: AsyncConnection, finished: Sequence[Completion], want: Demand) -> Turn:
        unknown_queues = [
            envelope.queue
            for completion in finished
            if completion.publish
            for envelope in completion.publish
            if self.control.undeclared(envelope.queue)
        ]
        if unknown_queues:
            with suppress(EncodeError):  # the completion that has it fails alone, below
                await self.control.declare(unknown_queues)
        if any(completion.store is not None and completion.store.guard for completion in finished):
            finished = await self._without_held(finished)
        count = want.count
        plan = self._plans[self._turn]
        if count:
            self._turn = (self._turn + 1) % len(self._plans)
        self._cycles += 1
        begin = f"{self._name}{self._cycles}-"
        words: list[Any] = [*plan.before, count, want.size, begin, *plan.after]
        words.append(len(want.parked))
        for key, many in want.parked.items():
            words += (key, many)
        start = len(words)
        site = self.control.stores_at or _HERE
        broken: dict[int, str] = {}
        try:
            order = settle(self.control.layout, site, words, finished)
            packed = hot.pack(tuple(words))
        except (UnicodeEncodeError, TypeError):
            del words[start:]
            order = None
            broken = settle_one_by_one(self.control.layout, site, words, finished, hot.pack)
            packed = hot.pack(tuple(words))
        rings = self._rings
        try:
            reply = await hot.send(packed)
            if unknown(reply):
                words[0:2] = ("EVAL", scripts.CYCLE.source)
                reply = await hot.send(hot.pack(tuple(words)))
        except asyncio.CancelledError:
            hot.close()
            raise
        verdicts: list[Verdict] = [DONE] * len(finished)
        turn = self._turn_of(plan, begin, rings, bool(count), reply, verdicts, order)
        for at, text in broken.items():
            verdicts[at] = Verdict(False, error=text)
        return turn

    def _turn_of(
        self,
        plan: Plan,
        begin: str,
        rings: int,
        claims: bool,
        reply: Any,
        verdicts: list[Verdict],
        order: list[int] | None = None,
    ) -> Turn:
        """What a cycle's answer says. `rings`: how often it had rung when the cycle was sent."""
        if isinstance(reply, Exception):
            raise failure(self.control.server, reply, "claiming and settling")
        seconds, micros, due, version, more, exceptions, claimed, unparked, faults = reply
        if faults:
            self._tell_faults(faults)
        for n in range(0, len(exceptions), 2):
            at = exceptions[n] - 1
            verdicts[at if order is None else order[at]] = _verdict(exceptions[n + 1])
        deliveries: list[Delivery] = []
        if claimed:
            self._likeliest = plan.keys[claimed[0]]
        if unparked or claimed:
            deliver(plan, begin, unparked, claimed, deliveries)
        now = int(seconds) + int(micros) / 1_000_000
        turn = Turn(deliveries, verdicts, float(due) if due else None, now, int(version), bool(more))
        self._told(turn, rings if claims else -1)
        return turn

    async def _without_held(self, finished: Sequence[Completion]) -> Sequence[Completion]:
        """The same completions without guarded stores whose key holds a compressed SUCCESS; the script sees others."""
        site = self.control.stores_at
        if site is None:
            return finished
        prefix = site.task
        guarded = [c.store.id for c in finished if c.store is not None and c.store.guard]
        own = self.control.server.db
        try:
            documents = await self.control.link.run(
                scripts.PEEK, (), "" if site.db == own else site.db, own, *[prefix + name for name in guarded]
            )
        except UnicodeEncodeError:  # the completion that has it fails alone, later
            return finished
        held = {name for name, each in zip(guarded, documents, strict=True) if each and site.is_success(each)}
        if not held:
            return finished
        return [
            msgspec.structs.replace(c, store=None) if c.store and c.store.guard and c.store.id in held else c
            for c in finished
        ]

    def _tell_faults(self, faults: list[bytes]) -> None:
        for n in range(0, len(faults), 2):
            key, text = faults[n], faults[n + 1]
            if key not in self._faults:
                self._faults.add(key)
                log.error(
                    "%s: %r is not as it should be, and is passed over: %s",
                    self.control.describe(), key.decode(errors="replace"), text.decode(errors="replace"),
                )  # fmt: skip

    # Waiting

    async def wait(self) -> None:
        """See ports.Consumer. At once when the last cycle left something, or claimed nothing at all."""
        hot = self._hot
        if hot is None:
            raise OperationalError(f"{self.control.describe()}: the consumer is closed")
        if hot.broken:
            raise hot.error()
        if self._bell.is_set():
            return
        longest = LONGEST_WAIT
        if self._doorbell is not None:
            self._doorbell.listen(self._likeliest)
            longest = POLL
        if self._due is not None:
            longest = min(longest, max(0.0, self._due - asyncio.get_running_loop().time()))
        with suppress(TimeoutError):
            async with asyncio.timeout(longest):
                await self._bell.wait()
        if hot.broken:
            raise hot.error()

    def _pushed(self, push: list[Any]) -> None:
        if push[0] == b"invalidate":
            keys = push[1]
            if keys is None or not self._watched.isdisjoint(keys):
                self._rings += 1
                self._claim_ahead(keys or ())
                self._bell.set()

    def _ring(self) -> None:
        self._rings += 1
        self._bell.set()

    def _lost(self, error: CeleryError) -> None:
        self._ring()

    # Lease

    async def renew(self, running: Sequence[Receipt]) -> bool:
        """See ports.Consumer."""
        now = time.monotonic()
        if self._renewed and now - self._renewed > self.lease / 2:
            # We were stopped or cut off: others may have been so too, and be about to renew.
            self._no_recovery_before = now + self.lease
        return await self._renew(running)

    async def _renew(self, running: Sequence[Receipt]) -> bool:
        control = self.control
        connection = await control.link.connection()
        held = await connection.run(
            scripts.RENEW, (), control.layout.prefix, self.epoch, self.lease, control.run_id,
            "\n".join([receipt.tag for receipt in running]), RUNNING_KEPT, *self.queues,
        )  # fmt: skip
        self._renewed = time.monotonic()
        return bool(held)

    async def recover(self) -> int:
        """See ports.Consumer."""
        control = self.control
        now = time.monotonic()
        count = 0
        if now >= self._no_recovery_before and now - self._renewed <= self.lease / 2:
            count += await recovery.recover(control.link, control.layout, control.run_id, self.epoch, self.lease)
        if control.layout.peers and now >= self._unacked_next:
            self._unacked_next = now + control.layout.restore_interval
            count += await recovery.restore_unacked(control.link, control.layout)
        return count

    async def adopt(self, known: Collection[Receipt]) -> int:
        """See ports.Consumer."""
        tags = {receipt.tag for receipt in known}
        link, layout = self.control.link, self.control.layout
        return await recovery.give_back(link, layout, self.epoch, only_dead=False, keep=tags)

    async def standing(self, receipts: Collection[Receipt]) -> frozenset[Receipt]:
        """See ports.Consumer."""
        link, layout = self.control.link, self.control.layout
        asked = list(receipts)
        found: list[int] = await link.many(
            [("HEXISTS", layout.inflight(receipt.queue, self.epoch), receipt.tag) for receipt in asked]
        )
        return frozenset(receipt for receipt, there in zip(asked, found, strict=True) if there)

    async def change(self, queues: Sequence[str]) -> None:
        """See ports.Consumer."""
        await self.control.declare(queues)
        self._set_queues(queues)

    async def leave(self) -> None:
        """See ports.Consumer."""
        self._idle = False
        if self._ahead is not None:
            await asyncio.wait([self._ahead[3]])  # or it would claim after all was given back
        link, layout = self.control.link, self.control.layout
        await recovery.give_back(link, layout, self.epoch, only_dead=False)
        await recovery.end_epoch(link, layout, self.epoch, only_dead=False)

    async def close(self) -> None:
        """See ports.Consumer."""
        hot, self._hot = self._hot, None
        if hot is not None:
            hot.close()
        if self._doorbell is not None:
            self._doorbell.close()
        self._ring()


_HERE = Site("", 0, "", lambda document: False)
"""Where results go that no backend has said a place for."""


def _verdict(told: bytes | list[bytes]) -> Verdict:
    """What the script says of a completion that is not simply done."""
    if isinstance(told, list):
        return Verdict(True, complete=tuple(dict.fromkeys(group.decode() for group in told)))
    return Verdict(False, error=told.decode(errors="replace")) if told else LOST


def _new_name() -> str:
    """Begins the tags of one consumer: never used twice, and later ones sort behind earlier ones."""
    return f"{int(time.time() * 1000):011x}{os.urandom(3).hex()}-"


def _look_away(answer: asyncio.Future[Any]) -> None:
    """Nobody may come for an answer any more; its failure breaks the connection by itself."""
    if not answer.cancelled():
        answer.exception()
