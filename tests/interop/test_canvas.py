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

KINDS = ("task", "chain", "group", "chord")
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


def shape(chance: random.Random, depth: int, failing: float, within: bool = False) -> Shape:
    """A random workflow. `within`: it is to end in one task, because it is a member of a group or chord. (What Celery
    makes of groups there is in docs/differences.md, and in `test_groups_as_members`.)"""
    kind = chance.choice(("task", "task", "chain", "chord") if within else (*KINDS, "task")) if depth else "task"
    if kind == "task":
        name = "breaks" if chance.random() < failing else "step"
        return ["task", name, [chance.randrange(10)] * chance.randrange(2), chance.random() < 0.15]
    count = chance.randrange(1, 4)
    if kind == "chain":
        members = [shape(chance, depth - 1, failing, within and number == count - 1) for number in range(count)]
        # Celery forgets the arguments of a chain that is nothing but a group
        return [kind, [["task", "step", [], False], *members]]
    members = [shape(chance, depth - 1, failing, True) for _ in range(count)]
    return [kind, members] if kind != "chord" else [kind, members, shape(chance, depth - 1, failing, within)]


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
    if "ChordError" in value:
        # Celery raises what the member raised where get() is called after that, and ChordError before; ours is sure
        value = json.dumps(["error", "ValueError", "broken"])
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
        hangs = hangs or theirs["value"][:2] == ["error", "TimeoutError"]  # all have ended, and its handle waits on
        same = hangs or plain(ours) == plain(theirs)
        # where a chord stands in the body of another, Celery forgets what is before it
        if same and not hangs and len(ours["ids"]) == len(theirs["ids"]):
            same = ours["states"] == theirs["states"] and told["celeriac"][number] == told["celery"][number]
        ends = "refused" not in ours and all(state in ("SUCCESS", "FAILURE") for state in ours["states"])
        if not ends or not same:
            wrong.append((shapes[number], plain(ours), plain(theirs), ours, theirs, told["celeriac"][number],
                          told["celery"][number]))  # fmt: skip
    assert not wrong, f"{len(wrong)} of {count}:\n" + "\n".join(json.dumps(each) for each in wrong[:8])


def test_groups_as_members(peers: Peers) -> None:
    """Groups directly in a header or in a group are laid flat, in the order in which they are written; one at the end
    of a member gives a list, all of which the body waits for."""
    peers.worker("celeriac", "-c", "1")
    numbers = [["task", "step", [number], True] for number in range(4)]
    (outcome,) = run(peers, "celeriac", [["chord", [["group", numbers[:2]], ["group", numbers[2:]]], numbers[3]]], 20.0)
    assert outcome["value"] == ["value", [3]]
    (outcome,) = run(peers, "celeriac", [["group", [["group", numbers[:2]], ["group", numbers[2:]]]]], 20.0)
    assert outcome["value"] == ["value", [[0], [1], [2], [3]]]
    ends = ["chain", [["task", "step", [], False], ["group", numbers[:2]]]]
    both = ["chord", [numbers[2]], ["group", numbers[:2]]]
    (outcome,) = run(peers, "celeriac", [["chord", [ends, both, numbers[3]], ["task", "step", [], False]]], 20.0)
    assert outcome["value"] == ["value", [[[[0], [1]], [[0], [1]], [3]]]]


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
