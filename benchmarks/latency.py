"""How soon an idle worker begins: from a plain client's LPUSH to the first line of the task, on three queues with four
priorities each. And what an idle worker asks of the server."""

from __future__ import annotations

import json
import random
import socket
import time
from collections import Counter
from typing import Any, cast
from urllib.parse import urlsplit

import hiredis

from benchmarks.measure import Client, Effort, Running, Table, Workshop, median, percentile, redis, until, workshop
from benchmarks.sides import CELERIAC, CELERY, copies

QUEUES = ("qa", "qb", "qc")
STEPS = ("", "\x06\x163", "\x06\x166", "\x06\x169")
OPTIONS = ("worker", "-c", "2", "-l", "WARNING", "-Q", ",".join(QUEUES))


def start(work: Workshop, client: Client, side: str, template: bytes) -> Running:
    """An idle worker that has run one task of each queue."""
    marks = work.folder / f"marks-{side}"
    marks.write_text("")
    worker = work.start(side, "-m", side, "-A", f"bench_{side}", *OPTIONS, env={"BENCH_MARKS": str(marks)})
    for queue, blob in zip(QUEUES, copies(template, len(QUEUES)), strict=True):
        client.call("LPUSH", queue, blob)
    until(lambda: len(marks.read_text().splitlines()) == len(QUEUES), 60.0, f"{side} works", worker)
    return worker


def latencies(work: Workshop, client: Client, side: str, template: bytes, count: int) -> list[float]:
    """Milliseconds, one for each message, sent at odd moments."""
    worker = start(work, client, side, template)
    chance = random.Random(7)
    sent: dict[str, int] = {}
    marks = work.folder / f"marks-{side}"
    # All is ready before: what the client does beside sending would take a processor from what is measured.
    pushes: list[tuple[str, bytes]] = []
    for blob in copies(template, count):
        key = chance.choice(QUEUES) + chance.choice(STEPS)
        packed = hiredis.pack_command(cast(Any, ("LPUSH", key, blob)))
        pushes.append((json.loads(blob)["headers"]["id"], packed))
    with worker:
        time.sleep(1.0)
        for task_id, packed in pushes:
            time.sleep(chance.uniform(0.015, 0.06))
            now = time.monotonic_ns()
            client.send(packed)
            sent[task_id] = now
        until(lambda: len(marks.read_text().splitlines()) == count + len(QUEUES), 30.0, "all have begun", worker)
    found = (line.split() for line in marks.read_text().splitlines())
    return [(int(line[1]) - sent[line[0]]) / 1e6 for line in found if line[0] in sent]


def chatter(work: Workshop, client: Client, side: str, template: bytes, seconds: float) -> tuple[float, Counter[str]]:
    """Commands a second that an idle worker sends over all its connections; what a script does inside the server is not
    counted."""
    worker = start(work, client, side, template)
    with worker:
        time.sleep(3.0)
        parts = urlsplit(work.broker)
        with socket.create_connection((parts.hostname or "", parts.port or 0)) as link:
            link.sendall(b"MONITOR\r\n")
            link.settimeout(0.2)
            data, end = b"", time.monotonic() + seconds
            while time.monotonic() < end:
                try:
                    data += link.recv(65536)
                except TimeoutError:
                    continue
    commands: Counter[str] = Counter()
    for line in data.decode(errors="replace").splitlines():
        if line.startswith("+") and "[" in line and " lua]" not in line:
            commands[line.split('"')[1].upper()] += 1
    return sum(commands.values()) / seconds, commands


def measure(effort: Effort) -> Table:
    """Celery and celeriac."""
    table = Table("latency", ["side", "p50 ms", "p95 ms", "p99 ms", "commands/s when idle"])
    count = max(60, int(1000 * effort.scale))
    with redis() as server, workshop(server.url) as work, Client(server.url) as client:
        for side in (CELERY, CELERIAC):
            template = side.template(work, client, "stamp", ())
            found: list[float] = []
            rates: list[float] = []
            said: Any = None
            for _ in range(effort.runs):
                client.call("FLUSHALL")
                found += latencies(work, client, side.name, template, count)
                client.call("FLUSHALL")
                rate, said = chatter(work, client, side.name, template, max(3.0, effort.window))
                rates.append(rate)
            times = [round(percentile(found, percent), 2) for percent in (50, 95, 99)]
            table.rows.append((side.name, *times, round(median(rates), 1)))
            table.raw.append({"side": side.name, "ms": found, "idle": rates, "commands": dict(said)})
            print(f"  {side.name}: p50 {percentile(found, 50):.2f} ms, {dict(said)}", flush=True)
    table.notes.append(f"{count} messages a run, {effort.runs} runs, each to a random one of 3 queues x 4 priorities.")
    return table
