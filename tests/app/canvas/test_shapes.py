"""Chains, groups, chords, maps and chunks as objects: what they are made of and how they are changed."""

from __future__ import annotations

import copy
import json
import pickle
from functools import reduce
from operator import or_
from time import perf_counter
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from celeriac.app import registry
from celeriac.app.app import Celeriac
from celeriac.app.canvas import Signature, chain, chord, chunks, group, maybe_signature, signature, xmap, xstarmap
from celeriac.errors import CPendingDeprecationWarning
from celeriac.wire import values


def names(signature: Any) -> list[Any]:
    """First arguments of the tasks of a shape."""
    return [task.args[0] for task in signature.tasks]


def test_kinds(t: Any) -> None:
    """Each shape is an object of its class, also when it comes back from JSON or a pickle."""
    shapes = [
        t.add.s(1) | t.add.s(2), group([t.add.s(1), t.add.s(2)]), chord([t.add.s(1)], t.xsum.s()), t.add.map([1]),
        t.add.starmap([(1,)]), t.add.chunks([(1,)], 1), chain(), group(),
    ]  # fmt: skip
    kinds = [chain, group, chord, xmap, xstarmap, chunks, chain, group]
    for shape, kind in zip(shapes, kinds, strict=True):
        assert type(shape) is kind
        for other in (copy.copy(shape), copy.deepcopy(shape), shape.clone()):
            assert type(other) is kind
            assert other == shape
            assert other is not shape
        back = signature(json.loads(values.dumps(shape)))
        assert values.dumps(back) == values.dumps(shape)
        assert pickle.loads(pickle.dumps(shape)) == shape


def test_a_copy_is_a_copy(t: Any) -> None:
    """What is done to the tasks of one is not done to those of another."""
    for shape in (t.add.s(1) | t.add.s(2), group([t.add.s(1)]), chord([t.add.s(1)], t.xsum.s())):
        shape.clone().tasks[0].set(queue="q")
        assert "queue" not in shape.tasks[0].options
    whole = chord([t.add.s(1)], t.xsum.s())
    whole.clone().body.set(queue="q")
    assert "queue" not in whole.body.options


def test_operators_leave_both_sides_alone(t: Any) -> None:
    """`|` makes something new."""
    one, two = t.add.s(1) | t.add.s(2), group([t.add.s(3), t.add.s(4)])
    before = values.dumps([one, two])
    whole = one | two
    whole |= t.xsum.s()
    whole |= t.mul.s(5)
    assert values.dumps([one, two]) == before
    assert len(whole.tasks) == 3
    assert whole.tasks[2].body.task == "celery.chain"


def test_arguments_of_a_clone(t: Any) -> None:
    """They go where those of a call go: to the first step, to each member, to the header."""
    assert (t.add.s(1) | t.add.s(2)).clone((0,), {"y": 1}).tasks[0].reprcall() == "proj.add(0, 1, y=1)"
    assert [task.args for task in group([t.add.s(1), t.add.si(2)]).clone((0,)).tasks] == [(0, 1), (2,)]
    assert chord([t.add.s(1)], t.xsum.s()).clone((0,)).args == (0,)


def test_options_of_a_chain_stay(t: Any) -> None:
    """They are its first step's, as when it is sent; its links stay where they were meant."""
    whole = chain(t.add.s(1), t.add.s(2)).set(queue="q", link=[t.mul.s(7)]) | t.add.s(3)
    assert [task.options for task in whole.tasks] == [{"queue": "q"}, {"link": [t.mul.s(7)]}, {}]


def test_apps(app: Celeriac, t: Any) -> None:
    """A shape's app is that of its tasks; else the current one."""
    with Celeriac("other", broker="memory://other", set_as_current=True) as other:
        assert registry.current() is other
        for shape in (
            t.add.s(1) | t.add.s(2), group([t.add.s(1)]), chord([], t.add.s(1)), t.add.map([1]), t.add.chunks([], 1),
            chain([group([t.add.s(1)])]),
        ):  # fmt: skip
            assert shape.app is app
        for shape in (chain(), group(), signature("far.away") | signature("farther")):
            assert shape.app is other
        assert group([t.add.s(1)], app=other).app is other


