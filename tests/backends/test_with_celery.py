"""Real Celery on the other side of each store of results: either kind of worker writes, either kind of client reads."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.interop.kit import Peer, Peers

STORES = ["sqlite", "postgres", "mariadb", "memcached", "file"]
CHORD = ["chord", [["task", "step", [n], False] for n in range(3)], ["task", "step", [], False]]
FAILING = ["chord", [["task", "step", [1], False], ["task", "breaks", [], False]], ["task", "step", [], False]]


def _backend(store: str, request: pytest.FixtureRequest, folder: Path) -> str:
    if store == "sqlite":
        return f"db+sqlite:///{folder}/results.db"
    if store == "memcached":
        return f"cache+memcached://{request.getfixturevalue('memcached_address')}/"
    if store == "file":
        (folder / "results").mkdir()
        return f"file://{folder}/results"
    driver = {"postgres": "postgresql+psycopg", "mariadb": "mysql+pymysql"}[store]
    return f"db+{driver}://{request.getfixturevalue(f'{store}_url').partition('://')[2]}"


@pytest.fixture(params=STORES)
def peers(request: pytest.FixtureRequest, tmp_path: Path, clean_redis_url: str) -> Iterator[Peers]:
    """Both sides with one store of results."""
    settings = {
        "result_backend": _backend(request.param, request, tmp_path), "result_extended": True,
        "result_chord_retry_interval": 0.2, "database_engine_options": {"pool_pre_ping": True},
    }  # fmt: skip
    with Peers(tmp_path / "project", clean_redis_url, settings=settings) as made:
        yield made
        made.show()


def _flow(peers: Peers, producer: Peer, shapes: list[Any]) -> list[dict[str, Any]]:
    path = peers.project.folder / f"{producer}.json"
    path.write_text(json.dumps(shapes))
    found: list[dict[str, Any]] = peers.run(producer, "flows", str(path), "30", timeout=120)
    return found


def test_results_of_both_kinds(peers: Peers, request: pytest.FixtureRequest) -> None:
    """What a worker of one kind stores both kinds of clients read as the same; chords end."""
    peers.worker("celery", "-c", "1", "-Q", "theirs")
    peers.worker("celeriac", "-c", "1", "-Q", "ours,celery")
    ids = []
    sides: list[tuple[Peer, str]] = [("celeriac", "theirs"), ("celery", "ours")]
    for side, queue in sides:
        ids += peers.burst(side, "echo", 1, ["ä", {"n": [1, None]}], queue=queue)
        ids += peers.burst(side, "fails", 1, ["boom"], queue=queue)
    ours, theirs = peers.read("celeriac", ids), peers.read("celery", ids)
    assert [ours[each].get("value") for each in ids[::2]] == ["[['ä', {'n': [1, None]}], {}]"] * 2
    for each in ids:
        assert ours[each]["state"] == ("FAILURE" if each in ids[1::2] else "SUCCESS")
        assert {**ours[each], "module": ""} == {**theirs[each], "module": ""}
    # With memcached a chord of Celery's needs Celery's workers; the other databases are one code.
    joins: dict[str, list[Peer]] = {"memcached": ["celeriac"], "postgres": ["celeriac"], "mariadb": []}
    for producer in joins.get(request.node.callspec.params["peers"], ["celeriac", "celery"]):
        joined, failed = _flow(peers, producer, [CHORD, FAILING])
        assert joined["value"] == ["value", [[[7, 0], [7, 1], [7, 2]]]], joined
        # what Celery's get() raises: the one error, or the other when it is called late
        assert failed["value"][1] in ("ChordError", "ValueError"), failed
        assert failed["states"][-1] == "FAILURE"


@pytest.mark.parametrize("peers", ["sqlite", "file"], indirect=True)
def test_a_chord_of_ours_on_workers_of_celery(peers: Peers) -> None:
    """Celery's workers don't count the members of a chord that celeriac sent: a worker of ours that stands beside finds
    that they have ended, and carries on."""
    peers.worker("celery", "-c", "1", "-Q", "celery")
    peers.worker("celeriac", "-c", "1", "-Q", "ours")
    joined, failed = _flow(peers, "celeriac", [CHORD, FAILING])
    assert joined["value"] == ["value", [[[7, 0], [7, 1], [7, 2]]]], joined
    assert failed["value"][:2] == ["error", "ChordError"], failed
