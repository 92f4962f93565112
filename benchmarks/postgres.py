"""PostgreSQL as broker and result backend: no-op tasks a second with results stored, beside pgqueuer; sending in bulk;
what idle workers cost; whether tables stay small.

The server keeps what it commits (fsync on). The queue is filled first. What is counted are rows of the queue's table at
both ends of a window of steady work.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any, Protocol

import psutil
import psycopg

from benchmarks.measure import Effort, Running, Table, Workshop, cpu, median, until, workshop
from benchmarks.sides import chunks, copies
from celeriac.brokers.postgres import PostgresSender
from celeriac.model.message import Envelope
from tests.servers import PostgresServer

QUEUE = "celery"
SETTINGS = {"fsync": "on", "full_page_writes": "on", "shared_buffers": "256MB", "max_wal_size": "4GB"}
IDLE_WORKERS = 20
SOAK_SECONDS = 1800.0
SOAK_RATE = 1000
"""Tasks a second, so that the worker has always little to do and never nothing."""


class Side(Protocol):
    """One way to run no-op tasks on PostgreSQL."""

    name: str
    guess: float

    def fill(self, work: Workshop, url: str, count: int) -> None:
        """Put so many into the queue."""
        ...

    def worker(self, work: Workshop) -> Running:
        """Start a worker."""
        ...

    def open(self, link: psycopg.Connection[Any]) -> int:
        """How many are not done yet."""
        ...


class Celeriac:
    """celeriac, prefork with two processes, all defaults, results stored."""

    name = "celeriac"
    guess = 25_000.0

    _template = b""

    def fill(self, work: Workshop, url: str, count: int) -> None:
        if not self._template:
            work.run("celeriac", "one.py", "celeriac", "stored", "[1, 2]")
            with psycopg.connect(url) as link:
                self._template = bytes((link.execute("SELECT blob FROM celeriac_messages").fetchone() or (b"",))[0])
        sender = PostgresSender(url, {})
        for size in chunks(count, 2000):
            blobs = list(copies(self._template, size))
            keys = [json.loads(blob)["headers"]["id"] for blob in blobs]
            envelopes = [Envelope(key, key, QUEUE, blob) for key, blob in zip(keys, blobs, strict=True)]
            sender.publish(envelopes, 60.0)
        sender.close()

    def worker(self, work: Workshop) -> Running:
        return work.start("celeriac", "-m", "celeriac", "-A", "bench_celeriac", "worker", "-c", "2", "-l", "WARNING")

    def open(self, link: psycopg.Connection[Any]) -> int:
        question = "SELECT (SELECT count(*) FROM celeriac_ready) + (SELECT count(*) FROM celeriac_inflight)"
        return int((link.execute(question).fetchone() or (0,))[0])


class Pgqueuer:
    """pgqueuer on asyncpg: one process, as it is made; batches of 100, which suit it best here."""

    name = "pgqueuer"
    guess = 8_000.0

    def fill(self, work: Workshop, url: str, count: int) -> None:
        work.run("pgqueuer", "fill_pgqueuer.py", url, str(count))

    def worker(self, work: Workshop) -> Running:
        return work.start("pgqueuer", "bench_pgqueuer.py", work.broker)

    def open(self, link: psycopg.Connection[Any]) -> int:
        return int((link.execute("SELECT count(*) FROM pgqueuer").fetchone() or (0,))[0])


@contextlib.contextmanager
def server() -> Iterator[PostgresServer]:
    """A PostgreSQL of the measurement's own that keeps what it commits."""
    with PostgresServer(settings=SETTINGS) as found:
        yield found


def one_run(side: Side, found: PostgresServer, effort: Effort, guess: float) -> dict[str, Any]:
    """Fill, start, warm up, measure one window, kill. Filled anew with more when the queue ran low."""
    while True:
        url = found.database()
        count = int(guess * (effort.window + effort.warmup + 1) * 1.3) + 2000
        with workshop(url) as work, psycopg.connect(url, autocommit=True) as link:
            side.fill(work, url, count)
            link.execute("CHECKPOINT")
            with side.worker(work) as worker:
                until(partial(_begun, side, link, count), 60.0, f"{side.name} starts to work", worker)
                time.sleep(effort.warmup)
                family, backends = worker.family(), found.backends()
                first, began = side.open(link), time.perf_counter()
                used, served = cpu(family), cpu(backends)
                time.sleep(effort.window)
                last, took = side.open(link), time.perf_counter() - began
                used, served = cpu(family) - used, cpu(backends) - served
                worker.assert_alive()
        if last > count * 0.02:
            break
        guess *= 2
    done = first - last
    return {
        "side": side.name, "rate": done / took, "worker_us": used / done * 1e6, "server_us": served / done * 1e6,
        "cpu_us": (used + served) / done * 1e6,
    }  # fmt: skip


def _begun(side: Side, link: psycopg.Connection[Any], count: int) -> bool:
    return side.open(link) < count