def test_generators(t: Any) -> None:
    """They are read when they are given, once."""
    assert names(group(t.add.s(i) for i in range(3))) == [0, 1, 2]
    assert names(chain(t.add.s(i) for i in range(3))) == [0, 1, 2]
    assert names(chord((t.add.s(i) for i in range(3)), t.xsum.s())) == [0, 1, 2]
    assert t.add.map(i for i in range(3)).kwargs["it"] == [0, 1, 2]


def test_lengths(t: Any) -> None:
    """Of a group: its members. Of a chord, as a hint: what has to end."""
    assert len(group([t.add.s(1), t.add.s(2)])) == 2
    inner = chord([t.add.s(1)], group([t.mul.s(1), t.mul.s(2)]))
    whole = chord([t.add.s(1) | t.add.s(2), group([t.add.s(1), t.add.s(1)]), inner, chain()], t.xsum.s())
    assert whole.__length_hint__() == 1 + 2 + 2 + 0


def test_links(t: Any) -> None:
    """Of a chain: the last step's. Of a group: its first member's, without the result. Of a chord: the body's."""
    members = group([t.add.s(1), t.add.s(2)])
    members.link(t.mul.s(3))
    assert members.tasks[0].options["link"][0].immutable
    assert "link" not in members.tasks[1].options
    assert len(members.link_error(t.err.s())) == 2
    whole = chord([t.add.s(1)], t.xsum.s())
    assert whole.link(t.mul.s(3)) == t.mul.s(3)
    assert whole.body.options["link"] == [t.mul.s(3)]
    for method in ("apply_async", "delay"):
        with pytest.raises(TypeError, match="a group has no result of its own"):
            getattr(members, "apply_async" if method == "delay" else method)(link=t.mul.s(3))


def test_errors_of_a_chord(app: Celeriac, t: Any) -> None:
    """They follow the body; with `task_allow_error_cb_on_chord_header` each member as well."""
    whole = chord([chord([t.add.s(0)], t.add.s(1)), t.add.s(2)], t.xsum.s())
    with pytest.warns(CPendingDeprecationWarning, match="link_error of a chord"):
        whole.link_error(t.err.s())
    assert whole.body.options["link_error"] == [t.err.s()]
    assert whole.tasks[0].body.options["link_error"] == [t.err.s()]
    assert "link_error" not in whole.tasks[1].options
    app.conf.task_allow_error_cb_on_chord_header = True
    whole = chord([t.add.s(2)], t.xsum.s())
    whole.link_error(t.err.s())
    assert whole.tasks[0].options["link_error"] == [t.err.si()]


def test_skew(t: Any) -> None:
    """Members begin one after the other; the last ones together."""
    members = group([t.add.s(i) for i in range(4)]).skew(start=2, stop=4)
    assert [task.options["countdown"] for task in members.tasks] == [2, 3, 4, 4]
    members.skew(1.0, None, 0.5)
    assert [task.options["countdown"] for task in members.tasks] == [1, 1.5, 2, 2.5]


def test_chunks(t: Any) -> None:
    """So many calls in one message."""
    pieces = t.add.chunks(zip(range(5), range(5), strict=True), 2)
    assert [len(task.kwargs["it"]) for task in pieces.group().tasks] == [2, 2, 1]
    with pytest.raises(ValueError, match="must be 1 at least"):
        t.add.chunks([(1,)], 0).group()


