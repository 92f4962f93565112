"""Whatever is killed, and whenever: no task is missing, and nothing runs twice without need."""

from __future__ import annotations

import contextlib
import os
import signal
import sqlite3
import threading
import time
from functools import partial
from typing import Any
from uuid import uuid4

import psycopg
import pytest

from celeriac.errors import OperationalError
from celeriac.ports import Place
from celeriac.wire.frame import losses
from celeriac.wire.task import read_head
from tests.faults.conftest import MakeSite, Server
from tests.faults.kit import SPAN, Kill, Site, Storm, forms, until
from tests.servers import command

STORMS = pytest.mark.parametrize(
    "storm",
    [
        pytest.param(Storm(rounds=6, each=20, lease=1.0, pause=2.0), id="short"),
        pytest.param(Storm(rounds=200, each=40, lease=2.0, pause=3.0, workers=2), id="lease2",
                     marks=[pytest.mark.full, pytest.mark.timeout(3600)]),
        pytest.param(Storm(rounds=5, each=100, lease=30.0, pause=20.0, workers=2), id="defaults",
                     marks=[pytest.mark.full, pytest.mark.timeout(900)]),
    ],
)  # fmt: skip


@STORMS
def test_a_storm_of_kills_loses_nothing(
    broker: str, make_site: MakeSite, storm: Storm, seed: int, figures: dict[str, Any]
) -> None:
    """kill -9 of workers at random moments: all tasks run, and only what was running and not committed runs again."""
    site = make_site(broker, lease=storm.lease)
    storm.run(site, seed, figures).assert_clean(f"seed {seed}")
    assert not site.dead()
    left = site.counts()
    assert (left.ready, left.in_flight, left.scheduled, left.parked) == (0, 0, 0, 0)


@forms(
    "storm",
    Storm(rounds=5, each=30, lease=1.0, pause=1.5, task="early"),
    Storm(rounds=100, each=60, lease=2.0, pause=2.5, task="early"),
    timeout=2400,
)
def test_a_task_acknowledged_early_never_starts_twice(
    broker: str, make_site: MakeSite, storm: Storm, seed: int, figures: dict[str, Any]
) -> None:
    """With `task_acks_late=False` the acknowledgement is committed before the child sees the call: what was lost is
    lost, what was not yet acknowledged runs, and nothing starts twice."""
    site = make_site(broker, lease=storm.lease)
    storm.run(site, seed, figures)
    twice = {key: starts for key, starts in site.ledger.starts().items() if len(starts) > 1}
    assert not twice, f"seed {seed}: {twice}"
    started = len(site.ledger.starts())
    figures["lost"] = len(site.sent) - started
    assert started >= len(site.sent) * 0.5, f"{started} of {len(site.sent)} ran at all"


@forms("lease", 2.0, 30.0)
def test_work_of_a_lost_worker_runs_within_lease_and_five_seconds(
    broker: str, make_site: MakeSite, lease: float, figures: dict[str, Any]
) -> None:
    """What ran on a worker that was killed, and what it had fetched ahead, starts on another one in time."""
    site = make_site(broker, lease=lease)
    first = site.worker("-c", "1", "--prefetch-multiplier", "4")
    door = str(site.ledger.path.with_name("door"))
    running = site.send("first_long", door)
    site.wait_started(running)
    waiting = [site.send("work") for _ in range(3)]
    second = site.worker("-c", "1")
    killed = site.kill(first)
    site.wait_finished(lease + SPAN + 1)
    starts = site.ledger.starts()
    figures["seconds"] = round(max(starts[key][-1].time for key in [running, *waiting]) - killed.time, 2)
    assert figures["seconds"] <= lease + SPAN
    assert starts[running][-1].worker == site.name_of(second)
    site.check().assert_clean()


def test_a_killed_child_costs_less_than_two_seconds(site: Site, figures: dict[str, Any]) -> None:
    """kill -9 of a child alone: what it ran starts again in 2 s, under the same parent."""
    worker = site.worker("-c", "2")
    task = site.send("first_long", "never")
    first = site.wait_started(task)
    os.kill(first.pid, signal.SIGKILL)
    killed = time.monotonic()
    site.kills.append(Kill(first.worker, killed, frozenset(), frozenset({first.pid})))
    again = site.wait_started(task, 5.0, times=2)
    figures["seconds"] = round(again.time - killed, 3)
    assert again.time - killed <= 2.0
    assert again.parent == first.parent
    assert again.pid != first.pid
    site.wait_finished(5.0)
    site.check().assert_clean()
    assert worker.terminate() == 0


