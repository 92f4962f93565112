"""What goes out when a canvas is sent, and the handle that comes back."""

from __future__ import annotations

import asyncio
import json
from time import perf_counter
from typing import Any

import pytest

from celeriac import telemetry
from celeriac.app import publish
from celeriac.app.app import Celeriac
from celeriac.app.canvas import chain, chord, group, signature
from celeriac.app.handle import AsyncResult
from celeriac.app.result_set import GroupResult
from celeriac.app.task import Task
from celeriac.model.message import Chord
from celeriac.runtime.context import Context, current
from celeriac.wire import values
from tests.app.conftest import Broker


def test_a_chain(t: Any, broker: Broker) -> None:
    """The first step is sent, the others are in its message, the next one last. The result is that of the last."""
    result = (t.add.s(1) | t.add.s(2) | t.mul.s(3)).delay(0)
    (message,) = broker.messages()
    assert (message.task, message.args) == ("proj.add", [0, 1])
    assert [step["task"] for step in message.chain or []] == ["proj.mul", "proj.add"]
    assert result.as_list() == [
        (message.chain or [])[0]["options"]["task_id"], (message.chain or [])[1]["options"]["task_id"], message.id,
    ]  # fmt: skip
    assert all(step["options"]["reply_to"] == message.reply_to for step in message.chain or [])
    broker.finish(message.id, 1)
    broker.finish(result.id, 7)
    assert result.get(timeout=1) == 7
    assert chain().delay() is None
    assert chain()() is None


def test_other_words_for_sending(t: Any, app: Celeriac, broker: Broker) -> None:
    """`run` of a chord takes another header and body, `election` is a call."""
    chord_of_none = chord([], None, queue="q")
    result = chord_of_none.run(
        group([t.add.s(1), t.add.s(2)]), t.xsum.s(), (5,), app, task_id="body", header_delay={"countdown": 60},
        countdown=1, interval=2, max_retries=3,
    )  # fmt: skip
    members = [message for _, message in broker.scheduled("q")]
    assert sorted(message.args for message in members) == [[5, 1], [5, 2]]
    assert {message.chord["options"]["task_id"] for message in members} == {"body"} == {result.id}
    assert {member.id for member in result.parent} == {message.id for message in members}
    assert (chord_of_none.tasks, chord_of_none.body) == ([], None)
    assert chain(t.add.s(1), t.mul.s(2)).run((3,), app=app).parent.id == broker.last().id
    assert chain().run() is None
    assert t.add.s(1, 2).set(task_id="one").election().id == broker.last().id == "one"


def test_a_group(t: Any, broker: Broker) -> None:
    """All members at once; the result is theirs together."""
    result = group([t.add.s(1), group([t.add.s(2)]), t.mul.s(3)])(9)
    messages = broker.messages()
    assert isinstance(result, GroupResult)
    assert [(m.task, m.args, m.group, m.group_index) for m in messages] == [
        ("proj.add", [9, 1], result.id, 0), ("proj.add", [9, 2], result.id, 1), ("proj.mul", [9, 3], result.id, 2),
    ]  # fmt: skip
    assert [member.id for member in result] == [m.id for m in messages] == [m.root_id for m in messages]
    for number, message in enumerate(messages):
        broker.finish(message.id, number)
    assert result.get(timeout=1) == [0, 1, 2]
    empty = group([]).delay()
    assert isinstance(empty, GroupResult)
    assert empty.get(timeout=1) == []
    assert len(broker.messages()) == 3


def test_a_chord(t: Any, broker: Broker, opened: list[Chord]) -> None:
    """It is opened in the result store; its members carry the body. Only the header waits for a countdown."""
    result = chord([t.add.s(1), t.add.s(2)], t.xsum.s()).apply_async(countdown=60)
    messages = [message for _, message in broker.scheduled()]
    (found,) = opened
    assert (found.group, found.size) == (messages[0].group, 2)
    assert sorted(found.members) == sorted(f"{m.id}:{m.group_index}" for m in messages)
    body = json.loads(found.body)
    assert body["options"]["task_id"] == result.id
    assert "countdown" not in body["options"]
    assert {json.dumps(m.chord, sort_keys=True) for m in messages} == {json.dumps(body, sort_keys=True)}
    assert isinstance(result, AsyncResult)
    assert isinstance(result.parent, GroupResult)
    assert (result.parent.id, found.expires, found.structure) == (found.group, 86400, b"")


