"""task_annotations: which attributes a task gets, in which order."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from celeriac.errors import ImproperlyConfigured
from celeriac.model.annotations import apply, attributes, prepare

TASK = SimpleNamespace(name="tasks.add")


class Both:
    def annotate(self, task: Any) -> dict[str, Any]:
        return {"rate_limit": task.name}

    def annotate_any(self) -> dict[str, Any]:
        return {"foo": "any"}


class OnlyTask:
    def annotate(self, task: Any) -> dict[str, Any] | None:
        return {"foo": 1} if task.name == "other" else None


def found(setting: Any, resolve: Any = None) -> dict[str, Any]:
    return dict(attributes(prepare(setting, resolve), TASK))


@pytest.mark.parametrize(
    ("setting", "expected"),
    [
        (None, {}),
        ({}, {}),
        ({"tasks.add": {"rate_limit": "1/s"}}, {"rate_limit": "1/s"}),
        ({"tasks.*": {"rate_limit": "1/s"}}, {}),
        ({"*": {"a": 2, "b": 9}, "tasks.add": {"a": 1, "c": 3}}, {"a": 2, "b": 9, "c": 3}),
        ([{"tasks.add": {"a": 1}}, {"tasks.add": {"a": 2, "b": 3}}], {"a": 1}),
        ([{"*": {"a": 1}}, {"*": {"a": 2, "b": 4}}], {"a": 1}),
        (Both(), {"rate_limit": "tasks.add", "foo": "any"}),
        ([OnlyTask(), Both()], {"rate_limit": "tasks.add", "foo": "any"}),
        (Both, {"rate_limit": "tasks.add", "foo": "any"}),
    ],
)
def test_forms(setting: Any, expected: dict[str, Any]) -> None:
    """Dicts, objects, classes and lists of these; the first that knows the task, then the first for any."""
    assert found(setting) == expected


@pytest.mark.parametrize("target", [Both, Both(), {"tasks.add": {"a": 1}}])
def test_names(target: Any) -> None:
    """A text names a class, an object or a dict."""
    assert found("proj.annotations", lambda text: target) == found(target)
    assert found(["proj.annotations"], lambda text: target) == found(target)


@pytest.mark.parametrize("setting", [5, ["proj.annotations"], "proj.annotations"])
def test_what_is_none_is_refused(setting: Any) -> None:
    """A wrong value of task_annotations is told."""
    with pytest.raises(ImproperlyConfigured):
        prepare(setting)


def test_at_wraps_a_method() -> None:
    """`@run` hands the wrapper on; other names are set."""
    done: list[Any] = []
    apply(
        prepare({"*": {"@run": len, "rate_limit": "1/s"}}),
        TASK,
        lambda name, value: done.append(("set", name, value)),
        lambda name, wrapper: done.append(("wrap", name, wrapper)),
    )
    assert done == [("wrap", "run", len), ("set", "rate_limit", "1/s")]