@pytest.mark.parametrize("pool", ["prefork", "threads", "asyncio"])
def test_a_task_that_kills_its_process_is_given_up_after_three_starts(site: Site, pool: str) -> None:
    """A poison task starts three times. Then it is a FAILURE and lies in the dead letter queue; its link_error and its
    on_failure are told once."""
    worker = site.worker("-P", pool, "-c", "2")
    poison = site.send("poison", link_error=site.app.signature("tasks.errback"))
    site.wait_finished(30.0)
    document = site.documents([poison])[poison]
    assert document["status"] == "FAILURE"
    assert document["result"]["exc_type"] == "WorkerLostError"
    assert len(site.ledger.of("start", poison)) == 3
    until(lambda: poison in site.dead(), 5.0, "the dead letter")
    assert site.dead()[poison]
    until(lambda: site.ledger.of("errback", poison), 5.0, "the errback")
    until(lambda: site.ledger.of("on_failure", poison), 5.0, "on_failure")
    good = site.send("work")
    site.wait_finished(10.0)
    assert site.documents([good])[good]["status"] == "SUCCESS"
    assert len(site.ledger.of("errback", poison)) == len(site.ledger.of("on_failure", poison)) == 1
    assert len(site.ledger.of("start", poison)) == 3
    assert worker.terminate() == 0


@pytest.mark.parametrize("pool", ["threads", "asyncio"])
@forms("neighbours", 8, 50)
def test_neighbours_of_a_poison_task_finish(site: Site, pool: str, neighbours: int) -> None:
    """Tasks that shared a process with one that killed it are suspects, not culprits: each of them finishes."""
    site.worker("-P", pool, "-c", str(neighbours + 1))
    name = "afirst_long" if pool == "asyncio" else "first_long"
    near = [site.send(name, "never") for _ in range(neighbours)]
    until(lambda: len(site.ledger.starts()) == neighbours, 20.0, "the neighbours run")
    poison = site.send("poison")
    site.wait_finished(30.0 + neighbours)
    documents = site.documents(site.sent)
    assert documents[poison]["status"] == "FAILURE"
    assert {documents[key]["status"] for key in near} == {"SUCCESS"}
    assert set(site.dead()) == {poison}
    assert len(site.ledger.of("start", poison)) == 3


@forms("kills", 5, 9)
def test_a_message_that_only_waits_is_not_counted(broker: str, make_site: MakeSite, kills: int) -> None:
    """A message that was fetched ahead and outlives several workers was never running: no loss is counted, and it is
    not dead-lettered."""
    site = make_site(broker, lease=1.0)
    door = site.ledger.path.with_name("door")
    running = site.send("gate", str(door))
    waiting = site.send("work")

    def fetched() -> bool:
        return any(read_head(item.blob).id == waiting for item in site.items(Place.IN_FLIGHT))

    for number in range(kills):
        worker = site.worker("-c", "1", "--prefetch-multiplier", "4")
        site.wait_started(running, times=number + 1)
        until(fetched, 10.0, "it is fetched ahead", 0.1)
        site.kill(worker)
    kept = [item for where in (Place.IN_FLIGHT, Place.READY) for item in site.items(where)]
    assert [losses(item.blob) for item in kept if read_head(item.blob).id == waiting] == [(0, 0)]
    site.worker("-c", "1")
    site.wait_started(running, times=kills + 1)
    door.touch()
    site.wait_finished(20.0)
    assert len(site.ledger.of("start", waiting)) == 1
    assert not site.dead()
    site.check().assert_clean()


@forms("rounds", 2, 20, timeout=900)
def test_server_killed_under_load(
    server: Server, make_site: MakeSite, rounds: int, seed: int, figures: dict[str, Any]
) -> None:
    """The server is killed under load (PostgreSQL: stopped as `pg_ctl stop -m immediate` does) and comes back with all
    that it had answered: work goes on within 5 s, and every task whose `delay()` had returned is done."""
    site = make_site(server.url, lease=5.0)
    site.worker("-c", "2")
    accepted: list[str] = []
    stop = threading.Event()

    def produce() -> None:
        while not stop.is_set():
            key = str(uuid4())
            with contextlib.suppress(OperationalError):
                site.app.send_task("tasks.work", (0.01,), task_id=key)
                accepted.append(key)
            time.sleep(0.005)

    producer = threading.Thread(target=produce)
    producer.start()
    slowest = 0.0
    try:
        for _ in range(rounds):
            until(partial(_more_than, accepted, len(accepted) + 50), 30.0, "tasks are accepted")
            server.kill9()
            time.sleep(1.0)
            server.start()
            up = time.monotonic()
            ends = until(partial(_ends_after, site, up), 10.0, "work goes on")
            slowest = max(slowest, min(ends) - up)
            assert slowest <= 5.0
    finally:
        stop.set()
        producer.join(10.0)
    figures.update(rounds=rounds, accepted=len(accepted), resumed=round(slowest, 2))
    site.sent = accepted
    site.wait_finished(site.lease + SPAN + 10)
    assert not set(accepted) - {mark.key for mark in site.ledger.marks("end")}
    assert not site.dead()


