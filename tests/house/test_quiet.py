"""Importing does nothing, and does it quickly."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.house.code import modules
from tests.processes import SOURCE

DRIVERS = frozenset({"hiredis", "redis", "uvloop", "gevent", "eventlet", "yaml", "zstandard", "brotli", "psycopg"})
WATCH = """
import importlib, json, sys
import psutil

me = psutil.Process()


def run(step):
    before = set(sys.modules)
    exec(step, {})
    return {
        "step": step, "new": sorted(set(sys.modules) - before),
        "threads": me.num_threads(), "sockets": len(me.net_connections("all")), "children": len(me.children()),
    }


print(json.dumps([run(step) for step in json.loads(sys.argv[1])]))
"""


def watch(*steps: str) -> list[dict[str, Any]]:
    """Run the steps one after the other in a fresh Python; say after each what has changed."""
    done = subprocess.run(
        [sys.executable, "-c", WATCH, json.dumps(steps)], env={**os.environ, "PYTHONPATH": str(SOURCE)},
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found: list[dict[str, Any]] = json.loads(done.stdout)
    return found


def quiet(step: dict[str, Any]) -> bool:
    """No thread was started, no socket opened, no process made."""
    return (step["threads"], step["sockets"], step["children"]) == (1, 0, 0)


def cpu_seconds(cache: Path, *words: str, rounds: int = 6) -> float:
    """The least processor time of a fresh Python with these words, compiled before as what is installed is: steady on a
    machine that is busy."""
    best = float("inf")
    environment = {**os.environ, "PYTHONPATH": str(SOURCE), "PYTHONPYCACHEPREFIX": str(cache)}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    for _ in range(rounds):
        child = subprocess.Popen([sys.executable, *words], env=environment, stdout=subprocess.DEVNULL)
        _, status, used = os.wait4(child.pid, 0)
        child.returncode = status
        assert status == 0
        best = min(best, used.ru_utime + used.ru_stime)
    return best


def slowness(bare: float) -> float:
    """How much slower than usual this machine is now, by the start of a bare Python: 20 ms at most, usually."""
    return max(1.0, bare / 0.02)


def test_the_package_imports_nothing_heavy() -> None:
    """`import celeriac` brings no driver, no asyncio, no click, no thread and no socket."""
    (found,) = watch("import celeriac")
    heavy = {*DRIVERS, "asyncio", "click", "rich", "multiprocessing", "subprocess", "ssl", "sqlite3", "msgspec"}
    assert heavy.isdisjoint(found["new"])
    assert quiet(found)


def test_an_app_brings_no_asyncio_and_no_driver() -> None:
    """Making an app with a task opens nothing and imports neither a driver nor asyncio."""
    (found,) = watch("import celeriac; a = celeriac.Celeriac('x', broker='redis://h'); a.task(lambda x: x, name='y')")
    assert {*DRIVERS, "asyncio", "click", "rich", "sqlite3"}.isdisjoint(found["new"])
    assert quiet(found)


def test_no_module_does_anything_when_imported() -> None:
    """No module starts a thread or a process, opens a socket or imports a driver when it is imported."""
    ours = [name for name in modules() if not name.startswith("celeriac.testing") and name != "celeriac.__main__"]
    for step in watch(*(f"import {name}" for name in ours)):
        assert quiet(step), step["step"]
        assert DRIVERS.isdisjoint(step["new"]), step["step"]


def test_an_app_is_made_quickly(tmp_path: Path) -> None:
    """`import celeriac` and an app bring nothing that costs much. The figure is measured in benchmarks/start.py; this
    bound is wide, for a busy machine must not fail it."""
    bare = cpu_seconds(tmp_path, "-c", "pass")
    assert cpu_seconds(tmp_path, "-c", "import celeriac; celeriac.Celeriac('x')") - bare < 0.4 * slowness(bare)


def test_the_command_starts_quickly(tmp_path: Path) -> None:
    """`celeriac --help` brings nothing that costs much; the bound is wide for the same reason."""
    bare = cpu_seconds(tmp_path, "-c", "pass")
    assert cpu_seconds(tmp_path, "-m", "celeriac", "--help") < 0.6 * slowness(bare)
