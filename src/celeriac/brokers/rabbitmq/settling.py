"""Completions, carried out: first everything that is to be published is safe, then messages are settled."""

from __future__ import annotations

from collections.abc import Sequence
from typing import assert_never

from celeriac.brokers.rabbitmq import topology as names
from celeriac.brokers.rabbitmq.claims import Claims
from celeriac.brokers.rabbitmq.core import Core
from celeriac.brokers.rabbitmq.drafts import Draft, delayed, drafts, to_queue, waiting
from celeriac.brokers.rabbitmq.messages import FROM, REASON, Message, encode
from celeriac.drivers.amqp import answers
from celeriac.errors import CeleryError
from celeriac.model.message import (
    DONE,
    LOST,
    Ack,
    Completion,
    Dead,
    Delay,
    Park,
    Requeue,
    Return,
    Settlement,
    Verdict,
)


class Settling:
    """One cycle's completions."""

    def __init__(self, core: Core, claims: Claims, generation: int, now: float) -> None:
        self._core = core
        self._claims = claims
        self._generation = generation
        self._now = now
        self.parked: set[tuple[str, str]] = set()
        """(queue, key) of what was parked."""

    async def carry_out(self, finished: Sequence[Completion]) -> tuple[list[Verdict], set[int], list[Message]]:
        """The verdicts; delivery tags to acknowledge; messages to give back. Raises OperationalError, and then nothing
        is settled."""
        held: list[tuple[str, Message] | None] = []
        verdicts: list[Verdict] = []
        batch: list[Draft] = []
        spans: list[range] = []
        try:
            for completion in finished:
                entry, verdict, own = self._prepare(completion)
                held.append(entry)
                verdicts.append(verdict)
                spans.append(range(len(batch), len(batch) + len(own)))
                batch += own
            faults = await self._core.send(batch, self._claims.epoch) if batch else []
            failed = []
            for n, span in enumerate(spans):
                fault = next((faults[place] for place in span if faults[place]), "")
                if fault and verdicts[n].ok:
                    verdicts[n] = Verdict(False, error=fault)
                    failed.append(n)
            deaths = [self._dead(entry[1], verdicts[n].error) for n in failed if (entry := held[n]) is not None]
            await self._core.send(deaths)
        except BaseException:
            self._claims.open.update(entry for entry in held if entry is not None)
            raise
        acks: set[int] = set()
        returns: list[Message] = []
        for entry, completion in zip(held, finished, strict=True):
            if entry is None:
                continue
            message = entry[1]
            settlement = completion.settlement
            if isinstance(settlement, Return) and settlement.blob is None and not message.held:
                returns.append(message)
            else:
                acks.add(message.tag)
        return verdicts, acks, returns

    def _prepare(self, completion: Completion) -> tuple[tuple[str, Message] | None, Verdict, list[Draft]]:
        entry: tuple[str, Message] | None = None
        if completion.receipt is not None:
            tag = completion.receipt.tag
            message = self._claims.open.pop(tag, None)
            if message is None or message.generation != self._generation:
                return None, LOST, []
            entry = tag, message
        try:
            own = drafts(completion.publish, self._core.topology, self._now)
            store = completion.store
            if store is not None and store.reply_to:
                header = answers.header(store, self._core.result_serializer)
                own.append(Draft("", store.reply_to, header, store.document, ("nothing", ""), mandatory=False))
            if entry is not None:
                own += self._settled(entry[1], completion.settlement)
            return entry, DONE, own
        except (CeleryError, UnicodeError, TypeError) as error:
            own = [self._dead(entry[1], str(error))] if entry is not None else []
            return entry, Verdict(False, error=str(error)), own

    def _settled(self, message: Message, settlement: Settlement) -> list[Draft]:
        """The copy that takes the place of the message; none where it is simply acknowledged or given back."""
        queue = message.queue
        match settlement:
            case Ack():
                return []
            case Return(blob=None):
                return [to_queue(queue, *message.copy(message.marks()))] if message.held else []
            case Return(blob=blob) | Requeue(blob=blob):
                made = (
                    message.copy(message.marks()) if blob is None else encode(blob, message.priority, message.marks())
                )
                return [to_queue(queue, *made)]
            case Delay(until=until, blob=blob):
                private = delayed(queue, until, {FROM: message.came_from})
                made = message.copy(private) if blob is None else encode(blob, message.priority, private)
                return [waiting(queue, until - self._now, *made, self._core.topology)]
            case Park(key=key):
                self.parked.add((queue, key))
                made = message.copy({FROM: message.came_from})
                return [Draft("", names.parked(queue, key), *made, ("parked", f"{queue}\0{key}"))]
            case Dead(reason=reason):
                return [self._dead(message, reason)]
            case _:
                assert_never(settlement)

    def _dead(self, message: Message, reason: str) -> Draft:
        made = message.copy({REASON: reason, FROM: message.came_from})
        return Draft("", names.fitting(names.DEAD, message.queue), *made, ("dead", message.queue))
