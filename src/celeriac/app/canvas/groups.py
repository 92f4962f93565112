"""Groups: tasks that run side by side."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Self

from celeriac.app.canvas.compound import Listed, is_list, signatures
from celeriac.app.canvas.signatures import Signature, maybe_signature
from celeriac.app.publish import many
from celeriac.app.result_set import GroupResult
from celeriac.wire.ids import new_id


@Signature.register_type()
class group(Listed):
    """Tasks that run side by side: `group(a.s(1), b.s(2))`, or of a list or generator of them."""

    def __init__(self, *tasks: Any, **options: Any) -> None:
        found: Any = tasks
        if len(tasks) == 1:
            (one,) = tasks
            found = one.tasks if isinstance(one, group) else one if is_list(one) else [signature_of(one)]
        app = options.get("app")
        super().__init__("celeriac.group", (), {"tasks": signatures(found, app)}, **options)
        self["task"], self["subtask_type"] = "celery.group", "group"

    def members(self) -> list[Any]:
        """The members; of groups among them, their members, and no empty chains."""
        found = []
        for member in signatures(self.tasks, self._app):
            if isinstance(member, group):
                found += member.members()
            elif member.as_steps():
                found.append(member)
        return found

    def _copy(self, args: Any, kwargs: Any, options: dict[str, Any]) -> Self:
        # what is given to a group is meant for its members
        copy = super()._copy((), {}, options)
        more = {key: value for key, value in kwargs.items() if key != "tasks"}
        copy["kwargs"] = {"tasks": [maybe_signature(task).clone(args, more) for task in self.tasks]}
        return copy

    # Calling

    def __call__(self, *args: Any, **options: Any) -> GroupResult:
        """`apply_async(args, **options)`."""
        return self.apply_async(args, **options)

    def delay(self, *args: Any, **kwargs: Any) -> GroupResult:  # type: ignore[override]
        """`apply_async(args, kwargs)`."""
        return self.apply_async(args, kwargs)

    async def adelay(self, *args: Any, **kwargs: Any) -> GroupResult:  # type: ignore[override]
        """`delay` for coroutines."""
        return await self.aapply_async(args, kwargs)

    def apply_async(  # type: ignore[override]
        self,
        args: Iterable[Any] | None = None,
        kwargs: Mapping[str, Any] | None = None,
        route_name: str | None = None,
        **options: Any,
    ) -> GroupResult:
        """Send all members at once, each with more arguments and options."""
        _refuse_links(options)
        found: GroupResult = super().apply_async(args, kwargs, route_name, **options)
        return found

    async def aapply_async(  # type: ignore[override]
        self,
        args: Iterable[Any] | None = None,
        kwargs: Mapping[str, Any] | None = None,
        route_name: str | None = None,
        **options: Any,
    ) -> GroupResult:
        """`apply_async` for coroutines."""
        _refuse_links(options)
        found: GroupResult = await super().aapply_async(args, kwargs, route_name, **options)
        return found

    def apply(
        self, args: Iterable[Any] | None = None, kwargs: Mapping[str, Any] | None = None, **options: Any
    ) -> GroupResult:
        """Run the members here and now, one after the other."""
        group_id = options.pop("task_id", None) or self.id or new_id()
        given = {**{key: value for key, value in self.options.items() if key != "task_id"}, **options}
        given["group_id"] = group_id
        found: GroupResult = self.app.GroupResult(
            group_id, [member.apply(args, kwargs, **given) for member in self.members()]
        )
        return found

    # Changing

    def skew(self, start: float = 1.0, stop: float | None = None, step: float = 1.0) -> Self:
        """Let the members begin one after the other: the first in `start` seconds, each next one `step` later, none
        later than in `stop`."""
        for index, task in enumerate(self.tasks):
            countdown = float(start + index * step)
            if stop and countdown > stop:
                countdown = start + (stop - start) // step * step
            task.set(countdown=countdown)
        return self

    def set_immutable(self, immutable: bool) -> None:
        """Let the members take no more arguments."""
        for task in self.tasks:
            task.set_immutable(immutable)

    def link(self, callback: Any) -> Any:
        """Let another signature follow the first member, without its result. What is to follow all of them, with their
        results, is the body of a chord: `group(...) | callback`."""
        return self.tasks[0].link(maybe_signature(callback, clone=True).set(immutable=True))

    def link_error(self, errback: Any) -> Any:
        """Let another signature follow each member that fails."""
        return tuple(task.link_error(maybe_signature(errback, clone=True)) for task in self.tasks)

    def stamp(self, visitor: Any = None, append_stamps: bool = False, **headers: Any) -> Self:
        """Stamp the members; see `Signature.stamp`."""
        told = visitor.on_group_start(self, **headers) if visitor is not None else None
        found = self._stamped(headers, told, append_stamps)
        self.stamp_links(visitor, append_stamps, **found)
        self.tasks = signatures(self.tasks, self._app)
        for task in self.tasks:
            task.stamp(visitor, append_stamps, **found)
        if visitor is not None:
            visitor.on_group_end(self, **found)
        return self

    # Putting together

    def extend(self, step: Signature[Any]) -> Any:
        """What `self | step` is: a chord whose body is the step."""
        if not step.as_steps():
            return self
        return self.TYPES["chord"](self, body=step, app=self._app)

    def as_steps(self) -> list[Signature[Any]]:
        """None of an empty group; of a single member, its own."""
        found = signatures(self.tasks, self._app)
        return [self] if len(found) > 1 else [step for member in found for step in member.as_steps()]

    def __len__(self) -> int:
        return len(self.tasks)

    def __repr__(self) -> str:
        tasks = self.tasks
        return shortened(tasks[0]["task"], f"group({tasks!r})") if tasks else "group(<empty>)"


def signature_of(one: Any) -> Any:
    """A copy of a signature, or one of a dict."""
    return maybe_signature(one, clone=True)


def shortened(task: str, text: str) -> str:
    """A text in which the module of a task is named once, where it comes first."""
    module = task.rpartition(".")[0]
    if not module:
        return text
    before, dotted, behind = text.partition(f"{module}.")
    return before + dotted + behind.replace(dotted, "") if dotted else text


def _refuse_links(options: Mapping[str, Any]) -> None:
    for key in ("link", "link_error"):
        if many(options.get(key)):
            raise TypeError(
                f"a group has no result of its own, so {key} can't follow it: link its members, or write"
                " group(...) | task for what follows all of them"
            )
