"""Signatures of single tasks."""

from __future__ import annotations

import asyncio
import base64
import copy
import json
import pickle
from typing import Any

import pytest

from celeriac.app.app import Celeriac
from celeriac.app.canvas import Signature, StampingVisitor, chain, group, maybe_signature, signature
from celeriac.errors import InvalidTaskError
from celeriac.wire import values
from tests.app.conftest import Broker

FORM = {"task": "add", "args": (1,), "kwargs": {"y": 2}, "options": {"queue": "q"}, "subtask_type": None}


@pytest.fixture
def add(app: Celeriac) -> Any:
    """A task."""

    @app.task(name="add")
    def add(x: int, y: int = 0) -> int:
        return x + y

    return add


def test_a_signature_is_a_dict(add: Any) -> None:
    """Of the form that stands on the wire."""
    sig = add.s(1, y=2)
    assert dict(sig) == {
        "task": "add", "args": (1,), "kwargs": {"y": 2}, "options": {}, "subtask_type": None, "immutable": False,
    }  # fmt: skip
    assert json.loads(values.dumps(sig))["args"] == [1]
    assert (sig.task, sig.name, sig.args, sig.kwargs) == ("add", "add", (1,), {"y": 2})
    assert (sig.immutable, sig.id) == (False, None)
    assert sig.type is add
    assert repr(sig) == "add(1, y=2)"
    assert add.si(1).immutable
    assert add.signature((1,), countdown=5).options == {"countdown": 5}
    assert Signature("add", (1,), {"y": 2}, {"a": 1}, b=2).options == {"a": 1, "b": 2}


def test_merging(add: Any) -> None:
    """New arguments come first, keyword arguments and options override; an immutable one takes options only."""
    sig = add.s(2, y=3).set(queue="q", group_id="g", stamped_headers=["s"], s="old")
    copy_ = sig.clone((1,), {"y": 4}, queue="r", priority=None, group_id="other", s="new")
    assert (copy_.args, copy_.kwargs) == ((1, 2), {"y": 4})
    assert copy_.options == {"queue": "r", "group_id": "g", "stamped_headers": ["s"], "s": "old"}
    assert sig.args == (2,)
    fixed = add.si(2).clone((1,), {"y": 4}, queue="r")
    assert (fixed.args, fixed.kwargs, fixed.options) == ((2,), {}, {"queue": "r"})
    assert sig.replace(args=(9,)).args == (9,)


def test_calling(add: Any, broker: Broker) -> None:
    """Sent, run here, called as a function."""
    result = add.s(y=2).apply_async((1,), {"y": 5}, queue="q")
    message = broker.last("q")
    assert (message.id, message.args, message.kwargs) == (result.id, [1], {"y": 5})
    add.s(2).delay(1)
    assert broker.last().args == [1, 2]
    assert add.s(2)(1) == 3
    assert add.s(2).apply((1,)).get() == 3
    asyncio.run(add.s(3).adelay())
    assert broker.last().args == [3]


def test_a_task_that_is_not_known_here(app: Celeriac, broker: Broker) -> None:
    """Sent by its name."""
    sig = app.signature("far.away", (1,), queue="q")
    assert sig.app is app
    sig.apply_async(route_name="x")
    assert broker.last("q").task == "far.away"


def test_links(add: Any, broker: Broker) -> None:
    """One, several, chained calls, those of links."""
    sig, other = add.s(1), add.s(2)
    assert sig.link(other) is other
    sig.link(other)
    assert sig.on_error(add.s(3)) is sig
    assert sig.options["link"] == [other]
    other.link(add.s(4))
    assert [one.args for one in sig.flatten_links()] == [(1,), (2,), (4,)]
    sig.delay()
    message = broker.last()
    assert (message.callbacks or [])[0]["options"]["link"][0]["args"] == [4]
    assert (message.errbacks or [])[0]["args"] == [3]
    single: Signature[Any] = Signature("add", options={"link": dict(other)})
    single.link(add.s(9))
    assert len(single.options["link"]) == 2


def test_freezing(add: Any, broker: Broker) -> None:
    """The id is known before it is sent."""
    sig = add.s(1)
    result = sig.freeze()
    assert sig.id == result.id
    assert sig.freeze("other").id == result.id
    assert sig.delay().id == result.id
    assert broker.last().reply_to == sig.options["reply_to"]


def test_stamps(add: Any, broker: Broker) -> None:
    """On the signature and its links, by keyword or by a visitor; options of the call can't override them."""

    class Visitor(StampingVisitor):
        def on_signature(self, sig: Any, **headers: Any) -> dict[str, Any]:
            return {"visited": sig.task, "stamped_headers": ["visited"]}

    sig = add.s(1).set(link=add.s(2))
    sig.stamp(color="red")
    sig.stamp(Visitor())
    sig.stamp(color="blue", append_stamps=True)
    sig.apply_async(color="green")
    message = broker.last()
    assert message.stamps == {"color": ["blue", "red"], "visited": "add"}
    assert message.stamped_headers == ["color", "visited"]
    assert (message.callbacks or [])[0]["options"]["visited"] == "add"


