"""The result of a task that ran in the caller's process."""

from __future__ import annotations

from typing import Any, TypeVar

from celeriac.app.handle import AsyncResult, Then
from celeriac.app.joining import assert_will_not_block
from celeriac.model import states
from celeriac.wire.record import Record

R = TypeVar("R", covariant=True)


class EagerResult(AsyncResult[R]):
    """The result of a task that ran in the caller's process (`apply`, `task_always_eager`). Known from the start."""

    __slots__ = ("_state", "_traceback", "_value_now")

    is_stored = False

    def __init__(
        self, id: str, ret_value: Any, state: str, traceback: str | None = None, name: str | None = None
    ) -> None:
        super().__init__(id, task_name=name)
        self._value_now = ret_value
        self._state = state
        self._traceback = traceback

    def _look(self) -> Record:
        return Record(self.id, self._state, self._value_now, self._traceback, name=self.task_name)

    def _value(self, found: Record) -> Any:
        return self._value_now

    def get(
        self,
        timeout: float | None = None,
        propagate: bool = True,
        *_: Any,
        disable_sync_subtasks: bool = True,
        **__: Any,
    ) -> R:
        """What the task returned; raises what it raised."""
        if disable_sync_subtasks:
            assert_will_not_block()
        if self._state in states.PROPAGATE_STATES and propagate:
            raise self._raisable(self._value_now)
        return self._value_now  # type: ignore[no-any-return]

    wait = get

    async def aget(self, timeout: float | None = None, propagate: bool = True, *_: Any, **__: Any) -> R:
        """`get`."""
        return self.get(propagate=propagate)

    @property
    def is_open(self) -> bool:
        """False: it has run."""
        return False

    def ready(self) -> bool:
        """True: it has run."""
        return True

    def then(self, callback: Then | None, on_error: Then | None = None, weak: bool = False) -> AsyncResult[R]:
        """Call at once what is to be called."""
        self._tell(self._look(), callback, on_error)
        return self

    def forget(self) -> None:
        """Nothing is stored."""

    async def aforget(self) -> None:
        """Nothing is stored."""

    def exists(self) -> bool:
        """True."""
        return True

    def revoke(self, *_: Any, **__: Any) -> None:
        """Say REVOKED from now on."""
        self._state = states.REVOKED

    @property
    def supports_native_join(self) -> bool:
        """False: there is nothing to wait for."""
        return False

    @property
    def children(self) -> None:
        """Not recorded."""
        return None

    def __repr__(self) -> str:
        return f"<EagerResult: {self.id}>"

    def __reduce__(self) -> Any:
        return EagerResult, (self.id, self._value_now, self._state, self._traceback, self.task_name)
