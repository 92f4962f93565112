"""Nothing is lost and the file stays sound, whoever is killed, locked out, forked, or late."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
import sqlite3
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from celeriac.backends.sqlite import SqliteBackend, SqliteReader
from celeriac.brokers.lease import LeaseWatch
from celeriac.brokers.sqlite import SqliteBroker, SqliteSender
from celeriac.errors import EncodeError, OperationalError
from celeriac.model.message import ACK, Completion, Dead, Demand, Envelope, Receipt, Store
from celeriac.ports import Place
from celeriac.testing.rigs import PATIENCE, claim, done, envelope, name_of, names, settle

WORKER = """
import asyncio, sys, uuid
from celeriac.brokers.sqlite import SqliteBroker
from celeriac.model.message import ACK, Completion, Dead, Demand, Store
from celeriac.testing.rigs import envelope, name_of

async def work(url, seed):
    broker = SqliteBroker(url, {})
    async with broker.subscribe(["q"], epoch=f"{seed}@{uuid.uuid4()}", lease=1.0) as consumer:
        finished = []
        print("up", flush=True)
        while True:
            turn = await consumer.cycle(finished, Demand(20))
            finished = []
            for delivery in turn.deliveries:
                name = name_of(delivery.blob)
                publish = () if name.startswith("next-") else (envelope("next-" + name),)
                store = Store(name, name.encode(), "SUCCESS", 1000)
                finished.append(Completion(delivery.receipt, ACK, store, publish))
            await consumer.renew([])
            await consumer.recover()
            if not finished:
                await asyncio.wait_for(consumer.wait(), 5)

asyncio.run(work(sys.argv[1], sys.argv[2]))
"""
PRODUCER = """
import sys
from celeriac.brokers.sqlite import SqliteSender
from celeriac.testing.rigs import envelope

sender = SqliteSender(sys.argv[1], {})
number = 0
while True:
    sender.publish([envelope(f"{sys.argv[2]}.{number}")], 30.0)
    print(number, flush=True)
    number += 1
