"""A worker's claim on some queues. RabbitMQ owns the delivery: the channel is the lease, and what it holds goes back
when it closes.

Messages are fetched one by one as they are wanted (GET, many in one write) where tasks are long, and pushed to us where
they are short or the queues are empty: so a worker whose seats are taken keeps nothing from others. What was pushed and
not claimed goes back after a moment.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Collection, Coroutine, Sequence
from typing import Any

from celeriac.brokers.rabbitmq.claims import Claims
from celeriac.brokers.rabbitmq.core import Core, on
from celeriac.brokers.rabbitmq.drafts import Draft, postponed, to_queue
from celeriac.brokers.rabbitmq.messages import AGAIN, COPY, FROM, Message, delivered, got
from celeriac.brokers.rabbitmq.notes import Notes
from celeriac.brokers.rabbitmq.settling import Settling
from celeriac.brokers.rabbitmq.topology import HELD_TTL, held, parked
from celeriac.drivers.alarm import Alarm
from celeriac.drivers.amqp import frames
from celeriac.drivers.amqp.aio import Channel, Connection, Link
from celeriac.drivers.amqp.frames import M
from celeriac.drivers.amqp.machine import Event
from celeriac.errors import CeleryError, OperationalError
from celeriac.model.message import Completion, Delivery, Demand, Receipt, Turn, Verdict
from celeriac.wire import frame
from celeriac.wire.ids import new_id

log = logging.getLogger("celeriac.rabbitmq")

LONGEST_WAIT = 30.0
UNCLAIMED = 0.2
"""Seconds that a pushed message may wait to be claimed before it goes back."""
AHEAD = 0.02
"""Seconds of work that are pushed ahead of the claims."""
MOST = 1000
"""Messages that are pushed ahead at most, of each queue,"""
MOST_BYTES = 32 << 20
"""and about so many bytes."""
ADOPTING = 1.0
"""Seconds in which what we still run has to come back to us after a connection was lost."""
BOUNCES = 10
"""Deliveries of a quorum queue after which a message is replaced by a copy: twenty would end it."""


class RabbitmqConsumer:
    """See `ports.Consumer`. Made by RabbitmqBroker.subscribe."""

    ahead = False

    def __init__(self, core: Core, notes: Notes, claims: Claims, queues: Sequence[str]) -> None:
        self.core = core
        self.claims = claims
        self.epoch = claims.epoch
        self._notes = notes
        self._link = Link(core.servers, core.told_blocked)
        self.queues = list(dict.fromkeys(queues))
        self._channel: Channel | None = None
        self._generation = claims.begin()
        self._kept = not claims.open
        """Nothing that an earlier connection held is in doubt."""
        self._ready: dict[str, deque[Message]] = {}
        self._first: deque[Message] = deque()
        """What came back from our own queues; served before all else."""
        self._consumers: dict[str, str] = {}
        """Consumer tag -> queue, of those that push to us now."""
        self._holding: dict[str, str] = {}
        """The same for our queues of held messages."""
        self._tags = 0
        self._prefetch = 0
        self._outstanding: dict[int, None] = {}
        """Delivery tags of all that the channel holds, in order."""
        self._expected: dict[tuple[str, str, str], str] = {}
        """What we still run, and hope to get again: identity -> receipt."""
        self._awaited: dict[str, asyncio.Future[Message]] = {}
        self._early: list[Message] = []
        self._holds_until = 0.0
        self._holds = 0
        """Messages on their way into our queue; what stands behind them waits, to keep the order."""
        self._bell = Alarm()
        self._adopted = asyncio.Event()
        self._busy = asyncio.Lock()
        self._jobs: set[asyncio.Task[None]] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._turn = 0
        self._left = False
        """There was more in a queue than was fetched."""
        self._rate = 0.0
        self._counted, self._since, self._claimed_at = 0, time.monotonic(), 0.0
        self._size = 1000.0
        self._closed = False

    async def start(self) -> None:
        """Connect and declare the queues."""
        connection = await self._link.connection()
        channel = self._channel = await connection.channel()
        channel.on_deliver = self._hear
        channel.on_cancelled = self._ended
        channel.on_closed = lambda _: self._bell.set()
        await self._declare(connection)
        await self._notes.tell_queues([name for name in self.queues if not name.endswith(".pidbox")])

    async def _declare(self, connection: Connection) -> None:
        topology, version = self.core.topology, connection.session.version
        questions = [question for name in self.queues for question in topology.declaration(name, version)]
        questions += topology.celery_delays(self.queues, version)
        # on this connection, for an exclusive queue belongs to it; on another channel, for a refusal closes that
        channel = await connection.channel()
        try:
            await on(channel, list(dict.fromkeys(questions)))
        finally:
            await channel.close()

    @property
    def channel(self) -> Channel:
        """The channel of the claims. Raises OperationalError when it is broken."""
        channel = self._channel
        if channel is None or self._closed:
            raise OperationalError(f"{self.core.describe()}: the consumer is closed")
        if channel.broken:
            raise channel.error()
        return channel

    # What comes

    def _hear(self, event: Event) -> None:
        arguments = event.arguments
        name = arguments[1 : 1 + arguments[0]].decode()
        queue = self._consumers.get(name)
        own = queue is None
        if queue is None:
            queue = self._holding.get(name)
        if queue is None:  # it was on its way when we told the server to stop
            at = 1 + arguments[0]
            tag = int.from_bytes(arguments[at : at + 8], "big")
            self.channel.write(frames.nack(event.channel, tag))
            return
        message = delivered(event, queue)
        message.held = own
        self._take(message)
        self._bell.set()

    def _take(self, message: Message) -> None:
        """A message has come, by whatever way."""
        message.generation, message.since = self._generation, time.monotonic()
        self._outstanding[message.tag] = None
        self._size += (message.size - self._size) / 16
        if message.again and self._expected:
            receipt = self._expected.pop(message.identity, None)
            if receipt is not None and receipt in self.claims.open:
                self.claims.open[receipt] = message
                if not self._expected:
                    self._adopted.set()
                return
        if message.held:
            waiting = self._awaited.pop(str(message.private.get(COPY)), None)
            if waiting is not None and not waiting.done():
                waiting.set_result(message)
            else:
                self._first.append(message)
                self._holds = max(0, self._holds - 1)
        elif message.due and message.due > time.time():
            if not self._early:
                self._spawn(self._postpone())
            self._early.append(message)
        elif message.count >= BOUNCES:
            self._begin_hold(1)
            self._spawn(self._hold([message]))
        else:
            self._ready.setdefault(message.queue, deque()).append(message)

    def _ended(self, name: str) -> None:
        """The server has ended a consumer: its queue is gone, or its node."""
        queue = self._consumers.pop(name, None) or self._holding.pop(name, None)
        channel = self._channel
        if queue is not None and channel is not None:
            text = f"{self.core.describe()}: the queue {queue!r} was deleted, or its node is down"
            channel.fail(OperationalError(text))

    def _spawn(self, job: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(self._carefully(job))
        self._jobs.add(task)
        task.add_done_callback(self._jobs.discard)

    async def _carefully(self, job: Coroutine[Any, Any, None]) -> None:
        try:
            await job
        except CeleryError as error:
            if self._channel is not None:
                self._channel.fail(error)  # what it holds goes back to its queues

    async def _postpone(self) -> None:
        """Send on what came before its time."""
        await asyncio.sleep(0)
        early, self._early = self._early, []
        now = time.time()
        topology = self.core.topology
        drafts = [postponed(message, message.queue, message.due, now, topology) for message in early]
        await self._replace(early, drafts)

    async def _hold(self, messages: list[Message]) -> None:
        """Put messages that were delivered before into our own queue, from which they come to us again: a worker that
        dies over one leaves a trace, and a quorum queue counts anew."""
        for queue in dict.fromkeys(message.queue for message in messages):
            await self._hold_on(queue)
        await self._replace(messages, [self._copy(message) for message in messages])

    def _begin_hold(self, count: int) -> None:
        self._holds += count
        self._holds_until = time.monotonic() + HELD_TTL

    def _held_up(self) -> bool:
        """Something that comes before all else is on its way to us."""
        if self._holds and time.monotonic() > self._holds_until:
            self._holds = 0  # it has gone another way
        return self._holds > 0

    def _waiting(self) -> bool:
        return any(self._ready.values())

    def _copy(self, message: Message, name: str = "") -> Draft:
        losses: tuple[int, int] | None = None
        if message.worker_lost:
            child, worker = frame.read_losses(message.headers.get(frame.LOSSES)) or (0, 0)
            losses = child, worker + 1
            message.headers["redelivered"] = True
        private: dict[str, Any] = {FROM: message.came_from, AGAIN: True}
        if name:
            private[COPY] = name
        return Draft("", held(message.queue, self.epoch), *message.copy(private, losses), ("held", message.queue))

    async def _replace(self, messages: Sequence[Message], drafts: Sequence[Draft]) -> None:
        """Acknowledge messages whose copies are safe, and give the others back."""
        faults = await self.core.send(drafts, self.epoch)
        channel = self.channel
        for message, fault in zip(messages, faults, strict=True):
            if message.generation == self._generation:
                self._outstanding.pop(message.tag, None)
                frames_of = frames.nack if fault else frames.ack
                channel.write(frames_of(channel.number, message.tag))
            if fault:
                log.error("%s: %s", self.core.describe(), fault)

    async def _hold_on(self, queue: str) -> None:
        if queue in self._holding.values():
            return
        await self.core.declare([("held", queue)], self.epoch)
        self._tags += 1
        name = f"held{self._tags}"
        self._holding[name] = queue
        channel = self.channel
        arguments = frames.consume(held(queue, self.epoch), name)
        await on(
            channel,
            [(M.QOS, frames.qos(0), M.QOS_OK, ""), (M.CONSUME, arguments, M.CONSUME_OK, f"the queue {queue!r}")],
        )

    # Cycle

    async def cycle(self, finished: Sequence[Completion], want: Demand) -> Turn:
        """See ports.Consumer."""
        async with self._busy:
            verdicts: Sequence[Verdict] = ()
            if finished:
                verdicts = await self._settle(finished)
            deliveries: list[Delivery] = []
            if want.count or want.parked:
                deliveries = await self._claim(want)
            else:
                self.channel  # noqa: B018  raises when it is broken
            more = bool(want.count) and bool(self._first or (not self._held_up() and (self._left or self._waiting())))
            if not deliveries:
                await asyncio.sleep(0)  # whoever calls in a circle leaves a turn to what is under way
            return Turn(deliveries, list(verdicts), None, time.time(), self._notes.version, more)

    async def _settle(self, finished: Sequence[Completion]) -> list[Verdict]:
        channel = self.channel
        settling = Settling(self.core, self.claims, self._generation, time.time())
        verdicts, acks, returns = await settling.carry_out(finished)
        if settling.parked:
            await self._notes.tell_keys(settling.parked)
        if acks:
            self._acknowledge(channel, acks)
        if returns:
            self._return(returns)
        return verdicts

    def _return(self, messages: Sequence[Message]) -> None:
        """Back to the heads: here first, and to the broker with everything else that is not claimed soon."""
        for message in sorted(messages, key=lambda message: message.tag, reverse=True):
            self._ready.setdefault(message.queue, deque()).appendleft(message)
        self._claimed_at = 0.0
        self._watch_ready()

    def _acknowledge(self, channel: Channel, tags: set[int]) -> None:
        outstanding, number = self._outstanding, channel.number
        whole = 0
        for tag in list(outstanding) if len(tags) > 8 else ():
            if tag not in tags:
                break
            whole = tag
            del outstanding[tag]
            tags.discard(tag)
        data = frames.ack(number, whole, multiple=True) if whole else b""
        for tag in tags:
            outstanding.pop(tag, None)
        channel.write(data + b"".join([frames.ack(number, tag) for tag in sorted(tags)]))

    async def _claim(self, want: Demand) -> list[Delivery]:
        taken: list[Message] = []
        for key, count in want.parked.items():
            await self._pull_parked(key, count, taken)
        limit = len(taken) + want.count
        suspects: list[Message] = []
        size = self._serve(taken, suspects, limit, 0, want.size)
        if len(taken) < limit and size < want.size and not suspects and not self._held_up():
            if self._consumers:
                await self._adapt(want.count)
            else:
                await self._pull(limit - len(taken))
                size = self._serve(taken, suspects, limit, size, want.size)
                if size < want.size and not suspects and (len(taken) < limit or self._rate * AHEAD > 1):
                    await self._consume(self._wanted(want.count))
        if suspects:
            self._begin_hold(len(suspects))
            self._spawn(self._hold(suspects))
        self._measure(len(taken))
        claims = self.claims
        return [Delivery(claims.claim(message), message.blob()) for message in taken]

    def _serve(self, taken: list[Message], suspects: list[Message], limit: int, size: int, most: int) -> int:
        """Move what is ready to `taken`; what was delivered before and is to be held first, to `suspects`."""
        first = self._first
        while first and len(taken) < limit and size < most:
            message = first.popleft()
            taken.append(message)
            size += message.size
        queues = [] if self._held_up() else [name for name in self._ready if self._ready[name]]
        if len(queues) > 1:
            turn = self._turn = (self._turn + 1) % len(queues)
            queues = queues[turn:] + queues[:turn]
        while queues and len(taken) + len(suspects) < limit and size < most:
            for name in list(queues):
                line = self._ready[name]
                if not line:
                    queues.remove(name)
                    continue
                if len(taken) + len(suspects) >= limit or size >= most:
                    break
                if line[0].again:
                    suspects.append(line.popleft())
                elif suspects:
                    return size
                else:
                    message = line.popleft()
                    taken.append(message)
                    size += message.size
        return size

    def _measure(self, count: int) -> None:
        now = time.monotonic()
        if count:
            self._claimed_at = now
            self._counted += count
        if now - self._since >= 0.05:
            self._rate = self._counted / (now - self._since)
            self._counted, self._since = 0, now
        self._watch_ready()

    def _watch_ready(self) -> None:
        if self._timer is None and self._waiting():
            self._timer = asyncio.get_running_loop().call_later(UNCLAIMED, self._look)

    def _look(self) -> None:
        """Give back what was pushed and is not wanted."""
        self._timer = None
        if self._closed or not self._waiting():
            return
        left = self._claimed_at + UNCLAIMED - time.monotonic()
        if left > 0 or self._busy.locked():
            self._timer = asyncio.get_running_loop().call_later(max(left, 0.01), self._look)
        else:
            self._spawn(self._give_back())

    async def _give_back(self) -> None:
        async with self._busy:
            await self._pause(())

    # Push and pull

    def _wanted(self, count: int) -> int:
        bound = min(MOST, max(1, int(MOST_BYTES / max(1.0, self._size))))
        return max(1, min(bound, len(self.claims.open) + count + int(self._rate * AHEAD)))

    async def _adapt(self, count: int) -> None:
        wanted = self._wanted(count)
        if wanted > self._prefetch:
            await self._consume(min(MOST, max(wanted, min(2 * self._prefetch, wanted * 2))))

    async def _consume(self, prefetch: int) -> None:
        """Have all queues push to us, so many messages ahead."""
        self._left = False
        channel = self.channel
        questions = [(M.CANCEL, frames.cancel(name), M.CANCEL_OK, "") for name in self._consumers]
        questions.append((M.QOS, frames.qos(prefetch), M.QOS_OK, ""))
        old = self._consumers
        self._consumers = dict(old)
        for queue in self.queues:
            self._tags += 1
            name = f"c{self._tags}"
            self._consumers[name] = queue
            given = self.core.topology.queue(queue).consumer_arguments
            arguments = frames.consume(queue, name, arguments=given)
            questions.append((M.CONSUME, arguments, M.CONSUME_OK, f"the queue {queue!r}"))
        self._prefetch = prefetch
        await on(channel, questions)
        for name in old:
            self._consumers.pop(name, None)

    async def _pause(self, returns: Collection[int]) -> None:
        """Push no more, and give back what is ready, together with `returns` (delivery tags), in order."""
        channel = self.channel
        consumers, self._consumers = self._consumers, {}
        tags = sorted([*returns, *(message.tag for line in self._ready.values() for message in line)])
        self._ready.clear()
        for tag in tags:
            self._outstanding.pop(tag, None)
        asked = [channel.ask(M.CANCEL, frames.cancel(name), M.CANCEL_OK) for name in consumers]
        channel.write(b"".join([frames.nack(channel.number, tag) for tag in tags]))
        asked.append(channel.ask(M.QOS, frames.qos(1), M.QOS_OK))  # answered when all of it is done
        for future in asked:
            await channel.wait(future)

    async def _pull(self, count: int) -> None:
        """Fetch up to so many messages, an equal share of each queue, then more where there is more."""
        self._left = False
        queues = [*self.queues[self._turn % len(self.queues) :], *self.queues[: self._turn % len(self.queues)]]
        self._turn += 1
        while count > 0 and queues:
            share, rest = divmod(count, len(queues))
            asked = [
                (queue, self._get(queue)) for n, queue in enumerate(queues) for _ in range(share + (n < rest))
            ]  # fmt: skip
            empty = set()
            for queue, future in asked:
                event = await self.channel.wait(future)
                if event.which == M.GET_EMPTY:
                    empty.add(queue)
                    continue
                message, left = got(event, queue)
                self._left = left > 0
                self._take(message)
                count -= 1
            queues = [queue for queue in queues if queue not in empty]

    def _get(self, queue: str) -> asyncio.Future[Event]:
        return self.channel.ask(M.GET, frames.get(queue), M.GET_OK, M.GET_EMPTY, what=f"the queue {queue!r}")

    async def _pull_parked(self, key: str, count: int, taken: list[Message]) -> None:
        for queue in self.queues:
            if count <= 0:
                return
            await self.core.declare([("parked", f"{queue}\0{key}")])
            asked = [self._get(parked(queue, key)) for _ in range(count)]
            for future in asked:
                event = await self.channel.wait(future)
                if event.which == M.GET_OK:
                    message, _ = got(event, queue)
                    message.generation, message.since, message.held = self._generation, time.monotonic(), True
                    self._outstanding[message.tag] = None
                    taken.append(message)
                    count -= 1

    async def wait(self) -> None:
        """See ports.Consumer."""
        self.channel  # noqa: B018  raises when it is broken
        held_up = self._held_up()
        if self._first or (self._waiting() and not held_up):
            return
        if not self._consumers and not held_up:
            await asyncio.sleep(0.02)
            return
        self._bell.clear()
        await self._bell.wait(1.0 if held_up else LONGEST_WAIT)
        self.channel  # noqa: B018

    # The lease is the channel

    async def renew(self, running: Sequence[Receipt]) -> bool:
        """See ports.Consumer. False after a connection was lost that held something. Hands over what runs so long that
        the server might take it away."""
        channel = self.channel
        kept, self._kept = self._kept, True
        timeout = self.core.topology.consumer_timeout
        if timeout:
            old = time.monotonic() - timeout / 2 + min(10.0, timeout / 6)
            late = [(tag, message) for tag, message in self.claims.open.items() if message.since < old]
            for tag, message in late:
                if message.generation == self._generation:
                    await self._hand_over(channel, tag, message)
        return kept

    async def _hand_over(self, channel: Channel, tag: str, message: Message) -> None:
        """Replace a delivery by that of a confirmed copy in our own queue."""
        await self._hold_on(message.queue)
        name = new_id()
        waiting = self._awaited[name] = asyncio.get_running_loop().create_future()
        try:
            [fault] = await self.core.send([self._copy(message, name)], self.epoch)
            if fault:
                log.error("%s: a running message could not be handed over: %s", self.core.describe(), fault)
                return
            async with asyncio.timeout(HELD_TTL):
                copy = await waiting
        except TimeoutError:
            log.error("%s: the copy of a running message did not come", self.core.describe())
            return
        finally:
            self._awaited.pop(name, None)
        self._outstanding.pop(copy.tag, None)
        if self.claims.open.get(tag) is not message:  # it was settled meanwhile
            channel.write(frames.ack(channel.number, copy.tag))
            return
        self._outstanding[copy.tag] = None
        self.claims.open[tag] = copy
        self._outstanding.pop(message.tag, None)
        channel.write(frames.ack(channel.number, message.tag))

    async def recover(self) -> int:
        """See ports.Consumer. The server gives back what lost workers held."""
        return 0

    async def adopt(self, known: Collection[Receipt]) -> int:
        """See ports.Consumer. What an earlier connection held has gone back to its queues; what we still run is taken
        again, if it comes to us within a moment."""
        tags = {receipt.tag for receipt in known}
        claims = self.claims.open
        for tag in [tag for tag in claims if tag not in tags]:
            del claims[tag]
        lost = {tag: message for tag, message in claims.items() if message.generation != self._generation}
        if not lost:
            return 0
        self._expected = {message.identity: tag for tag, message in lost.items()}
        self._adopted.clear()
        async with self._busy:
            for queue in dict.fromkeys(message.queue for message in lost.values() if message.held):
                await self._hold_on(queue)
            await self._consume(min(MOST, len(lost) + 1))
        try:
            async with asyncio.timeout(ADOPTING):
                await self._adopted.wait()
        except TimeoutError:
            pass
        return 0

    async def standing(self, receipts: Collection[Receipt]) -> frozenset[Receipt]:
        """See ports.Consumer."""
        found = self.claims.open
        return frozenset(
            receipt
            for receipt in receipts
            if (message := found.get(receipt.tag)) is not None and message.generation == self._generation
        )

    async def change(self, queues: Sequence[str]) -> None:
        """See ports.Consumer."""
        async with self._busy:
            await self._pause(())
            self.queues = list(dict.fromkeys(queues))
            await self._declare(await self._link.connection())
            await self._notes.tell_queues(self.queues)

    async def leave(self) -> None:
        """See ports.Consumer."""
        async with self._busy:
            await self._hand_on_held()
            returns = [message.tag for message in self.claims.open.values() if message.generation == self._generation]
            self.claims.open.clear()
            await self._pause(returns)

    async def _hand_on_held(self) -> None:
        """What lies in queues of ours goes back as copies."""
        mine = [tag for tag, m in self.claims.open.items() if m.held and m.generation == self._generation]
        messages = [*(self.claims.open.pop(tag) for tag in mine), *self._first]
        self._first.clear()
        if messages:
            await self._replace(
                messages, [to_queue(message.queue, *message.copy(message.marks())) for message in messages]
            )

    async def recall(self) -> None:
        """Give back what is pushed and not claimed: somebody is going to count it."""
        if not self._closed and self._channel is not None and not self._channel.broken:
            async with self._busy:
                await self._pause(())

    async def close(self) -> None:
        """See ports.Consumer."""
        if self._closed:
            return
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()
        jobs = list(self._jobs)
        for job in jobs:
            job.cancel()
        await asyncio.gather(*jobs, return_exceptions=True)
        self._bell.set()
        await self._link.close()
