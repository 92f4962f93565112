"""What the runtime knows of a task and of one run of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextvars import Context as Scope
from dataclasses import dataclass
from datetime import tzinfo
from typing import Any, Protocol

from celeriac.model.message import Envelope
from celeriac.runtime.context import Context, Sent
from celeriac.runtime.limits import Drive
from celeriac.wire.task import TaskMessage


class RunnableTask(Protocol):
    """A task as the runtime sees it. Values are resolved: what falls back to a setting has done so. Handlers that
    `overridden` names are called; the others cost nothing."""

    @property
    def name(self) -> str:
        """Under which it is registered."""
        ...

    @property
    def run(self) -> Callable[..., Any]:
        """Called with args and kwargs of the message; where the task is bound, so is this."""
        ...

    @property
    def is_async(self) -> bool:
        """Its function is a coroutine function."""
        ...

    @property
    def ignore_result(self) -> bool:
        """Throw results away, unless the message says otherwise."""
        ...

    @property
    def acks_late(self) -> bool:
        """Acknowledge when it has ended, not before it starts."""
        ...

    @property
    def acks_on_failure(self) -> bool:
        """Acknowledge a failed run too; otherwise the message is rejected."""
        ...

    @property
    def acks_on_timeout(self) -> bool:
        """Acknowledge a run that was ended by its hard limit; otherwise the message goes back."""
        ...

    @property
    def throws(self) -> tuple[type[BaseException], ...]:
        """Errors that are expected: logged mildly."""
        ...

    @property
    def store_errors_even_if_ignored(self) -> bool:
        """Store failures though results are thrown away."""
        ...

    @property
    def track_started(self) -> bool:
        """Store STARTED when it starts."""
        ...

    @property
    def resultrepr_maxsize(self) -> int:
        """Longest repr of a result in logs and events."""
        ...

    @property
    def overridden(self) -> frozenset[str]:
        """Which of before_start, on_success, on_retry, on_failure, after_return and __call__ are overridden."""
        ...


class Pack(Protocol):
    """How the app turns a message into an envelope: routes it, sends `before_task_publish`, serializes it.

    `options` are sending options of a signature (`canvas.advance.SENDING`) as far as they were given; `due` is when it
    may run, in Unix seconds. Raises EncodeError, QueueNotFound."""

    def __call__(
        self, message: TaskMessage, options: Mapping[str, Any], publish_id: str, due: float | None = None
    ) -> Envelope: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class RunSettings:
    """What the runtime is told once."""

    hostname: str = ""
    """The worker's node name."""
    accept: frozenset[str] = frozenset({"application/json"})
    """Content types that are decoded."""
    stores_results: bool = True
    """There is a result backend."""
    result_serializer: str = "json"
    result_compression: str | None = None
    result_extended: bool = False
    inherit_parent_priority: bool = False
    timezone: tzinfo | None = None
    """Of `date_done`; None is UTC."""
    time_limit: float | None = None
    """The worker's own hard limit, in seconds; only to name it in TimeLimitExceeded."""
    errors_in_header: bool = False
    """Error links of a chord's body are those of its header too."""
    accept_results: frozenset[str] | None = None
    """Content types that a stored result may have; None: the serializer's own."""
    tells_results: bool = False
    """Every outcome is a Report with the repr of its result: somebody listens to events."""


class Unknown:
    """Stands for a task that is not registered here."""

    is_async = ignore_result = track_started = store_errors_even_if_ignored = False
    acks_late = acks_on_failure = acks_on_timeout = True
    throws: tuple[type[BaseException], ...] = ()
    resultrepr_maxsize = 1024
    overridden: frozenset[str] = frozenset()

    def __init__(self, name: str) -> None:
        self.name = name

    def run(self, *args: Any, **kwargs: Any) -> Any:
        """Never called."""
        raise NotImplementedError(self.name)


class Plan:
    """What is worked out once for each task."""

    __slots__ = ("after_return", "before_start", "call", "is_async", "name", "pace", "plain", "shown", "task")

    def __init__(self, task: RunnableTask) -> None:
        overridden = task.overridden
        self.task = task
        self.name = task.name
        self.call: Callable[..., Any] = task if "__call__" in overridden else task.run  # type: ignore[assignment]
        self.is_async = task.is_async
        self.before_start = "before_start" in overridden
        self.after_return = "after_return" in overridden
        self.shown = task.resultrepr_maxsize
        self.plain = not (task.track_started or overridden & {"before_start", "on_success", "after_return"})
        """Nothing but the function has to be called when it succeeds."""
        self.pace = 1.0
        """Seconds that its last runs took, on the whole."""


class Job:
    """One run."""

    __slots__ = ("context", "drive", "message", "plan", "runtime", "scope", "seq", "started")

    def __init__(self, seq: int, message: TaskMessage, plan: Plan, context: Context, scope: Scope) -> None:
        self.seq = seq
        self.message = message
        self.plan = plan
        self.context = context
        self.scope = scope
        self.drive: Drive | None = None
        """Set while its coroutine runs."""
        self.started = 0.0
        self.runtime = 0.0

    def of(self, message: TaskMessage, hostname: str) -> Job:
        """As if this had been the run of another message, which will not be run."""
        return Job(self.seq, message, self.plan, Sent(message, self.plan.task, hostname), self.scope)

    @property
    def is_async(self) -> bool:
        """Its task is a coroutine function."""
        return self.plan.is_async

    @property
    def shown_name(self) -> str:
        """The name for logs: the shadow where there is one."""
        return self.message.shadow or self.message.task

    @property
    def ignores_result(self) -> bool:
        """The message's word counts more than the task's."""
        given = self.message.ignore_result
        return bool(self.plan.task.ignore_result if given is None else given)
