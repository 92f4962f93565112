"""Faults with RabbitMQ as broker and results in Redis: two servers, each of which may be away."""

from __future__ import annotations

import asyncio
import re
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial
from typing import Any
from uuid import uuid4

import psutil
import pytest

from celeriac import chain
from celeriac.brokers.rabbitmq import RabbitmqBroker, RabbitmqSender
from celeriac.errors import OperationalError
from celeriac.model.message import Completion, Demand
from celeriac.ports import Place
from celeriac.testing.rigs import envelope, losses, name_of
from celeriac.wire.frame import with_headers
from tests.faults.conftest import MakeSite
from tests.faults.kit import Site, Storm, forms, until
from tests.proxy import FreezeProxy
from tests.rabbit import RabbitServer, rabbit_server


@pytest.fixture(scope="module")
def node() -> Iterator[RabbitServer]:
    """A node that may be killed."""
    with rabbit_server() as server:
        yield server


def _ended(site: Site) -> None:
    """Everything that was sent has an end in the ledger, and a result."""
    ended = {mark.key for mark in site.ledger.marks("end")}
    assert [key for key in site.sent if key not in ended] == []
    assert {document["status"] for document in site.documents(site.sent).values()} == {"SUCCESS"}


@forms("kills,each", (1, 150), (10, 300), timeout=1200)
def test_the_node_is_killed_under_load(
    node: RabbitServer, clean_redis_url: str, make_site: MakeSite, kills: int, each: int, figures: dict[str, Any]
) -> None:
    """A node is killed and started again while tasks run and follow-ups are sent: every task that was acknowledged
    comes to its end."""
    site = make_site(node.vhost(), clean_redis_url)
    site.worker("-c", "2")
    for _ in range(kills):
        for _ in range(each):
            site.send("work", 0.01)
        until(lambda: len(site.ledger.starts()) > len(site.sent) - each + 20, 30.0, "it works")
        node.restart()
        site.wait_finished(60.0)
    _ended(site)
    figures.update(kills=kills, tasks=len(site.sent), repeats=len(site.ledger.marks("start")) - len(site.sent))
    assert not site.dead()


@forms("freezes", 1, 5, timeout=900)
def test_a_frozen_worker_consumes_again_within_twenty_seconds(
    rabbit: RabbitServer, clean_redis_url: str, make_site: MakeSite, freezes: int, figures: dict[str, Any]
) -> None:
    """Connections freeze under load: consuming again in 20 s, one WARNING for each freeze, nothing lost. RabbitMQ gives
    what a silent worker held to others only when its own heartbeat has failed."""
    url = rabbit.vhost()
    with FreezeProxy(rabbit.port) as proxy:
        site = make_site(url, clean_redis_url, through=url.replace(f":{rabbit.port}/", f":{proxy.port}/"))
        worker = site.worker("-c", "2")
        slowest = 0.0
        for number in range(freezes):
            for _ in range(60):
                site.send("work", 0.01)
            until(lambda: len(site.ledger.starts()) > len(site.sent) - 50, 20.0, "it works")
            proxy.freeze()
            frozen = time.monotonic()
            late = site.send("work")
            slowest = max(slowest, site.wait_started(late, 22.0).time - frozen)
            site.wait_finished(30.0)
            warnings = re.findall(r"WARNING.*(?:not answer|no answer|silent).*", worker.output)
            assert len(warnings) == number + 1, f"{warnings}\n{worker.output}"
        assert slowest < 20.0
        figures.update(freezes=freezes, slowest=round(slowest, 1))
        _ended(site)


