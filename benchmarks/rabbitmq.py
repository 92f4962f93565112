"""No-op tasks a second from a filled queue of RabbitMQ, results in Redis: Celery and celeriac in alternating runs, on
a classic queue and on a quorum queue.

What is done is counted in the result store. Processor time is that of the worker's processes and of both servers.
"""

from __future__ import annotations

import base64
import json
import time
from collections import defaultdict
from collections.abc import Iterator
from itertools import islice
from typing import Any
from uuid import uuid4

from benchmarks.measure import Client, Effort, Running, Table, Workshop, cpu, median, redis, until, workshop
from benchmarks.sides import CELERIAC, CELERY, copies
from celeriac.brokers.rabbitmq import RabbitmqSender
from celeriac.model.message import Envelope
from celeriac.model.queues import QueueDefaults, Queues
from celeriac.testing.rigs import message
from tests.rabbit import RabbitServer, rabbit_server

QUEUE = "celery"
GUESSES = {"celery": 1000.0, "celeriac": 20_000.0}


def sample(side: str) -> bytes:
    """A message as Celery writes it, without a priority: a task of two numbers."""
    headers: dict[str, Any] = {
        "task": f"bench_{side}.stored", "shadow": None, "eta": None, "expires": None, "group": None,
        "group_index": None, "retries": 0, "timelimit": [None, None], "parent_id": None, "argsrepr": "(1, 2)",
        "kwargsrepr": "{}", "origin": "gen1@bench", "ignore_result": False, "replaced_task_nesting": 0,
        "stamped_headers": None, "stamps": {},
    }  # fmt: skip
    body = [[1, 2], {}, {"callbacks": None, "errbacks": None, "chain": None, "chord": None}]
    blob = json.loads(message(str(uuid4()), **headers))
    blob["properties"]["reply_to"] = str(uuid4())
    return json.dumps({**blob, "body": base64.b64encode(json.dumps(body).encode()).decode()}).encode()


def fill(url: str, kind: str, side: str, count: int) -> None:
    """Put so many messages into the queue."""
    sender = RabbitmqSender(url, {"queues": Queues(None, QueueDefaults(queue_type=kind))})
    blobs: Iterator[bytes] = iter(copies(sample(side), count))
    while batch := [Envelope("x", "x", QUEUE, blob) for blob in islice(blobs, 2000)]:
        sender.publish(batch, 60.0)
    sender.close()


def start(work: Workshop, side: str, kind: str) -> Running:
    """A worker with two processes."""
    env = {"BENCH_QUEUE_TYPE": kind}
    if side == "celery":
        quiet = ("--without-gossip", "--without-mingle", "--without-heartbeat", "-l", "WARNING")
        words = ("-m", "celery", "-A", "bench_celery", "worker", "-c", "2", "-P", "prefork", *quiet)
        return work.start(side, *words, env=env)
    return work.start(side, "-m", "celeriac", "-A", "bench_celeriac", "worker", "-c", "2", "-l", "WARNING", env=env)


def one_run(side: str, kind: str, node: RabbitServer, store: Any, effort: Effort, guess: float) -> dict[str, Any]:
    """Fill, start, warm up, measure one window, kill. Filled anew with more when the queue ran low."""
    with Client(store.url) as client, workshop(store.url) as work:
        while True:
            client.call("FLUSHALL")
            url = node.vhost()
            work.set_urls(url, store.url)
            count = int(guess * (effort.window + effort.warmup + 1) * 1.3) + 2000
            fill(url, kind, side, count)
            with start(work, side, kind) as worker:
                until(lambda: int(client.call("DBSIZE")) > 20, 60.0, f"{side} starts to work", worker)
                time.sleep(effort.warmup)
                servers = [store.pid, node.beam.pid]
                family = worker.family()
                first, began = int(client.call("DBSIZE")), time.perf_counter()
                used, served = cpu(family), cpu(servers)
                time.sleep(effort.window)
                last, took = int(client.call("DBSIZE")), time.perf_counter() - began
                used, served = cpu(family) - used, cpu(servers) - served
                worker.assert_alive()
            if last < count * 0.98:
                break
            guess *= 2
    done = last - first
    return {
        "side": side, "queue": kind, "tasks": done, "seconds": took, "rate": done / took,
        "worker_us": used / done * 1e6, "server_us": served / done * 1e6, "cpu_us": (used + served) / done * 1e6,
    }  # fmt: skip


def measure(effort: Effort) -> Table:
    """Alternating runs of both sides on both kinds of queues."""
    table = Table("rabbitmq", ["queue", "side", "tasks/s", "x Celery", "CPU us/task", "of it servers", "CPU x Celery"])
    runs: dict[tuple[str, str], list[dict[str, Any]]] = defaultdict(list)
    guesses = dict(GUESSES)
    with redis() as store, rabbit_server() as node:
        for _ in range(effort.runs):
            for kind in ("classic", "quorum"):
                for side in (CELERY.name, CELERIAC.name):
                    run = one_run(side, kind, node, store, effort, guesses[side])
                    guesses[side] = max(run["rate"] * 1.3, guesses[side] * 0.6)
                    runs[kind, side].append(run)
                    table.raw.append(run)
                    print(f"  {side} {kind}: {run['rate']:,.0f}/s, {run['cpu_us']:.1f} us", flush=True)
    for kind in ("classic", "quorum"):
        base_rate = median(run["rate"] for run in runs[kind, "celery"])
        base_cpu = median(run["cpu_us"] for run in runs[kind, "celery"])
        for side in (CELERY.name, CELERIAC.name):
            found = runs[kind, side]
            rates = sorted(run["rate"] for run in found)
            rate, cost = median(rates), median(run["cpu_us"] for run in found)
            table.rows.append((
                kind, side, f"{rate:,.0f} ({rates[0]:,.0f}-{rates[-1]:,.0f})", round(rate / base_rate, 1),
                round(cost, 1), round(median(run["server_us"] for run in found), 1), round(base_cpu / cost, 1),
            ))  # fmt: skip
    table.notes.append(
        f"Medians of {effort.runs} alternating runs with windows of {effort.window:g} s; results are stored in Redis."
    )
    return table