def test_a_chord_whose_members_are_groups(t: Any, app: Celeriac, opened: list[Chord]) -> None:
    """The store learns how their results hang together."""
    result: Any = chord([t.add.s(1) | group([t.add.s(2), t.add.s(3)]), t.add.s(4)], t.xsum.s()).delay()
    (found,) = opened
    assert found.size == 3
    assert app.backend.read_group(found.structure) == json.loads(values.dumps(result.parent.as_tuple()))


def test_bodies_of_chords(t: Any, broker: Broker, opened: list[Chord]) -> None:
    """By name, by call; none is an error; an empty header sends it at once."""
    chord([t.add.s(1)])(t.xsum.s())
    assert broker.last().chord["task"] == "proj.xsum"
    chord([t.add.s(1)], t.mul.s()).apply_async(kwargs={"body": t.xsum.s(), "y": 2})
    assert (broker.last().chord["task"], broker.last().kwargs) == ("proj.xsum", {"y": 2})
    with pytest.raises(ValueError, match="has no body"):
        chord([t.add.s(1)]).delay()
    result = chord([], t.xsum.s()).delay()
    assert (broker.last().id, broker.last().args) == (result.id, [[]])
    assert len(opened) == 2


def test_chords_need_a_result_store(broker: Broker) -> None:
    """Those that are sent now, and those that would follow."""
    with Celeriac("without", broker=broker.url, backend="disabled://", set_as_current=False) as app:
        add = app.task(name="add")(lambda *args: args)
        members = group([add.s(1), add.s(2)])
        for shape in (chord([add.s(1)], add.s()), add.s(1) | members | add.s()):
            with pytest.raises(NotImplementedError, match="a chord needs a result backend"):
                shape.delay()
        assert broker.messages() == []
        members.delay()
        assert len(broker.messages()) == 2


def test_ids_that_were_given(t: Any, broker: Broker, opened: list[Chord]) -> None:
    """What is frozen keeps its ids; `task_id` is that of the result."""
    whole = t.add.s(1) | group([t.add.s(2), t.add.s(3)]) | t.xsum.s()
    promised = whole.freeze()
    assert whole.delay().as_list() == promised.as_list()
    whole.delay()
    assert [m.id for m in broker.messages()] == [promised.as_list()[-1]] * 2
    assert (t.add.s(1) | t.add.s(2)).apply_async(task_id="last").id == "last"
    assert chord([t.add.s(1)], t.xsum.s()).apply_async(task_id="body").id == "body"
    assert group([t.add.s(1)]).apply_async(task_id="group").id == "group"


def test_inside_a_task(app: Celeriac, t: Any, broker: Broker, opened: list[Chord]) -> None:
    """Root and parent are those of the run; what it has sent itself is its child."""
    request = Context(id="p", root_id="r", called_directly=False, instance=t.add)
    token = current.set(request)
    try:
        line = (t.add.s(1) | t.add.s(2)).delay()
        members = group([t.add.s(1), t.add.s(2)]).delay()
        whole = chord([t.add.s(1), t.add.s(2)], t.xsum.s()).delay()
        group([t.add.s(1)]).apply_async(add_to_parent=False)
    finally:
        current.reset(token)
    assert {(m.root_id, m.parent_id) for m in broker.messages()} == {("r", "p")}
    assert request.children == [line.parent, members, whole.parent]
    assert request.children[0].as_tuple() == ((line.parent.id, None), None)


def test_what_a_task_says_counts(app: Celeriac, broker: Broker) -> None:
    """Its options, its links, its own way to be sent, arguments that it does not take."""

    class Loud(Task[..., Any]):
        def apply_async(self, args: Any = None, kwargs: Any = None, *more: Any, **options: Any) -> Any:
            return super().apply_async(args, {**(kwargs or {}), "loud": True}, *more, **options)

    loud: Any = app.task(name="loud", base=Loud)(lambda *args, **kwargs: args)
    quiet: Any = app.task(name="quiet", queue="q", ignore_result=True, link=loud.s())(lambda x: x)
    result = group([loud.s(1), quiet.s(2)]).delay()
    (message,) = broker.messages()
    assert (message.id, message.kwargs) == (result[0].id, {"loud": True})
    (message,) = broker.messages("q")
    assert (message.callbacks or [])[0]["task"] == "loud"
    assert result[1].get() is None
    with pytest.raises(TypeError):
        group([quiet.s(1, 2)]).delay()
    chain(signature("far.away", app=app), loud.s()).delay()
    assert broker.last().task == "far.away"


