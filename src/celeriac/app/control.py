"""Telling workers something, and asking them: `app.control`.

A revocation is stored in the broker first, so that it also holds for a worker that is down now; the broadcast that
follows is what makes it quick, and what Celery's workers hear.
"""

from __future__ import annotations

import os
import time
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from celeriac.app.bridge import Bridge
from celeriac.errors import DuplicateNodenameWarning, OperationalError
from celeriac.model import revoking
from celeriac.model.message import Envelope
from celeriac.wire import notice
from celeriac.wire.ids import new_id
from celeriac.wire.task import TaskMessage

CANCEL_SECONDS = 3 * 86400.0
"""How long a broker remembers that a task was revoked."""
PATIENCE = 10.0
"""Seconds that a command without an answer may take."""


class Control:
    """`app.control`. From inside a task it works through the worker's parent."""

    def __init__(self, app: Any) -> None:
        self.app = app
        self._bridge = Bridge()
        self._replies: Any = None
        self._clock = 0

    # Revoking

    def revoke(
        self,
        task_id: str | Iterable[str],
        destination: Sequence[str] | None = None,
        terminate: bool = False,
        signal: str = "SIGTERM",
        **how: Any,
    ) -> Any:
        """Tasks of these ids are not started any more; with `terminate` they are ended if they run, by `signal`. Raises
        OperationalError when the broker could not store that."""
        ids = _ids(task_id)
        signal = signal or "SIGTERM"
        self._store(revoking.entries(ids, signal if terminate else None))
        arguments = {"task_id": ids if len(ids) != 1 else ids[0], "terminate": terminate, "signal": signal}
        return self.broadcast("revoke", arguments, destination, **how)

    async def arevoke(self, task_id: str | Iterable[str], terminate: bool = False, signal: str = "SIGTERM") -> None:
        """`revoke` for coroutines."""
        import asyncio

        await asyncio.to_thread(self.revoke, task_id, terminate=terminate, signal=signal)

    def terminate(
        self,
        task_id: str | Iterable[str],
        destination: Sequence[str] | None = None,
        signal: str = "SIGTERM",
        **how: Any,
    ) -> Any:
        """`revoke(terminate=True)`."""
        return self.revoke(task_id, destination=destination, terminate=True, signal=signal, **how)

    def revoke_by_stamped_headers(
        self,
        headers: Mapping[str, Any],
        destination: Sequence[str] | None = None,
        terminate: bool = False,
        signal: str = "SIGTERM",
        **how: Any,
    ) -> Any:
        """`revoke` for all tasks that carry one of these stamps: `{header: value or list of values}`."""
        signal = signal or "SIGTERM"
        self._store(revoking.stamp_entries(headers, signal if terminate else None))
        arguments = {"headers": dict(headers), "terminate": terminate, "signal": signal}
        return self.broadcast("revoke_by_stamped_headers", arguments, destination, **how)

    def _store(self, entries: list[str]) -> None:
        if self.app.wiring.in_child:
            self.app.wiring.cancel(entries, CANCEL_SECONDS)
        else:
            self._run(self._cancel(entries))

    async def _cancel(self, entries: list[str]) -> None:
        broker = await self.app.wiring.broker_here()
        await broker.cancel(entries, CANCEL_SECONDS)

    # Asking and telling

    def ping(self, destination: Sequence[str] | None = None, timeout: float = 1.0, **how: Any) -> list[dict[str, Any]]:
        """Who is there: `[{node: {"ok": "pong"}}, ...]`."""
        answers: list[dict[str, Any]] = self.broadcast("ping", {}, destination, reply=True, timeout=timeout, **how)
        return answers

    def inspect(
        self,
        destination: Sequence[str] | str | None = None,
        timeout: float = 1.0,
        callback: Callable[[dict[str, Any]], Any] | None = None,
        connection: Any = None,
        limit: int | None = None,
        pattern: str | None = None,
        matcher: str | None = None,
    ) -> Inspect:
        """Ask workers; see `Inspect`."""
        return Inspect(self, destination, timeout, callback, limit, pattern, matcher)

    def purge(self, connection: Any = None) -> int:
        """Delete what is ready in the queues of this app. Returns how many messages that were."""
        names = list(self.app.queue_names())

        async def purge() -> int:
            broker = await self.app.wiring.broker_here()
            return sum([await broker.purge(name) for name in names])

        count: int = self._run(purge())
        return count

    discard_all = purge

    def rate_limit(self, task_name: str, rate_limit: Any, destination: Sequence[str] | None = None, **how: Any) -> Any:
        """Tell workers another rate limit of a task."""
        return self.broadcast("rate_limit", {"task_name": task_name, "rate_limit": rate_limit}, destination, **how)

    def time_limit(
        self, task_name: str, soft: float | None = None, hard: float | None = None,
        destination: Sequence[str] | None = None, **how: Any,
    ) -> Any:  # fmt: skip
        """Tell workers other time limits of a task."""
        return self.broadcast("time_limit", {"task_name": task_name, "soft": soft, "hard": hard}, destination, **how)

    def add_consumer(
        self,
        queue: str,
        exchange: str | None = None,
        exchange_type: str = "direct",
        routing_key: str | None = None,
        options: Mapping[str, Any] | None = None,
        destination: Sequence[str] | None = None,
        **how: Any,
    ) -> Any:
        """Tell workers to consume a queue as well."""
        arguments = {
            "queue": queue, "exchange": exchange, "exchange_type": exchange_type, "routing_key": routing_key,
            **(options or {}),
        }  # fmt: skip
        return self.broadcast("add_consumer", arguments, destination, **how)

    def cancel_consumer(self, queue: str, destination: Sequence[str] | None = None, **how: Any) -> Any:
        """Tell workers to consume a queue no more."""
        return self.broadcast("cancel_consumer", {"queue": queue}, destination, **how)

    def enable_events(self, destination: Sequence[str] | None = None, **how: Any) -> Any:
        """Tell workers to send task events."""
        return self.broadcast("enable_events", {}, destination, **how)

    def disable_events(self, destination: Sequence[str] | None = None, **how: Any) -> Any:
        """Tell workers to send no task events."""
        return self.broadcast("disable_events", {}, destination, **how)

    def pool_grow(self, n: int = 1, destination: Sequence[str] | None = None, **how: Any) -> Any:
        """Tell workers to run more tasks at once."""
        return self.broadcast("pool_grow", {"n": n}, destination, **how)

    def pool_shrink(self, n: int = 1, destination: Sequence[str] | None = None, **how: Any) -> Any:
        """Tell workers to run fewer tasks at once."""
        return self.broadcast("pool_shrink", {"n": n}, destination, **how)

    def autoscale(self, max: int, min: int, destination: Sequence[str] | None = None, **how: Any) -> Any:
        """Tell workers other bounds of autoscaling."""
        return self.broadcast("autoscale", {"max": max, "min": min}, destination, **how)

    def pool_restart(
        self, modules: Any = None, reload: bool = False, reloader: Any = None,
        destination: Sequence[str] | None = None, **how: Any,
    ) -> Any:  # fmt: skip
        """Tell workers to restart their children."""
        arguments = {"modules": modules or [], "reload": reload, "reloader": reloader}
        return self.broadcast("pool_restart", arguments, destination, **how)

    def heartbeat(self, destination: Sequence[str] | None = None, **how: Any) -> Any:
        """Tell workers to send a heartbeat event."""
        return self.broadcast("heartbeat", {}, destination, **how)

    def shutdown(self, destination: Sequence[str] | None = None, **how: Any) -> Any:
        """Tell workers to stop when their tasks have ended."""
        return self.broadcast("shutdown", {}, destination, **how)

    def broadcast(
        self,
        command: str,
        arguments: Mapping[str, Any] | None = None,
        destination: Sequence[str] | None = None,
        connection: Any = None,
        reply: bool = False,
        timeout: float = 1.0,
        limit: int | None = None,
        callback: Callable[[dict[str, Any]], Any] | None = None,
        channel: Any = None,
        pattern: str | None = None,
        matcher: str | None = None,
        **extra: Any,
    ) -> Any:
        """Send a command to workers: to those of `destination`, or those whose name fits `pattern` (read as `matcher`
        says, `glob` or `pcre`), or all.

        With `reply` returns `[{node: answer}, ...]`, after `timeout` seconds or when `limit` nodes have answered (by
        default all of `destination`); `callback` is called with each, in a task when all are there. Raises
        OperationalError when the broker can't be reached, ValueError for a destination that is no list."""
        if destination is not None and not isinstance(destination, list | tuple):
            raise ValueError(f"destination must be a list or tuple of node names, not {destination!r}")
        request = notice.Request(
            command,
            {**(arguments or {}), **extra},
            list(destination) if destination is not None else None,
            pattern,
            matcher,
            ticket=new_id() if reply else None,
            reply_exchange=f"reply.{self.exchange}",
            reply_routing_key=self.app.oid,
            clock=self._tick(),
            expires=time.time() + timeout if reply else 0,
        )
        wiring = self.app.wiring
        if not reply:
            if wiring.in_child:
                wiring.broadcast(self.exchange, "", self._sealed(request))
            else:
                self._run(self._tell(request))
            return None
        if limit is None and destination is not None:
            limit = len(destination) or None
        answers: list[dict[str, Any]] = []

        def heard(reply: notice.Reply) -> None:
            self._tick(reply.clock)
            answers.append(reply.answers)
            if callback is not None:
                callback(reply.answers)

        if wiring.in_child:
            patience = timeout + PATIENCE
            for found in wiring.inquire(request, self.exchange, self._serializer, timeout, limit, patience):
                heard(notice.Reply(found[0], clock=found[1]))
        else:
            self._run(self._ask(request, timeout, limit, heard), timeout + PATIENCE)
        _warn_of_twins(answers)
        return answers

    @property
    def exchange(self) -> str:
        """Where requests are sent."""
        return f"{self.app.conf['control_exchange']}.pidbox"

    def _tick(self, seen: int = 0) -> int:
        self._clock = max(self._clock, seen) + 1
        return self._clock

    @property
    def _serializer(self) -> str:
        serializer = self.app.conf["task_serializer"]
        return serializer if serializer in ("json", "yaml") else "json"

    def _sealed(self, request: notice.Request) -> bytes:
        return notice.write_request(request, exchange=self.exchange, serializer=self._serializer)

    async def _tell(self, request: notice.Request) -> None:
        broker: Any = await self.app.wiring.broker_here()
        await broker.broadcast(self.exchange, "", self._sealed(request))

    async def _ask(
        self, request: notice.Request, timeout: float, limit: int | None, heard: Callable[[notice.Reply], None]
    ) -> None:
        import asyncio

        from celeriac.worker.replies import Replies

        replies = self._replies
        if replies is None or replies.loop is not asyncio.get_running_loop():
            replies = self._replies = Replies(await self.app.wiring.broker_here(), request.reply_queue)
        await replies.ask(request, self._sealed(request), self.exchange, timeout, limit, heard)

    def _run(self, job: Any, timeout: float = PATIENCE) -> Any:
        try:
            return self._bridge.run(job, timeout)
        except TimeoutError:
            raise OperationalError(f"the broker did not answer within {timeout:g} s") from None

    # Events

    def tell_sent(self, message: TaskMessage, envelope: Envelope) -> None:
        """The task-sent event of a message (`task_send_sent_event`)."""
        self.send_event(
            "task-sent", uuid=message.id, root_id=message.root_id, parent_id=message.parent_id, name=message.task,
            args=_shown(message.argsrepr, message.args), kwargs=_shown(message.kwargsrepr, message.kwargs),
            retries=message.retries, eta=message.eta, expires=message.expires, queue=envelope.queue,
            exchange=envelope.exchange, routing_key=envelope.routing_key,
        )  # fmt: skip

    def send_event(self, type: str, **fields: Any) -> None:
        """Send an event to monitors."""
        app = self.app
        event = {
            "hostname": app.origin, "utcoffset": time.timezone / 3600, "pid": os.getpid(), "clock": self._tick(),
            **fields, "timestamp": time.time(), "type": type,
        }  # fmt: skip
        exchange = app.conf["event_exchange"]
        blob = notice.write_event(event, hostname=app.origin, exchange=exchange)
        key = notice.event_routing_key(type)
        if app.wiring.in_child:
            app.wiring.broadcast(exchange, key, blob)
            return

        async def tell() -> None:
            broker: Any = await app.wiring.broker_here()
            await broker.broadcast(exchange, key, blob)

        self._run(tell())

    def close(self) -> None:
        """Stop the loop that commands ran in."""
        self._bridge.stop()


