"""Every feature of a single task, from a producer of one kind to a worker of the other and back, with and without a key
prefix. The same with real Celery on both sides is the control: it shows that the expectations are Celery's."""

from __future__ import annotations

import time
from collections.abc import Iterator
from itertools import pairwise
from typing import Any, NamedTuple

import pytest

from tests.interop.kit import Peer, Peers, until
from tests.servers import redis_server


class Trip(NamedTuple):
    """One run of all features."""

    producer: Peer
    worker: Peer
    sent: float
    ids: dict[str, str]
    results: dict[str, dict[str, Any]]
    notes: list[dict[str, Any]]
    log: str

    def of(self, feature: str) -> dict[str, Any]:
        """What the producer's side read of a feature."""
        return self.results[self.ids[feature]]

    def value(self, feature: str) -> Any:
        """The value of a successful result."""
        found = self.of(feature)
        assert found["state"] == "SUCCESS", found
        assert found["successful"]
        return eval(found["value"], {"datetime": __import__("datetime"), **_NAMES})


_NAMES = {"Decimal": __import__("decimal").Decimal, "UUID": __import__("uuid").UUID}
TRIPS: list[tuple[Peer, Peer, str]] = [
    ("celery", "celeriac", ""),
    ("celeriac", "celery", ""),
    ("celeriac", "celeriac", ""),
    ("celery", "celery", ""),
    ("celery", "celeriac", "pfx:"),
    ("celeriac", "celery", "pfx:"),
]


@pytest.fixture(scope="module", params=TRIPS, ids=lambda trip: "-to-".join(trip[:2]) + ("-prefixed" if trip[2] else ""))
def trip(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Trip]:
    """Send everything, let a worker run it, read everything."""
    producer, worker, prefix = request.param
    with redis_server() as server, Peers(tmp_path_factory.mktemp("trip"), server.url, prefix=prefix) as peers:
        sent = time.time()
        ids = peers.run(producer, "send")
        process = peers.worker(worker, "-c", "1", "-Q", "celery,prio")
        names = list(ids)
        try:
            results = peers.read(producer, list(ids.values()), [names.index("ignored")])
            until(lambda: len(peers.notes("linked")) == 3, 10.0, "the links")
            until(lambda: peers.notes("errback") and peers.notes("errback_by_id"), 10.0, "the errbacks")
        except BaseException:
            peers.show()
            raise
        if prefix:
            keys = [key.decode() for key in server.command("KEYS", "*")]
            assert all(key.startswith(prefix) for key in keys), keys
        yield Trip(producer, worker, sent, ids, results, peers.notes(), process.output)


def test_plain_calls(trip: Trip) -> None:
    """By the task, by name, and with keyword arguments of all kinds."""
    assert trip.value("plain") == 5
    assert trip.value("by name") == 9
    assert trip.value("delay") == 2
    assert trip.value("keywords") == [
        [], {"text": "ÄÖ 漢字 \u2028", "none": None, "nested": {"list": [1, 2.5, True]}}
    ]  # fmt: skip


def test_typed_values(trip: Trip) -> None:
    """Dates, decimals and UUIDs keep their types, there and back."""
    assert trip.of("typed")["state"] == "SUCCESS"
    assert "Decimal('1.10')" in trip.of("typed")["value"]
    assert "UUID('00000000-0000-0000-0000-000000000007')" in trip.of("typed")["value"]
    assert "datetime.datetime(2026, 11, 24, 6, 30, 15, 250000" in trip.of("typed")["value"]


def test_retries(trip: Trip) -> None:
    """The same id, a counter that rises, and the exception of the last try."""
    assert trip.value("retries") == [2, trip.ids["retries"]]
    flaky = [note for note in trip.notes if note["what"] == "flaky"]
    assert [note["retries"] for note in flaky] == [0, 1, 2]
    assert {note["peer"] for note in flaky} == {trip.worker}
    assert all(after["time"] - before["time"] >= 0.28 for before, after in pairwise(flaky))
    assert trip.of("exhausted")["state"] == "FAILURE"
    assert trip.of("exhausted")["exception"][0] == "KeyError"
    assert "the key" in trip.of("exhausted")["exception"][1]


