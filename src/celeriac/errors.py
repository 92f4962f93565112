"""The whole exception tree, with Celery's names. A leaf stands for what a caller can do differently.

Exception
├── CeleryError
│   ├── ImproperlyConfigured            fix a setting, a URL, an option
│   │   └── LayoutTooNew                stored data belongs to a newer celeriac
│   ├── SecurityError                   data that may not be trusted
│   ├── TaskPredicate                   how a task says what is to become of it
│   │   ├── Ignore   ├── Reject   └── Retry
│   ├── TaskError
│   │   ├── QueueNotFound (KeyError)    ├── IncompleteStream      ├── NotRegistered (KeyError)
│   │   ├── AlreadyRegistered           ├── TimeoutError          ├── MaxRetriesExceededError
│   │   ├── TaskRevokedError            ├── InvalidTaskError      └── ChordError
│   ├── BackendError ├── BackendGetMetaError └── BackendStoreError
│   └── KombuError
│       ├── OperationalError            the broker or the result backend can't be reached, or did not answer in time
│       │   └── RefusedError            it is there and can't do this: to ask again changes nothing
│       └── SerializationError ├── EncodeError └── DecodeError └── ContentDisallowed
├── SoftTimeLimitExceeded  ├── TimeLimitExceeded  ├── WorkerLostError  └── Terminated
└── (SystemExit) WorkerShutdown, WorkerTerminate

`wire.failure` writes the module names that Celery's peers import (`celery.exceptions`, `billiard.exceptions`,
`kombu.exceptions`), from the table FOREIGN_MODULES below.
"""

from __future__ import annotations

import builtins
from datetime import datetime
from typing import Any


class CeleryWarning(UserWarning):
    """Base of all warnings."""


class AlwaysEagerIgnored(CeleryWarning):
    """`send_task` was called with `task_always_eager` on; it always sends."""


class DuplicateNodenameWarning(CeleryWarning):
    """Two workers answered under one node name."""


class DuplicateTaskNameWarning(CeleryWarning):
    """A second function was registered under a name that is taken; the first one stays."""


class FixupWarning(CeleryWarning):
    """An integration could not be set up."""


class NotConfigured(CeleryWarning):
    """No configuration was found."""


class UnknownSettingWarning(CeleryWarning):
    """A name that looks like a setting is none; it is mostly a misspelled one."""


class SecurityWarning(CeleryWarning):
    """A setting is risky."""


class CPendingDeprecationWarning(PendingDeprecationWarning):
    """Will be deprecated."""


class CDeprecationWarning(DeprecationWarning):
    """Is deprecated."""


class CeleryError(Exception):
    """Base of all errors of celeriac."""


class ImproperlyConfigured(CeleryError):
    """A setting, URL, option or app can't be used as it is. The message says what to change."""


class LayoutTooNew(ImproperlyConfigured):
    """The broker's or store's private data was written by a newer celeriac than this one."""


class SecurityError(CeleryError):
    """Data can't be trusted: a bad signature, a class that is not an exception, a forbidden certificate."""


class TaskPredicate(CeleryError):
    """Base of the exceptions by which a task says what is to become of it."""


class Ignore(TaskPredicate):
    """Raised by a task: write no state for this run."""


class Reject(TaskPredicate):
    """Raised by a task: reject its message (`requeue=True`: put it back at the tail of the queue)."""

    def __init__(self, reason: Any = None, requeue: bool = False) -> None:
        self.reason = reason
        self.requeue = requeue
        super().__init__(reason, requeue)

    def __repr__(self) -> str:
        return f"reject requeue={self.requeue}: {self.reason}"


class Retry(TaskPredicate):
    """Raised by `Task.retry`: the task has been sent again and will run later."""

    def __init__(
        self,
        message: str | None = None,
        exc: BaseException | None = None,
        when: datetime | float | None = None,
        is_eager: bool = False,
        sig: Any = None,
        **kwargs: Any,
    ) -> None:
        self.message = message
        self.exc = exc
        self.excs = repr(exc) if exc is not None else None
        self.when = when
        self.is_eager = is_eager
        self.sig = sig
        super().__init__(message, exc, when, **kwargs)

    def humanize(self) -> str:
        """Say when the task will run again, as Celery words it."""
        return f"in {self.when}s" if isinstance(self.when, int | float) else f"at {self.when}"

    def __str__(self) -> str:
        if self.message:
            return self.message
        return f"Retry {self.humanize()}: {self.excs}" if self.excs else f"Retry {self.humanize()}"


