"""A worker dies before and after each thing that it does to a store while it carries a workflow on, and another takes
over: the workflow ends within the lease and five seconds, and its history is clean."""

from __future__ import annotations

import asyncio
import random
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from celeriac import Celeriac, chain, chord, group
from celeriac.testing.history import judge
from tests.faults.crashing import LEASE, Flow, Played, Sent, play
from tests.faults.kit import forms
from tests.rabbit import RabbitServer
from tests.servers import RedisServer, redis_server

AT_ONCE = 8
"""Runs beside each other: nearly all of their time is waiting for a lease to end."""
Settings = Callable[[], dict[str, Any]]


# --- workflows


def linked(app: Celeriac) -> Sent:
    """A chord with links on a member and on its body."""
    sig = app.signature
    members = [sig("item", (1,)), sig("item", (2,)), sig("item", (3,))]
    link, last = sig("twice"), sig("twice")
    followers = [link.freeze(), last.freeze()]
    members[0].link(link)
    result = chord(members, app=app)(sig("total", link=last))
    return Sent({each.id: "SUCCESS" for each in (result, *followers)})


def linked_to_chord(app: Celeriac) -> Sent:
    """A chord whose members have a chord as their link each."""
    sig = app.signature
    members = [sig("item", (1,)), sig("item", (2,))]
    bodies = [sig("total"), sig("total")]
    ends = [body.freeze().id for body in bodies]
    for member, body in zip(members, bodies, strict=True):
        member.link(chord([sig("twice"), sig("twice")], body, app=app))
    result = chord(members, app=app)(sig("total"))
    return Sent({each: "SUCCESS" for each in (result.id, *ends)})


def failing(app: Celeriac) -> Sent:
    """A chord with a member that fails; error links on that and on the body."""
    sig = app.signature
    members = [sig("item", (1,)), sig("bad").on_error(sig("told")), sig("item", (2,))]
    result = chord(members, app=app)(sig("total").on_error(sig("told")))
    return Sent({result.id: "FAILURE"}, [result.id, result.parent.results[1].id])


def failing_last(app: Celeriac) -> Sent:
    """The failing member is itself a chain that ends early, and more would have followed from the chord."""
    sig = app.signature
    broken = chain(sig("bad").on_error(sig("told")), sig("twice"), app=app)
    whole = chain(
        group([sig("item", (1,)), broken], app=app), sig("total").on_error(sig("told")), sig("twice"), app=app
    )
    result = whole()
    first = result.parent.parent.results[1].parent
    return Sent({result.id: "FAILURE", result.parent.id: "FAILURE"}, [result.parent.id, first.id])


def in_chain(app: Celeriac) -> Sent:
    """A chord with steps before and behind it."""
    sig = app.signature
    result = chain(
        sig("item", (1,)), group([sig("twice"), sig("twice")], app=app), sig("total"), sig("twice"), app=app
    )()
    return Sent({result.id: "SUCCESS"})


def nested(app: Celeriac) -> Sent:
    """A chord and a chain as members of a chord."""
    sig = app.signature
    inner = chord([sig("item", (1,)), sig("item", (2,))], sig("total"), app=app)
    result = chord([inner, chain(sig("item", (3,)), sig("twice"), app=app), sig("item", (4,))], app=app)(sig("total"))
    return Sent({result.id: "SUCCESS"})


def chord_behind_chord(app: Celeriac) -> Sent:
    """The body of a chord begins another one."""
    sig = app.signature
    first = group([sig("item", (1,)), sig("item", (2,))], app=app)
    second = group([sig("total"), sig("total")], app=app)
    result = chain(first, second, sig("total"), app=app)()
    return Sent({result.id: "SUCCESS"})


def group_last(app: Celeriac) -> Sent:
    """A group at the end of a chain."""
    sig = app.signature
    result = chain(sig("item", (1,)), group([sig("twice"), sig("twice")], app=app), app=app)()
    return Sent({member.id: "SUCCESS" for member in result.results})


def replaced(app: Celeriac) -> Sent:
    """A task that a chord takes the place of, with a link and a step behind it."""
    sig = app.signature
    link = sig("twice")
    follower = link.freeze()
    result = chain(sig("swap", link=link), sig("twice"), app=app)()
    return Sent({each.id: "SUCCESS" for each in (result, result.parent, follower)})


def replaced_member(app: Celeriac) -> Sent:
    """As a member of a chord."""
    sig = app.signature
    result = chord([sig("swap"), sig("item", (3,))], app=app)(sig("total"))
    return Sent({result.id: "SUCCESS"})


def failing_chain(app: Celeriac) -> Sent:
    """No chord at all: a chain whose second step fails."""
    sig = app.signature
    result = chain(sig("item", (1,)), sig("bad", immutable=True).on_error(sig("told")), sig("twice"), app=app)()
    return Sent({result.id: "FAILURE", result.parent.id: "FAILURE"}, [result.parent.id])


FLOWS: list[Flow] = [
    linked, linked_to_chord, failing, failing_last, in_chain, nested, chord_behind_chord, group_last, replaced,
    replaced_member, failing_chain,
]  # fmt: skip


# --- stores


@pytest.fixture(scope="module")
def first() -> Iterator[RedisServer]:
    """A Redis."""
    with redis_server() as server:
        yield server


@pytest.fixture(scope="module")
def second() -> Iterator[RedisServer]:
    """Another one."""
    with redis_server() as server:
        yield server


