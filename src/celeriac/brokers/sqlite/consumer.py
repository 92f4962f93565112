"""A worker's claim on some queues of the SQLite file."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Collection, Sequence
from sqlite3 import Connection

from celeriac.brokers.dead_letters import DEAD_LETTER_LIMIT
from celeriac.brokers.lease import LeaseWatch
from celeriac.brokers.sqlite import claiming, leases, places, settling
from celeriac.brokers.sqlite.publishing import DATA_ERRORS, name_queues
from celeriac.drivers.chords import hold_seconds
from celeriac.drivers.doorbell import Bells
from celeriac.drivers.listener import Listener
from celeriac.drivers.sqlite import Database
from celeriac.drivers.sqlite_results import Sweeper
from celeriac.drivers.sqlite_thread import DatabaseThread
from celeriac.model.message import Completion, Delivery, Demand, Receipt, Requeue, Return, Turn, Verdict

log = logging.getLogger("celeriac.sqlite")
_GIVING_BACK = frozenset({Return, Requeue})
_TIDY_SECONDS = 30.0
_TIDY_BUDGET = 0.2
"""Seconds at most in a row, in transactions of one chunk."""


class SqliteConsumer:
    """Consumer on an SQLite file. All its work is done by the broker's one thread."""

    ahead = False

    def __init__(
        self,
        database: DatabaseThread,
        bells: Bells,
        queues: Sequence[str],
        epoch: str,
        lease: float,
        clock: Callable[[], float],
        dead_limit: int = DEAD_LETTER_LIMIT,
    ) -> None:
        self._database = database
        self._bells = bells
        self._queues = tuple(queues)
        self._epoch = epoch
        self._lease = lease
        self._hold = hold_seconds(lease)
        self._clock = clock
        self._dead_limit = dead_limit
        self._listener = Listener(bells, "w")
        self._own_bell = self._listener.path
        self._watch = LeaseWatch(lease, clock())
        self._version = (-1, -1)
        self._due: float | None = None
        self._turns = 0
        self._tidied = time.monotonic()
        self._sweeper = Sweeper()

    async def open(self) -> None:
        """Take the lease."""
        now = self._clock()

        def work(connection: Connection) -> None:
            name_queues(connection, self._queues)
            leases.hold_lease(connection, self._epoch, now, self._lease)

        await self._database.run(lambda database: database.write(work))

    async def cycle(self, finished: Sequence[Completion], want: Demand) -> Turn:
        """Settle what is finished and claim what is wanted, in one transaction."""
        self._listener.clear()
        turn = await self._database.run(lambda database: self._cycle(database, finished, want))
        self._due = turn.next_due
        return turn

    def _cycle(self, database: Database, finished: Sequence[Completion], want: Demand) -> Turn:
        now = self._clock()
        if not finished:
            version = database.version()
            idle = database.read(lambda connection: self._idle(connection, want, now))
            if idle is not None:
                self._version = version
                return idle
        try:
            turn = database.write(lambda connection: self._work(connection, finished, want, now))
        except DATA_ERRORS:
            turn = database.write(lambda connection: self._work(connection, finished, want, now, singly=True))
        # To ask for the version costs too much for each cycle; so the next wait without a ring ends early, once.
        self._version = (-1, -1)
        if kinds := _bells_for(finished):
            self._bells.ring(kinds, self._own_bell)
        return turn

    def _idle(self, connection: Connection, want: Demand, now: float) -> Turn | None:
        """The turn when there is nothing to do, found without keeping any writer waiting."""
        due = claiming.next_due(connection, self._queues)
        if due is not None and due <= now:
            return None
        if want.count > 0 and claiming.has_ready(connection, self._queues):
            return None
        if want.parked and claiming.has_parked(connection, self._queues, want):
            return None
        return Turn((), (), due, now, places.cancel_version(connection))

    def _work(
        self,
        connection: Connection,
        finished: Sequence[Completion],
        want: Demand,
        now: float,
        singly: bool = False,
    ) -> Turn:
        verdicts: list[Verdict] = []
        if finished:
            finish = settling.finish_singly if singly else settling.finish
            verdicts = finish(connection, finished, now, self._hold)
        due = claiming.promote(connection, self._queues, now)
        cancelled = leases.hold_lease(connection, self._epoch, now, self._lease)
        deliveries: list[Delivery] = []
        more = False
        if want.count > 0 or want.parked:
            # Random, so that no claim of this epoch, by whichever consumer, ever has a number that another had.
            number = int.from_bytes(os.urandom(7), "big")
            queues = self._queues
            if len(queues) > 1:
                first = self._turns % len(queues)
                self._turns += 1
                queues = queues[first:] + queues[:first]
            deliveries, more = claiming.claim(connection, queues, want, self._epoch, number)
        return Turn(deliveries, verdicts, due, now, cancelled, more)

    async def wait(self) -> None:
        """Return after a ring, after any other change of the file, or when a scheduled message is due."""
        while True:
            patience = self._listener.look
            if self._due is not None:
                patience = min(patience, max(self._due - self._clock(), 0.001))
            if await self._listener.wait(patience):
                return
            if self._due is not None and self._clock() >= self._due:
                return
            if await self._database.run(lambda database: database.version()) != self._version:
                return

    async def renew(self, running: Sequence[Receipt]) -> bool:
        """Prolong the lease and mark what runs. False: another worker had taken what we held."""
        now = self._clock()
        stood = await self._database.run(
            lambda database: database.write(
                lambda connection: leases.renew(connection, self._epoch, running, now, self._lease)
            )
        )
        self._watch.renewed(now)
        await self._tidy()
        return stood

    async def _tidy(self) -> None:
        start = time.monotonic()
        if start - self._tidied < _TIDY_SECONDS:
            return
        self._tidied = start
        now = self._clock()
        gone = await self._database.run(
            lambda database: database.write(lambda connection: places.tidy(connection, now, self._dead_limit))
        )
        for queue, number in gone.items():
            log.warning("%s: more than %s dead letters; the oldest %s are deleted", queue, self._dead_limit, number)
        more = True
        while more and time.monotonic() - start < _TIDY_BUDGET:
            more = await self._database.run(lambda database: self._sweeper.sweep(database, now))

    async def recover(self) -> int:
        """Give back the messages of workers whose lease has ended. Returns how many."""
        now = self._clock()
        if not self._watch.may_recover(now):
            return 0
        recovered = await self._database.run(lambda database: self._recover(database, now))
        if recovered:
            self._bells.ring("w")
        return recovered

    def _recover(self, database: Database, now: float) -> int:
        recovered = 0
        for dead in database.read(lambda connection: leases.dead_workers(connection, self._epoch, now)):
            recovered += database.write(lambda connection, dead=dead: leases.recover(connection, dead, now))  # type: ignore[misc]
        return recovered

    async def standing(self, receipts: Collection[Receipt]) -> frozenset[Receipt]:
        """Those of `receipts` that are in flight under this epoch."""
        tags = await self._database.run(
            lambda database: database.read(lambda connection: leases.standing(connection, self._epoch))
        )
        return frozenset(receipt for receipt in receipts if receipt.tag in tags)

    async def adopt(self, known: Collection[Receipt]) -> int:
        """Put back to the heads what is in flight under this epoch but not in `known`. Returns how many."""
        tags = {receipt.tag for receipt in known}
        adopted = await self._database.run(
            lambda database: database.write(lambda connection: leases.adopt(connection, self._epoch, tags))
        )
        if adopted:
            self._bells.ring("w")
        return adopted

    async def change(self, queues: Sequence[str]) -> None:
        """Consume other queues from now on. Open receipts stay good."""
        self._queues = tuple(queues)
        await self._database.run(
            lambda database: database.write(lambda connection: name_queues(connection, queues))
        )
        self._listener.ring()

    async def leave(self) -> None:
        """Put back to the heads what is in flight, uncounted, and end the lease."""
        await self._database.run(
            lambda database: database.write(lambda connection: leases.leave(connection, self._epoch))
        )
        self._bells.ring("w", self._own_bell)

    async def close(self) -> None:
        """Hear of no change any more. The lease stays as it is; the connection is the broker's."""
        self._listener.close()


def _bells_for(finished: Sequence[Completion]) -> str:
    """Who is to hear of it: `w` who waits for work, `r` who waits for results."""
    work = results = ""
    for completion in finished:
        if completion.store is not None:
            results = "r"
        if completion.publish or type(completion.settlement) in _GIVING_BACK:
            work = "w"
    return work + results
