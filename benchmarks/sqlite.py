"""No-op tasks a second with no server at all: SQLite, results stored, durable and with `synchronous=normal`."""

from __future__ import annotations

import contextlib
import sqlite3
import time
from functools import partial
from typing import Any
from uuid import uuid4

from benchmarks.measure import Effort, Table, cpu, median, until, workshop
from benchmarks.sides import chunks, copies
from celeriac.brokers.sqlite import SqliteSender
from celeriac.model.message import Envelope

QUEUE = "celery"
MODES = {"durable (default)": "", "synchronous=normal": "?synchronous=normal"}
GUESS = 45_000.0


def _open(database: sqlite3.Connection) -> int:
    question = "SELECT (SELECT COUNT(*) FROM celeriac_ready) + (SELECT COUNT(*) FROM celeriac_inflight)"
    return int(database.execute(question).fetchone()[0])


def _begun(database: sqlite3.Connection, count: int) -> bool:
    return _open(database) < count


def _template(database: sqlite3.Connection) -> bytes:
    blob: bytes = database.execute("SELECT blob FROM celeriac_messages").fetchone()[0]
    return bytes(blob)


def one_run(mode: str, task: str, effort: Effort, guess: float) -> dict[str, Any]:
    """Fill, start, warm up, measure one window, kill."""
    while True:
        with workshop("") as work:
            path = work.folder / "bench.db"
            work.set_urls(f"sqlite:///{path}{MODES[mode]}")
            count = int(guess * (effort.window + effort.warmup + 1) * 1.3) + 2000
            work.run("celeriac", "one.py", "celeriac", task, "[1, 2]")  # makes the database
            sender = SqliteSender(f"sqlite:///{path}?synchronous=normal", {})
            with contextlib.closing(sqlite3.connect(path)) as database:
                template = _template(database)
                for size in chunks(count, 2000):
                    blobs = copies(template, size)
                    sender.publish([Envelope((key := str(uuid4())), key, QUEUE, blob) for blob in blobs], 60.0)
                sender.close()
                with work.start("celeriac", "-m", "celeriac", "-A", "bench_celeriac", "worker", "-c", "2",
                                "-l", "WARNING") as worker:  # fmt: skip
                    until(partial(_begun, database, count), 60.0, "it starts to work", worker)
                    time.sleep(effort.warmup)
                    family = worker.family()
                    first, began, used = _open(database), time.perf_counter(), cpu(family)
                    time.sleep(effort.window)
                    last, took, used = _open(database), time.perf_counter() - began, cpu(family) - used
                    worker.assert_alive()
        if last > count * 0.02:
            break
        guess *= 2
    done = first - last
    return {"mode": mode, "task": task, "rate": done / took, "cpu_us": used / done * 1e6}


def measure(effort: Effort) -> Table:
    """Both modes, results stored and ignored; `delay()` beside them."""
    table = Table("sqlite", ["mode", "results", "tasks/s", "CPU us/task"])
    found: dict[tuple[str, str], list[dict[str, Any]]] = {}
    guess = GUESS
    for _ in range(effort.runs):
        for mode in MODES:
            for task in ("stored", "ignored"):
                run = one_run(mode, task, effort, guess)
                found.setdefault((mode, task), []).append(run)
                table.raw.append(run)
                print(f"  sqlite {mode} {task}: {run['rate']:,.0f}/s, {run['cpu_us']:.1f} us", flush=True)
    for (mode, task), runs in found.items():
        rates = sorted(run["rate"] for run in runs)
        table.rows.append((
            mode, task, f"{median(rates):,.0f} ({rates[0]:,.0f}-{rates[-1]:,.0f})",
            round(median(run["cpu_us"] for run in runs), 1),
        ))  # fmt: skip
    table.notes.append(f"Medians of {effort.runs} runs with windows of {effort.window:g} s. The queue is filled first.")
    return table
