"""A chord of 1,000 no-ops: from sending it to the result of its body, Celery and celeriac in alternating runs."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

from benchmarks.delay import answer
from benchmarks.measure import Client, Effort, Table, median, redis, workshop
from benchmarks.sides import CELERIAC, CELERY

MEMBERS = 1000


def measure(effort: Effort) -> Table:
    """Medians over all chords of all runs."""
    table = Table("chord", ["side", "sent, ms", "done, ms", "x Celery", "members/s"])
    sent: dict[str, list[float]] = defaultdict(list)
    done: dict[str, list[float]] = defaultdict(list)
    sides = (CELERY, CELERIAC)
    with redis() as server, workshop(server.url) as work, Client(server.url) as client:
        for number in range(effort.runs):
            for side in (*sides[number % 2 :], *sides[: number % 2]):
                client.call("FLUSHALL")
                with side.worker(work, told=False):
                    words = ("chords.py", side.name, str(MEMBERS), str(effort.window))
                    found: Any = answer(work.run(side.name, *words))
                sent[side.name] += found["sent"]
                done[side.name] += found["done"]
                table.raw.append({"side": side.name, **found})
                print(f"  {side.name}: {median(found['done']) * 1000:,.0f} ms", flush=True)
    base = median(done["celery"])
    for side in sides:
        took = median(done[side.name])
        table.rows.append((
            side.name, round(median(sent[side.name]) * 1000, 1), round(took * 1000, 1), round(base / took, 1),
            round(MEMBERS / took),
        ))  # fmt: skip
    table.notes.append(f"Medians of the chords of {effort.runs} runs of {effort.window:g} s, one chord at a time.")
    return table
