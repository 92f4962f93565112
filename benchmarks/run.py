"""Runs the measurements and writes their tables into docs/benchmarks.md, between the marks that name them."""

from __future__ import annotations

import argparse
import json
import re
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

from benchmarks import chord, delay, eta, latency, postgres, rabbitmq, sqlite, start, throughput
from benchmarks.measure import FULL, QUICK, ROOT, Effort, Table, machine, redis, server_version, versions, workshop

DOCUMENT = ROOT / "docs" / "benchmarks.md"
MEASUREMENTS: dict[str, Callable[[Effort], Table]] = {
    "throughput": throughput.measure,
    "throughput-info": lambda effort: throughput.measure(effort, told=True),
    "delay": delay.measure,
    "sqlite": sqlite.measure,
    "postgres": postgres.measure,
    "postgres-sending": postgres.measure_sending,
    "postgres-idle": postgres.measure_idle,
    "postgres-soak": postgres.measure_soak,
    "chord": chord.measure,
    "latency": latency.measure,
    "start": start.measure,
    "eta": eta.measure,
    "rabbitmq": rabbitmq.measure,
}


def place(text: str, name: str, content: str) -> str:
    """Put `content` between the marks of `name`. Raises ValueError when they are missing."""
    marks = re.compile(rf"(<!-- measured: {re.escape(name)} -->\n).*?(<!-- end -->)", re.DOTALL)
    if not marks.search(text):
        raise ValueError(f"docs/benchmarks.md has no marks for {name!r}")
    return marks.sub(lambda found: f"{found[1]}{content}\n{found[2]}", text)


def conditions() -> str:
    """Where and with what it was measured."""
    with redis() as server, workshop(server.url) as work:
        found = {**machine(), "redis-server": server_version(server), **versions(work)}
    return "\n".join(f"- {name}: {value}" for name, value in found.items())


def main() -> None:
    """Parse the command line and measure."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", help=f"which: {', '.join(MEASUREMENTS)}; all when none is named")
    parser.add_argument("--quick", action="store_true", help="tiny windows: shows that it works, not how fast")
    parser.add_argument("--runs", type=int, help="how many alternating runs instead of 5")
    parser.add_argument("--json", type=Path, help="also write all raw numbers here")
    parser.add_argument("--write", action="store_true", help="put the tables into docs/benchmarks.md")
    options = parser.parse_args()
    if unknown := set(options.names) - set(MEASUREMENTS):
        parser.error(f"unknown: {', '.join(sorted(unknown))}")
    effort = QUICK if options.quick else FULL
    if options.runs:
        effort = Effort(effort.window, effort.warmup, options.runs, effort.scale)
    where = conditions()
    print(where, flush=True)
    tables = []
    for name in options.names or MEASUREMENTS:
        began = time.perf_counter()
        print(f"\n{name}", flush=True)
        table = MEASUREMENTS[name](effort)
        tables.append(table)
        print(f"\n{table.markdown()}\n({time.perf_counter() - began:.0f} s)", flush=True)
    if options.json:
        raw = {"when": datetime.now(UTC).isoformat(), "where": where.splitlines(), "quick": options.quick,
               "tables": {table.name: table.raw for table in tables}}  # fmt: skip
        options.json.write_text(json.dumps(raw, indent=1, default=dict))
    if options.write:
        text = place(DOCUMENT.read_text(), "conditions", f"{where}\n- measured on {datetime.now(UTC):%Y-%m-%d}")
        for table in tables:
            text = place(text, table.name, table.markdown())
        DOCUMENT.write_text(text)


if __name__ == "__main__":
    main()