def measure(effort: Effort) -> Table:
    """Alternating runs of both sides."""
    table = Table("postgres", ["side", "tasks/s", "x pgqueuer", "CPU us/task", "of it server"])
    sides: Sequence[Side] = (Pgqueuer(), Celeriac())
    runs: dict[str, list[dict[str, Any]]] = {side.name: [] for side in sides}
    with server() as found:
        for number in range(effort.runs):
            for side in sides[:: 1 if number % 2 else -1]:
                run = one_run(side, found, effort, side.guess)
                runs[side.name].append(run)
                table.raw.append(run)
                print(f"  {side.name}: {run['rate']:,.0f}/s, {run['cpu_us']:.1f} us", flush=True)
    base = median(run["rate"] for run in runs["pgqueuer"])
    for side in sides:
        rates = sorted(run["rate"] for run in runs[side.name])
        table.rows.append((
            side.name, f"{median(rates):,.0f} ({rates[0]:,.0f}-{rates[-1]:,.0f})", round(median(rates) / base, 1),
            round(median(run["cpu_us"] for run in runs[side.name]), 1),
            round(median(run["server_us"] for run in runs[side.name]), 1),
        ))  # fmt: skip
    table.notes.append(
        f"Medians of {effort.runs} alternating runs with windows of {effort.window:g} s; celeriac stores results, "
        "pgqueuer its log of jobs. Server with fsync."
    )
    return table


def measure_sending(effort: Effort) -> Table:
    """`delay_many` and `delay` of one process."""
    table = Table("postgres-sending", ["how", "calls/s", "CPU us/call of the caller"])
    with server() as found:
        many = max(2000, int(200_000 * effort.scale))
        for name, script, count in (("delay_many", "bulk.py", many), ("delay", "single.py", many // 20)):
            rates, costs = [], []
            for _ in range(effort.runs):
                with workshop(found.database()) as work:
                    said = work.run("celeriac", script, str(count))
                answer = json.loads(said.partition("answer ")[2])
                rates.append(answer["calls"] / answer["seconds"])
                costs.append(answer["cpu"] / answer["calls"] * 1e6)
                table.raw.append({"how": name, **answer})
            table.rows.append((name, median(rates), round(median(costs), 1)))
    return table


def measure_idle(effort: Effort) -> Table:
    """Workers that have nothing to do."""
    table = Table("postgres-idle", ["workers", "% of a core, workers", "% of a core, server"])
    with server() as found, workshop(found.database()) as work, contextlib.ExitStack() as stack:
        workers = []
        for number in range(max(2, int(IDLE_WORKERS * min(1.0, effort.scale * 10)))):
            words = ("-m", "celeriac", "-A", "bench_celeriac", "worker", "-c", "1", "-l", "WARNING", "-n", f"w{number}")
            workers.append(stack.enter_context(work.start("celeriac", *words, log=f"w{number}.log")))
            workers[-1].wait_for("ready", 60.0)
        time.sleep(max(5.0, effort.warmup))
        families = [pid for worker in workers for pid in worker.family()]
        backends = found.backends()
        used, served, began = cpu(families), cpu(backends), time.perf_counter()
        time.sleep(max(10.0, effort.window * 3))
        took = time.perf_counter() - began
        used, served = (cpu(families) - used) / took * 100, (cpu(backends) - served) / took * 100
        for worker in workers:
            worker.assert_alive()
        table.rows.append((len(workers), round(used, 2), round(served, 2)))
        table.raw.append({"workers": len(workers), "worker_percent": used, "server_percent": served})
    return table


def measure_soak(effort: Effort) -> Table:
    """A worker under steady load, its results forgotten after a minute: sizes of tables with their indexes. Seconds are
    those that this process was running: it may be stopped and continued, together with the worker."""
    seconds = max(20.0, SOAK_SECONDS * effort.scale)
    columns = ["minute", "tasks", "messages MB", "lists MB", "results MB", "of it indexes MB", "worker MB"]
    table = Table("postgres-soak", columns)
    with server() as found:
        url = found.database()
        side = Celeriac()
        with workshop(url) as work, psycopg.connect(url, autocommit=True) as link:
            side.fill(work, url, 1)
            with work.start(
                "celeriac", "-m", "celeriac", "-A", "bench_celeriac", "worker", "-c", "2", "-l", "WARNING",
                env={"BENCH_EXPIRES": str(min(60.0, seconds / 6))},
            ) as worker:  # fmt: skip
                sent, passed, told = 2, 0.0, 0.0
                while passed < seconds:
                    began = time.monotonic()
                    if side.open(link) < 2 * SOAK_RATE:
                        side.fill(work, url, SOAK_RATE)
                        sent += SOAK_RATE
                    if passed >= told:
                        told += seconds / 30
                        sizes = [int(size) for size in link.execute(_SIZES).fetchone() or ()]
                        memory = sum(psutil.Process(pid).memory_info().rss for pid in worker.family())
                        row = (round(passed / 60, 1), sent, *(round(size / 1e6, 1) for size in (*sizes, memory)))
                        table.raw.append(dict(zip(columns, row, strict=True)))
                        if len(table.raw) % 3 == 1:
                            table.rows.append(row)
                        print(f"  soak: {row}", flush=True)
                    worker.assert_alive()
                    time.sleep(max(0.0, began + 1.0 - time.monotonic()))
                    passed += min(1.5, time.monotonic() - began)
    table.notes.append("About a thousand tasks a second; their results are forgotten after a minute.")
    return table


_SIZES = """SELECT pg_total_relation_size('celeriac_messages'),
    pg_total_relation_size('celeriac_ready') + pg_total_relation_size('celeriac_inflight'),
    pg_total_relation_size('celeriac_results'),
    (SELECT sum(pg_indexes_size(name::regclass)) FROM unnest(ARRAY['celeriac_messages', 'celeriac_ready',
        'celeriac_inflight', 'celeriac_results']) AS name)"""
