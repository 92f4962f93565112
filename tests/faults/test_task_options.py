"""Each option of a task is proved by two tasks of one queue that differ in it."""

from __future__ import annotations

import importlib
import json
import sys
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from celeriac.ports import Place
from celeriac.wire.task import read_head
from tests.faults.kit import Site, until
from tests.processes import Process
from tests.servers import redis_server


class Pairs(Site):
    """A site whose tasks are also imported here, so that `delay` uses their options."""

    tasks: Any
    process: Process

    def call(self, name: str, *args: Any) -> str:
        """`delay` a task of the module."""
        result = getattr(self.tasks, name).delay(*args)
        self.sent.append(result.id)
        return str(result.id)

    def status(self, key: str) -> str | None:
        """The stored state; None when nothing is stored."""
        return self.documents([key]).get(key, {}).get("status")

    def done(self, *keys: str, limit: float = 15.0) -> list[str | None]:
        """Wait for final results, give their states."""
        self.wait_finished(limit, keys)
        return [self.status(key) for key in keys]

    def waiting(self, queue: str = "idle") -> dict[str, dict[str, Any]]:
        """Messages of a queue that nobody serves: task id -> envelope."""
        return {read_head(item.blob).id: json.loads(item.blob) for item in self.items(Place.READY, queue)}

    def starts(self, key: str) -> int:
        """How often it has started."""
        return len(self.ledger.of("start", key))


@pytest.fixture(scope="module", params=["sqlite", "redis"])
def pairs(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pairs]:
    """One worker for all tests of this module, and the tasks imported here."""
    folder: Path = tmp_path_factory.mktemp("options")
    with redis_server() as server, pytest.MonkeyPatch.context() as patch:
        url = server.url if request.param == "redis" else f"sqlite:///{folder}/celeriac.db"
        settings = {"task_inherit_parent_priority": False, "accept_content": ["json", "msgpack"]}
        with Pairs(folder / "project", url, lease=10.0, settings=settings, module="options") as site:
            for name, value in site.project.env.items():
                patch.setenv(name, value)
            patch.syspath_prepend(str(site.project.folder))
            for name in ("tasks", "options"):
                sys.modules.pop(name, None)
            site.tasks = importlib.import_module("options")
            try:
                site.process = site.worker("-c", "4")
                yield site
            finally:
                for name in ("tasks", "options"):
                    sys.modules.pop(name, None)


def test_ignore_result(pairs: Pairs) -> None:
    """Kept or not."""
    ignored, kept = pairs.call("result_ignored"), pairs.call("result_kept")
    assert pairs.done(kept) == ["SUCCESS"]
    until(lambda: pairs.counts().in_flight == 0, 5.0, "both are done")
    assert pairs.status(ignored) is None


def test_acks_late_and_reject_on_worker_lost(pairs: Pairs) -> None:
    """The process of a task dies: acknowledged early, it failed; late, it runs again, unless a lost process is a
    failure for it."""
    early, late, last = pairs.call("early_dies"), pairs.call("late_dies"), pairs.call("late_dies_for_good")
    assert pairs.done(early, late, last) == ["FAILURE", "SUCCESS", "FAILURE"]
    assert [pairs.starts(key) for key in (early, late, last)] == [1, 2, 1]


def test_acks_on_timeout(pairs: Pairs) -> None:
    """A hard limit is a failure, or rejects so that it runs again."""
    acknowledged, rejected = pairs.call("limited"), pairs.call("limited_again")
    assert pairs.done(acknowledged) == ["FAILURE"]
    until(lambda: pairs.starts(rejected) == 2, 10.0, "it runs again")
    until(lambda: pairs.status(rejected) == "SUCCESS", 5.0, lambda: f"{pairs.documents([rejected])}")
    assert pairs.starts(acknowledged) == 1


def test_time_limits(pairs: Pairs) -> None:
    """Hard, soft and none."""
    hard, soft, none = pairs.call("hard"), pairs.call("soft"), pairs.call("not_hard")
    assert pairs.done(hard, soft, none) == ["FAILURE", "FAILURE", "SUCCESS"]
    documents = pairs.documents([hard, soft])
    assert documents[hard]["result"]["exc_type"] == "TimeLimitExceeded"
    assert documents[soft]["result"]["exc_type"] == "SoftTimeLimitExceeded"


def test_rate_limit(pairs: Pairs) -> None:
    """The limit of one task does not slow the other down, and its calls keep their order."""
    rated = [pairs.call("rated") for _ in range(5)]
    unrated = [pairs.call("unrated") for _ in range(5)]
    pairs.wait_finished(10.0, [*rated, *unrated])
    times = [pairs.ledger.of("start", key)[0].time for key in rated]
    assert times == sorted(times)
    assert all(0.2 <= after - before <= 0.6 for before, after in pairwise(times)), times
    free = [pairs.ledger.of("start", key)[0].time for key in unrated]
    assert max(free) - min(free) < 0.3


def test_max_retries_and_default_retry_delay(pairs: Pairs) -> None:
    """How often, and how long after."""
    once, thrice, slow = pairs.call("one_retry"), pairs.call("three_retries"), pairs.call("slow_retry")
    assert pairs.done(once, thrice, slow) == ["FAILURE"] * 3
    assert [pairs.starts(key) for key in (once, thrice, slow)] == [2, 4, 2]
    before, after = (mark.time for mark in pairs.ledger.of("start", slow))
    assert 1.45 <= after - before < 2.5
    before, after = (mark.time for mark in pairs.ledger.of("start", once))
    assert after - before < 1.0


