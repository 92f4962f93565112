"""Both kinds of workers on one broker: beside each other, after each other's death, and back again."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.interop.kit import PEER_RECIPE, Peer, Peers, kill_whole, until
from tests.servers import RedisServer, redis_server

MakePeers = Callable[..., Peers]


@pytest.fixture
def server() -> Iterator[RedisServer]:
    """A Redis of the test's own."""
    with redis_server() as server:
        yield server


@pytest.fixture
def make_peers(tmp_path: Path, server: RedisServer) -> Iterator[MakePeers]:
    """Make the two sides; their workers are shown and killed in the end."""
    made: list[Peers] = []
    with ExitStack() as stack:

        def make(**options: Any) -> Peers:
            peers = stack.enter_context(Peers(tmp_path / "project", server.url, **options))
            made.append(peers)
            return peers

        yield make
        for peers in made:
            peers.show()


def _starts(peers: Peers) -> dict[str, list[dict[str, Any]]]:
    found: dict[str, list[dict[str, Any]]] = {}
    for note in peers.notes("start"):
        found.setdefault(note["id"], []).append(note)
    return found


def test_both_kinds_of_workers_on_one_queue(make_peers: MakePeers) -> None:
    """Tasks of both kinds of producers: each runs once, and both workers take their part."""
    peers = make_peers()
    peers.worker("celery", "-c", "1")
    peers.worker("celeriac", "-c", "1")
    ids = [key for peer in ("celery", "celeriac") for key in peers.burst(peer, "traced", 60, [0.02])]
    until(lambda: len(peers.ended()) == len(ids), 40.0, lambda: f"{len(peers.ended())} of {len(ids)}")
    starts = _starts(peers)
    assert {len(notes) for notes in starts.values()} == {1}
    assert {notes[0]["peer"] for notes in starts.values()} == {"celery", "celeriac"}
    for reader in ("celery", "celeriac"):
        assert {found["state"] for found in peers.read(reader, ids).values()} == {"SUCCESS"}


@pytest.mark.parametrize("prefix", ["", "pfx:"], ids=["plain", "prefixed"])
def test_a_countdown_to_a_queue_that_only_celery_serves(make_peers: MakePeers, prefix: str) -> None:
    """A producer of ours, and a task of ours while it runs, send for later to where no worker of ours is."""
    peers = make_peers(prefix=prefix)
    peers.worker("celery", "-c", "2", "-Q", "theirs")
    sent = time.time()
    (direct,) = peers.burst("celeriac", "traced", 1, queue="theirs", countdown=3)
    peers.worker("celeriac", "-c", "1")
    (relay,) = peers.burst("celeriac", "relay", 1, ["theirs", 3])
    until(lambda: len(peers.ended()) == 2, 20.0, "both run")
    starts = _starts(peers)
    assert starts[direct][0]["time"] - sent >= 3.0
    assert {notes[0]["peer"] for notes in starts.values()} == {"celery"}
    assert {found["state"] for found in peers.read("celeriac", [direct, relay]).values()} == {"SUCCESS"}


@pytest.mark.parametrize("prefix", ["", "pfx:"], ids=["plain", "prefixed"])
def test_celery_killed_and_only_ours_alive(make_peers: MakePeers, prefix: str) -> None:
    """What a Celery worker had taken when it was killed lies in `unacked`; ours gives it back after the visibility
    timeout and runs it."""
    peers = make_peers(prefix=prefix, transport={"visibility_timeout": 3})
    theirs = peers.worker("celery", "-c", "1")
    ids = peers.burst("celery", "traced", 8, [0.5])
    until(lambda: _starts(peers), 20.0, "one runs there")
    assert peers.redis("HLEN", peers.key("unacked")) > 1
    kill_whole(theirs)
    done = peers.ended()
    peers.worker("celeriac", "-c", "2")
    until(lambda: peers.ended() >= set(ids), 30.0, lambda: f"all run: {len(peers.ended())} of {len(ids)}")
    starts = _starts(peers)
    assert {notes[-1]["peer"] for key, notes in starts.items() if key not in done} == {"celeriac"}
    until(lambda: not peers.redis("HLEN", peers.key("unacked")), 5.0, "nothing is left there")
    assert {found["state"] for found in peers.read("celery", ids).values()} == {"SUCCESS"}