def test_errors(trip: Trip) -> None:
    """Class, text, arguments and traceback arrive."""
    error = trip.of("error")
    assert error["state"] == "FAILURE"
    assert error["exception"] == ["ValueError", "boom ä", ["'boom ä'"]]
    assert error["module"] == "builtins"
    assert error["traceback"].startswith("Traceback (most recent call last)")
    assert "raise ValueError(text)" in error["traceback"]
    assert error["traceback"].rstrip().endswith("ValueError: boom ä")
    own = trip.of("own error")
    assert own["exception"][0] == "OwnError"
    assert own["module"] == "tasks"
    assert own["exception"][2] == ["'odd'", "7"]


def test_eta(trip: Trip) -> None:
    """Neither early nor much too late."""
    for feature in ("countdown", "eta"):
        assert trip.value(feature) - trip.sent >= 2.0, feature


def test_expires(trip: Trip) -> None:
    """What is too late is revoked; what is not, runs."""
    assert trip.of("expired")["state"] == "REVOKED"
    assert trip.of("expired")["exception"][:2] == ["TaskRevokedError", "expired"]
    assert trip.value("not expired") == 2


def test_headers_and_properties(trip: Trip) -> None:
    """Custom headers, shadow name, priority and lineage."""
    found = trip.value("headers")
    assert found["headers"] == {"x-mine": "yes", "x-mine-too": "5"}
    assert found["shadow"] == "its-shadow"
    assert found["priority"] == 6
    assert found["routing_key"] == "celery"
    assert found["root_id"] == found["correlation_id"] == trip.ids["headers"]
    assert found["parent_id"] is None


def test_links(trip: Trip) -> None:
    """Links get the result first, immutable ones do not; each runs once and is a child of its task."""
    found = [note["args"] for note in trip.notes if note["what"] == "linked"]
    assert sorted(map(str, found)) == sorted(map(str, [[23, "second"], ["alone"], [33, "both"]]))
    assert len(trip.of("link")["children"]) == 1
    assert trip.of("links")["children"], "Celery sends several links as one group"


def test_link_errors(trip: Trip) -> None:
    """Errbacks of both forms get what they are promised."""
    new = [note for note in trip.notes if note["what"] == "errback"]
    assert [(note["id"], note["exc"], note["text"]) for note in new] == [
        (trip.ids["link error"], "ValueError", "for the errback")
    ]
    old = [note for note in trip.notes if note["what"] == "errback_by_id"]
    assert [note["id"] for note in old] == [trip.ids["old link error"]]


@pytest.mark.parametrize("feature", ["gzip", "bzip2", "msgpack gzip"])
def test_compression(trip: Trip, feature: str) -> None:
    """Compressed bodies are read."""
    (text,), keywords = trip.value(feature)
    assert len(text) == 5000
    assert not keywords


@pytest.mark.parametrize("feature", ["msgpack", "yaml"])
def test_serializers(trip: Trip, feature: str) -> None:
    """Other serializers carry the same values."""
    args, keywords = trip.value(feature)
    assert list(args) == ["ä", 1, [True, None, 2.5]]
    assert keywords == {"key": "value"}


def test_time_limits_of_the_message(trip: Trip) -> None:
    """Limits that the caller sets hold on the other side."""
    assert trip.of("soft limit")["exception"][0] == "SoftTimeLimitExceeded"
    assert trip.of("hard limit")["exception"][0] == "TimeLimitExceeded"
    home = {"celery": "billiard.exceptions", "celeriac": "celeriac.errors"}[trip.producer]
    assert trip.of("hard limit")["module"] == home


def test_ignored_results(trip: Trip) -> None:
    """Nothing is stored."""
    assert trip.of("ignored")["state"] == "PENDING"


def test_priorities(trip: Trip) -> None:
    """Lower is served first; 3 and 5 share a step and keep their order."""
    assert [note["tag"] for note in trip.notes if note["what"] == "ordered"] == ["p0", "p5", "p3", "p9"]