class Inspect:
    """Questions to workers. Each returns `{node: answer}`, None when nobody answered, and the answer alone where
    `destination` is the name of one node."""

    def __init__(
        self,
        control: Control,
        destination: Sequence[str] | str | None = None,
        timeout: float = 1.0,
        callback: Callable[[dict[str, Any]], Any] | None = None,
        limit: int | None = None,
        pattern: str | None = None,
        matcher: str | None = None,
    ) -> None:
        self._control = control
        self.destination = destination
        self.timeout = timeout
        self.callback = callback
        self.limit = limit
        self.pattern = pattern
        self.matcher = matcher

    def ask(self, command: str, **arguments: Any) -> Any:
        """Ask anything."""
        one = self.destination if isinstance(self.destination, str) else None
        answers = self._control.broadcast(
            command, arguments, [one] if one else self.destination or None, reply=True, timeout=self.timeout,
            limit=self.limit, callback=self.callback, pattern=self.pattern, matcher=self.matcher,
        )  # fmt: skip
        if not answers:
            return None
        merged = {node: answer for found in answers for node, answer in found.items()}
        if one:
            return merged.get(one)
        return merged

    def ping(self, destination: Sequence[str] | None = None) -> Any:
        """Who is there."""
        if destination is not None:
            self.destination = destination
        return self.ask("ping")

    def clock(self) -> Any:
        """The Lamport clocks."""
        return self.ask("clock")

    def registered(self, *taskinfoitems: str) -> Any:
        """The tasks that workers know."""
        return self.ask("registered", taskinfoitems=list(taskinfoitems))

    registered_tasks = registered

    def revoked(self) -> Any:
        """The ids that are revoked."""
        return self.ask("revoked")

    def report(self) -> Any:
        """A description of each worker."""
        return self.ask("report")

    def conf(self, with_defaults: bool = False) -> Any:
        """The settings of workers."""
        return self.ask("conf", with_defaults=with_defaults)

    def stats(self) -> Any:
        """Counts of workers."""
        return self.ask("stats")

    def active(self, safe: bool | None = None) -> Any:
        """What runs."""
        return self.ask("active") if safe is None else self.ask("active", safe=safe)

    def reserved(self, safe: bool | None = None) -> Any:
        """What a worker holds and has not started."""
        return self.ask("reserved")

    def scheduled(self, safe: bool | None = None) -> Any:
        """What a worker holds for later."""
        return self.ask("scheduled")

    def active_queues(self) -> Any:
        """The queues that workers consume."""
        return self.ask("active_queues")

    def query_task(self, *ids: str) -> Any:
        """Where tasks are."""
        if len(ids) == 1 and isinstance(ids[0], list | tuple):
            ids = tuple(ids[0])
        return self.ask("query_task", ids=list(ids))


def _ids(task_id: Any) -> list[str]:
    if isinstance(task_id, str):
        return [task_id]
    if hasattr(task_id, "id"):
        return [task_id.id]
    return [one if isinstance(one, str) else one.id for one in task_id]


def _shown(text: str | None, value: Any) -> str:
    from celeriac.wire.repr import safe_repr

    return safe_repr(value) if text is None else text


def _warn_of_twins(answers: list[dict[str, Any]]) -> None:
    names = [node for answer in answers for node in answer]
    twins = sorted({name for name in names if names.count(name) > 1})
    if twins:
        warnings.warn(
            f"several workers are named {', '.join(twins)}: give each a name of its own with -n",
            DuplicateNodenameWarning,
            stacklevel=3,
        )
