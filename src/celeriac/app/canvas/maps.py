"""Many calls of one task in few messages: `map` and `starmap` in one, chunks in one for so many."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from typing import Any

from celeriac.app.canvas.groups import group as Group
from celeriac.app.canvas.signatures import Signature, maybe_signature
from celeriac.app.result_set import GroupResult


def _shortly(items: Any) -> str:
    text = repr(items)
    return text if len(text) < 100 else text[:100].rsplit(" ", 1)[0] + "..."


class _Map(Signature[Any]):
    """One message that has a task called for each item."""

    TASK = ""
    STARS = ""

    def __init__(self, task: Any, it: Iterable[Any], **options: Any) -> None:
        super().__init__(
            self.TASK, (), {"task": maybe_signature(task), "it": list(it)}, immutable=True, **options
        )

    @classmethod
    def from_dict(cls, form: Mapping[str, Any], app: Any = None) -> Signature[Any]:
        """One with what stands in a dict."""
        return cls.adopt(form, app)

    def found_app(self) -> Any:
        """The app of this signature or of its task; None where neither says."""
        task = self["kwargs"]["task"]
        return self._app or (task.found_app() if isinstance(task, Signature) else None)

    def apply_async(
        self,
        args: Iterable[Any] | None = None,
        kwargs: Mapping[str, Any] | None = None,
        route_name: str | None = None,
        **options: Any,
    ) -> Any:
        """Send it, where the task itself would go."""
        return super().apply_async(None, None, route_name or self["kwargs"]["task"]["task"], **options)

    async def aapply_async(
        self,
        args: Iterable[Any] | None = None,
        kwargs: Mapping[str, Any] | None = None,
        route_name: str | None = None,
        **options: Any,
    ) -> Any:
        """`apply_async` for coroutines."""
        return await super().aapply_async(None, None, route_name or self["kwargs"]["task"]["task"], **options)

    def __repr__(self) -> str:
        found = self["kwargs"]
        return f"[{found['task']['task']}({self.STARS}x) for x in {_shortly(found['it'])}]"


@Signature.register_type()
class xmap(_Map):
    """One message that calls a task with each item: `add.map([1, 2])` gives `[add(1), add(2)]`."""

    TASK = "celery.map"


@Signature.register_type()
class xstarmap(_Map):
    """One message that calls a task with the arguments in each item: `add.starmap([(1, 2), (3, 4)])` gives
    `[add(1, 2), add(3, 4)]`."""

    TASK = "celery.starmap"
    STARS = "*"


@Signature.register_type()
class chunks(Signature[Any]):
    """Calls of a task, `n` in one message: `add.chunks([(1, 2), (3, 4), (5, 6)], 2)` are two messages."""

    def __init__(self, task: Any, it: Iterable[Any], n: int, **options: Any) -> None:
        super().__init__(
            "celery.chunks", (), {"task": maybe_signature(task), "it": list(it), "n": n}, immutable=True, **options
        )

    @classmethod
    def from_dict(cls, form: Mapping[str, Any], app: Any = None) -> Signature[Any]:
        """One with what stands in a dict."""
        return cls.adopt(form, app)

    def found_app(self) -> Any:
        """The app of this signature or of its task; None where neither says."""
        task = self["kwargs"]["task"]
        return self._app or (task.found_app() if isinstance(task, Signature) else None)

    def group(self) -> Group:
        """The messages, as a group of `starmap`s."""
        found = self["kwargs"]
        return Group([xstarmap(found["task"], piece) for piece in _pieces(found["it"], found["n"])], app=self._app)

    def __call__(self, **options: Any) -> GroupResult:
        """`apply_async(**options)`."""
        return self.apply_async(**options)

    def delay(self, *args: Any, **kwargs: Any) -> GroupResult:  # type: ignore[override]
        """`apply_async()`: chunks have all their arguments."""
        return self.apply_async()

    async def adelay(self, *args: Any, **kwargs: Any) -> GroupResult:  # type: ignore[override]
        """`delay` for coroutines."""
        return await self.aapply_async()

    def apply_async(  # type: ignore[override]
        self,
        args: Iterable[Any] | None = None,
        kwargs: Mapping[str, Any] | None = None,
        route_name: str | None = None,
        **options: Any,
    ) -> GroupResult:
        """Send the messages, where the task itself would go."""
        route_name = route_name or self["kwargs"]["task"]["task"]
        return self.group().apply_async(None, None, route_name, **self._merge(None, None, options)[2])

    async def aapply_async(  # type: ignore[override]
        self,
        args: Iterable[Any] | None = None,
        kwargs: Mapping[str, Any] | None = None,
        route_name: str | None = None,
        **options: Any,
    ) -> GroupResult:
        """`apply_async` for coroutines."""
        route_name = route_name or self["kwargs"]["task"]["task"]
        return await self.group().aapply_async(None, None, route_name, **self._merge(None, None, options)[2])

    def apply(
        self, args: Iterable[Any] | None = None, kwargs: Mapping[str, Any] | None = None, **options: Any
    ) -> GroupResult:
        """Make the calls here and now."""
        return self.group().apply(None, None, **options)

    @classmethod
    def apply_chunks(cls, task: Any, it: Iterable[Any], n: int, app: Any = None) -> Any:
        """Send the messages of these chunks."""
        return cls(task, it, n, app=app)()


def _pieces(items: Iterable[Any], size: int) -> Iterator[list[Any]]:
    if size < 1:
        raise ValueError(f"chunks of {size} items: it must be 1 at least")
    line = iter(items)
    while piece := list(islice(line, size)):
        yield piece
