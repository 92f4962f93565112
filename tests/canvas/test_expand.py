"""From signatures to messages: whatever the shape, what is sent comes to what the shape means."""

from __future__ import annotations

import contextlib
import json
from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from celeriac.canvas import tree
from celeriac.canvas.expand import expand
from tests.canvas.simulate import FAILING, Failed, World, meaning, sig

ERRBACK = sig("errback")
SURE = settings(max_examples=400, deadline=None, derandomize=True)
MANY = settings(max_examples=5000, deadline=None)


def shapes(*names: str) -> st.SearchStrategy[Any]:
    """Signatures of any shape, four deep."""
    single = st.builds(
        lambda name, args, immutable: sig(name, *args, immutable=immutable, link_error=[ERRBACK]),
        st.sampled_from(names), st.lists(st.integers(0, 9), max_size=1), st.booleans(),
    )  # fmt: skip

    def around(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
        several = st.lists(inner, max_size=3)
        return (
            several.map(tree.chain)
            | several.map(tree.group)
            | st.builds(lambda head, body: tree.chord(tree.group(head), body), several, inner.filter(_is_something))
        )

    return st.recursive(single, around, max_leaves=12)


def _is_something(shape: Any) -> bool:
    """A body of nothing vanishes where a step comes behind the chord, and gives a list without members elsewhere."""
    if shape["subtask_type"] in ("chain", "group"):
        return any(map(_is_something, shape["kwargs"]["tasks"]))
    return True


@SURE
@given(shape=shapes("a", "b"), seed=st.integers(0, 1 << 16))
def test_what_is_sent_comes_to_what_it_means(shape: Any, seed: int) -> None:
    """In whatever order tasks run, and though members of chords are delivered twice: the result is that of the shape,
    each message is sent once, each chord goes on once."""
    before = repr(shape)
    world = World(Random(seed), twice=0.2)
    found = world.apply(shape, 7)
    world.run()
    assert world.value(found.result) == meaning(shape, 7)
    assert set(world.sent.values()) <= {1}
    assert {chord.fired for chord in world.chords.values()} <= {1}
    assert repr(shape) == before
    assert not world.errbacks


@SURE
@given(shape=shapes("a", FAILING), seed=st.integers(0, 1 << 16))
def test_every_workflow_ends(shape: Any, seed: int) -> None:
    """Whatever fails: each result of the whole is there or has failed, each chord goes on once, and no error link is
    sent twice for one failure."""
    world = World(Random(seed), twice=0.2)
    found = world.apply(shape, 7)
    world.run()
    assert all(leaf in world.ends for leaf in found.result.leaves())
    assert {chord.fired for chord in world.chords.values()} <= {1}
    assert set(world.errbacks.values()) <= {1}
    with contextlib.suppress(Failed):  # one part may be nothing, and another fail
        value = world.value(found.result)
        assert value == meaning(shape, 7)


@SURE
@given(shape=shapes("a", "b"))
def test_a_frozen_shape_is_the_same_shape(shape: Any) -> None:
    """Ids are given once: what was frozen, also by way of JSON, keeps its ids and means the same."""
    numbers = iter(range(1 << 30))
    frozen, node = tree.Freezer(lambda: f"f{next(numbers)}").freeze(shape)
    again = json.loads(json.dumps(frozen))
    world = World(Random(1))
    found = world.apply(again, 7)
    world.run()
    assert found.result.as_tuple() == node.as_tuple()
    assert world.value(found.result) == meaning(shape, 7)


@pytest.mark.full
@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("law", "names"),
    [(test_what_is_sent_comes_to_what_it_means, ("a", "b")), (test_every_workflow_ends, ("a", FAILING))],
)
def test_the_same_of_many_more(law: Any, names: tuple[str, ...]) -> None:
    """Both laws, of thousands of shapes, others each time."""
    MANY(given(shape=shapes(*names), seed=st.integers(0, 1 << 16))(law.hypothesis.inner_test))()


def test_sizes_stay_linear() -> None:
    """A chain of 1,000, a chord of 10,000, chords 20 deep: no recursion error, and messages as long as they have to
    be."""

    def name(edge: str, index: int) -> str:
        return f"{edge}{index}"

    long = expand(tree.chain([sig("t", n) for n in range(1000)]), name=name)
    assert len(long.calls[0].options["chain"]) == 999
    assert len(json.dumps(long.calls[0].options)) < 1000 * 160
    wide = expand(tree.chord(tree.group([sig("t", n) for n in range(10_000)]), sig("s")), name=name)
    assert (len(wide.calls), wide.chords[0].size) == (10_000, 10_000)
    deep: Any = sig("inmost")
    for _ in range(20):
        deep = tree.chord(tree.group([sig("t"), deep]), sig("s"))
    found = expand(deep, name=name)
    assert len(found.calls) == 21
    assert max(len(json.dumps(call.options)) for call in found.calls) < 20 * 300
    for _ in range(500):
        deep = tree.group([deep])
    assert len(expand(deep, name=name).calls) == 21


def test_a_group_of_one_as_a_body() -> None:
    """With a step behind it, it is a header and the step gets a list of one; with a chord behind it, it is its member,
    as in Celery."""
    one, step = tree.group([sig("a")]), sig("b")
    assert tree.kind(tree.followed(one, [step])) == tree.CHORD
    behind = tree.chord(tree.group([sig("c"), sig("d")]), step)
    assert tree.kind(tree.followed(one, [behind])) == tree.CHAIN
    assert tree.kind(tree.followed(tree.group([sig("a"), step]), [behind])) == tree.CHORD
