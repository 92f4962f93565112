"""A worker's claim on some queues of the database."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Collection, Sequence
from contextlib import suppress
from typing import Any

import msgspec

from celeriac.brokers.dead_letters import DEAD_LETTER_LIMIT
from celeriac.brokers.lease import LeaseWatch
from celeriac.brokers.losses import after_lost_worker
from celeriac.brokers.postgres import sweeping
from celeriac.brokers.postgres.settling import NOTHING, columns, parts_of
from celeriac.drivers.alarm import Alarm
from celeriac.drivers.chords import hold_seconds
from celeriac.drivers.postgres import calls
from celeriac.drivers.postgres.arrays import Byteas, Int4s, Int8s, Texts
from celeriac.drivers.postgres.failures import is_about_values, is_in_the_way, reason_of
from celeriac.drivers.postgres.line import Line, Rows
from celeriac.drivers.postgres.lines import Lines
from celeriac.errors import OperationalError
from celeriac.model.message import (
    DONE,
    LOST,
    Completion,
    Dead,
    Delivery,
    Demand,
    Receipt,
    Turn,
    Verdict,
)

log = logging.getLogger("celeriac.postgres")

CYCLE = f"SELECT * FROM celeriac_1_cycle({', '.join(f'${n}' for n in range(1, 35))})"
WORK = "celeriac_work"
"""The channel on which new messages are told, by the name of their queue."""
_LOOK_SECONDS = 10.0
"""How often who waits looks by itself where notifications come through: a lost one costs so much."""
_LOOK_SOON = 0.05
"""The first look, once: a commit that was under way when we said that we wait."""
_LOOK_OFTEN, _LOOK_SELDOM = 0.02, 0.5
"""The first and the last pause between looks where no notifications come through."""
_LEASES = """
SELECT epoch, expires, celeriac_1_now(),
    clock_timestamp() > pg_postmaster_start_time() + $2::double precision * interval '1 second'
