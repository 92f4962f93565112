"""What the contract suites have to know of an adapter, and what their tests share. Nothing here knows a driver."""

from __future__ import annotations

import asyncio
import base64
import functools
import json
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from typing import Any, TypeVar

import pytest

from celeriac.model.message import Completion, Delivery, Demand, Envelope, Receipt, Settlement, Store
from celeriac.ports import Broker, Bus, Consumer, Reader, ResultBackend, Sender

PATIENCE = 10.0
"""Seconds that a test waits for something that must come."""
LIMIT = 60.0
"""Seconds that one test may take in all."""
LONG = 60.0
"""A lease that no test outlives."""

R = TypeVar("R")
Text = TypeVar("Text", bytes, str)
_BODY = b'[[], {}, {"callbacks": null, "errbacks": null, "chain": null, "chord": null}]'


class BackendRig:
    """One result store, empty at the start of each test. Subclass it for your backend."""

    merges = True
    """A watcher that is slower than the writer may see only the last of several documents of one id."""
    exact = True
    """A document comes back to the byte; False: what it says does."""
    forgets = True
    """What has expired is gone by itself; False: a task cleans up, and until then it is there."""

    def backend(self) -> ResultBackend:
        """Another ResultBackend on the same store, for the running loop."""
        raise NotImplementedError

    def reader(self) -> Reader:
        """A Reader on the same store."""
        raise NotImplementedError

    async def elapse(self, seconds: float) -> None:
        """Let time pass on the store's clock. Adapters with a clock of their own may move it instead of sleeping."""
        await asyncio.sleep(seconds)

    def elapse_sync(self, seconds: float) -> None:
        """As `elapse`, outside of a loop."""
        asyncio.run(self.elapse(seconds))

    def poison(self) -> Store:
        """A Store that the backend can't carry out."""
        return Store(id="\ud800", document=b"{}", state="SUCCESS")


class BrokerRig:
    """One broker server, empty at the start of each test. Subclass it for your broker."""

    lease = 0.6
    """Seconds of the leases that tests let end. Long enough that a slow machine does not lose one by accident."""
    keeps_order = True
    """What is given back keeps its place among its neighbours."""
    lower_first = True
    """Priority: the lower number is served first (kombu on Redis); False: the higher one (AMQP)."""

    def broker(self) -> Broker:
        """Another Broker on the same server, for the running loop."""
        raise NotImplementedError

    def sender(self) -> Sender:
        """A Sender on the same server."""
        raise NotImplementedError

    def backend(self) -> ResultBackend | None:
        """A result backend for which `Broker.same_server` is True; None: there is none."""
        return None

    def bus(self, broker: Broker) -> Bus | None:
        """The Bus side of a broker; None: it has none."""
        return broker if broker.capabilities.fanout else None  # type: ignore[return-value]

    def in_order(self, found: list[Text]) -> list[Text]:
        """As they came, where the broker keeps the order; else sorted."""
        return found if self.keeps_order else sorted(found)

    def kept(self, blob: bytes) -> bytes:
        """What of a blob comes out as it went in: every byte, unless the broker takes messages apart."""
        return blob

    async def elapse(self, seconds: float) -> None:
        """Let time pass on the broker's clock. Adapters with a clock of their own may move it instead of sleeping."""
        await asyncio.sleep(seconds)

    async def cut(self, consumer: Consumer) -> None:
        """Break the connections of a consumer as a network fault would. Skips the test where there are none."""
        pytest.skip("no connection to cut")

    async def poison(self, broker: Broker) -> tuple[Store | None, tuple[Envelope, ...]]:
        """A store or some envelopes that the broker can't carry out within a cycle."""
        return None, (envelope("\ud800"),)

    def epoch(self, name: str = "worker") -> str:
        """A worker epoch that no one else has."""
        return f"{name}@host:{uuid.uuid4().hex[:8]}"

    @asynccontextmanager
    async def consuming(
        self, *queues: str, epoch: str | None = None, lease: float = LONG
    ) -> AsyncIterator[tuple[Broker, Consumer]]:
        """A Broker and a Consumer of `queues` (default: `q`), closed at the end."""
        async with AsyncExitStack() as stack:
            broker = self.broker()
            stack.push_async_callback(broker.close)
            consumer = await stack.enter_async_context(
                broker.subscribe(queues or ("q",), epoch=epoch or self.epoch(), lease=lease)
            )
            yield broker, consumer

    @asynccontextmanager
    async def connected(self) -> AsyncIterator[Broker]:
        """A Broker, closed at the end."""
        broker = self.broker()
        try:
            yield broker
        finally:
            await broker.close()

    @asynccontextmanager
    async def results(self) -> AsyncIterator[ResultBackend]:
        """The result backend on the broker's server, closed at the end. Skips the test where there is none."""
        backend = self.backend()
        if backend is None:
            pytest.skip("no result backend on the broker's server")
        try:
            yield backend
        finally:
            await backend.close()

    async def outlive(self, *living: Consumer) -> None:
        """Let two short leases pass while `living` renew theirs."""
        for _ in range(10):
            await self.elapse(self.lease / 5)
            for consumer in living:
                await consumer.renew(())


