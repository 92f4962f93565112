"""Attributes of tasks that fall back to the app's settings."""

from __future__ import annotations

from typing import Any

from celeriac.app import registry


class FromSetting:
    """An attribute that is the app's setting until the task says otherwise. Looked up late: a setting that is changed
    later counts."""

    __slots__ = ("keys", "last", "umbrella")

    def __init__(self, *keys: str, umbrella: str = "", last: Any = None) -> None:
        """`umbrella`: an attribute of the task that stands for this one. `last` is the value when nothing is set."""
        self.keys = keys
        self.umbrella = umbrella
        self.last = last

    def __get__(self, task: Any, owner: type | None = None) -> Any:
        if task is None:
            return None
        if self.umbrella:
            own = held(task, self.umbrella)
            if own is not None:
                return own
        conf = task.app.conf
        for key in self.keys:
            value = conf[key]
            if value is not None:
                return value
        return self.last


def held(task: Any, name: str) -> Any:
    """What the task itself says, the setting not asked."""
    if name in task.__dict__:
        return task.__dict__[name]
    for cls in type(task).__mro__:
        if name in cls.__dict__:
            value = cls.__dict__[name]
            return None if isinstance(value, FromSetting) else value
    return None


class CurrentApp:
    """The app of a task class that none has taken yet."""

    def __get__(self, task: Any, owner: type | None = None) -> Any:
        return registry.current()
