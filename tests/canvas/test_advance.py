"""What follows from an outcome: the laws of planning."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from celeriac.canvas import advance, tree
from celeriac.errors import InvalidTaskError
from celeriac.wire.task import TaskMessage

NOW = 1_800_000_000.0


def name(edge: str, index: int) -> str:
    return f"<{edge}|{index}>"


def sig(
    task: str = "t", *args: Any, kind: str | None = None, immutable: bool = False, **options: Any
) -> dict[str, Any]:
    return {
        "task": task, "args": list(args), "kwargs": {}, "options": options, "subtask_type": kind,
        "immutable": immutable,
    }  # fmt: skip


def chain(*tasks: Any, **options: Any) -> dict[str, Any]:
    return {**sig("celery.chain", kind="chain", **options), "kwargs": {"tasks": list(tasks)}}


def group(*tasks: Any, **options: Any) -> dict[str, Any]:
    return {**sig("celery.group", kind="group", **options), "kwargs": {"tasks": list(tasks)}}


def message(**fields: Any) -> TaskMessage:
    return TaskMessage(id="me", task="t", **fields)


def after(result: Any = 5, priority: int | None = None, **fields: Any) -> advance.Follow:
    return advance.after_success(message(**fields), result, now=NOW, name=name, priority=priority)


def test_nothing_follows_from_a_plain_task() -> None:
    """No links, no chain: no steps, no children."""
    follow = after()
    assert (follow.steps, follow.children) == ([], [])


def test_a_step_is_a_whole_message() -> None:
    """Fields fit TaskMessage; sending options stay apart."""
    (step,) = after(
        callbacks=[
            sig(
                "u",
                1,
                task_id="x",
                queue="q",
                serializer="pickle",
                priority=4,
                reply_to="rt",
                countdown=10,
                expires=60,
                link=sig("l"),
                link_error=[sig("e")],
                group_id="g",
                group_index=3,
                headers={"h": 1},
                time_limit=9,
                soft_time_limit=8,
                shadow="s",
                ignore_result=True,
                stamped_headers=["k"],
                k="v",
                retry=True,
                MessageGroupId="m",
            )
        ]
    ).steps
    made = TaskMessage(**step.fields)
    assert (made.task, made.id, made.args, made.root_id, made.parent_id) == ("u", "x", [5, 1], "me", "me")
    assert step.options == {"queue": "q", "serializer": "pickle", "priority": 4}
    assert made.eta == datetime.fromtimestamp(NOW + 10, UTC).isoformat()
    assert made.expires == datetime.fromtimestamp(NOW + 60, UTC).isoformat()
    assert (made.callbacks, made.errbacks) == ([sig("l")], [sig("e")])
    assert (made.group, made.group_index, made.headers, made.timelimit) == ("g", 3, {"h": 1}, (9, 8))
    assert (made.shadow, made.ignore_result, made.reply_to) == ("s", True, "rt")
    assert (made.stamps, made.stamped_headers, made.properties) == ({"k": "v"}, ["k"], {"MessageGroupId": "m"})


def test_immutable_signatures_keep_their_arguments() -> None:
    """The value is not given to them."""
    assert after(callbacks=[sig("u", 1, immutable=True)]).steps[0].fields["args"] == [1]


def test_the_chain_goes_on() -> None:
    """The last element is next; the rest travels with it, in the same order."""
    steps = [sig("c", task_id="c"), sig("b", task_id="b")]
    (step,) = after(chain=steps).steps
    assert (step.fields["id"], step.fields["chain"], step.edge) == ("b", [steps[0]], "chain")
    (last,) = after(chain=steps[:1]).steps
    assert "chain" not in last.fields


def test_a_chain_as_a_link_is_unfolded() -> None:
    """Its first task is sent, the others travel reversed; options of the chain belong to its last task."""
    (step,) = after(callbacks=[chain(sig("a"), sig("b"), sig("c"), link=[sig("l")])]).steps
    assert (step.fields["task"], step.fields["args"]) == ("a", [5])
    assert [s["task"] for s in step.fields["chain"]] == ["c", "b"]
    assert step.fields["chain"][0]["options"]["link"] == [sig("l")]


def test_a_group_at_the_end_of_a_chain() -> None:
    """Every member is sent with the value, the group's id and its index; of a chain the last step is the member."""
    members = sig("a", task_id="1"), sig("b", task_id="2"), chain(sig("c", task_id="3"), sig("d"))
    follow = after(chain=[group(*members, task_id="G")])
    fields = [s.fields for s in follow.steps]
    assert [(f["task"], f["args"], f.get("group"), f.get("group_index")) for f in fields] == [
        ("a", [5], "G", 0), ("b", [5], "G", 1), ("c", [5], None, None),
    ]  # fmt: skip
    last = fields[2]["chain"][0]["options"]
    assert last == {"group_id": "G", "group_index": 2, "task_id": "<chain|0>"}
    result = [[last["task_id"], [["3", None], None]], None]
    assert follow.children == [[["G", None], [[["1", None], None], [["2", None], None], result]]]


