"""`task_annotations`: attributes of tasks that a configuration changes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from celeriac.errors import ImproperlyConfigured

ANY = "*"
WRAP = "@"
"""In front of an attribute's name: the value is given the method and returns what takes its place."""


def prepare(setting: Any, resolve: Callable[[str], Any] | None = None) -> tuple[Any, ...]:
    """The annotations that a setting holds: a dict, an object with `annotate(task)`, a list of these, or a name that
    `resolve` looks up (a class is made an object of). Raises ImproperlyConfigured."""
    if setting is None:
        return ()
    return tuple(_one(value, resolve) for value in (setting if isinstance(setting, list | tuple) else (setting,)))


def attributes(annotations: tuple[Any, ...], task: Any) -> Iterator[tuple[str, Any]]:
    """Names and values to set at a task, in order: of the first annotation that knows the task, then of the first
    that has something for any task. So `*` wins over a name, as in Celery."""
    for found in (_first(annotations, task), _first_any(annotations)):
        if found:
            yield from found.items()


def apply(
    annotations: tuple[Any, ...],
    task: Any,
    set_attribute: Callable[[str, Any], None],
    wrap_method: Callable[[str, Callable[[Any], Any]], None],
) -> None:
    """Hand each attribute to `set_attribute`, and each `@method` to `wrap_method` (with its name and the wrapper)."""
    for name, value in attributes(annotations, task):
        if name.startswith(WRAP):
            wrap_method(name[1:], value)
        else:
            set_attribute(name, value)


def _one(value: Any, resolve: Callable[[str], Any] | None) -> Any:
    if isinstance(value, str):
        if resolve is None:
            raise ImproperlyConfigured(f"the annotation {value!r} is the name of one, and nothing here can look it up")
        value = resolve(value)
    if isinstance(value, type):
        value = value()
    if isinstance(value, Mapping) or hasattr(value, "annotate") or hasattr(value, "annotate_any"):
        return value
    raise ImproperlyConfigured(f"{value!r} in task_annotations is neither a dict nor an object with annotate()")


def _first(annotations: tuple[Any, ...], task: Any) -> Mapping[str, Any] | None:
    for annotation in annotations:
        if isinstance(annotation, Mapping):
            found = annotation.get(task.name)
        else:
            annotate = getattr(annotation, "annotate", None)
            found = annotate(task) if annotate is not None else None
        if found:
            return dict(found)
    return None


def _first_any(annotations: tuple[Any, ...]) -> Mapping[str, Any] | None:
    for annotation in annotations:
        if isinstance(annotation, Mapping):
            found = annotation.get(ANY)
        else:
            annotate_any = getattr(annotation, "annotate_any", None)
            found = annotate_any() if annotate_any is not None else None
        if found:
            return dict(found)
    return None
