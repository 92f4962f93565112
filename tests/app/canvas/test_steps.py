"""A chain that grows by `|` shares its steps with the chains before it, and nobody can tell."""

from __future__ import annotations

import copy
import json
import operator
import pickle
from time import perf_counter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from celeriac.app.app import Celeriac
from celeriac.app.canvas import Signature, chain, group
from celeriac.app.canvas.steps import Steps
from celeriac.errors import EncodeError, InvalidTaskError
from celeriac.wire import codec, values

APP = Celeriac("steps", broker="memory://steps", backend="memory://steps")


def step(number: int) -> Signature[Any]:
    return APP.signature("t", (number,))


WAYS = (
    lambda tasks: tasks[0],
    lambda tasks: tasks[-1],
    lambda tasks: tasks[-len(tasks)],
    lambda tasks: tasks[:1][0],
    lambda tasks: next(iter(tasks)),
    lambda tasks: next(reversed(tasks)),
    lambda tasks: [*tasks][len(tasks) // 2],
    lambda tasks: tuple(tasks)[-1],
    lambda tasks: tasks.pop(0),
    lambda tasks: tasks.copy()[0],
    lambda tasks: tasks.__add__([])[0],
    lambda tasks: operator.add([], tasks)[0],
    lambda tasks: (tasks * 1)[0],
    lambda tasks: [tasks.insert(0, step(9)), tasks[1]][1],
    lambda tasks: [tasks.remove(tasks[0]), tasks.append(step(8)), tasks[0]][2],
    lambda tasks: [tasks.reverse(), tasks[0]][1],
    lambda tasks: sorted(tasks, key=len)[0],
    lambda tasks: [tasks.__setitem__(0, step(7)), tasks[0]][1],
    lambda tasks: [tasks.__delitem__(0), tasks.append(step(6)), tasks[0]][2],
)
"""How a user may get hold of a step, or put another in its place."""


@given(st.lists(st.tuples(st.sampled_from(("|", "clone", "change", "chain")), st.integers(0, 99), st.integers(0, 99))))
def test_what_is_done_to_one_chain_is_done_to_no_other(actions: list[tuple[str, int, int]]) -> None:
    """Whatever chains come from each other, and by whichever way a step is reached."""
    made: list[Any] = [step(0) | step(1)]
    kept = [values.dumps(each) for each in made]
    for number, (what, which, how) in enumerate(actions):
        one = which % len(made)
        if what == "|":
            made.append(made[one] | step(number + 10))
        elif what == "clone":
            made.append(made[one].clone())
        elif what == "chain":
            made.append(made[one] | made[how % len(made)])
        elif len(made[one].tasks) > 1:
            WAYS[how % len(WAYS)](made[one].tasks).set(queue=f"q{number}")
            kept[one] = values.dumps(made[one])
        kept += [values.dumps(each) for each in made[len(kept) :]]
        assert [values.dumps(each) for each in made] == kept


@pytest.mark.parametrize("tail", [False, True], ids=["steps", "steps behind a group"])
def test_growing_takes_no_time(tail: bool) -> None:
    """A chain of 2,000 steps, made one by one; nothing is copied again and again."""
    whole: Any = group(step(1), step(2)) if tail else step(0)
    start = perf_counter()
    for number in range(2000):
        whole = whole | step(number)
    assert perf_counter() - start < 10.0  # copying all steps each time takes minutes
    steps = whole.body.tasks if tail else whole.tasks[1:]
    assert [one.args for one in steps] == [(number,) for number in range(2000)]


def test_what_is_too_deep_says_so() -> None:
    """A group before a step nests what follows: fifty in turn are sent, thousands are refused when they are made."""
    pair = group(step(1), step(2))
    whole: Any = step(0)
    for number in range(50):
        whole = whole | pair | step(number)
    assert whole.delay().id

    def grow(shape: Any) -> None:
        for number in range(2000):
            shape = shape | pair | step(number)

    with pytest.raises(InvalidTaskError, match="let a task send the rest"):
        grow(whole)
    with pytest.raises((InvalidTaskError, EncodeError), match="nested too deeply"):
        chain(step(0), *(each for number in range(300) for each in (pair, step(number)))).delay()


def test_it_is_a_list() -> None:
    """For whoever compares, shows, copies, or writes it down, in whatever form."""
    whole: Any = step(0) | step(1) | step(2) | step(3)
    tasks = whole.tasks
    assert isinstance(tasks, Steps)
    assert tasks == [step(0), step(1), step(2), step(3)]
    assert repr(tasks) == repr([step(0), step(1), step(2), step(3)])
    assert tasks.hidden == 2
    for other in (copy.copy(whole), copy.deepcopy(whole), pickle.loads(pickle.dumps(whole))):
        assert other == whole
    assert b"Steps" not in pickle.dumps(dict(whole))
    assert type(copy.deepcopy(tasks)) is list
    plain = json.loads(values.dumps(whole))
    for serializer in ("json", "msgpack", "pickle"):
        content_type, encoding, data = codec.encode(step(0) | step(1) | step(2) | step(3), serializer)
        read = codec.decode(data, content_type, encoding, codec.accept_set([serializer]))
        assert json.loads(values.dumps(read)) == plain, serializer
    whole.tasks = ({"task": "t"}, {"task": "u"})
    assert [one.task for one in (whole | step(1)).tasks] == ["t", "u", "t"]
    assert chain(step(0)).tasks == [step(0)]
