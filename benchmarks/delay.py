"""How fast one process sends to Redis: `delay()` call after call, the same without anything but a socket, and many at
once."""

from __future__ import annotations

import json
from collections import defaultdict
from urllib.parse import urlsplit

from benchmarks.measure import Client, Effort, Table, median, redis, workshop
from benchmarks.sides import CELERIAC

CASES = [("celery", "ignored"), ("celery", "stored"), ("dramatiq", "ignored"), ("celeriac", "ignored"),
         ("celeriac", "stored")]  # fmt: skip


def answer(output: str) -> dict[str, float]:
    """The line that a script of `projects/` answers with."""
    line = next(line for line in output.splitlines() if line.startswith("answer "))
    found: dict[str, float] = json.loads(line.removeprefix("answer "))
    return found


def measure(effort: Effort) -> Table:
    """Alternating runs of all cases, then bulk publishing."""
    table = Table("delay", ["call", "side", "calls/s", "x Celery", "own CPU us/call"])
    rates: dict[tuple[str, str], list[float]] = defaultdict(list)
    costs: dict[tuple[str, str], list[float]] = defaultdict(list)
    seconds = max(1.0, effort.window / 2)
    bulk: list[float] = []
    bulk_costs: list[float] = []
    bare: list[float] = []
    bare_costs: list[float] = []
    with redis() as server, workshop(server.url) as work, Client(server.url) as client:
        for number in range(effort.runs):
            for side, task in CASES[number % len(CASES) :] + CASES[: number % len(CASES)]:
                found = answer(work.run(side, "sender.py", side, task, "0.5", str(seconds)))
                rates[side, task].append(found["calls"] / found["seconds"])
                costs[side, task].append(found["cpu"] / found["calls"] * 1e6)
                table.raw.append({"side": side, "task": task, **found})
                print(f"  {side} delay ({task}): {found['calls'] / found['seconds']:,.0f}/s", flush=True)
                client.call("FLUSHALL")
            where = urlsplit(server.url)
            found = answer(
                work.run(CELERIAC.name, "push.py", str(where.hostname), str(where.port), "900", str(seconds))
            )
            bare.append(found["calls"] / found["seconds"])
            bare_costs.append(found["cpu"] / found["calls"] * 1e6)
            table.raw.append({"side": "bare socket", "task": "push", **found})
            client.call("FLUSHALL")
            found = answer(work.run(CELERIAC.name, "bulk.py", str(int(300_000 * max(effort.scale, 0.1)))))
            bulk.append(found["calls"] / found["seconds"])
            bulk_costs.append(found["cpu"] / found["calls"] * 1e6)
            table.raw.append({"side": "celeriac", "task": "bulk", **found})
            client.call("FLUSHALL")
    for side, task in CASES:
        base = median(rates["celery", task])
        rate = median(rates[side, task])
        table.rows.append((f"`delay()`, result {task}", side, rate, round(rate / base, 1), median(costs[side, task])))
    floor = round(median(bare) / median(rates["celery", "ignored"]), 1)
    table.rows.append(("`LPUSH` of 900 bytes", "bare socket", median(bare), floor, median(bare_costs)))
    table.rows.append(("`delay_many()`, result ignored", "celeriac", median(bulk), "", median(bulk_costs)))
    table.notes.append(f"Medians of {effort.runs} alternating runs of {seconds:g} s in one thread, one call at a time.")
    return table
