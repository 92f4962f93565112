"""Workflows end, whatever is killed: a chord's body runs once for all of its members, an error link once for a failure,
and nothing waits for ever."""

from __future__ import annotations

import asyncio
import json
import random
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

from celeriac import chain, chord, group
from celeriac.app.handle import AsyncResult
from celeriac.model.message import Part
from celeriac.wire.record import entry
from tests.faults.conftest import MakeSite
from tests.faults.kit import SPAN, Site, forms, until
from tests.servers import RedisServer, redis_server


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
        on_rabbitmq = self.site.broker_url.startswith("amqp")
        self.site.check().assert_clean(unexcused=1 + len(self.site.kills) // 10 if on_rabbitmq else 0)
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
            flows.send(kind, chance.randrange(2, 9), chance.choice((0.0, 0.0, 0.02)))
        time.sleep(chance.uniform(0.0, lease))
        site.kill(workers.pop(0))
        workers.append(site.worker("-c", "2"))
        if number % 20 == 19:
            print(f"workflows: round {number + 1}, {len(site.finished(flows.wanted.keys()))} of {len(flows.wanted)}")
    began = time.monotonic()
    flows.check(lease + SPAN + rounds / 10)
    figures.update(rounds=rounds, workflows=len(flows.wanted), settled=round(time.monotonic() - began, 2))


@pytest.mark.parametrize("how", ["revoked", "stamped", "expired", "unknown", "poison", "limit"])
def test_a_member_that_can_not_run_ends_the_workflow(broker: str, make_site: MakeSite, how: str) -> None:
    """With an error, after which nothing waits any more."""
    site = make_site(broker, lease=1.0, settings={"task_unknown_patience": 1.0})
    flows = Flows(site)
    options: dict[str, Any] = {"expired": {"expires": 0.001}, "limit": {"time_limit": 0.3}}.get(how, {})
    member = flows.task("nobody" if how == "unknown" else "item", 1, **options)
    if how == "poison":
        member = flows.task("poison")
    if how == "limit":
        member = flows.task("item", 1, 5.0, **options)
    if how == "stamped":
        member.stamp(customer="c7")
    result = chain(chord([flows.task("item", 1), member], flows.task("total")), flows.task("twice"))()
    if how == "revoked":
        result.parent.parent.results[1].revoke()
    if how == "stamped":
        site.app.control.revoke_by_stamped_headers({"customer": ["c7", "c8"]})
    time.sleep(0.05)
    site.worker("-c", "2")
    site.wait_finished(30.0, [result.id, result.parent.id])
    documents = site.documents([result.id, result.parent.id])
    assert {document["status"] for document in documents.values()} == {"FAILURE"}, documents
    assert {document["result"]["exc_type"] for document in documents.values()} == {"ChordError"}


def test_chords_with_results_on_a_second_server(redis: RedisServer, make_site: MakeSite) -> None:
    """Messages here, results there: a kill between counting and sending starts nothing twice."""
    with redis_server() as second:
        site = make_site(redis.url, backend=second.url, lease=1.0)
        flows = Flows(site)
        workers = [site.worker("-c", "2") for _ in range(2)]
        for _ in range(4):
            for kind in range(5):
                flows.send(kind, 3, 0.01)
            time.sleep(0.3)
            site.kill(workers.pop(0))
            workers.append(site.worker("-c", "2"))
        flows.check(10.0)


@pytest.mark.parametrize("apart", [False, True], ids=["one server", "two servers"])
def test_a_run_that_is_repeated_adds_nothing_twice(
    broker: str, make_site: MakeSite, apart: bool, tmp_path: Path
) -> None:
    """A task adds to its chord and is killed before its end, with what it added still waiting, or run: the chord waits
    for each of them once."""
    with redis_server() if apart else nullcontext() as second:
        site = make_site(broker, backend=second.url if second else None, lease=1.0)
        flows = Flows(site)
        results = []
        for _ in range(2):
            result = chord([flows.task("item", 1000), flows.task("adds", str(tmp_path / "never"))])(flows.task("total"))
            flows.note(result, 1000 + 100 + 10 + 40 + 1 + 2)
            results.append(result)
        adders = [result.parent.results[1].id for result in results]
        worker = site.worker("-c", "2")
        until(lambda: len(site.ledger.marks("added")) == 2, 20.0, "both have added")
        site.kill(worker)
        assert not site.finished(flows.wanted.keys())
        worker = site.worker("-c", "3")
        site.wait_started(adders[0], times=2)
        flows.check(20.0)
        assert sorted(mark.key for mark in site.ledger.marks("added")) == sorted(2 * adders)
        until(lambda: site.counts().ready == site.counts().in_flight == 0, 10.0, "nothing is left over")


@pytest.mark.parametrize(
    ("how", "apart"),
    [("a wrong key", False), ("a wrong key", True), ("no right to count", False), ("no right to look", True)],
)
def test_a_chord_that_can_not_be_kept_stops_no_worker(
    redis: RedisServer, make_site: MakeSite, how: str, apart: bool
) -> None:
    """Its members go to the dead letters with the reason, and all other tasks end."""
    with redis_server() if apart else nullcontext(redis) as results:
        rights = {"no right to count": "-sismember", "no right to look": "-smembers"}
        results.command("ACL", "SETUSER", "default", rights.get(how, "+@all"))
        site = make_site(redis.url, backend=results.url, lease=1.0)
        flows = Flows(site)
        members = [flows.task("item", 1), flows.task("item", 2) | flows.task("twice")]
        header = chord(members, flows.task("total"))
        ids = [header.freeze().id, *(member.id for member in header.tasks.tasks)]
        if how == "a wrong key":
            group_id = header.tasks.options["task_id"]
            header()
            results.command("DEL", f"celery-taskset-meta-{group_id}.s")
            results.command("XADD", f"celery-taskset-meta-{group_id}.j", "*", "a", "b")
        else:
            header()
        worker = site.worker("-c", "2")
        until(lambda: len(site.ledger.marks("end")) >= 3, 20.0, "all members have run")
        site.sent = [site.send("item", 5)]
        site.wait_finished(10.0)
        time.sleep(3.0)
        site.send("item", 6)
        site.wait_finished(5.0)
        dead = site.dead()
        assert {("WRONGTYPE" in reason, "rights (ACL)" in reason) for reason in dead.values()} == {
            (how == "a wrong key", how != "a wrong key")
        }
        assert dead.keys() <= {*ids[1:]}
        assert len(dead) == (1 if how == "no right to look" else 2)  # who completes it looks at it
        assert worker.output.count("connected again") == 0
        assert ("chords need" in worker.output) == (how != "a wrong key" and not apart)


def test_what_a_crash_left_complete_is_carried_on_with(site: Site) -> None:
    """A chord whose members were all counted, by a worker that died before it said what follows, and a member that has
    ended without having been counted (as when a Celery worker dies between the two): the sweeper sees to both."""
    flows = Flows(site)
    counted = chord(flows.items(2, 0.0))(flows.task("total"))
    uncounted = chord(flows.items(2, 0.0))(flows.task("total"))
    site.ask(lambda broker: broker.purge("celery"))
    for result in (counted, uncounted):
        for index, member in enumerate(result.parent.results):
            site.app.backend.store_result(member.id, index, "SUCCESS")

    async def count() -> None:
        backend = site.app.make_backend()
        assert backend is not None
        group = counted.parent.id
        standing = await backend.chord(group)
        assert standing is not None
        parts = [
            Part(group, member.id, index, entry(member.id, "SUCCESS", index), standing.body)
            for index, member in enumerate(counted.parent.results)
        ]
        assert [*await backend.count(parts, 0.5)] == [False, True]
        await backend.close()

    asyncio.run(count())
    site.worker("-c", "2")
    site.wait_finished(20.0, [counted.id, uncounted.id])
    assert {document["result"] for document in site.documents([counted.id, uncounted.id]).values()} == {1}


def test_a_workflow_is_shown(site: Site) -> None:
    """`celeriac workflow show` draws all of it, from any of its tasks: steps, members, states, what failed."""
    flows = Flows(site)
    task = flows.task
    good = chain(chord(flows.items(2, 0.0), task("total")), task("twice"))()
    begun = chain(task("item", 3), chord([task("twice"), task("twice")], task("total")))()
    bad = chord([task("item", 1), task("bad", 7)])(task("total"))
    site.worker("-c", "2")
    site.wait_finished(20.0, [good.id, begun.id, bad.id])

    def shown(task_id: str, *more: str) -> str:
        code, text = site.project.run("-A", "tasks", "workflow", "show", task_id, *more)
        assert code == 0, text
        return text

    members = [member.id for member in good.parent.parent.results]
    for asked in (good.id, good.parent.id, members[0]):
        lines = [line.split() for line in shown(asked).splitlines()]
        assert [line[1] for line in lines] == [good.parent.parent.id, *members, good.parent.id, good.id]
        assert {line[2] for line in lines} == {"SUCCESS"}
    steps = json.loads(shown(begun.id, "--json"))
    assert [(step["kind"], step["state"]) for step in steps] == [
        ("task", "SUCCESS"), ("group", "SUCCESS"), ("task", "SUCCESS"),
    ]  # fmt: skip
    assert steps[-1]["id"] == begun.id
    assert "ValueError: bad 7" in shown(bad.id)
    assert "ChordError" in shown(bad.id)
    code, text = site.project.run("-A", "tasks", "workflow", "show", "nobody")
    assert (code, "nothing is known of nobody" in text) == (1, True)
