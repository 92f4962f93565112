"""Tasks, messages and a program for the tests of the rooms that run tasks."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from celeriac.model.message import Envelope
from celeriac.runtime.run import Ran, Runner, RunSettings
from celeriac.wire.task import TaskMessage, new_id, pack

HANDLERS = ("before_start", "on_success", "on_retry", "on_failure", "after_return")


class FakeTask:
    """A task as the app would make it of a function, with handlers given as keyword arguments."""

    def __init__(self, function: Callable[..., Any], name: str = "", *, bind: bool = False, **options: Any) -> None:
        self.name = name or function.__name__
        self.run: Callable[..., Any] = function.__get__(self) if bind else function
        self.is_async = inspect.iscoroutinefunction(function)
        self.ignore_result = False
        self.acks_late = True
        self.acks_on_failure = True
        self.acks_on_timeout = True
        self.throws: tuple[type[BaseException], ...] = ()
        self.store_errors_even_if_ignored = False
        self.track_started = False
        self.resultrepr_maxsize = 1024
        self.time_limit: float | None = None
        self.overridden = frozenset(h for h in HANDLERS if h in options)
        for key, value in options.items():
            setattr(self, key, value)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.run(*args, **kwargs)


def tasks(*made: FakeTask | Callable[..., Any]) -> dict[str, FakeTask]:
    """A registry."""
    found = [t if isinstance(t, FakeTask) else FakeTask(t) for t in made]
    return {t.name: t for t in found}


def plain_pack(message: TaskMessage, options: Mapping[str, Any], publish_id: str, due: float | None = None) -> Envelope:
    """Pack without any routing."""
    return pack(
        message,
        queue=options.get("queue", "celery"),
        exchange=options.get("exchange", ""),
        routing_key=options.get("routing_key"),
        serializer=options.get("serializer", "json"),
        publish_id=publish_id,
        priority=options.get("priority", 0),
        not_before=due,
    )


def runner(*made: FakeTask | Callable[..., Any], **settings: Any) -> Runner:
    """A Runner of these tasks."""
    return Runner(tasks(*made), RunSettings(hostname="w@here", **settings), plain_pack)


def blob(task: str, *args: Any, **fields: Any) -> bytes:
    """A message. Fields are those of TaskMessage; `queue` names where it goes."""
    queue = fields.pop("queue", "celery")
    serializer = fields.pop("serializer", "json")
    fields.setdefault("id", new_id())
    return pack(TaskMessage(task=task, args=args, **fields), queue=queue, serializer=serializer).blob


def document(ran: Ran) -> dict[str, Any]:
    """The stored document of a run."""
    data = ran[0] if isinstance(ran, tuple) else ran.store.document if ran.store is not None else None
    assert data is not None
    found: dict[str, Any] = msgspec.json.decode(data)
    return found
