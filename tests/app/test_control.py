"""Telling workers something, and asking them."""

from __future__ import annotations

import asyncio
import os
import threading
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from celeriac.app.app import Celeriac
from celeriac.errors import DuplicateNodenameWarning
from celeriac.wire import notice
from tests.app.conftest import Broker


class Worker(threading.Thread):
    """Answers requests as a worker does, on a loop of its own."""

    def __init__(self, app: Celeriac, *names: str) -> None:
        super().__init__(daemon=True)
        self.app = app
        self.names = names
        self.heard: list[notice.Request] = []
        self.events: list[Any] = []
        self.ready = threading.Event()
        self.loop = asyncio.new_event_loop()

    def run(self) -> None:
        """Until stopped."""
        self.loop.run_until_complete(self.serve())
        self.loop.close()

    async def serve(self) -> None:
        """Listen on both exchanges."""
        bus: Any = self.app.broker()
        self.stopped = asyncio.Event()
        async with bus.listen("celery.pidbox", "") as requests, bus.listen("celeryev", "#") as events:
            jobs = [asyncio.create_task(self.obey(bus, requests)), asyncio.create_task(self.note(events))]
            self.ready.set()
            await self.stopped.wait()
            for job in jobs:
                job.cancel()
            await asyncio.gather(*jobs, return_exceptions=True)

    async def obey(self, bus: Any, requests: Any) -> None:
        """Answer for each name."""
        async for blob in requests:
            request = notice.read_request(blob)
            self.heard.append(request)
            for name in self.names:
                if request.ticket and request.meant_for(name):
                    reply = notice.Reply({name: {"ok": "pong"}}, request.ticket, 100)
                    answer = notice.write_reply(reply, routing_key=request.reply_routing_key)
                    await bus.reply(request.reply_queue, answer)

    async def note(self, events: Any) -> None:
        """Keep events."""
        async for blob in events:
            self.events += notice.read_events(blob)


@contextmanager
def working(app: Celeriac, *names: str) -> Iterator[Worker]:
    """A worker that listens."""
    worker = Worker(app, *names)
    worker.start()
    assert worker.ready.wait(5)
    try:
        yield worker
    finally:
        worker.loop.call_soon_threadsafe(worker.stopped.set)
        worker.join(5)


def until(condition: Any) -> None:
    """Wait for it, 5 seconds at most."""
    end = time.monotonic() + 5
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_ping(app: Celeriac) -> None:
    """Everybody, some, one, nobody; as soon as all that were asked have answered."""
    with working(app, "a@h", "b@h"):
        assert sorted(name for answer in app.control.ping(timeout=0.3) for name in answer) == ["a@h", "b@h"]
        began = time.monotonic()
        assert app.control.ping(destination=["b@h"], timeout=10) == [{"b@h": {"ok": "pong"}}]
        assert time.monotonic() - began < 5
        assert app.control.inspect(timeout=0.3).ping() == {"a@h": {"ok": "pong"}, "b@h": {"ok": "pong"}}
        assert app.control.inspect(destination="a@h", timeout=5).ping() == {"ok": "pong"}
        assert app.control.inspect(destination=["nobody@h"], timeout=0.2).ping() is None
        assert app.control.inspect(timeout=0.3, pattern="b@*", matcher="glob").ping() == {"b@h": {"ok": "pong"}}
        assert len(app.control.broadcast("ping", reply=True, timeout=10, limit=1)) == 1
        seen: list[Any] = []
        app.control.broadcast("ping", reply=True, timeout=0.3, callback=seen.append)
        assert len(seen) == 2
    with pytest.raises(ValueError, match="destination"):
        app.control.ping(destination="a@h")


def test_two_workers_of_one_name(app: Celeriac) -> None:
    """A mistake that is told."""
    with working(app, "a@h"), working(app, "a@h"), pytest.warns(DuplicateNodenameWarning, match="a@h"):
        app.control.ping(timeout=0.3)