def test_from_a_dict(app: Celeriac, add: Any) -> None:
    """`signature` and `maybe_signature` take what came over the wire."""
    sig = maybe_signature(FORM, app)
    assert sig.type is add
    assert maybe_signature(sig, app) is sig
    assert maybe_signature(sig, app, clone=True) is not sig
    assert maybe_signature(None) is None
    assert signature(sig) == sig
    assert signature(add, (1,)).task == "add"
    steps = signature({**FORM, "subtask_type": "chain", "kwargs": {"tasks": [FORM, FORM]}}, app=app)
    assert isinstance(steps, chain)
    assert [step.type for step in steps.tasks] == [add, add]
    assert signature({**FORM, "subtask_type": "of another package"}).task == "add"


def test_copies(add: Any) -> None:
    """Deep, shallow, pickled."""
    sig = add.s([1]).set(link=[add.s(2)])
    for other in (copy.deepcopy(sig), copy.copy(sig), pickle.loads(pickle.dumps(sig))):
        assert other == sig
        assert isinstance(other, Signature)
    deep = copy.deepcopy(sig)
    deep.args[0].append(2)
    assert sig.args == ([1],)


def test_only_a_member_adds_to_its_chord(add: Any) -> None:
    """Elsewhere it is an error that says so."""
    with pytest.raises(ValueError, match="not a member of a chord"):
        add.add_to_chord(add.s(1))


def test_what_a_run_adds_is_named_after_the_run(app: Celeriac, add: Any, broker: Broker) -> None:
    """The same run adds the same ids, in whatever shape, and its chord waits for each once; another run of the task
    adds others; an id that was given stays."""

    def run(retries: int = 0) -> list[str]:
        place = {"group": "g", "group_index": 3, "chord": {"task": "b"}, "root_id": "r"}
        add.push_request(id="me", retries=retries, **place)
        try:
            add.add_to_chord(add.s(1, 1))
            lazy = add.add_to_chord(add.s(1, 1) | group(add.s(2), add.s(3)), lazy=True)
            add.add_to_chord(add.s(4, 4).set(task_id=f"own {retries}"))
        finally:
            add.pop_request()
        ends = [step.options for step in lazy.tasks[-1].tasks]
        assert lazy.tasks[-1].options["chord"] == {"task": "b"}
        first, last = broker.messages()[-2:]
        assert (first.chord, first.group, first.group_index, first.root_id) == ({"task": "b"}, "g", 3, "r")
        return [first.id, *(options["task_id"] for options in ends), last.id]

    one = run()
    assert run() == one
    assert broker.server.chords.look("g").members == tuple(f"{task_id}:3" for task_id in one)
    other = run(retries=1)
    assert not {*one} & {*other}
    assert (one[-1], other[-1]) == ("own 0", "own 1")
    assert len(broker.server.chords.look("g").members) == 8


def test_types_of_ones_own(app: Celeriac) -> None:
    """A class can be named for a `subtask_type`."""

    @Signature.register_type()
    class special(Signature[Any]):
        @classmethod
        def from_dict(cls, form: Any, app: Any = None) -> Signature[Any]:
            return cls.adopt(form, app)

    try:
        assert isinstance(signature({**FORM, "subtask_type": "special"}), special)
    finally:
        del Signature.TYPES["special"]


def test_a_clone_has_links_of_its_own(add: Any) -> None:
    """Changing those of a copy changes nothing in the original."""
    sig = add.s(1).set(link=[add.s(2)], link_error=add.s(3))
    sig.clone().stamp(color="red")
    assert "color" not in sig.options["link"][0].options
    assert "color" not in sig.options["link_error"].options


def test_pickled_for_a_peer(add: Any, broker: Broker) -> None:
    """In a message of the pickle serializer links are dicts, which a peer without celeriac can read."""
    add.apply_async((1,), link=add.s(2) | add.s(3), serializer="pickle")
    body = base64.b64decode(json.loads(broker.blobs()[-1])["body"])
    assert b"celeriac" not in body
    (link,) = pickle.loads(body)[2]["callbacks"]
    assert type(link) is dict
    assert type(link["kwargs"]["tasks"][0]) is dict


def test_nonsense(app: Celeriac, add: Any) -> None:
    """A canvas is made of signatures."""
    with pytest.raises(TypeError, match="unsupported operand"):
        _ = add.s(1) | 3
    with pytest.raises(TypeError, match=r"write task\.s"):
        chain(add.s(1), 3)
    broken = chain([add.s(1), add.s(2)])
    broken.tasks[1] = 5
    with pytest.raises(InvalidTaskError, match="not a signature: int"):
        broken.delay()
