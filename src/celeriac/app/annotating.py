"""`task_annotations`: what the configuration changes at tasks, taken over once for each."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from celeriac.app.config import symbol
from celeriac.model import annotations as rules


def annotate(app: Any, task: Any) -> None:
    """Set the attributes and wrap the methods of a task that `task_annotations` says."""
    if task.__dict__.get("_annotated"):
        return
    task.__dict__["_annotated"] = True
    prepared = app.per_settings("annotations", lambda: rules.prepare(app.conf["task_annotations"], symbol))

    def set_attribute(name: str, value: Any) -> None:
        # At the class, so that a function becomes a method: it is the class of this task alone.
        task.__dict__.pop(name, None)
        setattr(type(task), name, value)
        task.forget_plans()

    def wrap(name: str, around: Callable[[Any], Any]) -> None:
        if name == "__call__":  # Python looks for it at the class
            set_attribute(name, staticmethod(around(task.__call__)))
        else:
            task.add_around(name, around)

    rules.apply(prepared, task, set_attribute, wrap)
