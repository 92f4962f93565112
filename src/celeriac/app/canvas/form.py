"""The dict that a signature is, on the wire and here: its fields by name, and how a call adds to them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

_KEPT = frozenset({"group_id", "stamped_headers"})
"""Options of a signature that a later call can't override."""


class Form(dict[str, Any]):
    """`{task, args, kwargs, options, subtask_type, immutable}`."""

    @property
    def task(self) -> str:
        """The task's name."""
        name: str = self["task"]
        return name

    @task.setter
    def task(self, name: str) -> None:
        self["task"] = name

    name = task

    @property
    def args(self) -> Any:
        """The arguments."""
        return self.setdefault("args", ())

    @args.setter
    def args(self, args: Any) -> None:
        self["args"] = args

    @property
    def kwargs(self) -> dict[str, Any]:
        """The keyword arguments."""
        kwargs: dict[str, Any] = self.setdefault("kwargs", {})
        return kwargs

    @kwargs.setter
    def kwargs(self, kwargs: dict[str, Any]) -> None:
        self["kwargs"] = kwargs

    @property
    def options(self) -> dict[str, Any]:
        """Options of the call."""
        options = self.get("options")
        if options is None:
            options = self["options"] = {}
        found: dict[str, Any] = options
        return found

    @options.setter
    def options(self, options: dict[str, Any]) -> None:
        self["options"] = options

    @property
    def subtask_type(self) -> str | None:
        """None for a single task."""
        return self.get("subtask_type")

    @property
    def immutable(self) -> bool:
        """It takes no more arguments, not even the result of the task whose link it is."""
        return bool(self.get("immutable"))

    @immutable.setter
    def immutable(self, value: bool) -> None:
        self["immutable"] = value

    @property
    def id(self) -> str | None:
        """The task id, if it is frozen."""
        return self.options.get("task_id")

    @id.setter
    def id(self, task_id: str | None) -> None:
        self.options["task_id"] = task_id

    @property
    def parent_id(self) -> str | None:
        """The id of the task that it follows from, if that is known."""
        return self.options.get("parent_id")

    @property
    def root_id(self) -> str | None:
        """The id of the first task of its tree, if that is known."""
        return self.options.get("root_id")

    def _merge(
        self,
        args: Iterable[Any] | None,
        kwargs: Mapping[str, Any] | None,
        options: Mapping[str, Any] | None,
        force: bool = False,
    ) -> tuple[tuple[Any, ...], dict[str, Any], dict[str, Any]]:
        stored = self.options
        kept = {*_KEPT, *(stored.get("stamped_headers") or ())}
        more = {k: v for k, v in (options or {}).items() if v is not None and not (k in kept and k in stored)}
        merged = {**stored, **more}
        if self.immutable and not force:
            return tuple(self.args or ()), dict(self.kwargs or {}), merged
        return (*(args or ()), *(self.args or ())), {**(self.kwargs or {}), **(kwargs or {})}, merged

    def append_to_list_option(self, key: str, value: Any) -> Any:
        """Add a value to an option that is a list, unless it is in it."""
        items = self._list_option(key)
        if value not in items:
            items.append(value)
        return value

    def extend_list_option(self, key: str, values: Any) -> None:
        """Add values to an option that is a list."""
        self._list_option(key).extend(values if isinstance(values, list | tuple) else [values])

    def _list_option(self, key: str) -> list[Any]:
        items = self.options.get(key)
        if not isinstance(items, list):
            items = self.options[key] = list(items) if isinstance(items, tuple) else [] if items is None else [items]
        return items
