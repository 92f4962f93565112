"""What a task is: its function, its name and its options."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, cast

from celeriac.app.attributes import CurrentApp, FromSetting, held
from celeriac.app.checking import Shape
from celeriac.app.handle import AsyncResult as Handle
from celeriac.app.plan import Plan
from celeriac.model.outcome import TaskTraits

HANDLERS = ("before_start", "on_success", "on_retry", "on_failure", "after_return", "__call__")


class TaskOptions:
    """The attributes of a task. Each can be given to `@app.task`, stand in a class, or be set later."""

    __name__: str
    app: Any = CurrentApp()
    name: str = cast(str, None)
    abstract: bool = True
    typing: bool | None = None
    """Check arguments when the task is called. None: as the app says."""
    max_retries: int | None = 3
    """None: for ever."""
    default_retry_delay: Any = FromSetting("task_default_retry_delay")
    """Seconds."""
    rate_limit: Any = FromSetting("task_default_rate_limit")
    ignore_result: Any = FromSetting("task_ignore_result")
    trail: bool = True
    """Record the tasks that a run sends as children of its result."""
    send_events: bool = True
    store_errors_even_if_ignored: Any = FromSetting("task_store_errors_even_if_ignored")
    store_eager_result: Any = FromSetting("task_store_eager_result")
    serializer: Any = FromSetting("task_serializer")
    compression: str | None = None
    queue: Any = None
    exchange: Any = None
    exchange_type: str | None = None
    routing_key: str | None = None
    delivery_mode: Any = None
    mandatory: bool | None = None
    immediate: bool | None = None
    priority: Any = FromSetting("task_default_priority")
    expires: Any = None
    time_limit: float | None = None
    soft_time_limit: float | None = None
    track_started: Any = FromSetting("task_track_started")
    acks_late: Any = FromSetting("task_acks_late")
    acks_on_failure_or_timeout: Any = FromSetting("task_acks_on_failure_or_timeout", last=True)
    acks_on_failure: Any = FromSetting(
        "task_acks_on_failure", "task_acks_on_failure_or_timeout", umbrella="acks_on_failure_or_timeout", last=True
    )
    acks_on_timeout: Any = FromSetting(
        "task_acks_on_timeout", "task_acks_on_failure_or_timeout", umbrella="acks_on_failure_or_timeout", last=True
    )
    reject_on_worker_lost: Any = FromSetting("task_reject_on_worker_lost")
    retry_on_worker_lost: Any = FromSetting("task_retry_on_worker_lost")
    throws: tuple[type[BaseException], ...] = ()
    """Errors that are expected: logged without a traceback."""
    resultrepr_maxsize: int = 1024
    autoretry_for: Sequence[type[BaseException]] = ()
    dont_autoretry_for: Sequence[type[BaseException]] = ()
    retry_kwargs: Mapping[str, Any] = {}
    retry_backoff: float | bool = False
    """True: a factor of 1 second; a number: that factor; doubled with each retry."""
    retry_backoff_max: float = 600
    retry_jitter: bool = True
    link: Any = None
    """Signatures that follow each run of this task, beside those of the call."""
    link_error: Any = None
    """Signatures that follow each failure of this task, beside those of the call."""

    _backend: Any = None
    _plan: Plan | None = None

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        for name in SETTINGS:  # None means: as the app says
            if name in cls.__dict__ and cls.__dict__[name] is None:
                delattr(cls, name)

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, value)
        if name in _WATCHED:
            self.forget_plans()

    def forget_plans(self) -> None:
        """Something that things were worked out from has changed."""
        for name in ("_plan", "_options", "overridden", "shape", "is_async"):
            self.__dict__.pop(name, None)

    def run(self, *args: Any, **kwargs: Any) -> Any:
        """What the task does."""
        raise NotImplementedError("a task must define run()")

    @cached_property
    def is_async(self) -> bool:
        """`run` is a coroutine function."""
        import inspect

        return inspect.iscoroutinefunction(self.__dict__.get("_orig_run", self.run))

    @cached_property
    def shape(self) -> Shape:
        """What `run` takes."""
        return Shape(self.__dict__.get("_orig_run", self.run))

    @property
    def backend(self) -> Any:
        """The result store: the app's, unless the task was given its own."""
        return self.app.backend if self._backend is None else self._backend

    @backend.setter
    def backend(self, backend: Any) -> None:
        self._backend = backend
        self._plan = None

    def AsyncResult(self, task_id: str, **more: Any) -> Handle[Any]:
        """The handle of a result of this task."""
        result: Handle[Any] = self.app.AsyncResult(task_id, backend=self._backend, task_name=self.name, **more)
        return result

    def traits(self) -> TaskTraits:
        """What a worker's parent has to know of the task, with the settings filled in."""
        conf = self.app.conf
        rate = self.rate_limit
        return TaskTraits(
            name=self.name,
            acks_late=bool(self.acks_late),
            acks_on_failure=bool(self.acks_on_failure),
            acks_on_timeout=bool(self.acks_on_timeout),
            reject_on_worker_lost=bool(self.reject_on_worker_lost),
            time_limit=_seconds(self.time_limit) or _seconds(conf["task_time_limit"]),
            soft_time_limit=_seconds(self.soft_time_limit) or _seconds(conf["task_soft_time_limit"]),
            rate_limit=None if not rate else str(rate),
            ignore_result=bool(self.ignore_result),
            track_started=bool(self.track_started),
            send_events=bool(self.send_events),
            is_async=self.is_async,
        )

    def freeze_settings(self) -> None:
        """Read the settings behind attributes once and for all: in a child they don't change, and runs ask for them."""
        found = {name: getattr(self, name) for name in SETTINGS if held(self, name) is None}
        self.__dict__.update(found)  # all at once: one of them stands for others


SETTINGS = tuple(name for name, value in vars(TaskOptions).items() if isinstance(value, FromSetting))
"""Attributes that fall back to a setting."""
_WATCHED = frozenset(
    {
        *HANDLERS, *SETTINGS, "compression", "queue", "exchange", "exchange_type", "routing_key", "delivery_mode",
        "expires", "time_limit", "soft_time_limit", "link", "link_error", "typing", "run", "trail", "app", "name",
    }
)  # fmt: skip
"""Attributes that what is worked out once depends on."""


def _seconds(value: Any) -> float | None:
    return None if not value else float(value.total_seconds()) if hasattr(value, "total_seconds") else value