RetryTaskError = Retry


class TaskError(CeleryError):
    """Base of the errors about a task."""


class QueueNotFound(KeyError, TaskError):
    """A queue is not in `task_queues` and `task_create_missing_queues` is off."""


class IncompleteStream(TaskError):
    """The end of a data stream is missing."""


class NotRegistered(KeyError, TaskError):
    """No task of this name is registered."""

    def __repr__(self) -> str:
        return str(self.args[0]) if self.args else ""


class AlreadyRegistered(TaskError):
    """A task of this name is registered already."""


class TimeoutError(TaskError, builtins.TimeoutError):  # Celery's name for it
    """The result did not arrive in time."""


class MaxRetriesExceededError(TaskError):
    """The task was retried as often as it may be."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.task_args = kwargs.pop("task_args", [])
        self.task_kwargs = kwargs.pop("task_kwargs", {})
        super().__init__(*args, **kwargs)


class TaskRevokedError(TaskError):
    """The task was revoked, terminated or expired; the word is its first argument."""


class InvalidTaskError(TaskError):
    """A message is not a task message, or a field of it has the wrong type."""


class ChordError(TaskError):
    """A member of a chord's header failed, or could not be joined."""


class BackendError(CeleryError):
    """The result backend could not do what was asked."""


class BackendGetMetaError(BackendError):
    """A result could not be read."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.task_id = kwargs.get("task_id", "")
        super().__init__(*args)


class BackendStoreError(BackendError):
    """A result could not be stored."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.state = kwargs.get("state", "")
        self.task_id = kwargs.get("task_id", "")
        super().__init__(*args)


class KombuError(CeleryError):
    """Base of the errors that stand in kombu.exceptions in Celery's world."""


class OperationalError(KombuError):
    """The broker or the result backend can't be reached, refused, or did not answer within the deadline."""


class RefusedError(OperationalError):
    """The server is there, and will not do this however often it is asked: a key holds something else, or the user has
    not the right."""


class SerializationError(KombuError):
    """Base of encode and decode errors."""


class EncodeError(SerializationError):
    """A value can't be serialized."""


class DecodeError(SerializationError):
    """Bytes can't be read by the serializer that their content type names."""


class ContentDisallowed(DecodeError):
    """A content type is not in `accept_content`."""


class SoftTimeLimitExceeded(Exception):
    """Raised inside a task when its soft time limit has passed. Its argument is the limit in seconds."""

    def __str__(self) -> str:
        return f"SoftTimeLimitExceeded{self.args!r}"


class TimeLimitExceeded(Exception):
    """The hard time limit has passed; the task was ended. Its argument is the limit in seconds."""

    def __str__(self) -> str:
        return f"TimeLimitExceeded{self.args!r}"


class WorkerLostError(Exception):
    """The process that ran the task was lost."""


class Terminated(Exception):
    """The task was terminated by an operator."""


class WorkerTerminate(SystemExit):
    """Raised to stop the worker at once."""


SystemTerminate = WorkerTerminate


class WorkerShutdown(SystemExit):
    """Raised to stop the worker after the running tasks have ended."""


class CeleryCommandException(Exception):
    """A command can't be carried out; `exit_code` is what the process exits with."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


FOREIGN_MODULES: dict[type[BaseException], str] = {
    **{
        cls: "celery.exceptions"
        for cls in (
            CeleryError,
            ImproperlyConfigured,
            SecurityError,
            TaskPredicate,
            Ignore,
            Reject,
            Retry,
            TaskError,
            QueueNotFound,
            IncompleteStream,
            NotRegistered,
            AlreadyRegistered,
            TimeoutError,
            MaxRetriesExceededError,
            TaskRevokedError,
            InvalidTaskError,
            ChordError,
            BackendError,
            BackendGetMetaError,
            BackendStoreError,
            WorkerTerminate,
            WorkerShutdown,
        )
    },
    **{cls: "billiard.exceptions" for cls in (SoftTimeLimitExceeded, TimeLimitExceeded, WorkerLostError, Terminated)},
    **{
        cls: "kombu.exceptions"
        for cls in (KombuError, OperationalError, SerializationError, EncodeError, DecodeError, ContentDisallowed)
    },
}
"""Where Celery keeps its class of the same name; written as `exc_module` so that a peer can rebuild the exception."""
