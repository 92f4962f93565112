"""How messages come to a consumer: fetched one by one as they are wanted (GET, many in one write) where tasks are long,
and pushed where they are short or the queues are empty. So a worker whose seats are taken keeps nothing from others.
What was pushed and not claimed goes back after a moment."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Collection, Sequence

from celeriac.brokers.rabbitmq.core import on
from celeriac.brokers.rabbitmq.held import Held
from celeriac.brokers.rabbitmq.lease import Lease
from celeriac.brokers.rabbitmq.messages import Message, got
from celeriac.brokers.rabbitmq.topology import parked
from celeriac.drivers.amqp import frames
from celeriac.drivers.amqp.frames import M
from celeriac.drivers.amqp.machine import Event
from celeriac.model.message import Demand

UNCLAIMED = 0.2
"""Seconds that a pushed message may wait to be claimed before it goes back."""
AHEAD = 0.02
"""Seconds of work that are pushed ahead of the claims."""
MOST = 1000
"""Messages that are pushed ahead at most, of each queue,"""
MOST_BYTES = 32 << 20
"""and about so many bytes."""


class Supply:
    """Of one consumer."""

    def __init__(self, lease: Lease, held: Held, queues: Sequence[str], take: Callable[[Message], None]) -> None:
        """`take`: called with each message that was fetched; it comes back by `add` if it is to be claimed."""
        self.queues = list(dict.fromkeys(queues))
        self.busy = asyncio.Lock()
        """Taken by whoever claims or settles."""
        self.consumers: dict[str, str] = {}
        """Consumer tag -> queue, of those that push to us now."""
        self._lease = lease
        self._held = held
        self._take = take
        self._ready: dict[str, deque[Message]] = {}
        self._tags = 0
        self._prefetch = 0
        self._timer: asyncio.TimerHandle | None = None
        self._turn = 0
        self._left = False
        """There was more in a queue than was fetched."""
        self._rate = 0.0
        self._counted, self._since, self._claimed_at = 0, time.monotonic(), 0.0
        self._size = 1000.0

    # What is there

    def add(self, message: Message) -> None:
        """This one may be claimed."""
        self._size += (message.size - self._size) / 16
        self._ready.setdefault(message.queue, deque()).append(message)

    def give_back(self, messages: Sequence[Message]) -> None:
        """Back to the heads: here first, and to the broker with everything else that is not claimed soon."""
        for message in sorted(messages, key=lambda message: message.tag, reverse=True):
            self._ready.setdefault(message.queue, deque()).appendleft(message)
        self._claimed_at = 0.0
        self._watch()

    def waiting(self) -> bool:
        """Something could be claimed at once."""
        held = self._held
        return bool(held.first) or (any(self._ready.values()) and not held.coming())

    def more(self) -> bool:
        """Another claim may find something."""
        return self.waiting() or (self._left and not self._held.coming())

    async def claim(self, want: Demand) -> list[Message]:
        """What is there, as far as it is wanted. What was delivered before is put into our own queue first."""
        taken: list[Message] = []
        for key, count in want.parked.items():
            await self._pull_parked(key, count, taken)
        limit = len(taken) + want.count
        suspects: list[Message] = []
        size = self._serve(taken, suspects, limit, 0, want.size)
        if len(taken) < limit and size < want.size and not suspects and not self._held.coming():
            if self.consumers:
                await self._adapt(want.count)
            else:
                await self._pull(limit - len(taken))
                size = self._serve(taken, suspects, limit, size, want.size)
                if size < want.size and not suspects and (len(taken) < limit or self._rate * AHEAD > 1):
                    await self.consume(self._wanted(want.count))
        if suspects:
            self._held.begin(suspects)
        self._measure(len(taken))
        return taken

    def _serve(self, taken: list[Message], suspects: list[Message], limit: int, size: int, most: int) -> int:
        """Move what is ready to `taken`; what was delivered before and is to be held first, to `suspects`."""
        first = self._held.first
        while first and len(taken) < limit and size < most:
            message = first.popleft()
            taken.append(message)
            size += message.size
        queues = [] if self._held.coming() else [name for name in self._ready if self._ready[name]]
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
        self._watch()

    def _watch(self) -> None:
        if self._timer is None and any(self._ready.values()):
            self._timer = asyncio.get_running_loop().call_later(UNCLAIMED, self._look)

    def _look(self) -> None:
        """Give back what was pushed and is not wanted."""
        self._timer = None
        if self._lease.closed or not any(self._ready.values()):
            return
        left = self._claimed_at + UNCLAIMED - time.monotonic()
        if left > 0 or self.busy.locked():
            self._timer = asyncio.get_running_loop().call_later(max(left, 0.01), self._look)
        else:
            self._lease.spawn(self.stop())

    # Push and pull

    def _wanted(self, count: int) -> int:
        bound = min(MOST, max(1, int(MOST_BYTES / max(1.0, self._size))))
        return max(1, min(bound, len(self._lease.claims.open) + count + int(self._rate * AHEAD)))

    async def _adapt(self, count: int) -> None:
        wanted = self._wanted(count)
        if wanted > self._prefetch:
            await self.consume(min(MOST, max(wanted, min(2 * self._prefetch, wanted * 2))))

    async def consume(self, prefetch: int) -> None:
        """Have all queues push to us, so many messages ahead."""
        self._left = False
        channel = self._lease.channel
        questions = [(M.CANCEL, frames.cancel(name), M.CANCEL_OK, "") for name in self.consumers]
        questions.append((M.QOS, frames.qos(prefetch), M.QOS_OK, ""))
        old = self.consumers
        self.consumers = dict(old)
        for queue in self.queues:
            self._tags += 1
            name = f"c{self._tags}"
            self.consumers[name] = queue
            given = self._lease.core.topology.queue(queue).consumer_arguments
            arguments = frames.consume(queue, name, arguments=given)
            questions.append((M.CONSUME, arguments, M.CONSUME_OK, f"the queue {queue!r}"))
        self._prefetch = prefetch
        await on(channel, questions)
        for name in old:
            self.consumers.pop(name, None)

    async def stop(self) -> None:
        """As `pause`, as soon as nobody claims or settles."""
        async with self.busy:
            await self.pause()

    async def pause(self, returns: Collection[int] = ()) -> None:
        """Push no more, and give back what is ready, together with `returns` (delivery tags), in order."""
        channel = self._lease.channel
        consumers, self.consumers = self.consumers, {}
        tags = sorted([*returns, *(message.tag for line in self._ready.values() for message in line)])
        self._ready.clear()
        for tag in tags:
            self._lease.outstanding.pop(tag, None)
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
                event = await self._lease.channel.wait(future)
                if event.which == M.GET_EMPTY:
                    empty.add(queue)
                    continue
                message, left = got(event, queue)
                self._left = left > 0
                self._take(message)
                count -= 1
            queues = [queue for queue in queues if queue not in empty]

    def _get(self, queue: str) -> asyncio.Future[Event]:
        return self._lease.channel.ask(M.GET, frames.get(queue), M.GET_OK, M.GET_EMPTY, what=f"the queue {queue!r}")

    async def _pull_parked(self, key: str, count: int, taken: list[Message]) -> None:
        for queue in self.queues:
            if count <= 0:
                return
            await self._lease.core.declare([("parked", f"{queue}\0{key}")])
            asked = [self._get(parked(queue, key)) for _ in range(count)]
            for future in asked:
                event = await self._lease.channel.wait(future)
                if event.which == M.GET_OK:
                    message, _ = got(event, queue)
                    self._lease.take(message)
                    message.held = True
                    taken.append(message)
                    count -= 1

    def close(self) -> None:
        """No more looks."""
        if self._timer is not None:
            self._timer.cancel()
