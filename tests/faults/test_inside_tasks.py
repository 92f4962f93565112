"""What a task asks for while it runs goes through its worker's parent: a child has no connection of its own."""

from __future__ import annotations

import pytest

from tests.faults.conftest import MakeSite
from tests.faults.kit import Site, forms, until

POOLS = ("prefork", "threads", "asyncio", "solo")


@forms("threads", 20, 50)
@pytest.mark.parametrize("pool", ["prefork", "threads", "asyncio"])
def test_a_task_asks_from_many_threads(site: Site, pool: str, threads: int) -> None:
    """`delay().get()` from many threads of one child at once, `update_state` beside them; each gets its own answer, and
    the child has neither a connection nor the database open."""
    site.worker("-P", pool, "-c", "4")
    task = site.send("inside", threads)
    site.wait_finished(40.0)
    document = site.documents([task])[task]
    assert document["status"] == "SUCCESS", document
    assert document["result"] == [list(range(threads)), threads, []]


@pytest.mark.parametrize("pool", ["prefork", "asyncio"])
def test_a_coroutine_asks(site: Site, pool: str) -> None:
    """`await adelay()` and `await aget()` of many at once."""
    site.worker("-P", pool, "-c", "4")
    task = site.send("ainside", 20)
    site.wait_finished(40.0)
    document = site.documents([task])[task]
    assert document["status"] == "SUCCESS", document
    assert document["result"] == [list(range(20)), []]


def test_waiting_for_a_result_without_a_free_seat_is_an_error(site: Site) -> None:
    """One seat, and its task waits for another one: a clear error at once, no deadlock; the other one runs."""
    site.worker("-c", "1")
    task = site.send("waits_for_itself")
    site.wait_finished(15.0)
    document = site.documents([task])[task]
    assert document["status"] == "FAILURE"
    assert "seat" in str(document["result"]["exc_message"])
    after = site.send("work")
    site.wait_finished(10.0, [after])


def test_a_quiet_retry_is_sent_at_once(site: Site) -> None:
    """`retry(throw=False)` sends and goes on."""
    site.worker("-c", "2")
    task = site.send("retries_quietly")
    until(lambda: len(site.ledger.of("start", task)) == 2, 10.0, "it runs again")
    assert [mark.note for mark in site.ledger.of("start", task)] == ["0", "1"]


@pytest.mark.parametrize("pool", [*POOLS, "gevent", "eventlet", "--in-process"])
def test_what_a_task_revokes_is_stored_in_the_broker(site: Site, pool: str) -> None:
    """From a function and from a coroutine, with and without `terminate`: before `revoke` has returned."""
    options = {"solo": ["-P", pool], "--in-process": [pool]}.get(pool, ["-P", pool, "-c", "2"])
    site.worker(*options)
    tasks = [site.send(name, f"{name}-1", f"{name}-2") for name in ("revokes", "arevokes")]
    site.wait_finished(20.0)
    assert [site.documents([task])[task]["status"] for task in tasks] == ["SUCCESS", "SUCCESS"]
    _, stored = site.ask(lambda broker: broker.cancelled())
    assert stored == {f"{name}{end}" for name in ("revokes", "arevokes") for end in ("-1", "-2", "-2\0SIGTERM")}


def test_what_a_task_revokes_needs_no_broadcast(broker: str, make_site: MakeSite) -> None:
    """Workers that hear no commands, as one that is down just then: what waits never runs, what runs is terminated."""
    site = make_site(broker, settings={"worker_enable_remote_control": False})
    site.worker("-c", "2")
    late = site.send("work", queue="later")
    running = site.send("work", 60.0)
    until(lambda: site.ledger.of("start", running), 10.0, "it runs")
    site.send("revokes", late, running)
    site.worker("-c", "1", "-Q", "later")
    site.wait_finished(15.0)
    found = site.documents([late, running])
    assert [found[task]["status"] for task in (late, running)] == ["REVOKED", "REVOKED"]
    assert not site.ledger.of("start", late)


@pytest.mark.parametrize("pool", POOLS)
def test_progress_is_seen_while_a_task_runs(broker: str, make_site: MakeSite, pool: str) -> None:
    """`update_state` reaches readers before the task ends."""
    site = make_site(broker)
    door = site.ledger.path.with_name("door")
    site.worker("-P", pool, *(() if pool == "solo" else ("-c", "2")))
    task = site.send("progress", str(door))
    until(lambda: site.documents([task]).get(task, {}).get("status") == "PROGRESS", 10.0, "the progress")
    assert site.documents([task])[task]["result"] == {"done": 7}
    door.touch()
    site.wait_finished(10.0)
    assert site.documents([task])[task]["status"] == "SUCCESS"
