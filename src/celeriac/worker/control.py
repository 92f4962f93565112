"""Remote control: requests by fanout, answers to who asks. Commands never touch the loop for long."""

from __future__ import annotations

import asyncio
import inspect
import logging
import time
from collections.abc import Callable
from typing import Any, Protocol

from celeriac.errors import CeleryError, OperationalError
from celeriac.model import revoking
from celeriac.ports import Bus
from celeriac.wire import notice
from celeriac.worker.config import WorkerConfig
from celeriac.worker.dispatch import Dispatch
from celeriac.worker.events import Events

log = logging.getLogger("celeriac.worker")


class Controlled(Protocol):
    """The worker, as far as commands reach."""

    config: WorkerConfig
    dispatch: Dispatch
    events: Events

    def stop(self, how: str, signum: int | None) -> None:
        """Begin the shutdown."""
        ...


class Control:
    """Listens for requests and answers them."""

    def __init__(self, worker: Controlled, bus: Bus) -> None:
        self._worker = worker
        self._bus = bus
        self._commands: dict[str, Callable[..., Any]] = {
            "ping": lambda worker: {"ok": "pong"},
            "revoke": _revoke,
            "revoke_by_stamped_headers": _revoke_by_stamps,
            "terminate": lambda worker, signal, task_id: _revoke(worker, task_id, terminate=True, signal=signal),
            "clock": lambda worker: {"clock": worker.events.clock()},
            "revoked": lambda worker: sorted(i for i in worker.dispatch.cancelled if i.isprintable()),
            "registered": lambda worker, **_: sorted(worker.dispatch.traits),
            "heartbeat": lambda worker: worker.events.heartbeat(),
            "shutdown": lambda worker: worker.stop("Warm", None),
            **worker.config.control,
        }

    async def run(self) -> None:
        """Listen until cancelled; connect again when the connection breaks."""
        exchange = f"{self._worker.config.control_exchange}.pidbox"
        pause = 0.1
        while True:
            try:
                async with self._bus.listen(exchange, "") as requests:
                    pause = 0.1
                    async for blob in requests:
                        await self._hear(blob)
            except OperationalError as error:
                log.debug("remote control is off: %s", error)
            await asyncio.sleep(pause)
            pause = min(2.0, pause * 2)

    async def _hear(self, blob: bytes) -> None:
        try:
            request = notice.read_request(blob)
            meant = request.meant_for(self._worker.config.hostname)
        except CeleryError as error:
            log.warning("a remote control message can't be read: %s", error)
            return
        clock = self._worker.events.clock(request.clock)
        if not meant or (request.expires and request.expires < time.time()):
            return
        answer = await self._carry_out(request.method, request.arguments)
        if request.ticket and answer is not None:
            reply = notice.Reply({self._worker.config.hostname: answer}, request.ticket, clock)
            blob = notice.write_reply(reply, exchange=request.reply_exchange, routing_key=request.reply_routing_key)
            await self._bus.reply(request.reply_queue, blob)

    async def _carry_out(self, method: str, arguments: dict[str, Any]) -> Any:
        command = self._commands.get(method)
        if command is None:
            return {"error": repr(KeyError(method))}
        try:
            answer = command(self._worker, **arguments)
            if inspect.isawaitable(answer):
                answer = await answer
        except Exception as error:  # whatever it is belongs to who asked
            log.exception("the control command %r failed", method)
            return {"error": repr(error)}
        return answer


def _revoke(
    worker: Controlled, task_id: str | list[str], terminate: bool = False, signal: str = "SIGTERM", **_: Any
) -> dict[str, str]:
    """End what waits here; the durable list in the broker keeps the rest from running."""
    ids = [task_id] if isinstance(task_id, str) else list(task_id)
    hit = _cancel(worker, ids, str(signal) if terminate else None)
    if not terminate:
        return {"ok": f"tasks {set(ids)} flagged as revoked"}
    return {"ok": f"terminate: {', '.join(hit)}" if hit else "terminate: tasks unknown"}


def _revoke_by_stamps(
    worker: Controlled, headers: dict[str, Any], terminate: bool = False, signal: str = "SIGTERM", **_: Any
) -> dict[str, str]:
    """`_revoke` for all tasks that carry one of these stamps."""
    hit = _cancel(worker, revoking.stamp_entries(headers), str(signal) if terminate else None)
    if not terminate:
        return {"ok": f"headers {headers} flagged as revoked"}
    return {"ok": f"headers {headers} flagged as revoked, {'terminated' if hit else 'no tasks run with them'}"}


def _cancel(worker: Controlled, names: list[str], signal: str | None) -> list[str]:
    """End what waits here; gives those of which something was running and is terminated."""
    dispatch = worker.dispatch
    dispatch.revoke(dispatch.cancelled | frozenset(names))
    return [name for name in names if dispatch.terminate(name, signal)] if signal else []