"""


@contextlib.contextmanager
def _running(code: str, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen([sys.executable, "-c", code, *arguments], stdout=subprocess.PIPE, text=True)
    try:
        yield process
    finally:
        process.kill()
        process.wait(30)
        if process.stdout is not None:
            process.stdout.close()


def _sound(path: Path) -> None:
    connection = sqlite3.connect(path)
    assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    placed = " UNION ALL ".join(
        f"SELECT id FROM celeriac_{table}" for table in ("ready", "inflight", "schedule", "parked", "dead")
    )
    # Every message lies in exactly one place, and every place names a message.
    assert connection.execute(f"SELECT id FROM ({placed}) GROUP BY id HAVING count(*) > 1").fetchall() == []
    assert connection.execute(f"SELECT id FROM celeriac_messages EXCEPT SELECT id FROM ({placed})").fetchall() == []
    assert connection.execute(f"SELECT id FROM ({placed}) EXCEPT SELECT id FROM celeriac_messages").fetchall() == []
    connection.close()


def _kill_workers(tmp_path: Path, rounds: int, messages: int, seed: int) -> None:
    chance = random.Random(seed)
    path = tmp_path / "x.db"
    url = f"sqlite:///{path}"
    sender = SqliteSender(url, {})
    wanted: set[str] = set()
    for number in range(rounds):
        batch = [f"{number}.{n}" for n in range(messages)]
        sender.publish([envelope(name) for name in batch], 30)
        wanted |= {*batch, *(f"next-{name}" for name in batch)}
        with _running(WORKER, url, "killed") as process:
            assert process.stdout is not None
            process.stdout.readline()
            time.sleep(chance.random() * 0.03)
            process.send_signal(signal.SIGKILL)
            process.wait(30)
        _sound(path)
    with _running(WORKER, url, "one"), _running(WORKER, url, "two"):
        reader = SqliteReader(url, {})
        deadline = time.monotonic() + 60
        while len(missing := wanted - set(reader.fetch(sorted(wanted)))) > 0 and time.monotonic() < deadline:
            time.sleep(0.1)
        assert not missing, f"seed {seed}: {len(missing)} results never came: {sorted(missing)[:5]}"
        time.sleep(0.3)
    _sound(path)

    async def look() -> None:
        broker = SqliteBroker(url, {})
        counts = await broker.count("q")
        assert (counts.ready, counts.dead) == (0, 0)
        await broker.close()

    asyncio.run(look())
    reader.close()
    sender.close()


def test_killed_workers_lose_nothing(tmp_path: Path) -> None:
    """Workers that are killed at any moment leave a sound file; every message and follow-up is done in the end, and a
    result stands exactly where its message is gone."""
    _kill_workers(tmp_path, rounds=6, messages=200, seed=1)


@pytest.mark.full
@pytest.mark.timeout(1800)
def test_killed_workers_lose_nothing_in_the_long_run(tmp_path: Path) -> None:
    """The same, for long, with a seed of its own each time."""
    _kill_workers(tmp_path, rounds=100, messages=300, seed=int(os.environ.get("CELERIAC_SEED", time.time_ns() % 2**32)))


def test_killed_producers_lose_nothing_that_was_confirmed(tmp_path: Path) -> None:
    """What a killed producer was told to be safe is there; at most one more is, that it was not told of."""
    path = tmp_path / "x.db"
    url = f"sqlite:///{path}"
    SqliteSender(url, {}).publish([envelope("first", "other")], 10)
    for number in range(5):
        with _running(PRODUCER, url, f"{number}") as process:
            assert process.stdout is not None
            process.stdout.readline()
            time.sleep(0.05 + number * 0.02)
            process.send_signal(signal.SIGKILL)
            confirmed = [0, *(int(line) for line in process.stdout.read().split())]

        async def look(number: int = number, confirmed: int = confirmed[-1]) -> None:
            broker = SqliteBroker(url, {})
            page = await broker.browse(Place.READY, "q", 100_000)
            found = [name_of(item.blob) for item in page.items]
            mine = [int(name.partition(".")[2]) for name in found if name.startswith(f"{number}.")]
            assert mine in (list(range(confirmed + 1)), list(range(confirmed + 2)))
            await broker.close()

        asyncio.run(look())
        _sound(path)


def test_processes_at_once(tmp_path: Path) -> None:
    """Two workers and two producers of different processes: every message is done, none twice."""
    path = tmp_path / "x.db"
    url = f"sqlite:///{path}?synchronous=normal"
    reader = SqliteReader(url, {})
    reader.store([])
    with _running(WORKER, url, "one"), _running(WORKER, url, "two"):
        with _running(PRODUCER, url, "a") as one, _running(PRODUCER, url, "b") as two:
            process: subprocess.Popen[str]
            for process in (one, two):
                assert process.stdout is not None
                process.stdout.readline()
            time.sleep(1)
            last = {}
            for name, process in (("a", one), ("b", two)):
                process.send_signal(signal.SIGTERM)
                assert process.stdout is not None
                last[name] = int(process.stdout.read().split()[-1])
        wanted = [f"{name}.{number}" for name, count in last.items() for number in range(count + 1)]
        wanted += [f"next-{name}" for name in wanted]
        deadline = time.monotonic() + 30
        while len(reader.fetch(wanted)) < len(wanted) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert len(reader.fetch(wanted)) == len(wanted)
    assert min(last.values()) > 20
    _sound(path)
    reader.close()


# Deadlines, forks, threads


def test_a_publish_keeps_its_deadline(tmp_path: Path) -> None:
    """While another process holds the write lock, a publish raises at its deadline and leaves nothing behind; threads
    that wait with it raise at theirs."""
    path = tmp_path / "x.db"
    sender = SqliteSender(f"sqlite:///{path}", {})
    sender.publish([envelope("before")], 10)
    lock = sqlite3.connect(path, isolation_level=None)
    lock.execute("BEGIN IMMEDIATE")
    took: list[float] = []

    def publish(timeout: float) -> None:
        start = time.monotonic()
        with pytest.raises(OperationalError):
            sender.publish([envelope(f"{timeout}")], timeout)
        took.append(time.monotonic() - start - timeout)

    threads = [threading.Thread(target=publish, args=(timeout,)) for timeout in (0.2, 0.3, 0.4, 0.5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert len(took) == 4
    assert min(took) > -0.05
    assert max(took) < 1
    with pytest.raises(OperationalError):
        sender.publish([envelope("at once")], 0)
    lock.execute("ROLLBACK")
    lock.close()
    sender.publish([envelope("after")], 10)
    sender.close()

    async def look() -> None:
        broker = SqliteBroker(f"sqlite:///{path}", {})
        items = (await broker.browse(Place.READY, "q", 10)).items
        assert [name_of(item.blob) for item in items] == ["before", "after"]
        await broker.close()

    asyncio.run(look())


def test_threads_share_commits(tmp_path: Path) -> None:
    """Threads that publish at the same time share durable commits: there are far fewer commits than publishes."""
    sender = SqliteSender(f"sqlite:///{tmp_path}/x.db", {})
    sender.publish([envelope("first")], 10)
    before = sender._database.commits

    def work() -> None:
        for _ in range(25):
            sender.publish([envelope()], 30)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sender._database.commits - before <= 150
    sender.close()


def test_tasks_share_commits(tmp_path: Path) -> None:
    """Publishes of many tasks of one loop share commits; one that can't be kept fails alone."""

    async def story() -> None:
        broker = SqliteBroker(f"sqlite:///{tmp_path}/x.db", {})
        await broker.publish([envelope("first")])
        before = await broker._database.run(lambda database: database.commits)
        publishes = [broker.publish([envelope(f"{n}")]) for n in range(100)]
        outcomes = await asyncio.gather(*publishes, broker.publish([envelope("\ud800")]), return_exceptions=True)
        assert outcomes[:100] == [None] * 100
        assert isinstance(outcomes[100], EncodeError)
        commits = await broker._database.run(lambda database: database.commits) - before
        assert commits <= 105
        assert (await broker.count("q")).ready == 101
        before += commits
        await asyncio.gather(*(broker.publish([envelope(f"{n}")]) for n in range(100)))
        assert await broker._database.run(lambda database: database.commits) - before <= 20
        await broker.close()

    asyncio.run(story())


