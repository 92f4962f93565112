"""An app on real Redis: where Celery may stand on the other side."""

from __future__ import annotations

import asyncio
import json
import os
import threading
import time
from collections.abc import Iterator
from typing import Any
from uuid import uuid4

import pytest

from celeriac.app.app import Celeriac
from celeriac.backends.redis import RedisReader
from celeriac.drivers.redis.blocking import Connections
from celeriac.drivers.redis.url import parse
from celeriac.errors import OperationalError
from celeriac.model.message import Store
from celeriac.model.routing import Exchange, Queue
from celeriac.wire import record


@pytest.fixture
def prefix() -> str:
    """Keys of this test's own."""
    return f"t{uuid4().hex}:"


@pytest.fixture
def app(redis_url: str, prefix: str) -> Iterator[Celeriac]:
    """An app there."""
    options = {"global_keyprefix": prefix}
    with Celeriac(
        "r", broker=redis_url, backend=redis_url, set_as_current=False, broker_transport_options=options,
        result_backend_transport_options=options,
    ) as made:  # fmt: skip
        yield made


class Look:
    """Commands on the same server."""

    def __init__(self, url: str, prefix: str) -> None:
        self.connections = Connections(parse(url))
        self.prefix = prefix

    def __call__(self, *words: Any) -> Any:
        """One command; the key is the second word."""
        end = time.monotonic() + 5
        return self.connections.get(end).many([(words[0], self.prefix + words[1], *words[2:])], end)[0]

    def messages(self, queue: str) -> list[dict[str, Any]]:
        """The list of a queue, oldest first."""
        return [json.loads(blob) for blob in reversed(self("LRANGE", queue, 0, -1))]


@pytest.fixture
def look(redis_url: str, prefix: str) -> Look:
    """A look at the server."""
    return Look(redis_url, prefix)


def test_messages_for_later_wait_where_celery_looks(app: Celeriac, look: Look) -> None:
    """In the queue, with the eta in the header; with `celery_peers` off in the schedule."""
    task = app.task(name="t", shared=False)(lambda: None)
    task.apply_async(countdown=60)
    task.delay()
    first, second = look.messages("celery")
    assert first["headers"]["eta"] is not None
    assert second["headers"]["eta"] is None
    app.conf.celery_peers = False
    task.apply_async(countdown=60)
    assert len(look.messages("celery")) == 2
    assert look("ZCARD", "celeriac:1:{celery}:schedule") == 1


def test_queues_are_declared_as_kombu_does(app: Celeriac, look: Look) -> None:
    """With the exchanges and patterns of `task_queues`."""
    app.conf.task_queues = [Queue("celery"), Queue("logs", Exchange("topics", "topic"), "log.#")]
    app.send_task("t")
    app.send_task("t", queue="logs")
    members = [member.decode().split("\x06\x16") for member in look("SMEMBERS", "_kombu.binding.topics")]
    assert [(key, queue) for key, _, queue in members] == [("log.#", "logs")]
    assert look("SCARD", "_kombu.binding.celery") == 1


def test_threads_and_forks(app: Celeriac, look: Look) -> None:
    """64 threads at once, and a child that was forked in the middle."""
    task = app.task(name="t", shared=False)(lambda number: None)
    task.delay(-1)

    def send(start: int) -> None:
        for number in range(start, start + 5):
            task.delay(number)

    threads = [threading.Thread(target=send, args=(5 * number,)) for number in range(64)]
    for thread in threads:
        thread.start()
    pid = os.fork()
    if not pid:
        code = 1
        try:
            send(1000)
            code = 0
        finally:
            os._exit(code)
    for thread in threads:
        thread.join()
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    messages = look.messages("celery")
    numbers = sorted(int(message["headers"]["argsrepr"].strip("(),")) for message in messages)
    assert numbers == [-1, *range(320), *range(1000, 1005)]
    assert len({message["headers"]["id"] for message in messages}) == len(messages)
    assert len({message["headers"]["origin"] for message in messages}) == 2


def test_results_across_threads(app: Celeriac, redis_url: str, prefix: str) -> None:
    """Many wait, each for its own."""
    reader = RedisReader(redis_url, {"global_keyprefix": prefix})
    results = [app.AsyncResult(uuid4().hex) for _ in range(32)]
    found: dict[str, Any] = {}

    def wait(result: Any) -> None:
        found[result.id] = result.get(timeout=10)

    threads = [threading.Thread(target=wait, args=(result,)) for result in results]
    for thread in threads:
        thread.start()
    for number, result in enumerate(results):
        document = record.document(result.id, "SUCCESS", number, date_done="2026-01-01T00:00:00+00:00")
        reader.store([Store(result.id, document, "SUCCESS", 60.0)])
    for thread in threads:
        thread.join()
    assert [found[result.id] for result in results] == list(range(32))
    assert app.ResultSet(results).get(timeout=5) == list(range(32))


def test_a_broker_that_is_away() -> None:
    """OperationalError within the deadline, and no half-made result."""
    app = Celeriac("away", broker="redis://127.0.0.1:1", set_as_current=False, task_publish_timeout=1.0)
    task = app.task(name="t", shared=False)(lambda: None)
    calls: list[Any] = [
        task.delay, lambda: task.apply_async(retry=False), lambda: app.send_task("t"),
        lambda: asyncio.run(task.adelay()),
    ]  # fmt: skip
    for call in calls:
        began = time.monotonic()
        with pytest.raises(OperationalError):
            call()
        assert time.monotonic() - began < 3
