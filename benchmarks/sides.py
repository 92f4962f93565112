"""The sides of a comparison: how each is started, filled and counted on Redis."""

from __future__ import annotations

import itertools
import json
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Protocol

from benchmarks.measure import Client, Running, Workshop

QUEUE = "celery"
UUID = re.compile(rb"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")
_numbers = itertools.count()
_run = os.urandom(6).hex()


def new_id() -> bytes:
    """An id that no other message of this run has."""
    return b"%08x-0000-4000-8000-%s" % (next(_numbers), _run.encode())


class Side(Protocol):
    """One way to run no-op tasks."""

    name: str
    guess: float
    """Tasks a second at most: decides how many are put into the queue first."""

    def worker(self, work: Workshop, *, told: bool) -> Running:
        """Start a worker with two processes. `told`: log level INFO and events on."""
        ...

    def template(self, work: Workshop, client: Client, task: str, args: Sequence[Any] = (1, 2)) -> bytes:
        """A message as the side's own producer writes it."""
        ...

    def fill(self, client: Client, template: bytes, count: int) -> None:
        """Put so many copies with ids of their own into the queue."""
        ...

    def open(self, client: Client) -> int:
        """How many are not done yet."""
        ...

    def waiting(self, client: Client) -> int:
        """How many nobody has taken yet."""
        ...


def chunks(count: int, size: int) -> Iterator[int]:
    """Sizes that add up to `count`."""
    while count > 0:
        yield min(size, count)
        count -= size


class _Kombu:
    """What Celery and celeriac share: kombu's lists."""

    name: str

    def template(self, work: Workshop, client: Client, task: str, args: Sequence[Any] = (1, 2)) -> bytes:
        client.call("FLUSHALL")
        work.run(self.name, "one.py", self.name, task, json.dumps(args))
        blob: bytes = client.call("RPOP", QUEUE)
        client.call("FLUSHALL")
        return blob

    def fill(self, client: Client, template: bytes, count: int) -> None:
        for commands in pushes(template, count):
            client.many(commands)

    def waiting(self, client: Client) -> int:
        return int(client.call("LLEN", QUEUE))


def copies(template: bytes, count: int) -> Iterable[bytes]:
    """Copies of a message of kombu's with task ids and delivery tags of their own."""
    task_id = json.loads(template)["headers"]["id"].encode()
    tag = json.loads(template)["properties"]["delivery_tag"].encode()
    if tag == task_id:
        parts = template.split(task_id)
        for _ in range(count):
            yield new_id().join(parts)
        return
    before, after = template.split(tag)
    first, second = before.split(task_id), after.split(task_id)
    for _ in range(count):
        key = new_id()
        yield key.join(first) + new_id() + key.join(second)


def pushes(template: bytes, count: int) -> Iterator[list[tuple[str | bytes, ...]]]:
    """LPUSH commands, ten to a write."""
    for size in chunks(count, 2000):
        yield [("LPUSH", QUEUE, *copies(template, part)) for part in chunks(size, 200)]


class Celery(_Kombu):
    """Celery 5.7, prefork."""

    name = "celery"
    guess = 1500.0

    def worker(self, work: Workshop, *, told: bool) -> Running:
        level = ("-l", "INFO", "-E") if told else ("-l", "WARNING")
        quiet = ("--without-gossip", "--without-mingle", "--without-heartbeat")
        words = ("-m", "celery", "-A", "bench_celery", "worker", "-c", "2", "-P", "prefork", *quiet, *level)
        return work.start("celery", *words, env={"BENCH_EVENTS": "1"} if told else None)

    def open(self, client: Client) -> int:
        ready, taken = client.many([("LLEN", QUEUE), ("HLEN", "unacked")])
        return int(ready) + int(taken)


class Celeriac(_Kombu):
    """celeriac, prefork, all defaults."""

    name = "celeriac"
    guess = 70_000.0

    def worker(self, work: Workshop, *, told: bool) -> Running:
        level = ("-l", "INFO", "-E") if told else ("-l", "WARNING")
        return work.start("celeriac", "-m", "celeriac", "-A", "bench_celeriac", "worker", "-c", "2", *level)

    def open(self, client: Client) -> int:
        epochs = [epoch.decode() for epoch in client.call("ZRANGE", "celeriac:1:workers", 0, -1)]
        taken = [("HLEN", f"celeriac:1:{{{QUEUE}}}:inflight:{epoch}") for epoch in epochs]
        scheduled = ("ZCARD", f"celeriac:1:{{{QUEUE}}}:schedule")
        return sum(int(reply) for reply in client.many([("LLEN", QUEUE), scheduled, *taken]))


class Dramatiq:
    """dramatiq 2.2, two processes with eight threads each."""

    name = "dramatiq"
    guess = 6000.0
    _queue = "dramatiq:default"

    def worker(self, work: Workshop, *, told: bool) -> Running:
        words = ("-m", "dramatiq", "bench_dramatiq", "-p", "2", "-t", "8", "--skip-logging")
        return work.start("dramatiq", *words)

    def template(self, work: Workshop, client: Client, task: str, args: Sequence[Any] = (1, 2)) -> bytes:
        client.call("FLUSHALL")
        work.run("dramatiq", "one.py", "dramatiq", task, json.dumps(args))
        blob: bytes = client.call("HVALS", f"{self._queue}.msgs")[0]
        client.call("FLUSHALL")
        return blob

    def fill(self, client: Client, template: bytes, count: int) -> None:
        message = json.loads(template)
        parts = template.split(message["message_id"].encode())
        key = message["options"]["redis_message_id"].encode()
        pieces = [part.split(key) for part in parts]
        for size in chunks(count, 500):
            fields: list[bytes] = []
            ids = []
            for _ in range(size):
                mine, own = new_id(), new_id()
                fields += (mine, own.join(mine.join(piece) for piece in pieces))
                ids.append(mine)
            client.many([("HSET", f"{self._queue}.msgs", *fields), ("RPUSH", self._queue, *ids)])

    def open(self, client: Client) -> int:
        return int(client.call("HLEN", f"{self._queue}.msgs"))

    def waiting(self, client: Client) -> int:
        return int(client.call("LLEN", self._queue))


CELERY, DRAMATIQ, CELERIAC = Celery(), Dramatiq(), Celeriac()