def test_everything_is_published_at_once(app: Celeriac, t: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where members take different ways; and signals are told of each."""
    counts, told = [], []
    monkeypatch.setattr(publish, "publish", lambda sender, envelopes, *_: counts.append(len(envelopes)))
    members = [t.add.s(1), t.mul.s(2).set(queue="q"), t.add.s(3).set(link=t.mul.s()), t.add.s(4) | t.add.s(5)]
    group(members).delay()
    assert counts == [4]

    def hear(sender: Any = None, **_: Any) -> None:
        told.append(sender)

    telemetry.after_task_publish.connect(hear)
    try:
        group(members).delay()
    finally:
        telemetry.after_task_publish.disconnect(hear)
    assert counts == [4, 4]
    assert told == ["proj.add", "proj.mul", "proj.add", "proj.add"]


def test_the_direct_path_says_the_same(app: Celeriac, t: Any, broker: Broker, opened: list[Chord]) -> None:
    """A member whose message is made by a template is the same to the byte, but for its ids."""

    def listen(**_: Any) -> None:
        pass

    shapes = [group([t.add.s(1), t.mul.s(2, y="\u00fc")]), chord([t.add.s(1), t.add.s(2)], t.xsum.s())]
    for shape in shapes:
        shape.freeze("frozen")
        shape.delay()
        telemetry.after_task_publish.connect(listen)  # who listens makes it take the long way
        try:
            shape.delay()
        finally:
            telemetry.after_task_publish.disconnect(listen)
    found = [json.loads(blob) for blob in broker.blobs()]
    for envelope in found:
        envelope["properties"]["delivery_tag"] = "-"
        envelope["properties"]["reply_to"] = "-"
    assert found[0:2] == found[2:4]
    assert found[4:6] == found[6:8]
    assert list(found[0]["headers"]) == list(found[2]["headers"])


def test_protocol_1(app: Celeriac, t: Any, broker: Broker) -> None:
    """There steps are links of each other."""
    app.conf.task_protocol = 1
    result = (t.add.s(1) | t.add.s(2) | t.mul.s(3)).delay()
    (message,) = broker.messages()
    (link,) = message.callbacks or []
    (last,) = link["options"]["link"]
    assert (message.task, link["task"], last["task"]) == ("proj.add", "proj.add", "proj.mul")
    assert result.as_list() == [last["options"]["task_id"], link["options"]["task_id"], message.id]


def test_maps(app: Celeriac, t: Any, broker: Broker) -> None:
    """They go where the task itself would go."""
    app.conf.task_routes = {"proj.mul": {"queue": "m"}}
    t.mul.map([1]).delay()
    t.mul.starmap([(1,)]).apply_async()
    result = t.mul.chunks([(1,), (2,)], 1)()
    assert [m.task for m in broker.messages("m")] == ["celery.map", *["celery.starmap"] * 3]
    assert isinstance(result, GroupResult)
    assert len(result) == 2


async def _send_all(t: Any) -> list[Any]:
    return [
        await (t.add.s(1) | t.add.s(2)).adelay(0),
        await group([t.add.s(1), t.add.s(2)]).aapply_async((0,)),
        await chord([t.add.s(1)], t.xsum.s()).adelay(),
        await t.add.chunks([(1,), (2,)], 1).aapply_async(),
        await t.add.map([1]).aapply_async(),
    ]


def test_from_a_coroutine(t: Any, broker: Broker, opened: list[Chord]) -> None:
    """Every shape has its twins."""
    line, members, whole, pieces, one = asyncio.run(_send_all(t))
    assert len(broker.messages()) == 1 + 2 + 1 + 2 + 1
    assert len(opened) == 1
    assert (len(line.as_list()), len(members), len(pieces)) == (2, 2, 2)
    assert isinstance(whole.parent, GroupResult)
    assert one.id == broker.last().id
    with pytest.raises(TypeError, match="no result of its own"):
        asyncio.run(group([t.add.s(1)]).aapply_async(link=t.mul.s()))


def test_large_ones(t: Any, broker: Broker, opened: list[Chord]) -> None:
    """1,000 steps, 10,000 members, 20 levels: no recursion, and linear time."""
    began = perf_counter()
    line = chain(t.add.s(i) for i in range(1000)).delay()
    assert len(line.as_list()) == 1000
    assert len(broker.last().chain or []) == 999
    members = group([t.add.s(i) for i in range(10_000)]).delay()
    assert len(members) == 10_000
    assert perf_counter() - began < 5
    deep: Any = t.add.s(1)
    for level in range(20):
        deep = group([deep, t.add.s(level)]) | t.xsum.s() if level % 2 else t.add.s(level) | group([deep, t.add.s(1)])
    deep.delay()
    assert opened