FROM celeriac_workers WHERE epoch <> $1::text ORDER BY expires LIMIT 100
"""
_END = "DELETE FROM celeriac_workers WHERE epoch = $1::text AND expires <= celeriac_1_now() RETURNING running"
_HELD = """
SELECT m.id, m.blob FROM celeriac_inflight AS f JOIN celeriac_messages AS m ON m.id = f.id WHERE f.epoch = $1::text
"""
_MARKED = """
UPDATE celeriac_messages AS m SET blob = u.blob FROM unnest($1::bigint[], $2::bytea[]) AS u (id, blob) WHERE m.id = u.id
"""
_GIVE_BACK = "SELECT celeriac_1_give_back($1::text, $2::bigint[], $3::bigint[])"
_HEAD = msgspec.json.Decoder(dict[str, Any])


class PostgresConsumer:
    """Consumer on a database. Cycles have a connection of their own; leases share one with notifications."""

    ahead = False

    def __init__(
        self, lines: Lines, queues: Sequence[str], epoch: str, lease: float, dead_limit: int = DEAD_LETTER_LIMIT
    ) -> None:
        self._lines = lines
        self._hot = Line(lines.site)
        self._epoch = epoch
        self._lease = lease
        self._hold = hold_seconds(lease)
        self._name(queues)
        self._rung = Alarm()
        self._claim = 0
        self._asked_queues: tuple[str, ...] = ()
        self._armed = False
        """We had said that we wait before the last look: what came since then has rung."""
        self._looks = 0
        self._turns = 0
        self._watch: LeaseWatch | None = None
        self._recoveries = 0.0
        """Monotonic time of the next look at leases."""
        self._sweeps = sweeping.Sweeps(lines, dead_limit)

    def _name(self, queues: Sequence[str]) -> None:
        self._queues = tuple(queues)
        self._heard = frozenset(queue[:1000] for queue in queues)

    async def open(self) -> None:
        """Take the lease, and listen."""
        await self._lines.hear(self._hear, (WORK,))
        await self._lines.ear.run(
            "INSERT INTO celeriac_queues SELECT unnest($1::text[]) ON CONFLICT DO NOTHING", (Texts(self._queues),)
        )
        [(_, now)] = await self._renewed(())
        self._watch = LeaseWatch(self._lease, now / 1e6)

    def _hear(self, channel: str, payload: str) -> None:
        if not channel or (channel == WORK and payload in self._heard):
            self._rung.set()

    # Cycles

    async def cycle(self, finished: Sequence[Completion], want: Demand) -> Turn:
        """Settle what is finished and claim what is wanted, in one statement; where chords are concerned, in one
        transaction of some statements."""
        self._rung.clear()
        if not finished:
            rows = await self._hot.run(CYCLE, self._asked(want, NOTHING, durable=False))
            return self._turn(rows, [], want)
        try:
            return await self._cycle(finished, want)
        except Exception as error:
            if not is_about_values(error):
                raise
            if len(finished) == 1:
                return await self._buried(finished[0], error, want)
        verdicts: list[Verdict] = []
        for completion in finished:
            verdicts += (await self.cycle([completion], Demand(0))).verdicts
        turn = await self.cycle((), want)
        return msgspec.structs.replace(turn, verdicts=verdicts)

    async def _cycle(self, finished: Sequence[Completion], want: Demand) -> Turn:
        verdicts: list[Verdict | None] = [None] * len(finished)
        left: list[tuple[int, Completion]] = []
        seen: set[Receipt] = set()
        documents: set[str] = set()
        chords = False
        for number, completion in enumerate(finished):
            receipt = completion.receipt
            if receipt is not None:
                if receipt in seen:
                    verdicts[number] = LOST
                    continue
                seen.add(receipt)
            if completion.store is not None:
                if completion.store.id in documents:
                    return await self._in_two(finished, number, want)
                documents.add(completion.store.id)
            chords = chords or bool(completion.parts or completion.fire or completion.chords)
            left.append((number, completion))
        if chords:
            rows = await self._with_chords(left, verdicts, want)
        else:
            rows = await self._hot.run(CYCLE, self._asked(want, columns(left, frozenset()), durable=True))
        self._sweeps.settled += len(finished)
        return self._turn(rows, verdicts, want)

    async def _in_two(self, finished: Sequence[Completion], number: int, want: Demand) -> Turn:
        """A document that comes twice: the second one after the first."""
        first = await self.cycle(finished[:number], Demand(0))
        second = await self.cycle(finished[number:], want)
        return msgspec.structs.replace(second, verdicts=[*first.verdicts, *second.verdicts])

    async def _with_chords(
        self, left: list[tuple[int, Completion]], verdicts: list[Verdict | None], want: Demand
    ) -> Rows:
        """End, open and count before the rest, all in one transaction. What another one got in the way of is tried
        again from its beginning."""
        for tries in range(5, 0, -1):
            told = list(verdicts)
            try:
                async with self._hot.transaction() as run:
                    rest, kept = await self._chords(run, left, told)
                    rows: Rows = await run(CYCLE, self._asked(want, columns(rest, kept), durable=True))
            except OperationalError as error:
                if not is_in_the_way(error.__cause__) or tries == 1:
                    raise
            else:
                verdicts[:] = told
                return rows
        raise AssertionError("the last try returns or raises")

    async def _chords(
        self, run: Any, left: list[tuple[int, Completion]], verdicts: list[Verdict | None]
    ) -> tuple[list[tuple[int, Completion]], frozenset[int]]:
        receipts = [parts_of(each.receipt) for _, each in left if each.receipt is not None]
        [(held,)] = await run(
            "SELECT celeriac_1_fence($1::text, $2, $3)",
            (self._epoch, Int8s([message for message, _ in receipts]), Int8s([claim for _, claim in receipts])),
        )
        held = frozenset(held)
        rest: list[tuple[int, Completion]] = []
        for number, each in left:
            if each.receipt is not None and parts_of(each.receipt)[0] not in held:
                verdicts[number] = LOST
            else:
                rest.append((number, each))
        if fires := [each.fire for _, each in rest if each.fire is not None]:
            [(ended,)] = await run(*calls.fire(fires, self._hold))
            mine = iter(ended)
            # Who does not hold the chord any more has its message settled, and nothing else.
            rest = [
                (number, each if each.fire is None or next(mine) else Completion(each.receipt, each.settlement))
                for number, each in rest
            ]
        if opened := [chord for _, each in rest for chord in each.chords]:
            await run(*calls.open_chords(opened))
        kept: set[int] = set()
        if parts := [(number, part) for number, each in rest for part in each.parts]:
            [(complete,)] = await run(*calls.count([part for _, part in parts], self._hold))
            groups: dict[int, dict[str, None]] = {}
            for (number, part), mine_too in zip(parts, complete, strict=True):
                if mine_too:
                    groups.setdefault(number, {})[part.group] = None
            for number, names in groups.items():
                verdicts[number] = Verdict(True, complete=tuple(names))
                kept.add(number)
        return rest, frozenset(kept)

    async def _buried(self, completion: Completion, error: BaseException, want: Demand) -> Turn:
        """What can't be carried out goes to the dead letters with what is wrong with it."""
        reason = reason_of(error)
        receipt = completion.receipt
        burial = () if receipt is None else columns([(0, Completion(receipt, Dead(reason)))], frozenset())
        rows = await self._hot.run(CYCLE, self._asked(want, burial or NOTHING, durable=True))
        return self._turn(rows, [Verdict(False, error=reason)], want)

    def _asked(self, want: Demand, finished: tuple[Any, ...], *, durable: bool) -> tuple[Any, ...]:
        queues: tuple[str, ...] = self._queues
        if len(queues) > 1:
            first = self._turns % len(queues)
            self._turns += 1
            queues = queues[first:] + queues[:first]
        self._asked_queues = queues
        # Random, so that no claim of this epoch, by whichever consumer, ever has a number that another had.
        self._claim = int.from_bytes(os.urandom(7), "big")
        parked = {key: count for key, count in want.parked.items() if count > 0}
        return (
            self._epoch, int(self._lease * 1e6), durable, Texts(queues), max(want.count, 0), want.size,
            Texts(list(parked)) if parked else None, Int4s(list(parked.values())) if parked else None, self._claim,
            *finished,
        )  # fmt: skip

    def _turn(self, rows: Rows, verdicts: Sequence[Verdict | None], want: Demand) -> Turn:
        head = _HEAD.decode(rows.pop()[2])
        claim, queues = self._claim, self._asked_queues
        lost = frozenset(head["lost"])
        if want.count > 0:
            self._armed = head["armed"]
        if rows or verdicts:
            self._looks = 0
        due = head["due"]
        return Turn(
            [Delivery(Receipt(queues[place - 1], f"{number}.{claim}"), blob) for place, number, blob in rows],
            [LOST if number in lost else verdict or DONE for number, verdict in enumerate(verdicts)],
            None if due is None else due / 1e6,
            head["now"] / 1e6,
            head["cancelled"],
            head["more"],
        )

    async def wait(self) -> None:
        """Return after a ring, or when it is time to look."""
        if self._lines.ear.listens:
            if not self._armed:
                return  # what came before we had said that we wait has not rung
            pause = _LOOK_SECONDS if self._looks else _LOOK_SOON
        else:
            pause = min(_LOOK_OFTEN * 1.5 ** min(self._looks, 20), _LOOK_SELDOM)
        self._looks = 0 if await self._rung.wait(pause) else self._looks + 1

    # Leases

    async def _renewed(self, running: Sequence[Receipt]) -> Rows:
        numbers = Int8s([parts_of(receipt)[0] for receipt in running])
        return await self._lines.ear.run(
            "SELECT stood, now FROM celeriac_1_renew($1::text, $2::bigint, $3)",
            (self._epoch, int(self._lease * 1e6), numbers),
            # a dead connection is to be noticed well before the lease ends
            min(self._lines.site.timeout, max(2.0, self._lease / 6)),
        )

    async def renew(self, running: Sequence[Receipt]) -> bool:
        """Prolong the lease and mark what runs. False: another worker had taken what we held."""
        [(stood, now)] = await self._renewed(running)
        assert self._watch is not None
        self._watch.renewed(now / 1e6)
        self._sweeps.begin()
        return bool(stood)

    async def recover(self) -> int:
        """Give back the messages of workers whose lease has ended. Returns how many. Asks the database only when a
        lease that it knows of may have ended, and now and then for new ones."""
        now = time.monotonic()
        if now < self._recoveries:
            return 0
        leases = await self._lines.ear.run(_LEASES, (self._epoch, float(self._lease)))
        assert self._watch is not None
        recovered = 0
        self._recoveries = now + self._lease / 3
        for epoch, expires, told, settled in leases:
            if expires > told:
                self._recoveries = min(self._recoveries, now + (expires - told) / 1e6)
                break
            self._recoveries = now
            if settled and self._watch.may_recover(told / 1e6):
                recovered += await self._recover(epoch)
        return recovered

    async def _recover(self, dead: str) -> int:
        async with self._lines.ear.transaction() as run:
            ended = await run(_END, (dead,))
            if not ended:
                return 0  # another was first, or it lives
            running = frozenset(ended[0][0])
            held = await run(_HELD, (dead,))
            marked = [after_lost_worker(blob, number in running) for number, blob in held]
            await run(_MARKED, (Int8s([number for number, _ in held]), Byteas(marked)))
            await run("DELETE FROM celeriac_waiting WHERE name = $1::text", (dead,))
            [(count,)] = await run(_GIVE_BACK, (dead, None, None))
        return int(count)

    async def standing(self, receipts: Collection[Receipt]) -> frozenset[Receipt]:
        """Those of `receipts` that are in flight under this epoch."""
        wanted = {parts_of(receipt): receipt for receipt in receipts}
        rows = await self._lines.ear.run(
            "SELECT id, claim FROM celeriac_inflight WHERE epoch = $1::text AND id = ANY ($2)",
            (self._epoch, Int8s([number for number, _ in wanted])),
        )
        return frozenset(wanted[number, claim] for number, claim in rows if (number, claim) in wanted)

    async def adopt(self, known: Collection[Receipt]) -> int:
        """Put back to the heads what is in flight under this epoch but not in `known`. Returns how many."""
        tags = [parts_of(receipt) for receipt in known]
        return await self._give_back(Int8s([number for number, _ in tags]), Int8s([claim for _, claim in tags]))

    async def _give_back(self, ids: Int8s | None, claims: Int8s | None) -> int:
        [(count,)] = await self._lines.ear.run(_GIVE_BACK, (self._epoch, ids, claims))
        return int(count)

    async def change(self, queues: Sequence[str]) -> None:
        """Consume other queues from now on. Open receipts stay good."""
        self._name(queues)
        self._armed = False
        await self._lines.side.run(
            "INSERT INTO celeriac_queues SELECT unnest($1::text[]) ON CONFLICT DO NOTHING", (Texts(queues),)
        )
        self._rung.set()

    async def leave(self) -> None:
        """Put back to the heads what is in flight, uncounted, and end the lease."""
        await self._give_back(None, None)
        await self._lines.ear.run("DELETE FROM celeriac_workers WHERE epoch = $1::text", (self._epoch,))
        await self._lines.ear.run("DELETE FROM celeriac_waiting WHERE name = $1::text", (self._epoch,))

    async def close(self) -> None:
        """Close the connection of the cycles. The lease stays as it is."""
        self._lines.ears.discard(self._hear)
        await self._sweeps.stop()
        with suppress(OperationalError):
            await self._hot.close()
