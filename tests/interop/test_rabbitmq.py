"""Real Celery beside us on RabbitMQ: the same queues, exchanges and messages, in both directions."""

from __future__ import annotations

import ast
import random
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.interop.kit import Peer, Peers, until
from tests.interop.test_canvas import plain, run, shape
from tests.rabbit import RabbitServer

MakePeers = Callable[..., Peers]
SIDES: tuple[Peer, Peer] = ("celery", "celeriac")


@pytest.fixture
def make_peers(tmp_path: Path, rabbit: RabbitServer) -> Iterator[MakePeers]:
    """Make the two sides on a virtual host of their own."""
    made: list[Peers] = []
    with ExitStack() as stack:

        def make(backend: str, **settings: Any) -> Peers:
            peers = Peers(tmp_path / "project", rabbit.vhost(), settings={"result_backend": backend, **settings})
            made.append(stack.enter_context(peers))
            return peers

        yield make
        for peers in made:
            peers.show()


@pytest.mark.parametrize("kind", ["classic", "quorum"])
def test_each_side_serves_the_other(make_peers: MakePeers, clean_redis_url: str, kind: str) -> None:
    """Plain tasks, retries, countdowns and what a task sees of its message, from each side to each; results in Redis
    are read by both."""
    peers = make_peers(clean_redis_url, task_default_queue_type=kind, task_create_missing_queue_type=kind)
    for peer in SIDES:
        peers.worker(peer, "-c", "2", "-Q", peer)
    began = time.time()
    sent = {producer: peers.run(producer, "spread", *SIDES) for producer in SIDES}
    every = [key for found in sent.values() for kinds in found.values() for keys in kinds.values() for key in keys]
    for reader in SIDES:
        results = {key: ast.literal_eval(found["value"]) for key, found in peers.read(reader, every).items()}
        for producer in SIDES:
            for queue, found in sent[producer].items():
                assert [results[key] for key in found["add"]] == [5] * 20
                assert [results[key][0] for key in found["flaky"]] == [2]
                assert results[found["moment"][0]] - began >= 2.0
                seen = results[found["request_of"][0]]
                assert (seen["headers"], seen["priority"], seen["routing_key"]) == ({"x-mine": "1"}, 3, queue)


def test_results_over_rpc(make_peers: MakePeers) -> None:
    """Each side reads over `rpc://` what the other one's worker answers."""
    peers = make_peers("rpc://")
    for peer in SIDES:
        peers.worker(peer, "-c", "1", "-Q", peer)
    for producer in SIDES:
        for queue in SIDES:
            answers = peers.run(producer, "ask", queue)
            assert answers == {"add": [3] * 10, "fails": "ValueError: why", "flaky": 1}, (producer, queue)


def test_both_on_one_queue(make_peers: MakePeers, clean_redis_url: str, rabbit: RabbitServer) -> None:
    """Both kinds of workers and producers share one queue; workflows come to their end; control reaches all."""
    peers = make_peers(clean_redis_url)
    for peer in SIDES:
        peers.worker(peer, "-c", "1")
    ids = [key for peer in SIDES for key in peers.burst(peer, "traced", 40, [0.02])]
    until(lambda: len(peers.ended()) == len(ids), 40.0, lambda: f"{len(peers.ended())} of {len(ids)}")
    assert {note["peer"] for note in peers.notes("start")} == {"celery", "celeriac"}
    assert len(peers.notes("start")) == len(ids)
    chance = random.Random(11)
    shapes = [shape(chance, 2, 0.0) for _ in range(12)]
    ours, theirs = run(peers, "celeriac", shapes, 20.0), run(peers, "celery", shapes, 20.0)
    assert [plain(each) for each in ours] == [plain(each) for each in theirs]
    for peer in SIDES:
        assert peers.run(peer, "control") == ["celeriac1@here", "celery0@here"], peer


def test_what_is_declared_is_celerys(make_peers: MakePeers, clean_redis_url: str, rabbit: RabbitServer) -> None:
    """Whoever declares first, exchanges, queues, bindings and arguments are the same: of plain and priority queues, of
    topic exchanges, and of the ladder of delays that quorum queues get."""
    described: dict[Peer, Any] = {}
    for peer in SIDES:
        peers = make_peers(clean_redis_url, PEER_QUEUES=True, task_default_queue="plain")
        peers.worker(peer, "-c", "1", "-Q", "quorum,topical,plain,missing")
        described[peer] = _describe(rabbit, peers.url.rpartition("/")[2])
    for what, theirs in described["celery"].items():
        ours = described["celeriac"][what]
        assert [each for each in ours if each not in theirs] == [], what
        assert [each for each in theirs if each not in ours] == [], what


def _describe(rabbit: RabbitServer, vhost: str) -> dict[str, Any]:
    """Everything durable that stands in a virtual host, but for what is only ours."""

    def listed(what: str, keys: tuple[str, ...], named: str = "name") -> list[dict[str, Any]]:
        found = rabbit.api("GET", f"/api/{what}/{vhost}")
        return sorted(
            ({key: each.get(key) for key in keys} for each in found if not _own(str(each.get(named) or ""), each)),
            key=str,
        )

    def _own(name: str, each: dict[str, Any]) -> bool:
        names = (name, str(each.get("source", "")), str(each.get("destination", "")))
        return any(part.startswith(("celeriac.", "amq.")) or "pidbox" in part or "celeryev" in part for part in names)

    return {
        "exchanges": listed("exchanges", ("name", "type", "durable", "auto_delete", "arguments")),
        "queues": listed("queues", ("name", "durable", "auto_delete", "arguments")),
        "bindings": listed("bindings", ("source", "destination", "destination_type", "routing_key"), "source"),
    }