@forms("storm", Storm(3, 25, 30.0, 1.0), Storm(100, 30, 30.0, 2.0, workers=2), timeout=2400)
def test_workers_are_killed(
    rabbit: RabbitServer, clean_redis_url: str, make_site: MakeSite, storm: Storm, seed: int, figures: dict[str, Any]
) -> None:
    """Workers are killed at random moments: nothing is missing; what runs again is excused by a kill. But for the few
    whose worker is killed after it has sent a copy and before it has acknowledged: RabbitMQ has no step for both, and
    both may run."""
    site = make_site(rabbit.vhost(), clean_redis_url)
    storm.run(site, seed, figures).assert_clean(unexcused=storm.rounds // 10)
    _ended(site)


def test_lost_workers_are_counted(rabbit: RabbitServer, clean_redis_url: str, make_site: MakeSite) -> None:
    """A task that takes its worker down again and again counts them, from the second on, though RabbitMQ itself counts
    nothing on a classic queue."""
    site = make_site(rabbit.vhost(), clean_redis_url)
    task = site.send("work", 60.0)
    for number in range(3):
        worker = site.worker("-c", "1")
        site.wait_started(task, 30.0, number + 1)
        site.kill(worker)
    until(lambda: site.items(Place.READY), 20.0, "the message is back")
    # the first loss is RabbitMQ's mark "redelivered"; the second left its trace in our queue, the third did so too
    assert losses(site.items(Place.READY)[0].blob) == (0, 1)


@pytest.mark.full
def test_the_schedule_outlives_the_node(
    node: RabbitServer, clean_redis_url: str, make_site: MakeSite, figures: dict[str, Any]
) -> None:
    """The node is killed while messages wait for their time, on their way from one delay to the next: all of them run,
    and none too early."""
    site = make_site(node.vhost(), clean_redis_url)
    site.worker("-c", "2")
    due: dict[str, float] = {}
    for number in range(400):
        seconds = 2.0 + number * 0.05
        due[site.send("work", countdown=seconds)] = time.time() + seconds - 0.05
    time.sleep(4.0)
    node.restart()
    site.wait_finished(60.0)
    _ended(site)
    starts = site.ledger.starts()
    assert [key for key, moment in due.items() if starts[key][0].wall < moment] == []
    figures.update(tasks=len(due), repeats=len(site.ledger.marks("start")) - len(due))


@forms("count", 1000, 10_000, timeout=600)
def test_what_is_acknowledged_is_delivered(node: RabbitServer, count: int, figures: dict[str, Any]) -> None:
    """Messages are published while the node is killed and comes again: each that was confirmed is there."""
    url = node.vhost()
    confirmed: list[str] = []

    def publish(number: int) -> None:
        sender = RabbitmqSender(url, {})
        for n in range(count // 4):
            name = f"{number}.{n}"
            end = time.monotonic() + 60
            while time.monotonic() < end:
                try:
                    sender.publish([envelope(name)], 5.0)
                    confirmed.append(name)
                    break
                except OperationalError:
                    time.sleep(0.1)
        sender.close()

    threads = [threading.Thread(target=publish, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    until(lambda: len(confirmed) > count // 3, 60.0, "half of them are published", 0.005)
    node.restart()
    for thread in threads:
        thread.join()

    async def take() -> set[str]:
        broker = RabbitmqBroker(url, {})
        found: set[str] = set()
        async with broker.subscribe(["q"], epoch="e", lease=30) as consumer:
            finished: list[Completion] = []
            while True:
                turn = await consumer.cycle(finished, Demand(500))
                finished = [Completion(delivery.receipt) for delivery in turn.deliveries]
                found |= {name_of(delivery.blob) for delivery in turn.deliveries}
                if not finished and len(found) >= len(set(confirmed)):
                    break
                if not finished:
                    async with asyncio.timeout(10):
                        await consumer.wait()
        await broker.close()
        return found

    found = asyncio.run(take())
    assert set(confirmed) <= found
    figures.update(published=count, confirmed=len(confirmed), delivered=len(found))


@forms("times", 25, 500, timeout=600)
def test_reconnects_leave_memory_flat(rabbit: RabbitServer, times: int, figures: dict[str, Any]) -> None:
    """Connections are broken over and over: a consumer and a sender come back, and memory stays as it is."""
    url = rabbit.vhost()
    process = psutil.Process()

    async def work() -> None:
        broker = RabbitmqBroker(url, {})
        sender = RabbitmqSender(url, {})
        before = 0
        for number in range(times):
            async with broker.subscribe(["q"], epoch="e", lease=30) as consumer:
                await asyncio.to_thread(sender.publish, [envelope(str(number))], 5.0)
                while not (turn := await consumer.cycle((), Demand(1))).deliveries:
                    await consumer.wait()
                await consumer.cycle([Completion(delivery.receipt) for delivery in turn.deliveries], Demand(0))
                for link in (consumer.lease.link, broker._core.link):  # type: ignore[attr-defined]
                    if link.current is not None:
                        link.current.fail(OperationalError("cut"))
                for held in sender._pool._idle:
                    held.close()
            if number == times // 5:
                before = process.memory_info().rss
        sender.close()
        await broker.close()
        grown = (process.memory_info().rss - before) / 1e6
        figures.update(reconnects=times, grown_mb=round(grown, 1))
        assert grown < 8

    asyncio.run(work())


@pytest.mark.full
@pytest.mark.timeout(900)
@pytest.mark.parametrize("kind", ["classic", "quorum"])
def test_a_task_outlives_the_consumer_timeout(
    clean_redis_url: str, make_site: MakeSite, figures: dict[str, Any], kind: str
) -> None:
    """consumer_timeout is 60 s and a task takes 200: it runs once, and its result is stored."""
    with rabbit_server(settings="consumer_timeout = 60000") as node:
        settings = {
            "broker_transport_options": {"consumer_timeout": 60}, "task_default_queue_type": kind,
            "worker_lease_seconds": 30,
        }  # fmt: skip
        site = make_site(node.vhost(), clean_redis_url, lease=30.0, settings=settings)
        site.app.conf.task_default_queue_type = kind
        site.worker("-c", "1")
        task = site.send("work", 200.0)
        site.wait_finished(240.0)
        assert len(site.ledger.of("start", task)) == 1
        time.sleep(3)
        assert len(site.ledger.of("start", task)) == 1
        figures.update(seconds=200, starts=1)


@pytest.mark.full
@pytest.mark.timeout(900)
def test_a_cluster_loses_a_node(clean_redis_url: str, make_site: MakeSite, figures: dict[str, Any]) -> None:
    """Each of three nodes is killed in turn, under load, and comes back: workers and senders go on at another one, and
    of a quorum queue nothing is lost."""
    with ExitStack() as stack:
        first = stack.enter_context(rabbit_server())
        nodes = [first, *(stack.enter_context(rabbit_server(beside=first)) for _ in range(2))]
        vhost = first.vhost().rpartition("/")[2]
        urls = [node.url_of(vhost) for node in nodes]
        site = make_site(";".join(urls), clean_redis_url, settings={"task_default_queue_type": "quorum"})
        site.app.conf.task_default_queue_type = "quorum"
        workers = [site.worker("-c", "1") for _ in range(2)]
        site.send("work")
        site.wait_finished(30.0)
        members = first.api("GET", f"/api/queues/{vhost}/celery")
        assert (members["type"], len(members["members"])) == ("quorum", 3)
        slowest = killed = 0.0
        for node in nodes:
            for number in range(150):
                if number == 50:
                    node.kill9()
                    killed = time.monotonic()
                until(partial(_sent, site, str(uuid4())), 30.0, "it is sent", 0.1)
            site.wait_finished(60.0)
            slowest = max(slowest, min(mark.time for mark in site.ledger.marks("end") if mark.time > killed) - killed)
            node.start()
        _ended(site)
        repeats = len(site.ledger.marks("start")) - len(site.sent)
        figures.update(kills=len(nodes), tasks=len(site.sent), repeats=repeats, resumed=round(slowest, 2))
        assert not site.dead()
        assert all(worker.terminate() == 0 for worker in workers)


def _sent(site: Site, task_id: str) -> bool:
    try:
        site.send("work", 0.02, id=task_id)
    except OperationalError:  # it may have been taken all the same: what counts is what was acknowledged
        return False
    return True


def test_a_task_gets_results_over_rpc(rabbit: RabbitServer, make_site: MakeSite) -> None:
    """Results come to the worker's parent, who sent the task for its child."""
    site = make_site(rabbit.vhost(), "rpc://")
    site.worker("-P", "threads", "-c", "6")
    threads, coroutines = site.send("inside", 4), site.send("ainside", 4)
    site.wait_finished(30.0)
    found = {key: document["result"] for key, document in site.documents(site.sent).items()}
    assert found == {threads: [[0, 1, 2, 3], 4, []], coroutines: [[0, 1, 2, 3], []]}


def test_what_is_published_again_does_not_run_again(
    rabbit: RabbitServer, clean_redis_url: str, make_site: MakeSite
) -> None:
    """A worker that dies between sending what follows and acknowledging leaves its message to another one, which sends
    it again: where the result of that stands already it is not run again."""
    site = make_site(rabbit.vhost(), clean_redis_url)
    result = chain(site.app.signature("tasks.item", (3,)), site.app.signature("tasks.twice"))()
    [first] = site.items(Place.READY)
    site.worker("-c", "1")
    site.wait_finished(20.0, [result.id])
    site.send_blob(with_headers(first.blob, redelivered=True))
    for _ in range(2):  # the follow-up stands behind the first of them
        site.wait_finished(20.0, [site.send("work")])
    assert [len(site.ledger.of("start", key)) for key in (result.parent.id, result.id)] == [1, 1]
    assert not site.dead()


def test_a_blocked_node_is_told(node: RabbitServer) -> None:
    """Under a memory alarm a publish ends within its deadline with the reason, and works again afterwards."""
    url = node.vhost()
    sender = RabbitmqSender(url, {})
    sender.publish([envelope("a")], 5.0)
    node.ctl("set_vm_memory_high_watermark", "0.0000001")
    try:
        began = time.monotonic()
        said = ""
        while "takes no messages at the moment" not in said and time.monotonic() - began < 7:
            try:
                sender.publish([envelope("b")], 2.0)
            except OperationalError as error:
                said = str(error)
        assert "takes no messages at the moment" in said
        assert time.monotonic() - began < 7
    finally:
        node.ctl("set_vm_memory_high_watermark", "absolute", "1GB")
    sender.publish([envelope("c")], 5.0)
    sender.close()
