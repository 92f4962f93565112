"""No-op tasks a second, and processor time for each, on one Redis: Celery, dramatiq and celeriac in alternating runs.

The queue is filled first, so that a worker is never short of work. What is counted is read from the broker's own
counters at both ends of a window of steady work; no task writes anything. Processor time is that of every process of
the worker and of the server.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Sequence
from functools import partial
from typing import Any

from benchmarks.measure import Client, Effort, Table, Workshop, cpu, median, redis, until, workshop
from benchmarks.sides import CELERIAC, CELERY, DRAMATIQ, Side
from tests.servers import RedisServer

TASKS = {"ignored": "ignored", "stored": "stored"}


def one_run(
    side: Side, work: Workshop, server: RedisServer, task: str, effort: Effort, told: bool, guess: float
) -> dict[str, Any]:
    """Fill, start, warm up, measure one window, kill. Filled anew with more when the queue ran low."""
    with Client(server.url) as client:
        template = side.template(work, client, task)
        while True:
            count = int(guess * (effort.window + effort.warmup + 1) * 1.3) + 2000
            side.fill(client, template, count)
            before = client.call("DBSIZE")
            with side.worker(work, told=told) as worker:
                until(partial(_begun, side, client, count), 60.0, f"{side.name} starts to work", worker)
                time.sleep(effort.warmup)
                family = worker.family()
                first, began = side.open(client), time.perf_counter()
                used, served = cpu(family), cpu([server.pid])
                time.sleep(effort.window)
                last, took = side.open(client), time.perf_counter() - began
                used, served = cpu(family) - used, cpu([server.pid]) - served
                short = side.waiting(client) < count * 0.02
                worker.assert_alive()
                new_keys = client.call("DBSIZE") - before
            client.call("FLUSHALL")
            if not short:
                break
            guess *= 2
    done = first - last
    return {
        "side": side.name, "task": task, "told": told, "tasks": done, "seconds": took, "rate": done / took,
        "worker_us": used / done * 1e6, "server_us": served / done * 1e6, "cpu_us": (used + served) / done * 1e6,
        "processes": len(family), "new_keys": new_keys,
    }  # fmt: skip


def _begun(side: Side, client: Client, count: int) -> bool:
    return side.open(client) < count


def measure(effort: Effort, *, told: bool = False) -> Table:
    """Alternating runs of all sides with results ignored and stored."""
    sides: Sequence[Side] = (CELERY, CELERIAC) if told else (CELERY, DRAMATIQ, CELERIAC)
    name = "throughput-info" if told else "throughput"
    table = Table(name, ["results", "side", "tasks/s", "x Celery", "CPU us/task", "of it server", "CPU x Celery"])
    runs: dict[tuple[str, str], list[dict[str, Any]]] = defaultdict(list)
    guesses = {side.name: side.guess for side in sides}
    with redis() as server, workshop(server.url) as work:
        for number in range(effort.runs):
            for task in TASKS:
                for side in (*sides[number % len(sides) :], *sides[: number % len(sides)]):
                    run = one_run(side, work, server, task, effort, told, guesses[side.name])
                    guesses[side.name] = max(run["rate"] * 1.3, guesses[side.name] * 0.6)
                    runs[task, side.name].append(run)
                    table.raw.append(run)
                    print(f"  {side.name} {task}: {run['rate']:,.0f}/s, {run['cpu_us']:.1f} us", flush=True)
    for task in TASKS:
        base_rate = median(run["rate"] for run in runs[task, "celery"])
        base_cpu = median(run["cpu_us"] for run in runs[task, "celery"])
        for side in sides:
            found = runs[task, side.name]
            rates = sorted(run["rate"] for run in found)
            rate, cost = median(rates), median(run["cpu_us"] for run in found)
            table.rows.append((
                task, side.name, f"{rate:,.0f} ({rates[0]:,.0f}-{rates[-1]:,.0f})", round(rate / base_rate, 1),
                round(cost, 1), round(median(run["server_us"] for run in found), 1), round(base_cpu / cost, 1),
            ))  # fmt: skip
    table.notes.append(
        f"Medians of {effort.runs} alternating runs with windows of {effort.window:g} s, smallest and largest in "
        "brackets. `CPU x Celery` is how many times less processor time than Celery's."
    )
    return table
