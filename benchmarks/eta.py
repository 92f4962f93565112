"""Tasks for later: what many of them cost a worker's memory, and how late they start."""

from __future__ import annotations

import json
import time
from typing import Any

from benchmarks.delay import answer
from benchmarks.measure import Client, Effort, Table, Workshop, percentile, private, redis, until, workshop

QUEUE = "celery"
LATENESS_SPAN = 60.0


def _open(client: Client) -> int:
    """Messages that are not scheduled yet."""
    return int(client.call("LLEN", QUEUE))


def memory(work: Workshop, client: Client, side: str, count: int) -> dict[str, Any]:
    """Growth of the parent's memory by tasks of an hour ahead."""
    client.call("FLUSHALL")
    words = ("-A", f"bench_{side}", "worker", "-c", "2", "-l", "WARNING")
    marks = {"BENCH_MARKS": str(work.folder / "marks")}
    with work.start(side, "-m", side, *words, env=marks) as worker:
        answer(work.run(side, "later.py", side, "50", "0", "0"))
        until(lambda: not _open(client), 60.0, f"{side} works", worker)
        time.sleep(2.0)
        before = private(worker.pid)
        began = time.perf_counter()
        answer(work.run(side, "later.py", side, str(count), "3600", "0"))
        until(lambda: not _open(client), 60.0 + count / 200, "all are taken", worker)
        took = time.perf_counter() - began
        time.sleep(2.0)
        grown = private(worker.pid) - before
        scheduled = client.call("ZCARD", f"celeriac:1:{{{QUEUE}}}:schedule")
    return {"side": side, "tasks": count, "grown_mb": grown / 1e6, "seconds": took, "scheduled": scheduled}


def lateness(work: Workshop, client: Client, side: str, count: int, span: float) -> list[float]:
    """Seconds between due and begun."""
    client.call("FLUSHALL")
    marks = work.folder / f"marks-{side}"
    marks.write_text("")
    words = ("-A", f"bench_{side}", "worker", "-c", "2", "-l", "WARNING")
    with work.start(side, "-m", side, *words, env={"BENCH_MARKS": str(marks)}) as worker:
        ahead = 5.0 + count / 1000
        answer(work.run(side, "later.py", side, str(count), str(ahead), str(span)))
        until(lambda: len(marks.read_bytes().splitlines()) == count, ahead + span + 60.0, "all have begun", worker)
    return [float(line.split()[2]) for line in marks.read_text().splitlines()]


def measure(effort: Effort) -> Table:
    """Celery gets fewer tasks: it keeps them in memory."""
    table = Table("eta", ["side", "tasks an hour ahead", "parent grew by, MB", "late: p50 s", "p99 s", "most s"])
    span = LATENESS_SPAN if effort.scale >= 1 else 3.0
    with redis() as server, workshop(server.url) as work, Client(server.url) as client:
        for side, many, due in (("celery", 20_000, 5_000), ("celeriac", 100_000, 30_000)):
            grown = memory(work, client, side, int(many * effort.scale))
            late = lateness(work, client, side, int(due * effort.scale), span)
            table.rows.append((side, grown["tasks"], round(grown["grown_mb"], 1), *(
                round(value, 3) for value in (percentile(late, 50), percentile(late, 99), max(late))
            )))  # fmt: skip
            table.raw.append({**grown, "late": [round(value, 4) for value in late[:: max(1, len(late) // 1000)]]})
            print(f"  {side}: {json.dumps(grown)}", flush=True)
    table.notes.append(f"Lateness: tasks due at random moments of {span:g} s. One run.")
    return table
