"""What it costs to be there: import and app, and an idle worker with two processes."""

from __future__ import annotations

import subprocess
import sys
import time
from collections import defaultdict

from benchmarks.delay import answer
from benchmarks.measure import Effort, Table, Workshop, median, pss, redis, workshop
from benchmarks.sides import CELERIAC, CELERY, DRAMATIQ, Side

IMPORTS = {
    "celeriac": "from celeriac import Celeriac; app = Celeriac('x', broker='redis://localhost')",
    "celery": "from celery import Celery; app = Celery('x', broker='redis://localhost')",
}
TASK = "\n@app.task\ndef task(): pass\n"


def _import(work: Workshop, side: str) -> tuple[float, float]:
    """Milliseconds of import and app, inside the process; and of the whole process."""
    script = (
        f"import time; began = time.perf_counter()\n{IMPORTS[side]}\n{TASK}\n"
        "took = time.perf_counter() - began\n"
        "import json; print('answer', json.dumps({'ms': took * 1000}))"
    )
    began = time.perf_counter()
    output = work.run(side, "-c", script)
    return answer(output)["ms"], (time.perf_counter() - began) * 1000


def _bare() -> float:
    began = time.perf_counter()
    subprocess.run([sys.executable, "-c", "pass"], check=True)
    return (time.perf_counter() - began) * 1000


def measure(effort: Effort) -> Table:
    """Import times of celeriac and Celery, idle memory of all three."""
    table = Table("start", ["side", "import + app + task, ms", "whole process, ms", "idle worker, 2 processes, MB PSS"])
    inside: dict[str, list[float]] = defaultdict(list)
    whole: dict[str, list[float]] = defaultdict(list)
    memory: dict[str, list[float]] = defaultdict(list)
    bare = []
    sides: tuple[Side, ...] = (CELERY, DRAMATIQ, CELERIAC)
    with redis() as server, workshop(server.url) as work:
        for side in IMPORTS:
            _import(work, side)  # compiles what is not compiled yet
        for _ in range(effort.runs * 4):
            bare.append(_bare())
            for side in IMPORTS:
                took, process = _import(work, side)
                inside[side].append(took)
                whole[side].append(process)
        for _ in range(effort.runs):
            for kind in sides:
                with kind.worker(work, told=False) as worker:
                    time.sleep(max(4.0, effort.warmup * 2))
                    worker.assert_alive()
                    memory[kind.name].append(pss(worker.family()) / 1e6)
    for kind in sides:
        table.rows.append((
            kind.name, round(median(inside[kind.name]), 1) if inside[kind.name] else "",
            round(median(whole[kind.name]), 1) if whole[kind.name] else "", round(median(memory[kind.name]), 1),
        ))  # fmt: skip
    table.raw.append({"import": inside, "whole": whole, "bare": bare, "memory": memory})
    table.notes.append(
        f"Medians of {effort.runs * 4} imports and {effort.runs} workers. A bare interpreter: {median(bare):.0f} ms. "
        "PSS counts once what processes share."
    )
    return table
