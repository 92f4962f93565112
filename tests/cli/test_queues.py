"""Looking into queues, and putting single messages right, on real brokers."""

from __future__ import annotations

import asyncio
import json
import time
from pathlib import Path

import pytest

from celeriac.app.app import Celeriac
from celeriac.model.message import Completion, Dead, Demand, Envelope
from celeriac.wire.task import TaskMessage, pack
from tests.cli.conftest import Command


@pytest.fixture(params=["sqlite", "redis"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of an empty broker: each kind in turn."""
    if request.param == "redis":
        found: str = request.getfixturevalue("clean_redis_url")
        return found
    return f"sqlite:///{tmp_path}/celeriac.db"


def envelope(number: int, queue: str = "q", delay: float | None = None) -> Envelope:
    """A message of the task `add`."""
    message = TaskMessage(id=f"task-{number}", task="proj.add", args=[number, 2], kwargs={})
    return pack(message, queue=queue, routing_key=queue, not_before=delay and time.time() + delay)


def fill(url: str, *envelopes: Envelope, dead: int = 0) -> None:
    """Publish messages; the first `dead` of those that are ready go to the dead letters."""

    async def work() -> None:
        broker = Celeriac("filler", broker=url, set_as_current=False).broker()
        await broker.publish(envelopes)
        if dead:
            async with broker.subscribe(["q"], epoch="filler", lease=30) as consumer:
                turn = await consumer.cycle([], Demand(dead))
                done = [Completion(found.receipt, Dead("lost its process 3 times")) for found in turn.deliveries]
                await consumer.cycle(done, Demand(0))
        await broker.close()

    asyncio.run(work())


def counts(command: Command, url: str, queue: str = "q") -> dict[str, int]:
    """What lies where in a queue."""
    done = command("-b", url, "queues", "-Q", queue, "--json")
    assert done.code == 0, done.err
    (row,) = json.loads(done.out)["queues"]
    return {place: row[place] for place in ("ready", "in_flight", "scheduled", "parked", "dead")}


def test_queues_are_listed_with_what_lies_where(command: Command, url: str) -> None:
    """Each queue in one line, and first of all which broker that is, without a password."""
    fill(url, envelope(1), envelope(2), envelope(3, delay=3600), envelope(4, queue="other"), dead=1)
    done = command("-b", url, "queues")
    assert done.code == 0
    first, header, *rows = done.out.splitlines()
    assert first.startswith("broker: ")
    assert header.split("  ")[0] == "queue"
    cells = {row.split()[0]: row.split() for row in rows}
    assert cells["q"][1] == "1"
    assert cells["q"][-4:] == ["0", "1", "0", "1"]
    assert cells["other"][1] == "1"
    assert counts(command, url) == {"ready": 1, "in_flight": 0, "scheduled": 1, "parked": 0, "dead": 1}


def test_mailboxes_are_no_queues(command: Command, url: str) -> None:
    """Where workers answer remote control is none of the queues that are listed."""
    fill(url, envelope(1), envelope(2, queue="2f1a.reply.celery.pidbox"))
    names = [row.split()[0] for row in command("-b", url, "queues").out.splitlines()[2:]]
    assert names == ["celery", "q"]


def test_the_file_is_named_by_its_absolute_path(command: Command, tmp_path: Path) -> None:
    """With SQLite one is told which file that is, wherever one stands."""
    done = command("-b", "sqlite:///here.db", "queues")
    assert done.code == 0
    assert str(tmp_path / "here.db") in done.out.splitlines()[0]


def test_messages_are_shown(command: Command, url: str) -> None:
    """A message is shown with its task, its arguments and what its place adds."""
    fill(url, envelope(1), envelope(2), envelope(3, delay=3600), dead=1)
    ready = command("-b", url, "queues", "show", "q")
    assert ready.out.splitlines()[1].split() == ["task-2", "proj.add", "2,", "2", "0"]
    scheduled = command("-b", url, "queues", "show", "q", "--scheduled").out.splitlines()[1]
    assert scheduled.startswith("task-3")
    assert "59 min" in scheduled or "1 h" in scheduled
    dead = command("-b", url, "queues", "show", "q", "--dead").out.splitlines()[1]
    assert dead.startswith("task-1")
    assert dead.endswith("lost its process 3 times")
    (entry,) = json.loads(command("-b", url, "queues", "show", "q", "--dead", "--json").out)
    assert (entry["task_id"], entry["task"], entry["reason"]) == ("task-1", "proj.add", "lost its process 3 times")
    assert command("-b", url, "queues", "show", "q", "--parked").out == "nothing is parked in queue q\n"


def test_an_unreadable_message_is_shown_too(command: Command, url: str) -> None:
    """A message that nobody can read does not keep the others from being shown."""
    fill(url, Envelope("x", "x", "q", b"carrots"), envelope(1))
    lines = command("-b", url, "queues", "show", "q").out.splitlines()
    assert any("unreadable" in line for line in lines)
    assert any(line.startswith("task-1") for line in lines)


def test_a_dead_message_is_retried(command: Command, url: str) -> None:
    """A dead message goes back to its queue, by its task id; an unknown id is named and is exit code 1."""
    fill(url, envelope(1), envelope(2), dead=2)
    done = command("-b", url, "queues", "retry", "q", "task-1")
    assert (done.code, done.out) == (0, "1 message put back\n")
    assert counts(command, url)["dead"] == 1
    done = command("-b", url, "queues", "retry", "q", "task-9")
    assert (done.code, done.out) == (1, "0 messages put back\n")
    assert "not dead in queue q: task-9" in done.err
    assert command("-b", url, "queues", "retry", "q", "--all").out == "1 message put back\n"
    assert counts(command, url) == {"ready": 2, "in_flight": 0, "scheduled": 0, "parked": 0, "dead": 0}


def test_messages_are_removed(command: Command, url: str) -> None:
    """A message is deleted from where it lies, by its task id."""
    fill(url, envelope(1), envelope(2), envelope(3, delay=3600), dead=1)
    for place, task in (("--dead", "task-1"), ("--ready", "task-2"), ("--scheduled", "task-3")):
        assert command("-b", url, "queues", "remove", "q", place, task).out == "1 message deleted\n"
    assert set(counts(command, url).values()) == {0}


def test_a_scheduled_task_is_cancelled(command: Command, url: str) -> None:
    """Cancelling brings a scheduled task forward, to be ended by the next worker, and the broker knows its id."""
    fill(url, envelope(1, delay=3600))
    assert command("-b", url, "queues", "cancel", "q", "task-1").out == "cancelled 1 task\n"
    assert counts(command, url)["ready"] == 1

    async def cancelled() -> frozenset[str]:
        broker = Celeriac("reader", broker=url, set_as_current=False).broker()
        _, ids = await broker.cancelled()
        await broker.close()
        return ids

    assert asyncio.run(cancelled()) == {"task-1"}


def test_purge_deletes_what_waits(command: Command, url: str) -> None:
    """Only what is ready goes; a queue that is left out stays."""
    fill(url, envelope(1), envelope(2, delay=3600), envelope(3, queue="other"))
    done = command("-b", url, "purge", "-f", "-Q", "q,other", "-X", "other")
    assert (done.code, done.out) == (0, "deleted 1 message of q\n")
    assert counts(command, url) == {"ready": 0, "in_flight": 0, "scheduled": 1, "parked": 0, "dead": 0}
    assert counts(command, url, "other")["ready"] == 1


def test_purge_asks_first(command: Command, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without --force and without a yes nothing is deleted: exit code 1."""
    fill(url, envelope(1))
    monkeypatch.setattr("click.termui.visible_prompt_func", lambda text: "n")
    assert command("-b", url, "purge", "-Q", "q").code == 1
    assert counts(command, url)["ready"] == 1


def test_release_gives_everything_back(command: Command, url: str) -> None:
    """What is scheduled lies in the queue again, where a Celery worker finds it."""
    fill(url, envelope(1, delay=3600), envelope(2))
    done = command("-b", url, "release", "-Q", "q")
    assert (done.code, done.out) == (0, "q: 1 message\n")
    assert counts(command, url) == {"ready": 2, "in_flight": 0, "scheduled": 0, "parked": 0, "dead": 0}