@forms("count,seconds,lease", (8, 4.0, 1.0), (50, 90.0, 30.0), timeout=400)
def test_server_stopped_for_two_leases(
    server: Server, make_site: MakeSite, count: int, seconds: float, lease: float
) -> None:
    """The server does not answer for two leases while tasks run, with a second worker standing by: each runs once."""
    site = make_site(server.url, lease=lease)
    site.worker("-P", "threads", "-c", str(count))
    for _ in range(count):
        site.send("work", seconds)
    until(lambda: len(site.ledger.starts()) == count, 20.0, "all run")
    site.worker("-P", "threads", "-c", str(count))
    server.stop_process()
    time.sleep(2 * lease)
    server.cont()
    site.wait_finished(seconds + 2 * lease + 30)
    site.check().assert_clean()
    assert all(len(starts) == 1 for starts in site.ledger.starts().values())
    assert {document["status"] for document in site.documents(site.sent).values()} == {"SUCCESS"}


def test_server_restarted_empties_no_claim(server: Server, make_site: MakeSite) -> None:
    """Nobody is declared dead for one lease after the server came back: a running task is not started elsewhere."""
    site = make_site(server.url, lease=2.0)
    site.worker("-c", "1")
    task = site.send("work", 5.0)
    site.wait_started(task)
    site.worker("-c", "1")
    server.kill9()
    time.sleep(2.5)  # longer than the lease: it has ended when the server is back
    server.start()
    site.wait_finished(20.0)
    assert len(site.ledger.of("start", task)) == 1
    assert site.documents([task])[task]["status"] == "SUCCESS"


def test_one_poisoned_completion_leaves_the_others_alone(site: Site) -> None:
    """Of a batch of completions one can't be carried out: it goes to the dead letters by itself, all others commit."""
    door = site.ledger.path.with_name("door")
    bad = str(uuid4())
    if site.broker_url.startswith("redis"):  # its follow-up goes to a queue whose key is not a list
        command(site.broker_url, "SET", "broken", "not a list")
    else:
        _refuse(site, bad)
    site.worker("-P", "threads", "-c", "20")
    good = [site.send("gate", str(door)) for _ in range(18)]
    link = site.app.signature("tasks.note", queue="broken") if site.broker_url.startswith("redis") else None
    site.send("gate", str(door), id=bad, link=link)
    until(lambda: len(site.ledger.starts()) == 19, 20.0, "all run")
    door.touch()
    site.wait_finished(15.0, good)
    assert {document["status"] for document in site.documents(good).values()} == {"SUCCESS"}
    until(lambda: bad in site.dead(), 10.0, "the dead letter")
    assert site.dead().keys() == {bad}
    assert site.counts().in_flight == 0
    after = site.send("work")
    site.wait_finished(10.0, [after])


def _more_than(found: list[str], count: int) -> bool:
    return len(found) > count


def _ends_after(site: Site, moment: float) -> list[float]:
    return [mark.time for mark in site.ledger.marks("end") if mark.time > moment]


def _refuse(site: Site, task_id: str) -> None:
    """Make the database refuse the result of one task."""
    site.app.AsyncResult(task_id).state  # noqa: B018  the tables are there now
    if site.broker_url.startswith("postgresql"):
        with psycopg.connect(site.broker_url, autocommit=True) as link:
            statement: Any = (
                f"""CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
                        IF NEW.id = '{task_id}' THEN RAISE EXCEPTION 'broken by the test'; END IF;
                        RETURN NEW; END $$;
                    CREATE TRIGGER broken BEFORE INSERT ON celeriac_results FOR EACH ROW EXECUTE FUNCTION refuse()"""
            )
            link.execute(statement)
        return
    with contextlib.closing(sqlite3.connect(site.broker_url.removeprefix("sqlite:///"))) as database:
        database.execute(
            "CREATE TRIGGER broken BEFORE INSERT ON celeriac_results WHEN NEW.id = "
            f"'{task_id}' BEGIN SELECT RAISE(ABORT, 'broken by the test'); END"
        )
        database.commit()