def test_repr(t: Any) -> None:
    """As one would write it; a module is named once."""
    whole = t.add.s(1) | group([t.add.s(2), t.mul.s(3)]) | t.xsum.s() | t.mul.s(4)
    assert repr(whole) == "proj.add(1) | %(xsum([add(2), mul(3)]) | mul(4))"
    assert repr(t.add.map([1])) == "[proj.add(x) for x in [1]]"
    assert repr(group()) == "group(<empty>)"
    assert repr(chain()).endswith(": empty>")
    assert repr(chord([t.add.s(1)])) == "<chord without body: [proj.add(1)]>"
    assert repr(signature("add", (1,)) | signature("mul")) == "add(1) | mul()"


def test_freezing(t: Any) -> None:
    """Ids are given once, to every task; the shapes inside are laid flat."""
    whole = t.add.s(1) | group([t.add.s(2), group([t.add.s(3)])]) | t.xsum.s()
    result = whole.freeze("the-id", group_id="g", chord=t.mul.s(1), root_id="r", group_index=4)
    assert result.id == whole.id == "the-id"
    body = whole.tasks[-1].body
    assert (body.id, body.options["group_id"], body.options["group_index"]) == ("the-id", "g", 4)
    assert body.options["chord"] == t.mul.s(1)
    header = whole.tasks[-1].tasks
    assert [task.id for task in header.tasks] == [member.id for member in result.parent.results]
    assert result.parent.id == header.id
    assert result.parent.parent.id == whole.tasks[0].id
    assert {task.options["root_id"] for task in (whole.tasks[0], body, *header.tasks)} == {"r"}
    assert group([t.add.s(1)]).freeze("g", parent_id="p").id == "g"
    assert chain().freeze("e").id == "e"


SIGNATURES = ("add", "mul", "xsum")


@st.composite
def shapes(draw: Any, depth: int = 3) -> Any:
    """A function from the tasks to some shape."""
    kind = draw(st.sampled_from(["task"] if depth == 0 else ["task", "task", "group", "chord", "chain"]))
    if kind == "task":
        name, number = draw(st.sampled_from(SIGNATURES)), draw(st.integers(0, 9))
        return lambda t: getattr(t, name).s(number)
    inner = draw(st.lists(shapes(depth=depth - 1), min_size=0 if kind == "group" else 1, max_size=3))
    if kind == "chord":
        body = draw(shapes(depth=depth - 1))
        return lambda t: chord([make(t) for make in inner], body(t))
    return lambda t: (group if kind == "group" else chain)([make(t) for make in inner])


@given(steps=st.lists(shapes(), min_size=1, max_size=6))
@settings(max_examples=60, deadline=None)
def test_chain_folds_as_the_operator(t: Any, steps: Any) -> None:
    """`chain(a, b, c)` is `chain() | a | b | c`, and stays the same through JSON."""
    folded = chain([make(t) for make in steps])
    assert values.dumps(folded) == values.dumps(reduce(or_, [make(t) for make in steps], chain()))
    assert values.dumps(signature(json.loads(values.dumps(folded)))) == values.dumps(folded)
    assert isinstance(folded, Signature)
    assert maybe_signature(folded) is folded


def test_large_shapes(t: Any) -> None:
    """1,000 steps and 20 levels, without recursion errors, in linear time."""
    began = perf_counter()
    long = chain(t.add.s(i) for i in range(1000))
    tail = chain([t.add.s(0), group([t.add.s(1), t.add.s(2)]), *(t.add.s(i) for i in range(1000))])
    result = long.clone().freeze()
    assert perf_counter() - began < 2
    assert len(long.tasks) == 1000
    assert len(tail.tasks[1].body.tasks) == 1000
    assert len(result.as_list()) == 1000
    assert len(json.loads(values.dumps(signature(json.loads(values.dumps(long)))))["kwargs"]["tasks"]) == 1000
    deep: Any = t.add.s(1)
    for level in range(20):
        deep = group([deep, t.add.s(level)]) | t.xsum.s() if level % 2 else t.add.s(level) | group([deep, t.add.s(1)])
    assert deep.clone() == deep
    deep.freeze()
    repr(deep)
    assert values.dumps(copy.deepcopy(deep)) == values.dumps(deep)
