"""Asks workers and collects their answers: one queue and one consumer for all requests that are open at a time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from celeriac.errors import CeleryError
from celeriac.model.message import Completion, Demand
from celeriac.wire import notice
from celeriac.wire.ids import new_id

_LEASE = 60.0


class Replies:
    """The answers that come to one queue, handed to the requests they belong to. Bound to one event loop."""

    def __init__(self, broker: Any, queue: str) -> None:
        self.loop = asyncio.get_running_loop()
        self._broker = broker
        self._queue = queue
        self._waiting: dict[str, asyncio.Queue[notice.Reply | Exception]] = {}
        self._lock = asyncio.Lock()
        self._job: asyncio.Task[None] | None = None

    async def ask(
        self, request: notice.Request, payload: bytes, exchange: str, timeout: float, limit: int | None,
        heard: Callable[[notice.Reply], None],
    ) -> None:  # fmt: skip
        """Broadcast a request, sealed as `payload`, and tell `heard` each answer, for `timeout` seconds or until
        `limit` nodes have answered."""
        ticket = request.ticket or ""
        arriving = await self.open(ticket)
        left = limit
        try:
            await self._broker.broadcast(exchange, "", payload)
            async with asyncio.timeout(timeout):
                while left is None or left > 0:
                    reply = await arriving.get()
                    if isinstance(reply, Exception):
                        raise reply
                    heard(reply)
                    left = None if left is None else left - 1
        except TimeoutError:
            pass
        finally:
            await self.close(ticket)

    async def open(self, ticket: str) -> asyncio.Queue[notice.Reply | Exception]:
        """Where the answers with this ticket will be found. On return the queue is listened to."""
        async with self._lock:
            answers: asyncio.Queue[notice.Reply | Exception] = asyncio.Queue()
            self._waiting[ticket] = answers
            if self._job is None or self._job.done():
                ready = self.loop.create_future()
                self._job = self.loop.create_task(self._collect(ready))
                try:
                    await ready
                except BaseException:
                    self._waiting.pop(ticket, None)
                    raise
            return answers

    async def close(self, ticket: str) -> None:
        """Nobody waits for this ticket any more."""
        async with self._lock:
            self._waiting.pop(ticket, None)
            if not self._waiting and self._job is not None:
                self._job.cancel()
                await asyncio.gather(self._job, return_exceptions=True)
                self._job = None

    async def _collect(self, ready: asyncio.Future[None]) -> None:
        try:
            async with self._broker.subscribe([self._queue], epoch=f"control@{new_id()}", lease=_LEASE) as consumer:
                ready.set_result(None)
                finished: list[Completion] = []
                try:
                    while True:
                        turn = await consumer.cycle(finished, Demand(100))
                        finished = [Completion(delivery.receipt) for delivery in turn.deliveries]
                        for delivery in turn.deliveries:
                            self._hand_on(delivery.blob)
                        if not turn.deliveries:
                            await consumer.wait()
                except asyncio.CancelledError:
                    await consumer.cycle(finished, Demand(0))
                    await consumer.leave()
                    raise
        except Exception as error:
            if not ready.done():
                ready.set_exception(error)
                return
            for answers in self._waiting.values():
                answers.put_nowait(error)

    def _hand_on(self, blob: bytes) -> None:
        try:
            reply = notice.read_reply(blob)
        except CeleryError:
            return  # not an answer, or one that nobody can read
        answers = self._waiting.get(reply.ticket or "")
        if answers is not None:
            answers.put_nowait(reply)