@pytest.fixture(params=["memory", "memory-two", "sqlite", "redis", "redis-two", "sqlite-redis", "postgres", "rabbitmq"])
def stores(request: pytest.FixtureRequest, tmp_path: Path) -> Settings:
    """Makes settings, each for empty stores: broker and results in one server or in two."""
    kind: str = request.param
    broker, _, backend = kind.partition("-")
    of_redis: dict[str, str] = {}
    hosts: deque[str] = deque()
    if broker == "redis":
        of_redis["broker"] = request.getfixturevalue("first").url
    database = request.getfixturevalue("postgres_server").database() if broker == "postgres" else ""
    if kind in ("redis-two", "sqlite-redis", "rabbitmq"):
        of_redis["backend"] = request.getfixturevalue("second").url

    def make() -> dict[str, Any]:
        name = uuid4().hex
        url = {"memory": f"memory://{name}", "sqlite": f"sqlite:///{tmp_path}/{name}.db?synchronous=normal"}
        url["postgres"] = f"{database}?schema=x{name}"
        if broker == "rabbitmq":
            node: RabbitServer = request.getfixturevalue("rabbit")
            url["rabbitmq"] = node.vhost()
            hosts.append(url["rabbitmq"].rpartition("/")[2])
            if len(hosts) > 3 * AT_ONCE:  # nobody works there any more
                node.api("DELETE", f"/api/vhosts/{hosts.popleft()}")
        here = of_redis.get("broker") or url[broker]
        there = of_redis.get("backend") or (f"memory://{name}-results" if backend else here)
        apart = {"global_keyprefix": f"{name}:"}
        return {
            "broker_url": here, "result_backend": there,
            **({"broker_transport_options": apart} if here.startswith("redis") else {}),
            **({"result_backend_transport_options": apart} if there.startswith("redis") else {}),
        }  # fmt: skip

    return make


# --- the test


class Runs:
    """All runs of a test: so many beside each other, and what was wrong with each."""

    def __init__(self, stores: Settings, lease: float = LEASE) -> None:
        self._stores = stores
        self._lease = lease
        self._room = asyncio.Semaphore(int(AT_ONCE * lease / LEASE))
        self.count = 0
        self.slowest = 0.0
        self.broken: list[str] = []

    async def play(self, flow: Flow, *deaths: int) -> Played:
        """One run, judged."""
        async with self._room:
            played = await play(self._stores(), flow, deaths, self._lease)
        self.count += 1
        self.slowest = max(self.slowest, played.seconds)
        reasons = [*judge(played.events, played.sent.links, repeats=played.repeats).reasons]
        ends = {event.id: event.value[0] for event in played.events if event.what == "ended"}
        reasons += [
            f"{one} ended as {ends.get(one)}, not as {state}"
            for one, state in played.sent.wanted.items() if ends.get(one) != state
        ]  # fmt: skip
        if played.left:
            reasons.append(f"left: {played.left}")
        if reasons:
            where = ", ".join(
                f"{points[-1]} ({at})" for points, at in zip(played.points, deaths, strict=False) if points
            )
            self.broken.append("\n  ".join([f"{flow.__name__}, dead {where or 'never'}:", *reasons]))
        return played

    async def every(self, flow: Flow) -> None:
        """A death at each point that a run without one passes, and on until one is not reached any more."""
        points = len((await self.play(flow)).points[0])
        await asyncio.gather(*(self.play(flow, at) for at in range(points)))
        while (await self.play(flow, points)).died:
            points += 1

    async def some(self, flows: Sequence[Flow], chance: random.Random, number: int, most: int) -> None:
        """At most so many deaths in a row, at points that are drawn."""
        lengths = {flow: len((await self.play(flow)).points[0]) for flow in flows}

        async def one() -> None:
            flow = chance.choice(flows)
            deaths = [chance.randrange(lengths[flow]) for _ in range(chance.randint(1, most))]
            await self.play(flow, *deaths)

        await asyncio.gather(*(one() for _ in range(number)))

    def check(self, flows: Sequence[Flow], number: int, seed: int, figures: dict[str, Any]) -> None:
        """So many deaths that are drawn; 0: all of them, and 200 runs with one or two that are drawn."""

        async def all_runs() -> None:
            if not number:
                for flow in flows:
                    await self.every(flow)
            await self.some(flows, random.Random(seed), number or 200, 1 if number else 2)

        asyncio.run(all_runs())
        figures.update(runs=self.count, broken=len(self.broken), slowest=round(self.slowest, 2))
        assert not self.broken, "\n".join([f"{len(self.broken)} of {self.count} runs", *self.broken[:20]])


@forms("number", 10, 0, timeout=1800)
def test_a_worker_dies_at_each_point(stores: Settings, number: int, seed: int, figures: dict[str, Any]) -> None:
    """The short form dies at some points, the full one at all, and at pairs of them."""
    Runs(stores).check(FLOWS, number, seed, figures)


@forms("number", 20, 0, timeout=1800)
@pytest.mark.parametrize("stores", ["redis-two"], indirect=True)
def test_the_sweeper_comes_before_the_message(
    stores: Settings, number: int, seed: int, figures: dict[str, Any]
) -> None:
    """With a lease that is longer than a chord is held, as by default, another worker carries a chord on before the
    message of the member that completed it is given back."""
    Runs(stores, 3 * LEASE).check([linked, failing, nested], number, seed, figures)
