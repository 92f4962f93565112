"""A process that sends within its own transaction is killed: the task exists if and only if the row does."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import psycopg
import pytest

from celeriac import Celeriac
from celeriac.ports import Place
from celeriac.wire.task import read_head
from tests.faults.kit import forms
from tests.processes import ROOT, SOURCE
from tests.servers import PostgresServer, RedisServer

CALLER = Path(__file__).parent / "callers" / "transactions.py"


def _caller(url: str, broker: str, seed: int) -> subprocess.Popen[bytes]:
    env = {**os.environ, "PYTHONPATH": f"{SOURCE}{os.pathsep}{ROOT}"}
    return subprocess.Popen(
        [sys.executable, str(CALLER), url, broker, str(seed)], env=env, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL
    )


def _killed(caller: subprocess.Popen[bytes], chance: random.Random) -> None:
    """Kill it when it has said the name of a random step, and a moment later."""
    assert caller.stdout is not None
    for _ in range(chance.randrange(1, 30)):
        assert caller.stdout.readline(), "it ended by itself"
    try:
        caller.wait(chance.choice((0.0, 0.0, chance.uniform(0.0, 0.004))))
    except subprocess.TimeoutExpired:
        caller.send_signal(signal.SIGKILL)
    assert caller.wait(10) == -signal.SIGKILL
    caller.stdout.close()


def _rows(url: str) -> set[str]:
    with psycopg.connect(url) as link:
        return {key for (key,) in link.execute("SELECT task_id FROM orders")}


@pytest.mark.parametrize("way", ["same database", "outbox"])
@forms("rounds", 12, 500, timeout=3600)
def test_killed_around_the_commit(
    postgres_server: PostgresServer, redis: RedisServer, way: str, rounds: int, seed: int, figures: dict[str, Any]
) -> None:
    """kill -9 between any two statements around COMMIT, and during it."""
    url = postgres_server.database()
    broker = url if way == "same database" else redis.url
    with psycopg.connect(url) as link:
        link.execute("CREATE TABLE orders (task_id text)")
    app = Celeriac("orders", broker=broker, backend=broker, outbox_url=url)
    app.wiring.migrate([url])
    chance = random.Random(seed)
    tasks: list[str] = []
    for number in range(rounds):
        _killed(_caller(url, broker, seed + number), chance)
        tasks = _ready(app) if way == "same database" else _left(url)
        assert len(tasks) == len(set(tasks)), "a task exists twice"
        assert set(tasks) == _rows(url), f"round {number}"
    figures.update(rounds=rounds, tasks=len(tasks))
    assert len(tasks) > rounds / 2


def _ready(app: Celeriac) -> list[str]:
    async def browse() -> list[str]:
        broker = app.broker()
        try:
            found: list[str] = []
            cursor = ""
            while True:
                page = await broker.browse(Place.READY, "celery", 1000, cursor)
                found += [read_head(item.blob).id for item in page.items]
                cursor = page.cursor
                if not cursor:
                    return found
        finally:
            await broker.close()

    return asyncio.run(browse())


def _left(url: str) -> list[str]:
    with psycopg.connect(url) as link:
        return [key for (key,) in link.execute("SELECT envelope::json ->> 'id' FROM celeriac_outbox")]
