"""Result documents of runs, in the form that the settings ask for."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from celeriac.canvas import advance
from celeriac.errors import CeleryError
from celeriac.model.message import Store
from celeriac.runtime.einfo import describe
from celeriac.runtime.job import Job, RunSettings
from celeriac.wire import record, values
from celeriac.wire.task import TaskMessage

FRESH_SECONDS = 1e-4
"""Tasks that end within so many seconds may share a date."""


class Documents:
    """Makes documents. One for each runner."""

    def __init__(self, settings: RunSettings) -> None:
        self._settings = settings
        self._json = settings.result_serializer == "json" and settings.result_compression is None
        self._second = -1
        self._prefix = ""
        self._date = ""
        self._fresh_until = 0.0

    def success(self, message: TaskMessage, value: Any, children: Sequence[Any] | None) -> bytes:
        """The document of a SUCCESS. Raises EncodeError."""
        tuples = [_tuple_of(child) for child in children] if children else []
        if not self._json:
            return self._of(message, "SUCCESS", value, children=tuples)
        return record.success(
            message.id,
            values.dumps(value),
            self.date_text(),
            values.dumps(tuples) if tuples else "[]",
            message.parent_id,
            message.group,
            self._extended(message),
        )

    def started(self, job: Job) -> Store | None:
        """The STARTED document, where it is wanted."""
        if job.ignores_result or not self._settings.stores_results:
            return None
        value = {"pid": os.getpid(), "hostname": self._settings.hostname}
        try:
            return Store(job.message.id, self._of(job.message, "STARTED", value), "STARTED")
        except CeleryError:
            return None  # arguments that the result serializer can't hold

    def wants_errors(self, message: TaskMessage, task: Any) -> bool:
        """Whether a failure is stored."""
        if not self._settings.stores_results:
            return False
        given = message.ignore_result
        ignored = getattr(task, "ignore_result", False) if given is None else given
        return bool(not ignored or getattr(task, "store_errors_even_if_ignored", False))

    def failure(
        self, job: Job, task: Any, state: str, error: Any, trace: str | None
    ) -> tuple[Store | None, tuple[Store, ...]]:
        """The document of an exception, and those of the chain's later steps, which end with it."""
        message = job.message
        if not self.wants_errors(message, task):
            return None, ()
        more = self.later(message, state, error, trace) if state in record.READY_STATES else ()
        children = job.context._children
        tuples = [_tuple_of(child) for child in children] if children else []
        try:
            document = self._of(message, state, error, traceback=trace, children=tuples)
        except Exception:  # arguments that can't be written, with result_extended
            document = self.by_all_means(message.id, state, error, traceback=trace, parent_id=message.parent_id)
        return Store(message.id, document, state), more

    def later(self, message: TaskMessage, state: str, error: Any, trace: str | None) -> tuple[Store, ...]:
        """Documents of the later steps of a chain, which end with this one."""
        if not message.chain:
            return ()
        return self.unrun(advance.fails_with([*reversed(message.chain)]), state, error, trace)

    def unrun(
        self, tasks: Sequence[Mapping[str, Any]], state: str, error: Any, trace: str | None
    ) -> tuple[Store, ...]:
        """Documents of tasks that will not run because of `error`, given by their options."""
        return tuple(
            Store(
                task["task_id"],
                self.by_all_means(task["task_id"], state, error, traceback=trace, group_id=task.get("group_id")),
                state, None, True,
            )
            for task in tasks
            if isinstance(task.get("task_id"), str)
        )  # fmt: skip

    def entry(self, task_id: str, state: str, result: Any) -> bytes:
        """What a chord keeps of a member; of an exception in the end only its class and its repr. Raises EncodeError
        for a value that can't be written."""
        serializer, compression = self._settings.result_serializer, self._settings.result_compression
        try:
            return record.entry(task_id, state, result, serializer, compression)
        except Exception:
            if not isinstance(result, BaseException):
                raise
            plain = {"exc_type": type(result).__name__, "exc_message": [describe(result)], "exc_module": "builtins"}
            return record.entry(task_id, state, plain, serializer, compression)

    def by_all_means(self, task_id: str, state: str, error: Any, **fields: Any) -> bytes:
        """A document of an exception; in the end only of its class and its repr."""
        fields["serializer"] = self._settings.result_serializer
        fields["compression"] = self._settings.result_compression
        fields["date_done"] = self.date_text() if state in record.READY_STATES else None
        try:
            return record.document(task_id, state, error, **fields)
        except Exception:
            plain = {"exc_type": type(error).__name__, "exc_message": [describe(error)], "exc_module": "builtins"}
            return record.document(task_id, state, plain, **fields)

    def _of(
        self,
        message: TaskMessage,
        state: str,
        result: Any,
        *,
        traceback: str | None = None,
        children: Sequence[Any] = (),
    ) -> bytes:
        return record.document(
            message.id,
            state,
            result,
            traceback=traceback,
            children=children,
            date_done=self.date_text() if state in record.READY_STATES else None,
            parent_id=message.parent_id,
            group_id=message.group,
            extended=self._extended(message),
            serializer=self._settings.result_serializer,
            compression=self._settings.result_compression,
        )

    def _extended(self, message: TaskMessage) -> Mapping[str, Any] | None:
        if not self._settings.result_extended:
            return None
        return record.extended_fields(
            message.task,
            message.args,
            message.kwargs,
            self._settings.hostname,
            message.retries,
            message.routing_key,
            message.stamped_headers,
            message.stamps,
        )

    def date_text(self) -> str:
        """Now, as `date_done` has it."""
        zone = self._settings.timezone
        if zone is not None:
            return datetime.now(zone).isoformat()
        now = time.time()
        if now < self._fresh_until and now > self._fresh_until - FRESH_SECONDS:
            return self._date
        second = int(now)
        if second != self._second:
            self._prefix = datetime.fromtimestamp(second, UTC).strftime("%Y-%m-%dT%H:%M:%S")
            self._second = second
        micro = int((now - second) * 1e6)
        self._fresh_until = now + FRESH_SECONDS
        self._date = f"{self._prefix}.{micro:06d}+00:00" if micro else f"{self._prefix}+00:00"
        return self._date


def stored_form(value: Any) -> Any:
    """A returned result object is stored as its tuple."""
    as_tuple = getattr(value, "as_tuple", None)
    if callable(as_tuple) and hasattr(value, "id") and not isinstance(value, type):
        try:
            return as_tuple()
        except Exception:
            return value
    return value


def _tuple_of(child: Any) -> Any:
    as_tuple = getattr(child, "as_tuple", None)
    return as_tuple() if callable(as_tuple) else child
