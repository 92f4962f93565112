"""The request of a task."""

from __future__ import annotations

from typing import Any

import pytest

from celeriac.runtime.context import Context, Sent
from celeriac.wire.task import TaskMessage

FIELDS = """
    id args kwargs retries eta expires delivery_info group group_index chord chain callbacks errbacks root_id parent_id
    correlation_id reply_to origin hostname headers properties timelimit time_limit soft_time_limit is_eager
    called_directly ignore_result shadow stamped_headers stamps replaced_task_nesting utc loglevel logfile taskset
    children
"""


def message(**fields: Any) -> TaskMessage:
    return TaskMessage(id="i", task="t", **fields)


def test_every_field_of_celerys_request_is_there() -> None:
    """With a message and without one."""
    for context in (Context(), Sent(message(), None, "w"), Context(message())):
        for name in FIELDS.split():
            getattr(context, name)


def test_defaults_without_a_message() -> None:
    """A request that nobody sent was called directly."""
    context = Context()
    assert context.called_directly
    assert (context.id, context.retries, context.args, context.kwargs, context.children) == (None, 0, None, None, [])
    assert context.ignore_result is False


def test_fields_of_a_message() -> None:
    """They are read from it when asked."""
    context = Sent(
        message(retries=2, timelimit=(5, 3), exchange="e", routing_key="r", priority=4, redelivered=True), None, "w@h"
    )
    assert (context.id, context.task, context.retries, context.hostname) == ("i", "t", 2, "w@h")
    assert not context.called_directly
    assert (context.time_limit, context.soft_time_limit) == (5, 3)
    assert context.delivery_info == {"exchange": "e", "routing_key": "r", "priority": 4, "redelivered": True}
    assert context.delivery_info is context.delivery_info


def test_any_field_can_be_set() -> None:
    """What is set wins over the message; the message stays."""
    source = message(retries=2)
    context = Sent(source, None, "w")
    context.retries = 7
    setattr(context, "mine", "x")  # noqa: B010
    context.update(id="j", timelimit=(1, 2))
    assert (context.retries, context.mine, context.id, context.time_limit) == (7, "x", "j", 1)
    assert (source.retries, source.id) == (2, "i")
    context.clear()
    assert (context.retries, context.id) == (0, None)


def test_headers_and_unknown_parts_are_fields_too() -> None:
    """As in Celery, custom headers and unknown embedded fields can be read from the request itself."""
    context = Sent(message(headers={"tenant": "a"}, embed_extra={"odd": 1}), None, "w")
    assert (context.tenant, context.odd, context.get("tenant"), context.get("none", 3)) == ("a", 1, "a", 3)
    with pytest.raises(AttributeError, match="nothing"):
        _ = context.nothing


def test_made_of_a_mapping() -> None:
    """Celery's way: `Context({...}, key=value)`."""
    context = Context({"id": "a", "retries": 1}, kwargs={"x": 1}, children=["c"])
    assert (context.id, context.retries, context.kwargs, context.children) == ("a", 1, {"x": 1}, ["c"])
    assert context.get("retries") == 1


@pytest.mark.parametrize(("given", "task", "expected"), [(None, True, True), (False, True, False), (True, False, True)])
def test_ignore_result(given: bool | None, task: bool, expected: bool) -> None:
    """The message's word counts more than the task's."""

    class Task:
        ignore_result = task

    assert Sent(message(ignore_result=given), Task(), "w").ignore_result is expected


def test_options_that_send_it_again() -> None:
    """as_execution_options names everything that belongs to the message; RabbitMQ's x-death stays behind."""
    source = message(
        callbacks=["c"], errbacks=["e"], chain=["n"], group="g", group_index=1, root_id="r", parent_id="p",
        timelimit=(5, 3), headers={"a": 1, "x-death": []}, stamps={"k": 1}, stamped_headers=["k"], shadow="s",
    )  # fmt: skip
    options = Sent(source, None, "w").as_execution_options()
    assert options == {
        "task_id": "i", "root_id": "r", "parent_id": "p", "group_id": "g", "group_index": 1, "shadow": "s",
        "chord": None, "chain": ["n"], "link": ["c"], "link_error": ["e"], "expires": None, "soft_time_limit": 3,
        "time_limit": 5, "headers": {"a": 1}, "retries": 0, "reply_to": "", "replaced_task_nesting": 0, "origin": "",
        "stamped_headers": ["k"], "k": 1,
    }  # fmt: skip
