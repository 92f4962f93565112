"""The supervisor: starts what the worker consists of, and stops it in order: what takes in before what carries out."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import msgspec

from celeriac import telemetry
from celeriac.errors import ImproperlyConfigured, OperationalError
from celeriac.model.message import RETURN, Chord, Completion, Envelope, Store
from celeriac.pools.frames import Ask
from celeriac.ports import Broker, Bus, Cleaned, Prepared, ResultBackend
from celeriac.wire import notice
from celeriac.wire.ids import new_id
from celeriac.worker.config import WorkerConfig
from celeriac.worker.control import Control
from celeriac.worker.dispatch import Dispatch
from celeriac.worker.documents import final
from celeriac.worker.events import Events
from celeriac.worker.replies import Replies
from celeriac.worker.session import Session, lasting

log = logging.getLogger("celeriac.worker")

STALEMATE_SECONDS = 1.0
"""When no seat is free for so long, a task that waits for another one is told that it would wait for ever."""
ASK_SECONDS = 5.0
"""Deadline of what a running task asks of the broker."""


class Worker:
    """One worker. `await run()` returns the exit code after a shutdown."""

    def __init__(self, config: WorkerConfig) -> None:
        self.config = config
        self.epoch = f"{config.hostname}/{os.getpid()}-{os.urandom(6).hex()}"
        self.started = time.time()
        self.exit_code = 0
        self.how = ""
        self._error: ImproperlyConfigured | None = None
        self._side = ThreadPoolExecutor(1, "celeriac-user-code")
        self._reply_key = new_id()
        """Where workers answer what our tasks have asked them."""
        self._reply_broker: Broker | None = None
        self._replies: Replies | None = None

    async def run(self, ready: Callable[[], None] | None = None) -> int:
        """Work until told to stop. Raises ImproperlyConfigured when the app or a URL can't be used."""
        self._loop = asyncio.get_running_loop()
        self.kick = asyncio.Event()
        self._stopping = asyncio.Event()
        self._cold = asyncio.Event()
        self.broker: Broker = self.config.make_broker()
        self.backend: ResultBackend | None = self.config.make_backend()
        self._bus: Bus | None = (
            self.broker if isinstance(self.broker, Bus) and self.broker.capabilities.fanout else None
        )
        self.events = Events(self.config, self._bus, self._facts)
        self.dispatch = Dispatch(
            self.config,
            kick=self.kick.set,
            ask=self._answer,
            broken=self._broken,
            event=self.events.task if self.config.events else None,
        )
        self._ready = ready
        self._session: Session | None = None
        catalogue = await self.dispatch.pool.start()
        self.dispatch.on_catalogue(catalogue)
        services: list[asyncio.Task[None]] = []
        consuming: asyncio.Task[None] | None = None
        try:
            self._together = await self._connect()
            consuming = asyncio.create_task(lasting(self._new_session, self._stopping, self.broker.describe()))
            consuming.add_done_callback(self._watch)
            if self._bus is not None:
                if self.config.remote_control:
                    services.append(asyncio.create_task(Control(self, self._bus).run()))
                services.append(asyncio.create_task(self.events.run()))
            if (relay := self.config.make_relay()) is not None:
                services.append(asyncio.create_task(relay.run(self.broker)))
            if isinstance(self.backend, Prepared):
                services.append(asyncio.create_task(self.backend.prepare()))
            for service in services:
                service.add_done_callback(self._watch)
            await self._stopping.wait()
            await self._shut_down(consuming)
        finally:
            for task in [*services, *([consuming] if consuming else [])]:
                task.cancel()
            await asyncio.gather(*services, *([consuming] if consuming else []), return_exceptions=True)
            await self.dispatch.pool.stop(0)
            for broker in (self.broker, self._reply_broker):
                if broker is not None:
                    with contextlib.suppress(OperationalError):
                        await broker.close()
            if self.backend is not None:
                with contextlib.suppress(OperationalError):
                    await self.backend.close()
            self._side.shutdown(wait=False)
        if self._error is not None:
            raise self._error
        return self.exit_code

    def _watch(self, task: asyncio.Task[None]) -> None:
        """A service that ends by an unknown error ends the worker: better restarted than half alive."""
        if task.cancelled() or self._stopping.is_set():
            return
        error = task.exception()
        if isinstance(error, ImproperlyConfigured):
            # one line is enough, and whoever started the worker says it
            self._error = error
            self.stop("Cold", None)
        elif error is not None:
            log.critical("the worker has to stop, because of an error of its own", exc_info=task.exception())
            self.exit_code = 1
            self.stop("Cold", None)

    async def _connect(self) -> bool:
        """Ask both servers whether they are one; wait for them when they are not there yet."""
        pause = 0.1
        while True:
            try:
                return self.backend is None or await self.broker.same_server(self.backend)
            except OperationalError as error:
                log.error("%s is not reachable: %s; trying again in %.1f s", self.broker.describe(), error, pause)
                with contextlib.suppress(asyncio.TimeoutError):
                    async with asyncio.timeout(pause):
                        await self._stopping.wait()
                if self._stopping.is_set():
                    return False
                pause = min(5.0, pause * 2)

    def _new_session(self) -> Session:
        self._session = Session(
            self.dispatch,
            self.broker,
            self.backend,
            together=self._together,
            epoch=self.epoch,
            lease=self.config.lease,
            queues=self.config.queues,
            kick=self.kick,
            ready=self._on_ready,
        )
        return self._session

    def _on_ready(self) -> None:
        ready, self._ready = self._ready, None
        if ready is not None:
            ready()
            self.tell(telemetry.worker_ready, self)
        else:
            log.warning("connected again to %s", self.broker.describe())

    def tell(self, signal_: telemetry.Signal, sender: Any, **fields: Any) -> None:
        """Send a signal from the side thread: a receiver of the user's may block there, never the loop."""
        if signal_.receivers:
            self._side.submit(signal_.send, sender, **fields)

    # --- shutdown

    def stop(self, how: str, signum: int | None) -> None:
        """Begin (or hasten) the shutdown. `how`: Warm or Cold."""
        if not self._stopping.is_set():
            log.warning("worker: %s shutdown%s", how, f" ({signal.Signals(signum).name})" if signum else "")
            self.how = how
            self.tell(
                telemetry.worker_shutting_down, self.config.hostname, sig=signum, how=how, exitcode=self.exit_code
            )
            self._stopping.set()
        if how == "Cold":
            self._cold.set()

    async def _shut_down(self, consuming: asyncio.Task[None]) -> None:
        dispatch, pool = self.dispatch, self.dispatch.pool
        if self._session is not None:
            self._session.accepting = False
        dispatch.give_back(pool.drain())
        if self._cold.is_set() and self.config.soft_shutdown_timeout > 0 and pool.held():
            log.warning("waiting %.1f s for running tasks", self.config.soft_shutdown_timeout)
            await self._settled(self.config.soft_shutdown_timeout, or_cold=False)
        elif not self._cold.is_set():
            await self._settled(None, or_cold=True)
        if pool.held():
            self._give_up()
        await self._settled(ASK_SECONDS, or_cold=False)
        session = self._session
        if session is not None and session.consumer is not None:
            with contextlib.suppress(OperationalError, TimeoutError):
                async with asyncio.timeout(ASK_SECONDS):
                    await session.consumer.leave()

    async def _settled(self, seconds: float | None, or_cold: bool) -> None:
        """Until nothing runs and everything is committed. `seconds` counts from when the broker can be reached."""
        with contextlib.suppress(asyncio.TimeoutError):
            async with asyncio.timeout(seconds):
                while (
                    self.dispatch.pool.held()
                    or self.dispatch.outbox
                    or any(h.finishing for h in self.dispatch.known.values())
                ):
                    if or_cold and self._cold.is_set():
                        return
                    calls = self.dispatch.pool.drain()
                    kept = [c for c in calls if c.end is not None]
                    self.dispatch.give_back([c for c in calls if c.end is None])
                    for call in kept:
                        self.dispatch.pool.submit(call)
                    self.dispatch.feed()
                    await asyncio.sleep(0.01)

    def _give_up(self) -> None:
        """Cold: kill what runs; its messages go back to the head of their queues, uncounted."""
        pool = self.dispatch.pool
        calls = [*pool.busy(), *pool.drain()]
        log.warning("cold shutdown: %d running task(s) are given back to their queues", len(calls))
        pool.kill(calls)
        for child in pool.children.values():
            child.sent.clear()
        for call in calls:
            if call.owner.receipt is not None and not call.owner.finishing:
                call.owner.finishing = True
                self.dispatch.outbox.add(Completion(call.owner.receipt, RETURN), call.owner)
        self.kick.set()

    def _broken(self, text: str) -> None:
        log.critical("%s", text)
        self.exit_code = 1
        self.stop("Cold", None)

    # --- what running tasks ask for

    async def _answer(self, op: Ask, args: Any) -> Any:
        match op:
            case Ask.PUBLISH:
                envelopes = msgspec.convert(args, list[Envelope])
                async with asyncio.timeout(ASK_SECONDS):
                    await self.broker.publish(envelopes)
                return None
            case Ask.CANCEL:
                async with asyncio.timeout(ASK_SECONDS):
                    await self.broker.cancel(*args)
                return None
            case Ask.BROADCAST:
                if self._bus is not None:
                    await self._bus.broadcast(*args)
                return None
            case Ask.INQUIRE:
                return await self._inquire(*args)
            case _:
                pass
        if self.backend is None:
            raise ImproperlyConfigured("no result backend is configured (result_backend)")
        match op:
            case Ask.FETCH:
                return await self.backend.fetch(args)
            case Ask.WATCH:
                return await self._watch_results(*args)
            case Ask.STORE:
                await self.backend.store(msgspec.convert(args, list[Store]))
            case Ask.FORGET:
                await self.backend.forget(args)
            case Ask.GROUP_SAVE:
                await self.backend.save_group(*args)
            case Ask.GROUP_FETCH:
                return await self.backend.fetch_group(args)
            case Ask.GROUP_FORGET:
                await self.backend.forget_group(args)
            case Ask.CHORD_OPEN:
                await self.backend.open_chords(msgspec.convert(args, list[Chord]))
            case Ask.CHORD_ADD:
                await self.backend.add_to_chord(*args)
            case Ask.CLEAN_UP:
                if isinstance(self.backend, Cleaned):
                    await self.backend.clean_up()
            case _:
                raise ImproperlyConfigured(f"unknown request {op}")
        return None

    async def _inquire(
        self, asked: Any, exchange: str, serializer: str, timeout: float, limit: int | None
    ) -> list[tuple[Any, int]]:
        """Ask workers in the name of a task. Its own worker answers too."""
        request = msgspec.convert(asked, notice.Request)
        request.reply_routing_key = self._reply_key
        if self._replies is None:
            self._reply_broker = self.config.make_broker()
            self._replies = Replies(self._reply_broker, request.reply_queue)
        payload = notice.write_request(request, exchange=exchange, serializer=serializer)
        found: list[tuple[Any, int]] = []
        await self._replies.ask(
            request, payload, exchange, timeout, limit, lambda reply: found.append((reply.answers, reply.clock))
        )
        return found

    async def _watch_results(self, ids: list[str], timeout: float | None) -> dict[str, bytes]:
        assert self.backend is not None
        end = time.monotonic() + STALEMATE_SECONDS
        while True:
            documents = {i: d for i, d in (await self.backend.fetch(ids)).items() if final(d)}
            if documents or self.dispatch.pool.free_seats() > 0:
                break
            if time.monotonic() > end:
                raise RuntimeError(
                    "get() inside a task would wait for ever: every seat of this worker is taken by a task that waits "
                    "for a result. Raise the concurrency, or use a link, a chain or a chord instead of get()"
                )
            await asyncio.sleep(0.05)
        if documents:
            return documents
        with contextlib.suppress(asyncio.TimeoutError):
            async with asyncio.timeout(timeout), self.backend.watch(ids) as changes:
                async for task_id, document in changes:
                    if final(document):
                        return {task_id: document}
        return {}

    def _facts(self) -> dict[str, Any]:
        """What a heartbeat says."""
        return {
            "active": len(self.dispatch.pool.running()),
            "processed": sum(self.dispatch.processed.values()),
            "loadavg": list(os.getloadavg()),
        }
