"""Faults with PostgreSQL that are its own: the server ends connections, or has none left."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from typing import Any
from uuid import uuid4

import psutil
import psycopg

from celeriac import Celeriac
from celeriac.errors import OperationalError
from tests.faults.conftest import MakeSite
from tests.faults.kit import Site, forms, until
from tests.faults.test_workflows import Flows
from tests.servers import PgBouncer, PostgresServer

CALLERS = 60
ENDED = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'worker'"
STANDING = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'worker'"


@forms("times", 6, 500, timeout=3600)
def test_ended_connections_leave_memory_flat(
    postgres_server: PostgresServer, make_site: MakeSite, times: int, figures: dict[str, Any]
) -> None:
    """The server ends all connections of a worker over and over while tasks run: the worker comes back each time,
    nothing is lost, and its memory stays as it is."""
    url = postgres_server.database()
    site = make_site(url, through=f"{url}?application_name=worker")
    worker = site.worker("-c", "2")
    parent = psutil.Process(worker.pid)
    before, standing = 0, 0
    for number in range(times):
        round_of = [site.send("work", 0.02) for _ in range(5)]
        postgres_server.sql(ENDED)
        site.wait_finished(20.0, round_of)
        if number == times // 5:
            before = parent.memory_info().rss
            [(standing,)] = postgres_server.sql(STANDING)
    grown = (parent.memory_info().rss - before) / 1e6
    figures.update(reconnects=times, tasks=len(site.sent), grown_mb=round(grown, 1))
    assert not set(site.sent) - {mark.key for mark in site.ledger.marks("end")}
    assert not site.dead()
    assert grown < 4
    until(lambda: postgres_server.sql(STANDING)[0][0] <= standing, 10.0, "no connection is left over", 0.1)


@forms("storms", 1, 20, timeout=900)
def test_a_storm_of_connections(make_site: MakeSite, storms: int, figures: dict[str, Any]) -> None:
    """Many more callers come at once than the server has room for, and stay: each has sent its task or is told why not,
    in time; the worker runs what was sent, and neither keeps memory nor connections of it."""
    with PostgresServer(settings={"max_connections": "20"}) as server, ThreadPoolExecutor(CALLERS) as threads:
        site = make_site(server.url, through=f"{server.url}?application_name=worker")
        worker = site.worker("-c", "2")
        parent = psutil.Process(worker.pid)
        before, refused = 0, 0
        for number in range(storms):
            stay = Barrier(CALLERS, timeout=20.0)
            for key, reason in threads.map(_call, [site] * CALLERS, [stay] * CALLERS):
                assert not reason or ("\n" not in reason and "too many connections" in reason), reason
                refused += bool(reason)
                site.sent += [] if reason else [key]
            site.wait_finished(20.0)
            if number == storms // 5:
                before = parent.memory_info().rss
        grown = (parent.memory_info().rss - before) / 1e6
        figures.update(storms=storms, sent=len(site.sent), refused=refused, grown_mb=round(grown, 1))
        assert refused
        assert site.sent
        assert grown < 4
        site.check().assert_clean()
        until(lambda: server.sql(STANDING)[0][0] <= 4, 10.0, "no connection is left over", 0.1)


def test_workflows_through_pgbouncer(postgres_server: PostgresServer, make_site: MakeSite) -> None:
    """In transaction mode, with a pool that is smaller than what uses it: workflows end as they should though a worker
    is killed, who waits for a result gets it, and so does who sends within a transaction."""
    with PgBouncer(postgres_server) as pool:
        url = pool.url(postgres_server.database())
        site = make_site(url, lease=1.0)
        flows = Flows(site)
        workers = [site.worker("-c", "2") for _ in range(2)]
        for kind in range(5):
            flows.send(kind, 4, 0.02)
        time.sleep(0.3)
        site.kill(workers[0])
        site.worker("-c", "2")
        with psycopg.connect(url) as connection:
            with site.app.transaction(connection):
                result = site.app.send_task("tasks.echo", ("within",))
            connection.commit()
        assert result.get(timeout=20.0) == "within"
        flows.check(20.0)


def _call(site: Site, stay: Barrier) -> tuple[str, str]:
    """A caller of its own sends a task, and goes when all have tried; why it could not, or nothing."""
    key, reason = str(uuid4()), ""
    with Celeriac("caller", broker=site.broker_url) as app:
        app.conf.task_publish_timeout = 2.0
        try:
            app.send_task("tasks.work", task_id=key)
        except OperationalError as error:
            reason = str(error)
        stay.wait()
    return key, reason