def test_autoretry_for(pairs: Pairs) -> None:
    """Only for what it names, with its own number of retries."""
    ids = [pairs.call("auto", what) for what in ("key", "index", "value")]
    assert pairs.done(*ids) == ["FAILURE"] * 3
    assert [pairs.starts(key) for key in ids] == [3, 1, 1]


def test_retry_backoff(pairs: Pairs) -> None:
    """The delay doubles."""
    key = pairs.call("backing_off")
    assert pairs.done(key) == ["FAILURE"]
    gaps = [after.time - before.time for before, after in pairwise(pairs.ledger.of("start", key))]
    assert 0.45 <= gaps[0] <= 1.0
    assert 0.95 <= gaps[1] <= 1.6


def test_serializer_and_compression(pairs: Pairs) -> None:
    """How the body is written; both arrive."""
    ids = {name: str(getattr(pairs.tasks, name).apply_async(("ü" * 400,), queue="idle").id)
           for name in ("by_json", "by_msgpack", "compressed")}  # fmt: skip
    messages = pairs.waiting()
    types = {name: messages[key]["content-type"] for name, key in ids.items()}
    assert types == {
        "by_json": "application/json", "by_msgpack": "application/x-msgpack", "compressed": "application/json"
    }  # fmt: skip
    assert messages[ids["compressed"]]["headers"]["compression"] == "application/x-gzip"
    assert "compression" not in messages[ids["by_json"]]["headers"]
    served = [pairs.call(name, "ü" * 400) for name in ids]
    assert pairs.done(*served) == ["SUCCESS"] * 3
    assert {pairs.documents([key])[key]["result"] for key in served} == {"ü" * 400}


def test_priority_delivery_mode_and_queue(pairs: Pairs) -> None:
    """What is in the message, and where it goes."""
    names = ("first", "last", "transient")
    ids = {name: str(getattr(pairs.tasks, name).apply_async(queue="idle").id) for name in names}
    messages = pairs.waiting()
    assert messages[ids["first"]]["properties"]["priority"] == 0
    assert messages[ids["last"]]["properties"]["priority"] == 9
    assert messages[ids["transient"]]["properties"]["delivery_mode"] == 1
    assert messages[ids["last"]]["properties"]["delivery_mode"] == 2
    key = pairs.call("elsewhere")
    assert key in pairs.waiting("elsewhere")


def test_expires(pairs: Pairs) -> None:
    """One is not run when it is late, the other is: both wait behind an hour's pause of a queue of their own."""
    expiring = str(pairs.tasks.expiring.apply_async(queue="later").id)
    lasting = str(pairs.tasks.result_kept.apply_async(queue="later").id)
    time.sleep(0.3)
    with pairs.project.worker("-c", "1", "-Q", "later", "-n", "later", app="options"):
        assert pairs.done(expiring, lasting) == ["REVOKED", "SUCCESS"]


def test_store_errors_even_if_ignored(pairs: Pairs) -> None:
    """Errors of one are kept although its results are not."""
    ignored, kept = pairs.call("error_ignored"), pairs.call("error_kept")
    assert pairs.done(kept) == ["FAILURE"]
    until(lambda: pairs.counts().in_flight == 0, 5.0, "both are done")
    assert pairs.status(ignored) is None


def test_track_started(pairs: Pairs) -> None:
    """STARTED is stored for one while both run."""
    untracked, tracked = pairs.call("untracked"), pairs.call("tracked")
    until(lambda: pairs.status(tracked) == "STARTED", 5.0, "STARTED")
    pairs.wait_started(untracked)
    assert pairs.status(untracked) is None
    assert pairs.done(tracked, untracked) == ["SUCCESS", "SUCCESS"]


def test_throws(pairs: Pairs) -> None:
    """An expected error is one line of INFO, another one is an ERROR with its traceback."""
    expected, other = pairs.call("throws_expected"), pairs.call("throws_other")
    assert pairs.done(expected, other) == ["FAILURE", "FAILURE"]
    until(lambda: expected in pairs.process.output and other in pairs.process.output, 5.0, "the log")
    assert "expected here" in pairs.process.output
    lines = pairs.process.output.splitlines()
    assert not any("ERROR" in line and expected in line for line in lines)
    assert any("ERROR" in line and other in line for line in lines)
    assert 'raise ValueError("unexpected here")' in pairs.process.output
    assert 'raise KeyError("expected here")' not in pairs.process.output


def test_resultrepr_maxsize(pairs: Pairs) -> None:
    """How much of a result the log shows."""
    short, long = pairs.call("short_repr"), pairs.call("long_repr")
    assert pairs.done(short, long) == ["SUCCESS", "SUCCESS"]
    until(lambda: "l" * 400 in pairs.process.output, 5.0, "the long one")
    assert "s" * 40 not in pairs.process.output


def test_typing(pairs: Pairs) -> None:
    """Wrong arguments raise where it is called, or fail where it runs."""
    with pytest.raises(TypeError):
        pairs.tasks.typed.delay()
    assert pairs.done(pairs.call("untyped")) == ["FAILURE"]


def test_links_on_a_task(pairs: Pairs) -> None:
    """Beyond Celery: link and link_error of the task itself."""
    good, bad, none = pairs.call("linked", False), pairs.call("linked", True), pairs.call("unlinked", False)
    assert pairs.done(good, bad, none) == ["SUCCESS", "FAILURE", "SUCCESS"]
    until(lambda: [mark.note for mark in pairs.ledger.marks("note")] == ["linked"], 5.0, "the link")
    until(lambda: pairs.ledger.of("errback", bad), 5.0, "the errback")
