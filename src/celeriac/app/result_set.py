"""Handles of many results: ResultSet and GroupResult. All are waited for at once, on one watch."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Iterable, Iterator, Mapping
from contextlib import aclosing, closing
from typing import Any

from celeriac.app import registry, results
from celeriac.app.handle import AsyncResult, Then, forgotten
from celeriac.app.joining import assert_will_not_block
from celeriac.app.lineage import Lineage, ResultBase, result_from_tuple
from celeriac.app.results import Results
from celeriac.app.waiting import too_late, wait
from celeriac.model import states
from celeriac.wire.record import Record


class ResultSet(ResultBase):
    """Several results, in order."""

    def __init__(self, results: Iterable[Any] = (), app: Any = None, **_: Any) -> None:
        self.results: list[Any] = list(results)
        self._app = app
        self._thens: list[tuple[Then | None, Then | None]] = []

    bound_app: Any = None
    parent: ResultBase | None = None

    @property
    def app(self) -> Any:
        """The app that reads these results."""
        if self._app is None:
            self._app = self.results[0].app if self.results else self.bound_app or registry.current()
        return self._app

    @app.setter
    def app(self, app: Any) -> None:
        self._app = app

    @property
    def backend(self) -> Results:
        """The result store."""
        backend: Results = self.app.backend if self._app is not None or not self.results else self.results[0].backend
        return backend

    @property
    def supports_native_join(self) -> bool:
        """Many results are waited for at once."""
        return True

    def add(self, result: Any) -> None:
        """Add a result that is not in the set."""
        if result not in self.results:
            self.results.append(result)

    def remove(self, result: Any) -> None:
        """Remove a result or an id. Raises KeyError."""
        try:
            self.results.remove(result)
        except ValueError:
            raise KeyError(result) from None

    def discard(self, result: Any) -> None:
        """Remove a result or an id if it is there."""
        if result in self.results:
            self.results.remove(result)

    def update(self, results: Iterable[Any]) -> None:
        """Add those results that are not in the set."""
        for result in results:
            self.add(result)

    def clear(self) -> None:
        """Remove all results."""
        self.results.clear()

    def _look(self) -> None:
        """Look at all results that have not been seen ended, in one round trip."""
        waiting = _leaves(self)
        if not waiting:
            return
        backend = self.backend
        for task_id, document in backend.reader.fetch(list(waiting)).items():
            found = backend.read(task_id, document)
            if found.status in states.READY_STATES:
                for leaf in waiting[task_id]:
                    leaf._keep(found)

    def successful(self) -> bool:
        """All tasks returned."""
        self._look()
        return all(result.successful() for result in self.results)

    def failed(self) -> bool:
        """One of the tasks failed."""
        self._look()
        return any(result.failed() for result in self.results)

    def waiting(self) -> bool:
        """One of the tasks has not ended."""
        return not self.ready()

    def ready(self) -> bool:
        """All tasks have ended."""
        self._look()
        return all(result.ready() for result in self.results)

    def completed_count(self) -> int:
        """How many tasks returned."""
        self._look()
        return sum(int(result.successful()) for result in self.results)

    def forget(self) -> None:
        """Delete the stored results, and those of their parents."""
        ids = forgotten(self)
        if ids:
            self.backend.reader.forget(ids)

    async def aforget(self) -> None:
        """`forget` for coroutines."""
        ids = forgotten(self)
        if ids:
            await (await self.app.result_backend()).forget(ids)

    def revoke(
        self,
        connection: Any = None,
        terminate: bool = False,
        signal: str | None = None,
        wait: bool = False,
        timeout: float | None = None,
    ) -> None:
        """Revoke all tasks, in one message."""
        ids = [result.id for result in self._tree()]
        self.app.control.revoke(
            ids, terminate=terminate, signal=signal or "SIGTERM", reply=wait, timeout=timeout or 1.0
        )

    def _tree(self) -> Iterator[Any]:
        for result in self.results:
            if isinstance(result, ResultSet):
                yield from result._tree()
            else:
                yield result

    def get(
        self,
        timeout: float | None = None,
        propagate: bool = True,
        interval: float = 0.5,
        callback: Callable[[str, Any], Any] | None = None,
        no_ack: bool = True,
        on_message: Callable[[dict[str, Any]], Any] | None = None,
        disable_sync_subtasks: bool = True,
        on_interval: Callable[[], Any] | None = None,
        **_: Any,
    ) -> list[Any]:
        """Wait until all tasks have ended and return what they returned, in the order of the set. All are waited for at
        once; `timeout` counts for all together. Raises what the first failed one raised, as soon as it is known."""
        if disable_sync_subtasks:
            assert_will_not_block()
        waiting = _leaves(self)
        if waiting:
            with closing(wait(self.backend, list(waiting), timeout, interval, on_interval)) as changes:
                for found in changes:
                    if self._arrived(waiting, found, propagate, on_message) and not waiting:
                        break
        return self._gather(propagate, callback)

    join = get
    join_native = get

    async def aget(
        self,
        timeout: float | None = None,
        propagate: bool = True,
        callback: Callable[[str, Any], Any] | None = None,
        on_message: Callable[[dict[str, Any]], Any] | None = None,
        disable_sync_subtasks: bool = True,
    ) -> list[Any]:
        """`get` for coroutines."""
        if disable_sync_subtasks:
            assert_will_not_block()
        waiting = _leaves(self)
        if waiting:
            count = len(waiting)
            async with aclosing(self.app.awatch(self.backend, list(waiting), timeout)) as changes:
                async for found in changes:
                    if self._arrived(waiting, found, propagate, on_message) and not waiting:
                        break
                else:
                    raise too_late(f"{len(waiting)} of {count} tasks", timeout)
        return self._gather(propagate, callback)

    ajoin = aget

    def _arrived(self, waiting: dict[str, list[Any]], found: Record, propagate: bool, on_message: Any) -> bool:
        if on_message is not None:
            on_message(results.meta(found))
        if found.status not in states.READY_STATES or found.id not in waiting:
            return False
        leaves = waiting.pop(found.id)
        for leaf in leaves:
            leaf._keep(found)
        if propagate:
            leaves[0].maybe_throw()
        return True

    def _gather(self, propagate: bool, callback: Callable[[str, Any], Any] | None) -> list[Any]:
        values = []
        for result in self.results:
            if isinstance(result, ResultSet):
                value: Any = result._gather(propagate, None)
            elif getattr(result, "ignored", False):
                value = None
            else:
                value = result.maybe_throw(propagate)
            if callback is not None:
                callback(getattr(result, "id", ""), value)
            else:
                values.append(value)
        for on_success, on_error in self._thens:
            if on_success is not None and self.successful():
                on_success(self)
            elif on_error is not None and self.failed():
                on_error(next(result.result for result in self._tree() if result.failed()))
        self._thens.clear()
        return values

    def iter_native(
        self,
        timeout: float | None = None,
        interval: float = 0.5,
        no_ack: bool = True,
        on_message: Callable[[dict[str, Any]], Any] | None = None,
        on_interval: Callable[[], Any] | None = None,
    ) -> Iterator[tuple[str, dict[str, Any]]]:
        """`(id, {"status", "result", ...})` of each task as it ends."""
        for result in self._tree():
            if result._found is not None:
                yield result.id, results.meta(result._found)
        waiting = _leaves(self)
        if not waiting:
            return
        with closing(wait(self.backend, list(waiting), timeout, interval, on_interval)) as changes:
            for found in changes:
                if self._arrived(waiting, found, False, on_message):
                    yield found.id, results.meta(found)
                    if not waiting:
                        return

    async def aiter_native(self, timeout: float | None = None) -> AsyncGenerator[tuple[str, dict[str, Any]], None]:
        """`iter_native` for coroutines."""
        for result in self._tree():
            if result._found is not None:
                yield result.id, results.meta(result._found)
        waiting = _leaves(self)
        if not waiting:
            return
        count = len(waiting)
        async with aclosing(self.app.awatch(self.backend, list(waiting), timeout)) as changes:
            async for found in changes:
                if self._arrived(waiting, found, False, None):
                    yield found.id, results.meta(found)
                    if not waiting:
                        return
        raise too_late(f"{len(waiting)} of {count} tasks", timeout)

    def iterate(self, timeout: float | None = None, propagate: bool = True) -> Iterator[Any]:
        """What each task returned, as they end."""
        for _, found in self.iter_native(timeout):
            yield _value(found, propagate)

    async def aiterate(self, timeout: float | None = None, propagate: bool = True) -> AsyncGenerator[Any, None]:
        """`iterate` for coroutines."""
        async with aclosing(self.aiter_native(timeout)) as found:
            async for _, meta in found:
                yield _value(meta, propagate)

    def then(self, callback: Then | None, on_error: Then | None = None, weak: bool = False) -> ResultSet:
        """Call `callback(self)` when `get` has seen all tasks ended well, `on_error(exception)` when one failed."""
        self._thens.append((callback, on_error))
        return self

    def maybe_throw(self, callback: Callable[[str, Any], Any] | None = None, propagate: bool = True) -> None:
        """Raise what the first failed task raised."""
        self._look()
        for result in self.results:
            result.maybe_throw(callback=callback, propagate=propagate)

    maybe_reraise = maybe_throw

    def __iter__(self) -> Iterator[Any]:
        return iter(self.results)

    def __getitem__(self, index: Any) -> Any:
        return self.results[index]

    def __len__(self) -> int:
        return len(self.results)

    def __eq__(self, other: object) -> bool:
        return other.results == self.results if isinstance(other, ResultSet) else NotImplemented

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"<{type(self).__name__}: [{', '.join(str(result) for result in self.results)}]>"


def _value(meta: Mapping[str, Any], propagate: bool) -> Any:
    if propagate and meta["status"] in states.PROPAGATE_STATES:
        raise AsyncResult._raisable(meta["result"])
    return meta["result"]


def _leaves(of: ResultSet) -> dict[str, list[Any]]:
    """id -> handles of the tasks that have not been seen ended."""
    waiting: dict[str, list[Any]] = {}
    for result in of._tree():
        if isinstance(result, AsyncResult) and result.is_open:
            waiting.setdefault(result.id, []).append(result)
    return waiting


class GroupResult(ResultSet, Lineage):
    """The results of a group, with an id by which they can be stored."""

    def __init__(
        self,
        id: str | None = None,
        results: Iterable[Any] = (),
        parent: ResultBase | None = None,
        app: Any = None,
        **_: Any,
    ) -> None:
        self.id = id
        self.parent = parent
        super().__init__(results, app)

    @property
    def children(self) -> list[Any]:
        """The results."""
        return self.results

    def save(self, backend: Results | None = None) -> None:
        """Store which results belong to the group, to be found by `restore`."""
        (backend or self.backend).save_group(self.id or "", self.as_tuple())

    async def asave(self) -> None:
        """`save` for coroutines."""
        document, expires = self.backend.group_document(self.as_tuple())
        await (await self.app.result_backend()).save_group(self.id or "", document, expires)

    def delete(self, backend: Results | None = None) -> None:
        """Forget what `save` stored."""
        (backend or self.backend).delete_group(self.id or "")

    async def adelete(self) -> None:
        """`delete` for coroutines."""
        await (await self.app.result_backend()).forget_group(self.id or "")

    @classmethod
    def restore(cls, id: str, backend: Results | None = None, app: Any = None) -> GroupResult | None:
        """The group that was stored under this id, or None."""
        app = registry.app_or_default(app or cls.bound_app)
        form = (backend or app.backend).restore_group(id)
        return None if form is None else result_from_tuple(form, app)

    @classmethod
    async def arestore(cls, id: str, app: Any = None) -> GroupResult | None:
        """`restore` for coroutines."""
        app = registry.app_or_default(app or cls.bound_app)
        document = await (await app.result_backend()).fetch_group(id)
        return None if document is None else result_from_tuple(app.backend.read_group(document), app)

    def forget(self) -> None:
        """Delete the stored results, those of the parents, and what `save` stored."""
        super().forget()
        self.delete()

    async def aforget(self) -> None:
        """`forget` for coroutines."""
        await super().aforget()
        await self.adelete()

    def __eq__(self, other: object) -> bool:
        if isinstance(other, GroupResult):
            return other.id == self.id and other.results == self.results and other.parent == self.parent
        return self.id == other if isinstance(other, str) else NotImplemented

    def __hash__(self) -> int:  # type: ignore[override]
        return hash(self.id)

    def __bool__(self) -> bool:
        return bool(self.id or self.results)

    def __str__(self) -> str:
        return str(self.id)

    def __repr__(self) -> str:
        return f"<GroupResult: {self.id} [{', '.join(str(result) for result in self.results)}]>"

    def __reduce__(self) -> Any:
        return GroupResult, (self.id, self.results, self.parent)