def test_a_forked_sender(tmp_path: Path) -> None:
    """A Sender goes on in parent and children after a fork, also when another thread was just publishing."""
    sender = SqliteSender(f"sqlite:///{tmp_path}/x.db?synchronous=normal", {})
    sender.publish([envelope("first")], 10)
    stop = threading.Event()
    published = 1

    def work() -> None:
        nonlocal published
        while not stop.is_set():
            sender.publish([envelope()], 10)
            published += 1

    thread = threading.Thread(target=work)
    thread.start()
    children = []
    for _ in range(4):
        time.sleep(0.02)
        pid = os.fork()
        if pid == 0:
            try:
                for _ in range(10):
                    sender.publish([envelope()], 10)
                os._exit(0)
            except BaseException as error:
                print(error, flush=True)
            finally:
                os._exit(1)
        children.append(pid)
    ends = [os.waitpid(pid, 0)[1] for pid in children]
    stop.set()
    thread.join()
    sender.close()
    assert ends == [0] * 4

    async def look() -> None:
        broker = SqliteBroker(f"sqlite:///{tmp_path}/x.db", {})
        assert (await broker.count("q")).ready == published + 40
        await broker.close()

    asyncio.run(look())
    _sound(tmp_path / "x.db")


# Waking and idling


def test_a_lost_ring_costs_a_quarter_of_a_second(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a ring a waiting consumer sees a push of another process all the same, soon."""
    url = f"sqlite:///{tmp_path}/x.db?synchronous=normal"

    async def story() -> None:
        broker, other = SqliteBroker(url, {}), SqliteBroker(url, {})
        async with broker.subscribe(["q"], epoch="a", lease=60) as consumer:
            await claim(consumer, 0)
            monkeypatch.setattr(other._bells, "ring", lambda *_: None)
            for n in range(3):
                assert not (await consumer.cycle((), Demand(1))).deliveries
                await other.publish([envelope(f"{n}")])
                before = time.monotonic()
                await asyncio.wait_for(consumer.wait(), PATIENCE)
                assert time.monotonic() - before < 2
                [delivery] = await claim(consumer, 1)
                await settle(consumer, done(delivery.receipt))
        await broker.close()
        await other.close()

    asyncio.run(story())


def test_without_bells_it_works_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a system without Unix sockets everything works, a little later."""
    monkeypatch.setattr("celeriac.drivers.doorbell.folder_of", lambda path: None)
    url = f"sqlite:///{tmp_path}/x.db?synchronous=normal"

    async def story() -> None:
        broker, backend = SqliteBroker(url, {}), SqliteBackend(url, {})
        async with broker.subscribe(["q"], epoch="a", lease=60) as consumer:
            waiting = asyncio.ensure_future(claim(consumer, 1))
            await asyncio.sleep(0.05)
            await broker.publish([envelope("a")])
            assert names(await asyncio.wait_for(waiting, PATIENCE)) == ["a"]
            async with backend.watch(["a"]) as changes:
                await asyncio.sleep(0.05)
                await backend.store([Store("a", b"1", "SUCCESS")])
                assert await asyncio.wait_for(anext(changes), PATIENCE) == ("a", b"1")
        await broker.close()
        await backend.close()

    asyncio.run(story())
    reader, writer = SqliteReader(url, {}), SqliteReader(url, {})
    with reader.watch(["b"], PATIENCE) as documents:
        threading.Timer(0.05, writer.store, ([Store("b", b"2", "SUCCESS")],)).start()
        assert next(documents) == ("b", b"2")
    reader.close()
    writer.close()


def test_an_idle_consumer_costs_little(tmp_path: Path) -> None:
    """A consumer that waits uses less than two hundredths of a processor, and writes nothing."""
    path = tmp_path / "x.db"

    async def story() -> None:
        broker = SqliteBroker(f"sqlite:///{path}", {})
        async with broker.subscribe(["q"], epoch="a", lease=60) as consumer:
            await consumer.cycle((), Demand(10))
            written = await broker._database.run(lambda database: database.commits)
            before, start = time.process_time(), time.monotonic()
            with contextlib.suppress(asyncio.TimeoutError):
                async with asyncio.timeout(2):
                    while True:
                        await consumer.wait()
                        await consumer.cycle((), Demand(10))
            assert (time.process_time() - before) / (time.monotonic() - start) < 0.02
            assert await broker._database.run(lambda database: database.commits) == written
        await broker.close()

    asyncio.run(story())


# Odds and ends


def test_a_receipt_that_no_claim_made_is_lost(tmp_path: Path) -> None:
    """A completion with a made-up receipt does nothing and says so."""

    async def story() -> None:
        broker = SqliteBroker(f"sqlite:///{tmp_path}/x.db", {})
        async with broker.subscribe(["q"], epoch="a", lease=60) as consumer:
            await broker.publish([envelope("a")])
            [delivery] = await claim(consumer, 1)
            number = delivery.receipt.tag.partition(".")[0]
            tags = ["", "x", "1.2.3", f"{number}.7", f"{number}", "-1.0"]
            turn = await consumer.cycle([Completion(Receipt("q", tag), ACK) for tag in tags], Demand(0))
            assert [verdict.lost for verdict in turn.verdicts] == [True] * len(tags)
            await settle(consumer, done(delivery.receipt))
        await broker.close()

    asyncio.run(story())


@pytest.mark.parametrize("due", [float("inf"), float("-inf"), float("nan"), -5.0, 1e300])
def test_absurd_times(tmp_path: Path, due: float) -> None:
    """A time that is none fails that envelope alone; one in the far future or past is taken as it is."""

    async def story() -> None:
        broker = SqliteBroker(f"sqlite:///{tmp_path}/x.db", {})
        message = Envelope("a", str(uuid.uuid4()), "q", b"blob", not_before=due)
        if due in (-5.0, 1e300):
            await broker.publish([message])
            assert (await broker.count("q")).scheduled == 1
        else:
            with pytest.raises(EncodeError):
                await broker.publish([message])
        await broker.close()

    asyncio.run(story())


def test_dead_letters_without_limit(tmp_path: Path) -> None:
    """The limit 0 is none: all are kept."""

    async def story() -> None:
        broker = SqliteBroker(f"sqlite:///{tmp_path}/x.db?synchronous=normal", {"dead_letter_limit": 0})
        async with broker.subscribe(["q"], epoch="a", lease=1e6) as consumer:
            await broker.publish([envelope(f"{n}") for n in range(5)])
            await settle(consumer, *(done(delivery.receipt, Dead("bad")) for delivery in await claim(consumer, 5)))
            consumer._tidied = -1e9
            await consumer.renew(())
            assert (await broker.count("q")).dead == 5
        await broker.close()

    asyncio.run(story())


def test_old_things_are_swept_away(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Expired results, cancellations, publish ids, answers that nobody came for and too many dead letters do not stay
    in the file, also behind a result that stays."""
    ahead = 0.0
    path = tmp_path / "x.db"
    url = f"sqlite:///{path}?synchronous=normal"

    def clock() -> float:
        return time.time() + ahead

    async def story() -> None:
        nonlocal ahead
        broker, backend = SqliteBroker(url, {"dead_letter_limit": 3}, clock), SqliteBackend(url, {}, clock)
        async with broker.subscribe(["q"], epoch="a", lease=1e6) as consumer:
            await broker.reply("1234.reply.celery.pidbox", b"answer")
            await broker.publish([envelope(f"{n}") for n in range(5)])
            await settle(consumer, *(done(delivery.receipt, Dead("bad")) for delivery in await claim(consumer, 5)))
            await backend.store([Store(f"stays {n}", b"1", "SUCCESS") for n in range(700)])
            await backend.store([Store(f"goes {n}", b"1", "SUCCESS", 10) for n in range(3000)])
            await backend.save_group("g", b"1", 10)
            await broker.cancel(["x"], 10)
            await broker.publish([envelope("a", publish_id=str(uuid.uuid5(uuid.NAMESPACE_OID, "a")))])
            await broker.broadcast("celeryev", "a", b"1")
            ahead = 5000.0
            for _ in range(10):
                consumer._tidied = -1e9
                await consumer.renew(())
            items = (await broker.browse(Place.DEAD, "q", 10)).items
            assert [name_of(item.blob) for item in items] == ["2", "3", "4"]
            assert [record.getMessage() for record in caplog.records] == [
                "q: more than 3 dead letters; the oldest 2 are deleted"
            ]
        await broker.close()
        await backend.close()

    asyncio.run(story())
    connection = sqlite3.connect(path)
    left = {
        table: connection.execute(f"SELECT count(*) FROM celeriac_{table}").fetchone()[0]
        for table in ("results", "groups", "cancelled", "published", "notices", "ready", "messages", "queues")
    }
    connection.close()
    assert left == {
        "results": 700, "groups": 0, "cancelled": 0, "published": 0, "notices": 0, "ready": 1,
        "messages": 4, "queues": 1,
    }  # fmt: skip


def test_who_was_away_recovers_nobody() -> None:
    """A worker whose own renewals had a gap, or whose clock has jumped, gives the others one lease of time."""
    watch = LeaseWatch(30.0, 1000.0)
    watch.renewed(1010.0)
    assert watch.may_recover(1012.0)
    assert not watch.may_recover(1040.0)  # it should have renewed first
    watch.renewed(1040.0)
    assert not watch.may_recover(1041.0)
    for now in (1050.0, 1060.0, 1069.0):
        watch.renewed(now)
        assert not watch.may_recover(now)
    watch.renewed(1071.0)
    assert watch.may_recover(1071.0)
    watch.renewed(500.0)  # the clock went back
    assert not watch.may_recover(501.0)