def in_loop(story: Callable[[Any, R], Coroutine[Any, Any, None]]) -> Callable[[Any, R], None]:
    """Turn an async test method into a plain one, with a limit of time."""

    @functools.wraps(story)
    def test(self: Any, rig: R) -> None:
        asyncio.run(asyncio.wait_for(story(self, rig), LIMIT))

    return test


def message(name: str = "", /, **headers: object) -> bytes:
    """A task message as kombu writes it. `name` becomes the task id."""
    task_id = name or str(uuid.uuid4())
    return json.dumps({
        "body": base64.b64encode(_BODY).decode(),
        "content-encoding": "utf-8",
        "content-type": "application/json",
        "headers": {"lang": "py", "task": "tasks.add", "id": task_id, "root_id": task_id, **headers},
        "properties": {
            "correlation_id": task_id, "delivery_mode": 2, "priority": 0, "body_encoding": "base64",
            "delivery_tag": str(uuid.uuid5(uuid.NAMESPACE_OID, task_id)),
            "delivery_info": {"exchange": "", "routing_key": "q"},
        },
    }).encode()


def big_message(name: str, size: int) -> bytes:
    """A message with so many bytes of body."""
    blob = json.loads(message(name))
    return json.dumps({**blob, "body": base64.b64encode(b"x" * size).decode()}).encode()


def envelope(
    name: str = "",
    queue: str = "q",
    *,
    blob: bytes | None = None,
    priority: int = 0,
    not_before: float | None = None,
    publish_id: str | None = None,
) -> Envelope:
    """An Envelope whose blob is a message of the task id `name`."""
    return Envelope(
        id=name or str(uuid.uuid4()),
        publish_id=publish_id or str(uuid.uuid4()),
        queue=queue,
        blob=message(name if name.isascii() else "odd") if blob is None else blob,
        priority=priority,
        not_before=not_before,
        routing_key=queue,
    )


def names(messages: Sequence[Delivery]) -> list[str]:
    """The task ids of deliveries made of `message`."""
    return [name_of(delivery.blob) for delivery in messages]


def name_of(blob: bytes) -> str:
    """The task id in a blob made of `message`."""
    return str(json.loads(blob)["headers"]["id"])


def losses(blob: bytes) -> tuple[int, int]:
    """Child losses and worker losses that a blob tells of."""
    child, worker = json.loads(blob)["headers"].get("x-celeriac-losses", (0, 0))
    return child, worker


def success(name: str, document: bytes = b'{"status": "SUCCESS"}', guard: bool = False) -> Store:
    """A Store of what the task `name` returned."""
    return Store(id=name, document=document, state="SUCCESS", expires=1000, guard=guard)


def done(
    receipt: Receipt | None, settlement: Settlement | None = None, store: Store | None = None, *publish: Envelope
) -> Completion:
    """A Completion; without a settlement: acknowledged."""
    completion = Completion(receipt, store=store, publish=publish)
    return completion if settlement is None else Completion(receipt, settlement, store, publish)


async def claim(consumer: Consumer, count: int, demand: Demand | None = None) -> list[Delivery]:
    """Claim until there are `count` deliveries. Fails when they do not come."""
    taken: list[Delivery] = []
    deadline = time.monotonic() + PATIENCE
    while True:
        turn = await consumer.cycle((), demand or Demand(count - len(taken)))
        taken += turn.deliveries
        if len(taken) >= count:
            return taken
        assert time.monotonic() < deadline, f"{len(taken)} of {count} deliveries came: {names(taken)}"
        with suppress(asyncio.TimeoutError):
            await asyncio.wait_for(consumer.wait(), 0.2)


async def claim_nothing(consumer: Consumer, seconds: float = 0.1) -> None:
    """Fail when there is something to claim."""
    deadline = time.monotonic() + seconds
    while True:
        turn = await consumer.cycle((), Demand(10))
        assert not turn.deliveries
        if time.monotonic() >= deadline:
            return
        with suppress(asyncio.TimeoutError):
            await asyncio.wait_for(consumer.wait(), 0.05)


async def settle(consumer: Consumer, *completions: Completion) -> None:
    """Carry out completions that must all succeed, and claim nothing."""
    turn = await consumer.cycle(completions, Demand(0))
    assert all(verdict.ok for verdict in turn.verdicts), turn.verdicts
    assert len(turn.verdicts) == len(completions)


async def eventually(condition: Callable[[], Awaitable[bool]], what: str) -> None:
    """Wait until a condition holds. Fails when it does not come to hold."""
    deadline = time.monotonic() + PATIENCE
    while not await condition():
        assert time.monotonic() < deadline, what
        await asyncio.sleep(0.02)
