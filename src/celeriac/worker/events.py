"""Events for monitors, as Celery's workers send them: heartbeats, and task events with `-E`. In batches."""

from __future__ import annotations

import asyncio
import logging
import os
import platform
import time
from collections.abc import Callable
from typing import Any

from celeriac.errors import OperationalError
from celeriac.model.version import __version__
from celeriac.ports import Bus
from celeriac.wire import notice
from celeriac.wire.task import Head
from celeriac.worker.config import WorkerConfig

log = logging.getLogger("celeriac.worker")

FLUSH_SECONDS = 0.1
LIMIT = 10_000
"""Events that wait at most; when the broker is away the oldest are dropped, as monitors only want the present."""


class Events:
    """Collects events and sends them on."""

    def __init__(self, config: WorkerConfig, bus: Bus | None, facts: Callable[[], dict[str, Any]]) -> None:
        self._config = config
        self._bus = bus
        self._facts = facts
        self._waiting: list[dict[str, Any]] = []
        self._clock = 0
        self.enabled = config.events

    def clock(self, seen: int = 0) -> int:
        """The next time of the Lamport clock, after `seen`."""
        self._clock = max(self._clock, seen) + 1
        return self._clock

    def task(self, kind: str, subject: Any, **fields: Any) -> None:
        """Note one task event. `raw`: maps that a task made itself."""
        if not self.enabled or self._bus is None:
            return
        if kind == "raw":
            for event in subject:
                self._waiting.append({**self._about(), **event})
            return
        head: Head = subject
        event = {**self._about(), "uuid": head.id, **fields, "type": kind}
        if kind == "task-received":
            event.update(
                name=head.task, args=head.argsrepr, kwargs=head.kwargsrepr, root_id=head.root_id,
                parent_id=head.parent_id, retries=head.retries, eta=head.eta_text, expires=head.expires_text,
            )  # fmt: skip
        self._waiting.append(event)
        if len(self._waiting) > LIMIT:
            del self._waiting[: LIMIT // 10]

    async def run(self) -> None:
        """Send heartbeats and what was noted, until cancelled; then say that the worker goes."""
        if self._bus is None:
            return
        beat = self._config.heartbeat
        next_beat = time.monotonic()
        await self._worker("worker-online")
        try:
            while True:
                if self._waiting:
                    await self._flush()
                now = time.monotonic()
                if beat is not None and now >= next_beat:
                    await self._worker("worker-heartbeat")
                    next_beat = now + beat
                pause = FLUSH_SECONDS if self.enabled else beat or 1.0
                await asyncio.sleep(min(pause, beat or pause))
        finally:
            await self._flush()
            await self._worker("worker-offline")

    async def heartbeat(self) -> None:
        """One heartbeat more, because somebody asked."""
        await self._worker("worker-heartbeat")

    async def _flush(self) -> None:
        events, self._waiting = self._waiting, []
        for start in range(0, len(events), 500):
            blob = notice.write_events(events[start : start + 500], hostname=self._config.hostname)
            await self._send("task.multi", blob)

    async def _worker(self, kind: str) -> None:
        event = {
            **self._about(), "type": kind, "freq": self._config.heartbeat or 2.0, "sw_ident": "celeriac",
            "sw_ver": __version__, "sw_sys": platform.system(), **self._facts(),
        }  # fmt: skip
        await self._send(notice.event_routing_key(kind), notice.write_event(event, hostname=self._config.hostname))

    async def _send(self, routing_key: str, blob: bytes) -> None:
        assert self._bus is not None
        try:
            async with asyncio.timeout(5.0):
                await self._bus.broadcast(self._config.event_exchange, routing_key, blob)
        except (OperationalError, TimeoutError) as error:
            log.debug("an event could not be sent: %s", error)

    def _about(self) -> dict[str, Any]:
        return {
            "hostname": self._config.hostname, "utcoffset": time.timezone / 3600, "pid": os.getpid(),
            "clock": self.clock(), "timestamp": time.time(),
        }  # fmt: skip
