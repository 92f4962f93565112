"""Workflows, with real Celery beside: the same shapes give the same on both sides, and any member may run on either."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.faults.kit import forms
from tests.interop.kit import Peer, Peers
from tests.servers import RedisServer, redis_server

Shape = list[Any]
Outcome = dict[str, Any]


@pytest.fixture(scope="module")
def server() -> Iterator[RedisServer]:
    """One Redis for all."""
    with redis_server() as server:
        yield server


@pytest.fixture
def peers(tmp_path: Path, server: RedisServer) -> Iterator[Peers]:
    """Both sides on it, with nothing left of the test before."""
    server.command("FLUSHALL")
    with Peers(tmp_path / "project", server.url) as made:
        yield made
        made.show()


def shape(chance: random.Random, depth: int, failing: float) -> Shape:
    """A random workflow."""
    kind = chance.choice(("task", "task", "chain", "group", "chord")) if depth else "task"
    if kind == "task":
        name = "breaks" if chance.random() < failing else "step"
        return ["task", name, [chance.randrange(10)] * chance.randrange(2), chance.random() < 0.15]
    members = [shape(chance, depth - 1, failing) for _ in range(chance.randrange(1, 4))]
    return [kind, members] if kind != "chord" else [kind, members, shape(chance, depth - 1, failing)]


def run(peers: Peers, producer: Peer, shapes: list[Shape], seconds: float) -> list[Outcome]:
    """Send workflows, and wait for what comes of them."""
    path = peers.project.folder / "shapes.json"
    path.write_text(json.dumps(shapes))
    found: list[Outcome] = peers.run(producer, "flows", str(path), str(seconds), timeout=seconds * 3 + 60)
    return found


def plain(outcome: Outcome) -> Any:
    """An outcome without what is different each time."""
    if "refused" in outcome:
        return outcome
    value = json.dumps(outcome["value"])
    for number, task_id in enumerate(outcome["ids"]):
        value = value.replace(task_id, f"<{number}>")
    return json.loads(value)


def errbacks(peers: Peers, outcomes: list[Outcome]) -> list[list[int]]:
    """For each workflow: the tasks for which an error link was called, by their place."""
    told = [note["id"] for note in peers.notes("errback_by_id")]
    return [
        sorted(number for number, task_id in enumerate(outcome.get("ids", ())) for _ in range(told.count(task_id)))
        for outcome in outcomes
    ]


@forms("count,depth", (24, 3), (400, 4), timeout=1800)
@pytest.mark.parametrize("failing", [0.0, 0.15], ids=["all well", "some fail"])
def test_the_same_as_celery(peers: Peers, server: RedisServer, count: int, depth: int, failing: float) -> None:
    """Random workflows give the same values, errors, states and error links with celeriac as with Celery; only that
    ours end where Celery's wait for ever."""
    chance = random.Random(count if failing else count + 1)
    shapes = [shape(chance, depth, failing) for _ in range(count)]
    found: dict[str, list[Outcome]] = {}
    told: dict[str, list[list[int]]] = {}
    for peer in ("celery", "celeriac"):
        server.command("FLUSHALL")
        worker = peers.worker(peer, "-c", "2")
        found[peer] = run(peers, peer, shapes, 10.0 + count / 4)
        told[peer] = errbacks(peers, found[peer])
        worker.terminate()
    wrong = []
    for number, (ours, theirs) in enumerate(zip(found["celeriac"], found["celery"], strict=True)):
        hangs = "refused" in theirs or any(state not in ("SUCCESS", "FAILURE") for state in theirs["states"])
        same = plain(ours) == plain(theirs)
        same = same and (hangs or ours["states"] == theirs["states"])
        same = same and (hangs or told["celeriac"][number] == told["celery"][number])
        ends = "refused" not in ours and all(state in ("SUCCESS", "FAILURE") for state in ours["states"])
        if not ends or not (same or hangs):
            wrong.append((shapes[number], plain(ours), plain(theirs), ours, theirs, told["celeriac"][number],
                          told["celery"][number]))  # fmt: skip
    assert not wrong, f"{len(wrong)} of {count}:\n" + "\n".join(json.dumps(each) for each in wrong[:8])


@pytest.mark.parametrize("producer", ["celery", "celeriac"])
def test_members_on_both_sides(peers: Peers, producer: Peer) -> None:
    """Workers of both kinds on one queue, whoever sends: each workflow that needs no repair comes to its end."""
    chance = random.Random(7)
    shapes = [shape(chance, 3, 0.0) for _ in range(30)]
    peers.worker("celeriac", "-c", "1")
    alone = run(peers, "celeriac", shapes, 20.0)
    peers.worker("celery", "-c", "1")
    together = run(peers, producer, shapes, 30.0)
    wrong = [
        (shapes[number], plain(ours), plain(mixed))
        for number, (ours, mixed) in enumerate(zip(alone, together, strict=True))
        if plain(ours) != plain(mixed)
    ]
    assert not wrong, f"{len(wrong)}:\n" + "\n".join(json.dumps(each) for each in wrong[:5])
