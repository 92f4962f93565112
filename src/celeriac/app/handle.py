"""Handles of results: what `delay()` returns. Nothing is asked or subscribed to before somebody wants to know."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from contextlib import aclosing, closing
from datetime import datetime
from typing import Any, Generic, TypeVar

from celeriac.app import registry, results
from celeriac.app.joining import assert_will_not_block
from celeriac.app.lineage import Lineage, ResultBase, ancestors, everything, result_from_tuple
from celeriac.app.results import Results
from celeriac.app.waiting import too_late, wait
from celeriac.errors import TimeoutError
from celeriac.model import states
from celeriac.wire.record import Record

R = TypeVar("R", covariant=True)
Then = Callable[..., Any]


class AsyncResult(Lineage, Generic[R]):
    """The result of one task, by its id. Equal to another of the same id, and to the id itself.

    Asking costs a round trip until the state is final; then it is kept. An id that nobody knows is PENDING for ever."""

    __slots__ = (
        "__weakref__", "_app", "_backend", "_error", "_found", "_ignored", "_thens", "id", "parent", "task_name",
    )  # fmt: skip

    TimeoutError = TimeoutError
    bound_app: Any = None
    """The app of a class that an app has made for itself (`app.AsyncResult`)."""
    is_stored = True
    """It lies in the result store."""

    def __init__(
        self,
        id: str,
        backend: Results | None = None,
        task_name: str | None = None,
        app: Any = None,
        parent: ResultBase | None = None,
    ) -> None:
        if id is None:
            raise ValueError(f"{type(self).__name__} needs an id, not None")
        self.id = id
        self.task_name = task_name
        self.parent = parent
        self._app = app
        self._backend = backend
        self._found: Record | None = None
        self._error: BaseException | None = None
        self._ignored: bool | None = None
        self._thens: list[tuple[Then | None, Then | None]] | None = None

    @property
    def app(self) -> Any:
        """The app that reads this result."""
        app = self._app
        if app is None:
            app = self._app = self.bound_app or registry.current()
        return app

    @app.setter
    def app(self, app: Any) -> None:
        self._app = app

    @property
    def backend(self) -> Results:
        """The result store."""
        backend = self._backend
        if backend is None:
            backend = self._backend = self.app.backend
        return backend

    @backend.setter
    def backend(self, backend: Results) -> None:
        self._backend = backend

    # Looking

    def _look(self) -> Record:
        """The record as it is now; kept when the state is final."""
        found = self._found
        if found is None:
            found = self.backend.record(self.id)
            if found.status in states.READY_STATES:
                self._keep(found)
        return found

    def _keep(self, found: Record) -> None:
        self._found = found
        thens, self._thens = self._thens, None
        for on_success, on_error in thens or ():
            self._tell(found, on_success, on_error)

    def _tell(self, found: Record, on_success: Then | None, on_error: Then | None) -> None:
        if found.status in states.PROPAGATE_STATES:
            if on_error is not None:
                on_error(self._value(found))
        elif on_success is not None:
            on_success(self)

    def _value(self, found: Record) -> Any:
        if found.status not in states.EXCEPTION_STATES:
            return found.result
        if found is not self._found:
            return results.value(found)
        if self._error is None:
            error = results.value(found)
            if not isinstance(error, BaseException):
                return error
            self._error = error  # one object for one failure: `result` is what `get` raises
        return self._error

    @property
    def task_id(self) -> str:
        """The id."""
        return self.id

    @task_id.setter
    def task_id(self, task_id: str) -> None:
        self.id = task_id

    @property
    def state(self) -> str:
        """The state of the task; see `celeriac.states`."""
        return self._look().status

    status = state

    @property
    def result(self) -> Any:
        """The return value; the exception of a failed task; the meta of a custom state; None when nothing is known."""
        return self._value(self._look())

    info = result

    @property
    def traceback(self) -> str | None:
        """The traceback of a failure, as text."""
        return self._look().traceback

    @property
    def children(self) -> list[Any] | None:
        """Results of the tasks that this one has sent; None as long as they are not known."""
        children = self._look().children
        return None if children is None else [result_from_tuple(child, self.app) for child in children]

    @property
    def name(self) -> str | None:
        """The task's name, with `result_extended`."""
        return self._look().name

    @property
    def args(self) -> Any:
        """The arguments, with `result_extended`."""
        return self._look().args

    @property
    def kwargs(self) -> Any:
        """The keyword arguments, with `result_extended`."""
        return self._look().kwargs

    @property
    def worker(self) -> str | None:
        """The node that ran the task, with `result_extended`."""
        return self._look().worker

    @property
    def retries(self) -> int | None:
        """How often it was retried, with `result_extended`."""
        return self._look().retries

    @property
    def queue(self) -> str | None:
        """The queue it came from, with `result_extended`."""
        return self._look().queue

    @property
    def date_done(self) -> datetime | None:
        """When it ended."""
        text = self._look().date_done
        return datetime.fromisoformat(text) if isinstance(text, str) else text

    @property
    def ignored(self) -> bool:
        """The task was sent with its result ignored: there will be none."""
        return bool(self._ignored)

    @ignored.setter
    def ignored(self, value: bool) -> None:
        self._ignored = value

    @property
    def supports_native_join(self) -> bool:
        """Many results are waited for at once."""
        return True

    def ready(self) -> bool:
        """The task has ended."""
        return self.state in states.READY_STATES

    def successful(self) -> bool:
        """The task returned."""
        return self.state == states.SUCCESS

    def failed(self) -> bool:
        """The task raised."""
        return self.state == states.FAILURE

    def exists(self) -> bool:
        """Something is stored of this id."""
        return bool(self._found) or bool(self.backend.reader.fetch([self.id]))

    # Waiting

    def get(
        self,
        timeout: float | None = None,
        propagate: bool = True,
        interval: float = 0.5,
        no_ack: bool = True,
        follow_parents: bool = True,
        callback: Callable[[str, Any], Any] | None = None,
        on_message: Callable[[dict[str, Any]], Any] | None = None,
        on_interval: Callable[[], Any] | None = None,
        disable_sync_subtasks: bool = True,
        **_: Any,
    ) -> R:
        """Wait until the task has ended and return what it returned.

        Raises what the task raised (not with `propagate=False`: then the exception is returned), what an ancestor
        raised (`follow_parents`), `errors.TimeoutError` after `timeout` seconds, RuntimeError inside a task (see
        `allow_join_result`), NotImplementedError without a result backend. `on_interval` is called every `interval`
        seconds, `on_message` with each document that arrives. `no_ack` means nothing here."""
        if self._ignored:
            return None  # type: ignore[return-value]
        if disable_sync_subtasks:
            assert_will_not_block()
        if self._found is None:
            watched = self._watched(follow_parents and propagate)
            with closing(wait(self.backend, list(watched), timeout, interval, on_interval)) as changes:
                for found in changes:
                    if self._arrived(watched, found, on_message):
                        break
        return self.maybe_throw(propagate, callback)  # type: ignore[no-any-return]

    wait = get

    async def aget(
        self,
        timeout: float | None = None,
        propagate: bool = True,
        follow_parents: bool = True,
        callback: Callable[[str, Any], Any] | None = None,
        on_message: Callable[[dict[str, Any]], Any] | None = None,
        disable_sync_subtasks: bool = True,
    ) -> R:
        """`get` for coroutines."""
        if self._ignored:
            return None  # type: ignore[return-value]
        if disable_sync_subtasks:
            assert_will_not_block()
        if self._found is None:
            watched = self._watched(follow_parents and propagate)
            async with aclosing(self.app.awatch(self.backend, list(watched), timeout)) as changes:
                async for found in changes:
                    if self._arrived(watched, found, on_message):
                        break
                else:
                    raise too_late(self.id, timeout)
        return self.maybe_throw(propagate, callback)  # type: ignore[no-any-return]

    def __await__(self) -> Generator[Any, None, R]:
        """`await result` is `await result.aget()`."""
        return self.aget().__await__()

    def _watched(self, with_parents: bool) -> dict[str, AsyncResult[Any]]:
        watched: dict[str, AsyncResult[Any]] = {self.id: self}
        if with_parents:
            for node in ancestors(self):
                if isinstance(node, AsyncResult) and node.is_open:
                    watched.setdefault(node.id, node)
        return watched

    def _arrived(self, watched: dict[str, AsyncResult[Any]], found: Record, on_message: Any) -> bool:
        """Take a record that came. True when it is the one waited for. Raises what an ancestor raised."""
        node = watched[found.id]
        if on_message is not None and node is self:
            on_message(results.meta(found))
        if found.status in states.READY_STATES:
            if node._found is None:
                node._keep(found)
            if node is self:
                return True
            node.maybe_throw()
        return False

    @property
    def is_open(self) -> bool:
        """There is something to wait for, as far as this handle has seen."""
        return self._found is None and not self._ignored

    def then(self, callback: Then | None, on_error: Then | None = None, weak: bool = False) -> AsyncResult[R]:
        """Call `callback(result)` when this handle sees that the task has ended well, `on_error(exception)` when it
        failed. Nothing watches in the background: `get` and the properties see it. `weak` means nothing here."""
        if self._found is not None:
            self._tell(self._found, callback, on_error)
        else:
            if self._thens is None:
                self._thens = []
            self._thens.append((callback, on_error))
        return self

    def maybe_throw(self, propagate: bool = True, callback: Callable[[str, Any], Any] | None = None) -> Any:
        """Raise what the task raised, if it has failed; else return the result as it is now."""
        found = self._look()
        value = self._value(found)
        if found.status in states.PROPAGATE_STATES and propagate:
            raise self._raisable(value)
        if callback is not None:
            callback(self.id, value)
        return value

    maybe_reraise = maybe_throw

    @staticmethod
    def _raisable(value: Any) -> BaseException:
        if isinstance(value, BaseException):
            return value.with_traceback(None)
        return Exception(f"the task failed, and its result is no exception: {value!r}")

    def throw(self, *exc: Any, **_: Any) -> Any:
        """Raise an exception."""
        raise self._raisable(exc[0] if exc else self.result)

    # Acting

    def forget(self) -> None:
        """Delete the stored result, and those of the parents."""
        self.backend.reader.forget(forgotten(self))

    async def aforget(self) -> None:
        """`forget` for coroutines."""
        await (await self.app.result_backend()).forget(forgotten(self))

    def revoke(
        self,
        connection: Any = None,
        terminate: bool = False,
        signal: str | None = None,
        wait: bool = False,
        timeout: float | None = None,
    ) -> Any:
        """Revoke the task: it is not started any more. `terminate` ends it too if it runs, with `signal` (SIGTERM)."""
        return self.app.control.revoke(
            self.id, terminate=terminate, signal=signal or "SIGTERM", reply=wait, timeout=timeout or 1.0
        )

    def revoke_by_stamped_headers(
        self,
        headers: Mapping[str, Any],
        connection: Any = None,
        terminate: bool = False,
        signal: str | None = None,
        wait: bool = False,
        timeout: float | None = None,
    ) -> Any:
        """Revoke all tasks with these stamps."""
        return self.app.control.revoke_by_stamped_headers(
            headers, terminate=terminate, signal=signal or "SIGTERM", reply=wait, timeout=timeout or 1.0
        )

    def as_list(self) -> list[str]:
        """The ids of this result and of its ancestors."""
        return [self.id, *(node.id for node in ancestors(self))]

    def __eq__(self, other: object) -> bool:
        if isinstance(other, AsyncResult):
            return self.id == other.id
        return self.id == other if isinstance(other, str) else NotImplemented

    def __hash__(self) -> int:
        return hash(self.id)

    def __str__(self) -> str:
        return str(self.id)

    def __repr__(self) -> str:
        return f"<{type(self).__name__}: {self.id}>"

    def __copy__(self) -> AsyncResult[R]:
        return type(self)(self.id, self._backend, self.task_name, self._app, self.parent)

    def __reduce__(self) -> Any:
        cls = type(self) if self.bound_app is None else AsyncResult
        return cls, (self.id, None, self.task_name, None, self.parent)


def forgotten(result: Any) -> list[str]:
    """The ids whose documents are to be deleted when a result is forgotten; their handles know nothing any more."""
    ids = []
    for node in everything(result):
        if isinstance(node, AsyncResult) and node.is_stored:
            node._found = node._error = None
            ids.append(node.id)
    return ids