@pytest.mark.parametrize("prefix", ["", "pfx:"], ids=["plain", "prefixed"])
def test_ours_killed_released_and_only_celery_alive(make_peers: MakePeers, prefix: str) -> None:
    """What lies in keys of ours when our last worker is killed goes back by one command: a Celery worker runs all of
    it, and what is for later runs then."""
    peers = make_peers(prefix=prefix)
    ours = peers.worker("celeriac", "-c", "1", "--prefetch-multiplier", "4")
    sent = time.time()
    later = peers.burst("celery", "traced", 3, countdown=20) + peers.burst("celeriac", "traced", 3, countdown=20)
    running = peers.burst("celeriac", "traced", 1, [60.0])
    until(lambda: _starts(peers), 20.0, "one runs here")
    waiting = peers.burst("celeriac", "traced", 4)
    until(lambda: _private(peers, "scheduled") == 6, 10.0, "all for later are scheduled")
    kill_whole(ours)
    time.sleep(2.5)  # its lease ends
    code, said = peers.command("release")
    assert code == 0, said
    assert _private(peers, "scheduled") == 0
    assert not [key for key in _keys(peers) if ":inflight:" in key]
    assert time.time() - sent < 20, "too slow for what this test wants to show"
    theirs = peers.worker("celery", "-c", "4")
    until(lambda: peers.ended() >= {*later, *waiting}, 40.0, lambda: f"{len(peers.ended())} of 10")
    starts = _starts(peers)
    assert {notes[-1]["peer"] for notes in starts.values()} == {"celery"}
    assert len(starts[running[0]]) == 2
    assert all(starts[key][0]["time"] - sent >= 19.9 for key in later)
    kill_whole(theirs)


def _keys(peers: Peers) -> list[str]:
    return [key.decode() for key in peers.redis("KEYS", "*")]


def _private(peers: Peers, what: str) -> int:
    return int(peers.redis("HLEN", peers.key(f"celeriac:1:{{celery}}:{what}")))


@pytest.mark.parametrize("first", ["celery", "celeriac"])
def test_each_side_knows_half_of_the_names(make_peers: MakePeers, first: Peer) -> None:
    """One queue, two kinds of workers, and tasks that only one of them knows: all run, none fails on the way."""
    peers = make_peers()
    recipe = {"PEER_GIVES_BACK": str(PEER_RECIPE)}
    order: list[Peer] = ["celery", "celeriac"] if first == "celery" else ["celeriac", "celery"]
    for peer in order:
        peers.worker(peer, "-c", "1", env=recipe)
    ids = {
        "only_celery": peers.numbered("celeriac", "only_celery", 15),
        "only_celeriac": peers.numbered("celery", "only_celeriac", 15),
        "traced": peers.burst("celery", "traced", 10),
    }
    until(lambda: len(peers.notes("only")) == 30, 40.0, lambda: f"{len(peers.notes('only'))} of 30 ran")
    until(lambda: len(peers.ended()) == 10, 10.0, "the common ones ran")
    for name in ("celery", "celeriac"):
        notes = [note for note in peers.notes("only") if note["name"] == name]
        assert {note["peer"] for note in notes} == {name}
        assert sorted(note["number"] for note in notes) == list(range(15)), "each ran once"
    everything = [key for keys in ids.values() for key in keys]
    assert {found["state"] for found in peers.read("celeriac", everything).values()} == {"SUCCESS"}


def test_the_recipe_runs_without_celeriac(make_peers: MakePeers) -> None:
    """The module for Celery's side imports nothing of ours and nothing that Celery does not bring."""
    peers = make_peers()
    script = f"import runpy, sys; runpy.run_path({str(PEER_RECIPE)!r}); assert 'celeriac' not in sys.modules"
    with peers.project.celery_python("-c", script) as process:
        assert process.wait(20.0) == 0, process.output


def test_celery_s_tools_see_our_queue(make_peers: MakePeers) -> None:
    """The binding that Celery and Flower look for is written, and queue lengths are kombu's."""
    peers = make_peers()
    peers.burst("celeriac", "traced", 3)
    assert peers.redis("LLEN", "celery") == 3
    assert peers.redis("SMEMBERS", "_kombu.binding.celery")
    with peers.project.celery("-A", "tasks", "purge", "-f", env=peers.environment("celery")) as purge:
        assert purge.wait(30.0) == 0, purge.output
        assert "3" in purge.output
    assert peers.redis("LLEN", "celery") == 0