@pytest.mark.parametrize(
    "signature",
    [
        sig("x", kind="chord"),
        sig("x", kind="chunks"),
        {**sig("x", kind="chord"), "kwargs": {"header": [sig("a")]}},
        {**sig("x", kind="chord"), "kwargs": {"header": 3, "body": sig("a")}},
        {**sig("x", kind="chunks"), "kwargs": {"task": sig("a"), "it": [1], "n": 0}},
        chain(sig("a"), group(3, 4), sig("b")),
        sig("x", stamped_headers=3),
        {**sig(), "task": 3},
        {**sig(), "args": "text"},
        {**sig(), "kwargs": []},
        {**sig(), "options": 7},
        sig("x", eta="never"),
        sig("x", countdown=float("inf")),
        sig("x", expires="soon"),
        sig("x", chain="text"),
        None,
        "text",
        {"kwargs": {"tasks": 5}, "task": "g", "subtask_type": "group"},
    ],
)
def test_what_cannot_be_planned_is_refused(signature: Any) -> None:
    """With InvalidTaskError and nothing else."""
    with pytest.raises(InvalidTaskError):
        after(callbacks=[signature])


def test_a_group_before_a_step_is_a_chord() -> None:
    """Its members carry the step as their chord; the chord is opened with them."""
    follow = after(chain=[sig("after", task_id="x"), group(sig("a"), sig("b"))])
    (opened,) = follow.chords
    assert (opened.size, opened.members, opened.structure) == (2, ["<chain|1>:0", "<chain|2>:1"], None)
    assert [(s.fields["task"], s.fields["group"], s.fields["group_index"]) for s in follow.steps] == [
        ("a", opened.group, 0), ("b", opened.group, 1),
    ]  # fmt: skip
    for step in follow.steps:
        assert step.fields["chord"] == opened.body == sig("after", task_id="x", group_id=opened.group)
    assert follow.children == [
        [["x", [[opened.group, None], [[["<chain|1>", None], None], [["<chain|2>", None], None]]]], None]
    ]


def test_nothing_follows_from_empty_shapes() -> None:
    """No message, but a result: a group without members."""
    follow = after(callbacks=[chain(), group(), chain(group())])
    assert not follow.steps
    assert [child[1] for child in follow.children] == [[], [], []]


def test_priority_is_inherited_where_none_is_given() -> None:
    """Only then."""
    follow = after(priority=7, callbacks=[sig("a"), sig("b", priority=2)])
    assert [s.options["priority"] for s in follow.steps] == [7, 2]
    assert [s.fields["priority"] for s in follow.steps] == [7, 2]


def test_error_links_get_the_id() -> None:
    """Prepended, unless immutable."""
    failed = message(root_id="r")
    (step,) = advance.error_link(failed, sig("e", 1), 2, now=NOW, name=name).steps
    assert (step.fields["args"], step.fields["parent_id"], step.fields["root_id"]) == (["me", 1], "me", "r")
    assert step.fields["id"] == "<errback.2|0>"
    (step,) = advance.error_link(failed, sig("e", 1, immutable=True), 0, now=NOW, name=name).steps
    assert step.fields["args"] == [1]


def test_everything_that_will_not_run_is_found() -> None:
    """In any shape, and what is no signature is passed over."""
    member = sig("h", task_id="h", group_id="G", group_index=0)
    chord = {**sig("celery.chord", kind="chord"), "kwargs": {"header": [member], "body": sig("e", task_id="e")}}
    steps = [sig("b", task_id="b"), "odd", sig("c"), chord, group(sig("d", task_id="d"), chord=sig("z"), group_id="O")]
    found = advance.fails_with(steps)
    assert [(task.get("task_id"), task.get("group_id"), "chord" in task) for task in found] == [
        ("b", None, False), (None, None, False), ("h", "G", False), ("e", None, False), ("d", "O", True),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("options", "stays"),
    [
        ({}, True), ({"queue": "q"}, True), ({"queue": "other"}, False), ({"exchange": "e", "routing_key": "q"}, False),
    ],
)  # fmt: skip
def test_where_a_retry_goes(options: dict[str, Any], stays: bool) -> None:
    """Back to its queue unless told otherwise."""
    old = message(routing_key="q", priority=3)
    step, due = advance.retry(old, {"task": "t", "options": options}, now=NOW)
    assert advance.stays(old, step) is stays
    assert due is None
    assert step.options["priority"] == 3
    assert step.fields["retries"] == 1


