"""Workflows end, whatever is killed: a chord's body runs once for all of its members, an error link once for a failure,
and nothing waits for ever."""

from __future__ import annotations

import random
import time
from typing import Any

import pytest

from celeriac import chain, chord, group
from celeriac.app.handle import AsyncResult
from tests.faults.conftest import MakeSite
from tests.faults.kit import SPAN, Site, forms, until


class Flows:
    """Workflows of a site's tasks."""

    def __init__(self, site: Site) -> None:
        self.site = site
        self.wanted: dict[str, Any] = {}
        """Id of a workflow's result -> its value, or the name of the exception."""
        self.failing: set[str] = set()
        """Ids of tasks that end with an error, each with an error link."""

    def task(self, name: str, *args: Any, **options: Any) -> Any:
        return self.site.app.signature(f"tasks.{name}", args, **options)

    def items(self, count: int, seconds: float) -> list[Any]:
        return [self.task("item", number, seconds) for number in range(count)]

    def note(self, result: AsyncResult[Any], value: Any) -> None:
        """Remember what a workflow is to give, and all of its tasks."""
        self.wanted[result.id] = value
        node: Any = result
        while node is not None:
            self.site.sent += [leaf.id for leaf in _leaves(node)]
            node = node.parent

    def send(self, kind: int, count: int, seconds: float) -> None:
        """One workflow of a kind."""
        task = self.task
        wide = self.items(count, seconds)
        all_of = sum(range(count))
        if kind == 0:
            self.note(chord(wide)(task("total")), all_of)
        elif kind == 1:
            flow = chain(task("item", 3, seconds), task("twice"), task("twice"))
            self.note(flow(), 12)
        elif kind == 2:  # a chord inside, and more behind it
            flow = chain(group(wide), task("total"), task("twice"), group(task("twice"), task("twice")), task("total"))
            self.note(flow(), all_of * 8)
        elif kind == 3:  # members that are workflows
            inner = [chain(task("item", 1, seconds), task("twice")), chord(self.items(2, seconds), task("total"))]
            self.note(chord([*inner, *wide])(task("total")), 2 + 1 + all_of)
        else:
            told = task("told")
            members = [*wide, task("bad", 7).on_error(told)]
            result = chord(members)(task("total").on_error(told))
            self.note(result, "ChordError")
            self.site.sent.remove(result.id)
            self.failing |= {result.id, result.parent.results[-1].id}

    def check(self, limit: float) -> None:
        """All have ended as they should, and nothing ran without need."""
        self.site.wait_finished(limit, self.wanted.keys())
        for task_id, document in self.site.documents(self.wanted.keys()).items():
            found, value = document["result"], self.wanted[task_id]
            assert (found["exc_type"] if isinstance(value, str) else found) == value, document
        self.site.check().assert_clean()
        told = [mark.key for mark in self.site.ledger.marks("told")]
        assert sorted(set(told)) == sorted(self.failing)


def _leaves(result: Any) -> list[Any]:
    members = getattr(result, "results", None)
    return [result] if members is None else [leaf for member in members for leaf in _leaves(member)]


@forms("rounds,lease", (5, 1.0), (100, 2.0), timeout=2400)
def test_workflows_survive_kills(
    broker: str, make_site: MakeSite, rounds: int, lease: float, seed: int, figures: dict[str, Any]
) -> None:
    """kill -9 of workers at random moments: each workflow ends as it should, within the lease and five seconds."""
    site = make_site(broker, lease=lease)
    flows = Flows(site)
    chance = random.Random(seed)
    workers = [site.worker("-c", "2") for _ in range(2)]
    for number in range(rounds):
        for kind in range(5):
            flows.send(kind, chance.randrange(1, 9), chance.choice((0.0, 0.0, 0.02)))
        time.sleep(chance.uniform(0.0, lease))
        site.kill(workers.pop(0))
        workers.append(site.worker("-c", "2"))
        if number % 20 == 19:
            print(f"workflows: round {number + 1}, {len(site.finished(flows.wanted.keys()))} of {len(flows.wanted)}")
    began = time.monotonic()
    flows.check(lease + SPAN + rounds / 10)
    figures.update(rounds=rounds, workflows=len(flows.wanted), settled=round(time.monotonic() - began, 2))


@pytest.mark.parametrize("how", ["revoked", "expired", "unknown", "dead"])
def test_a_member_that_can_not_run_ends_the_workflow(site: Site, how: str) -> None:
    """With an error, after which nothing waits any more."""
    flows = Flows(site)
    options: dict[str, Any] = {"expires": 0.001} if how == "expired" else {}
    name = {"unknown": "nobody", "dead": "poison"}.get(how, "item")
    member = flows.task(name, 1, **options)
    last = flows.task("twice")
    result = chain(chord([flows.task("item", 1), member], flows.task("total")), last)()
    if how == "revoked":
        result.parent.parent.results[1].revoke()
    time.sleep(0.05)
    site.worker("-c", "2", "--unknown-patience", "1") if how == "unknown" else site.worker("-c", "2")
    site.wait_finished(30.0, [result.id, result.parent.id])
    documents = site.documents([result.id, result.parent.id])
    assert {document["status"] for document in documents.values()} == {"FAILURE"}, documents


def test_a_chord_beside_a_second_server(site: Site, make_site: MakeSite, redis: Any, broker: str) -> None:
    """Messages here, results there: a kill between counting and sending starts nothing twice."""
    if not broker.startswith("redis"):
        pytest.skip("one file is one server")
    elsewhere = make_site(broker, backend=redis.url, lease=1.0)
    flows = Flows(elsewhere)
    workers = [elsewhere.worker("-c", "2") for _ in range(2)]
    for _ in range(4):
        for kind in range(5):
            flows.send(kind, 3, 0.01)
        time.sleep(0.3)
        elsewhere.kill(workers.pop(0))
        workers.append(elsewhere.worker("-c", "2"))
    flows.check(10.0)


def test_an_open_chord_is_swept(site: Site) -> None:
    """A chord that a crash left complete, but not carried on with, is found and carried on with."""
    flows = Flows(site)
    result = chord(flows.items(2, 0.0))(flows.task("total"))
    group_id = result.parent.id
    until(lambda: site.counts().ready == 2, 5.0, "they lie there")
    assert group_id
    site.worker("-c", "2")
    site.wait_finished(10.0, [result.id])
