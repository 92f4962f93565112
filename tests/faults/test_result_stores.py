"""Workflows end also where results lie in SQL tables, memcached or files, whatever is killed: workers, or the
database."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from celeriac.backends.sql import SqlBackend, SqlReader
from celeriac.errors import OperationalError
from celeriac.model.message import Store
from tests.faults.conftest import MakeSite
from tests.faults.kit import forms
from tests.faults.test_callers import call
from tests.faults.test_workflows import Flows
from tests.servers import PostgresServer, RedisServer


@pytest.fixture(params=["db+sqlite", "db+postgresql", "db+mysql", "cache+memcached", "file"])
def results(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of each store."""
    if request.param == "db+sqlite":
        return f"db+sqlite:///{tmp_path}/results.db"
    if request.param == "file":
        (tmp_path / "results").mkdir()
        return f"file://{tmp_path}/results"
    if request.param == "cache+memcached":
        return f"cache+memcached://{request.getfixturevalue('memcached_address')}/"
    fixture = "postgres_url" if request.param == "db+postgresql" else "mariadb_url"
    return f"db+{request.getfixturevalue(fixture)}"


@forms("rounds", 1, 30, timeout=600)
def test_workflows_survive_kills_of_workers(
    redis: RedisServer, make_site: MakeSite, results: str, rounds: int, seed: int, figures: dict[str, Any]
) -> None:
    """kill -9 at random moments between storing, counting and sending: each workflow ends as it should."""
    site = make_site(redis.url, backend=results, lease=1.0)
    flows = Flows(site)
    chance = random.Random(seed)
    workers = [site.worker("-c", "2") for _ in range(2)]
    for _ in range(rounds):
        for kind in range(5):
            flows.send(kind, chance.randrange(2, 5), 0.01)
        time.sleep(chance.uniform(0.1, 0.6))
        site.kill(workers.pop(0))
        workers.append(site.worker("-c", "2"))
    flows.check(20.0 + rounds)
    figures.update(rounds=rounds, workflows=len(flows.wanted))


@pytest.mark.full
@pytest.mark.parametrize("kind", ["gevent", "eventlet"])
def test_green_pools_and_patched_callers(redis: RedisServer, make_site: MakeSite, results: str, kind: str) -> None:
    """Tasks in a green pool, and 50 green threads that send and get in a patched process, while others run."""
    site = make_site(redis.url, backend=results, lease=30.0)
    site.worker("-P", kind, "-c", "20", "-l", "WARNING")
    call(site, f"{kind}_web", timeout=100.0)


@pytest.fixture
def own_postgres() -> Iterator[PostgresServer]:
    """A PostgreSQL of the test's own, which keeps what it has committed."""
    with PostgresServer(settings={"fsync": "on"}) as server:
        yield server


def test_workflows_survive_a_crash_of_the_database(
    redis: RedisServer, make_site: MakeSite, own_postgres: PostgresServer
) -> None:
    """`pg_ctl stop -m immediate` under load, twice: workers wait for it, and each workflow ends as it should."""
    site = make_site(redis.url, backend=f"db+{own_postgres.url}", lease=1.0)
    flows = Flows(site)
    site.worker("-c", "2")
    for _ in range(2):
        for kind in range(5):
            flows.send(kind, 4, 0.05)
        time.sleep(0.3)
        own_postgres.stop("immediate")
        time.sleep(0.5)
        own_postgres.start()
    flows.check(25.0)


def test_who_waits_outlives_a_crash_of_the_database(own_postgres: PostgresServer) -> None:
    """`get()`, in a thread or a coroutine, goes on when the database is there again; while it is not there from the
    beginning, it says so at once."""
    url = f"db+{own_postgres.url}"
    reader, writer = SqlReader(url, {}), SqlReader(url, {})
    writer.store([Store("before", b"1", "SUCCESS")])

    def crash() -> None:
        own_postgres.stop("immediate")
        time.sleep(0.3)
        own_postgres.start()
        writer.store([Store("late", b"2", "SUCCESS")])

    async def wait() -> tuple[str, bytes]:
        backend = SqlBackend(url, {})
        async with backend.watch(["late"]) as changes:
            found = await asyncio.wait_for(anext(changes), 15)
        await backend.close()
        return found

    with reader.watch(["before", "late"], 15.0) as changes, ThreadPoolExecutor(2) as others:
        assert next(changes) == ("before", b"1")
        waiting = others.submit(asyncio.run, wait())
        time.sleep(0.3)
        others.submit(crash).result()
        assert next(changes) == ("late", b"2")
        assert waiting.result() == ("late", b"2")
    own_postgres.stop("immediate")
    began = time.monotonic()
    with pytest.raises(OperationalError), reader.watch(["late"], 15.0) as changes:
        next(changes)
    assert time.monotonic() - began < 5
    reader.close()
    writer.close()