def test_commands_as_celery_names_them(app: Celeriac) -> None:
    """Method and arguments."""
    control = app.control
    calls: list[tuple[Any, str, dict[str, Any]]] = [
        (lambda: control.rate_limit("t", "3/s"), "rate_limit", {"task_name": "t", "rate_limit": "3/s"}),
        (lambda: control.time_limit("t", 1, 2), "time_limit", {"task_name": "t", "soft": 1, "hard": 2}),
        (lambda: control.cancel_consumer("q"), "cancel_consumer", {"queue": "q"}),
        (lambda: control.pool_grow(2), "pool_grow", {"n": 2}),
        (lambda: control.shutdown(), "shutdown", {}),
        (lambda: control.broadcast("own", {"a": 1}, b=2), "own", {"a": 1, "b": 2}),
    ]
    with working(app, "a@h") as worker:
        for call, method, arguments in calls:
            call()
            until(lambda method=method: worker.heard and worker.heard[-1].method == method)
            assert worker.heard[-1].arguments == arguments
            assert worker.heard[-1].ticket is None


def test_a_revocation_is_stored(app: Celeriac, broker: Broker) -> None:
    """In the broker, also for workers that are down; and told at once."""
    task = app.task(name="t")(lambda: None)
    result = task.delay()
    result.revoke()
    assert set(broker.server.cancelled) == {result.id}
    with working(app, "a@h") as worker:
        app.control.revoke(["x", result], terminate=True, signal="SIGKILL")
        until(lambda: worker.heard)
        assert worker.heard[0].method == "revoke"
        assert worker.heard[0].arguments == {"task_id": ["x", result.id], "terminate": True, "signal": "SIGKILL"}
        app.control.terminate("y")
        app.ResultSet([result]).revoke()
        asyncio.run(app.control.arevoke("z"))
    assert {"x", "x\0SIGKILL", "y\0SIGTERM", "z"} <= set(broker.server.cancelled)


def test_purge(app: Celeriac, broker: Broker) -> None:
    """What is ready in the app's queues."""
    app.send_task("t")
    app.send_task("t")
    app.send_task("t", queue="other")
    assert app.control.purge() == 2
    assert len(broker.blobs("other")) == 1


def test_events(app: Celeriac) -> None:
    """task-sent where it is wanted, and events of one's own."""
    app.conf.task_send_sent_event = True
    task = app.task(name="t")(lambda x: x)
    with working(app) as worker:
        result = task.delay(1)
        task.send_event("task-progress", percent=50)
        until(lambda: len(worker.events) == 2)
    sent, own = worker.events
    assert (sent["type"], sent["uuid"], sent["name"], sent["args"], sent["queue"]) == (
        "task-sent", result.id, "t", "(1,)", "celery",
    )  # fmt: skip
    assert (sent["hostname"], sent["pid"]) == (app.origin, os.getpid())
    assert (own["type"], own["percent"]) == ("task-progress", 50)


def test_commands_from_many_threads(app: Celeriac) -> None:
    """One loop serves them all."""
    with working(app, "a@h"), warnings.catch_warnings():
        warnings.simplefilter("error")
        answers: list[Any] = []

        def ask() -> None:
            answers.append(app.control.ping(destination=["a@h"], timeout=5))

        threads = [threading.Thread(target=ask) for _ in range(10)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert answers == [[{"a@h": {"ok": "pong"}}]] * 10


def test_in_a_child(app: Celeriac) -> None:
    """Commands go through the parent, and so do the answers."""

    class Line:
        asked: list[Any] = []  # noqa: RUF012

        def ask(self, op: str, args: Any, timeout: float | None = None) -> Any:
            if op == "inquire":
                request, exchange, *how = args
                self.asked.append((op, exchange, request.method, *how, timeout))
                return [[{"a@h": {"ok": "pong"}}, 7]]
            self.asked.append((op, *args) if op == "cancel" else (op, args[0], notice.read_request(args[2]).method))

    line = Line()
    app.use_parent(line)
    app.control.revoke("x")
    told = ("broadcast", "celery.pidbox", "revoke")
    assert line.asked == [("cancel", ["x"], 3 * 86400.0), told]
    app.control.terminate(["x", "y"], signal="SIGINT")
    assert line.asked[2:] == [("cancel", ["x", "y", "x\0SIGINT", "y\0SIGINT"], 3 * 86400.0), told]
    assert app.control.ping(timeout=2.0) == [{"a@h": {"ok": "pong"}}]
    assert line.asked[4:] == [("inquire", "celery.pidbox", "ping", "json", 2.0, None, 12.0)]
