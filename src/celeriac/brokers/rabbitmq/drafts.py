"""From envelopes to what is published, and what has to be declared before. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from celeriac.brokers.rabbitmq import topology as names
from celeriac.brokers.rabbitmq.messages import DUE, FROM, TO, Message, encode
from celeriac.brokers.rabbitmq.topology import Question, Topology
from celeriac.drivers.amqp import answers, frames
from celeriac.drivers.amqp.frames import M, Returned
from celeriac.drivers.amqp.table import short
from celeriac.model.message import Envelope

Need = tuple[str, str]
"""Kind (queue, exchange, ladder, dead, parked, held) and name of something to declare; parked: `queue\\0key`."""


class Draft(NamedTuple):
    """One message that is to be published."""

    exchange: str
    key: str
    header: bytes
    body: bytes
    need: Need
    """What has to be declared before."""
    mandatory: bool = True
    also: tuple[Need, ...] = ()
    """More of that: the other queues that its exchange gives it to."""

    @property
    def needs(self) -> tuple[Need, ...]:
        """Everything that has to be declared before."""
        return (self.need, *self.also)

    def frames(self, channel: int, largest: int) -> bytes:
        """As it goes over a channel."""
        publish = frames.publish(self.exchange, self.key, mandatory=self.mandatory)
        return frames.method(channel, M.PUBLISH, publish) + frames.content(channel, self.header, self.body, largest)

    def lost(self) -> str:
        """What to say when no queue takes it."""
        if not self.exchange:
            return f"the queue {self.key!r} is not there"
        return f"no queue is bound to the exchange {self.exchange!r} with routing key {self.key!r}"


def drafts(envelopes: Iterable[Envelope], topology: Topology, now: float) -> list[Draft]:
    """What publishes envelopes. Those of one message that its exchange gives to several queues become one. Raises
    EncodeError."""
    found: list[Draft] = []
    seen: dict[tuple[str, str, str], int] = {}
    for envelope in envelopes:
        if envelope.not_before is not None and envelope.not_before > now:
            private = {FROM: [envelope.exchange, envelope.routing_key or envelope.queue]}
            header, body = encode(
                envelope.blob, envelope.priority, delayed(envelope.queue, envelope.not_before, private)
            )
            found.append(waiting(envelope.queue, envelope.not_before - now, header, body, topology))
            continue
        exchange = envelope.exchange
        for text in (envelope.queue, exchange, envelope.routing_key):
            short(text)  # raises what would break a whole batch
        if not exchange:
            found.append(to_queue(envelope.queue, *encode(envelope.blob, envelope.priority)))
            continue
        name = (envelope.id, exchange, envelope.routing_key)
        known = topology.find_exchange(exchange)
        fanout = known is not None and known.type == "fanout"
        # every worker declares its own queue at a fanout: ours would be read by nobody
        need = ("exchange", exchange) if fanout else ("queue", envelope.queue)
        if (place := seen.get(name)) is not None:
            found[place] = found[place]._replace(also=(*found[place].also, need))
            continue
        seen[name] = len(found)
        header, body = encode(envelope.blob, envelope.priority)
        found.append(Draft(exchange, envelope.routing_key, header, body, need, mandatory=not fanout))
    return found


def to_queue(queue: str, header: bytes, body: bytes) -> Draft:
    """Straight into a queue."""
    return Draft("", queue, header, body, ("queue", queue))


def delayed(queue: str, due: float, private: Mapping[str, Any]) -> dict[str, Any]:
    """Private headers of a message that waits."""
    return {**private, DUE: due, TO: queue}


def waiting(queue: str, seconds: float, header: bytes, body: bytes, topology: Topology) -> Draft:
    """Onto our ladder of delays."""
    ladder = topology.ladder
    return Draft(ladder.first, ladder.key(seconds, names.word(queue)), header, body, ("ladder", queue))


def postponed(message: Message, queue: str, due: float, now: float, topology: Topology) -> Draft:
    """The same for a message that was delivered."""
    header, body = message.copy(delayed(queue, due, {FROM: message.came_from}))
    return waiting(queue, due - now, header, body, topology)


def declaration(need: Need, topology: Topology, version: tuple[int, ...], epoch: str = "") -> list[Question]:
    """How to declare it."""
    kind, name = need
    match kind:
        case "exchange":
            known = topology.find_exchange(name)
            return topology.exchange(known) if known is not None else []
        case "ladder":
            return [*topology.declaration(name, version), *topology.ladder.declaration(), *topology.way_out(name)]
        case "dead":
            return topology.dead(name, version)
        case "parked":
            queue, _, key = name.partition("\0")
            return topology.parked(queue, key, version)
        case "held":
            return topology.held(name, epoch, version)
        case "replies":
            return [answers.declaration(name, topology.result_expires)]
        case "bus":
            return [topology.bus(name)]
        case "notes":
            return topology.notes()
        case "nothing":
            return []
        case _:
            return topology.declaration(name, version)


def errors(batch: Sequence[Draft], refused: Iterable[int], returned: Iterable[Returned]) -> list[str]:
    """What became of each: empty when it is safe."""
    lost = {(told.exchange, told.routing_key) for told in returned}
    found = [draft.lost() if lost and (draft.exchange, draft.key) in lost else "" for draft in batch]
    for place in refused:
        found[place] = f"the broker refused it: the queue behind {batch[place].key!r} is full or not available"
    return found