def test_a_retry_on_an_exchange_of_its_own() -> None:
    """It keeps exchange and routing key."""
    old = message(exchange="e", routing_key="k")
    step, _ = advance.retry(old, None, now=NOW)
    assert (step.options["exchange"], step.options["routing_key"]) == ("e", "k")
    assert advance.stays(old, step)


@pytest.mark.parametrize(
    ("options", "due"),
    [
        ({"countdown": 5}, NOW + 5),
        ({"eta": datetime.fromtimestamp(NOW + 9, UTC)}, NOW + 9),
        ({"eta": datetime.fromtimestamp(NOW + 9, UTC).replace(tzinfo=None)}, NOW + 9),
        ({"eta": datetime.fromtimestamp(NOW + 9, UTC).isoformat(), "countdown": 1}, NOW + 9),
        ({"countdown": 0}, None),
        ({}, None),
    ],
)
def test_when_a_retry_is_due(options: dict[str, Any], due: float | None) -> None:
    """By countdown or eta; a naive eta is UTC."""
    step, found = advance.retry(message(eta="2020-01-01T00:00:00"), {"options": options}, now=NOW)
    assert found == due
    assert (step.fields["eta"] is None) == (due is None)


def test_a_retry_is_not_its_own_parent() -> None:
    """Whoever walks up the parents must come to an end."""
    step, _ = advance.retry(message(parent_id="p"), {"options": {"parent_id": "me", "task_id": "other"}}, now=NOW)
    assert "parent_id" not in step.fields
    assert "id" not in step.fields


signatures = st.recursive(
    st.builds(
        lambda task, args, immutable, options: {
            "task": task, "args": args, "kwargs": {}, "options": options, "immutable": immutable, "subtask_type": None,
        },
        st.text(min_size=1, max_size=5),
        st.lists(st.integers(), max_size=2),
        st.booleans(),
        st.dictionaries(
            st.sampled_from(
                ["task_id", "queue", "countdown", "priority", "x", "link", "expires", "stamped_headers", "chain"]
            ),
            st.none() | st.integers(-5, 5) | st.text(max_size=4) | st.lists(st.integers(), max_size=2),
            max_size=4,
        ),
    ),
    lambda inner: st.lists(inner, max_size=3).flatmap(lambda tasks: st.sampled_from([chain(*tasks), group(*tasks)])),
    max_leaves=6,
)  # fmt: skip


@given(callbacks=st.lists(signatures, max_size=3), steps=st.lists(signatures, max_size=3))
def test_planning_is_total_and_repeatable(callbacks: list[Any], steps: list[Any]) -> None:
    """Whatever the wire brings: a plan or InvalidTaskError; the same message gives the same plan, each step with an id
    and a place of its own; and the message stays as it was."""
    source = message(callbacks=callbacks, chain=steps)
    before = repr(source)
    try:
        first = advance.after_success(source, 1, now=NOW, name=name)
    except InvalidTaskError:
        return
    assert advance.after_success(source, 1, now=NOW, name=name) == first
    assert repr(source) == before
    places = [(s.edge, s.index) for s in first.steps]
    assert len(set(places)) == len(places)
    for step in first.steps:
        TaskMessage(**step.fields)


def test_the_first_task_of_a_body_is_told_of_its_chord() -> None:
    """Where the body is a chain that a task begins; a chain that a chord begins is told as a whole. As in Celery."""
    first, last = sig("first", link_error=[sig("told")]), sig("last")
    first["options"]["task_id"], last["options"]["task_id"] = "1", "2"
    assert advance.first_errors(tree.chain([first, last], task_id="2")) == [("1", [sig("told")])]
    head = tree.group([sig("a")], task_id="g")
    begins = tree.chain([tree.chord(head, first, task_id="1"), last], task_id="2")
    assert advance.first_errors(begins) == [("2", [sig("told")])]
