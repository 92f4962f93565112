"""Chains: tasks that run one after the other, each with what the one before returned."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Self, TypeVar

from celeriac.app.canvas.chords import chord
from celeriac.app.canvas.compound import TOO_DEEP, Listed, is_list, signatures
from celeriac.app.canvas.groups import group, shortened
from celeriac.app.canvas.signatures import Signature, maybe_signature
from celeriac.app.canvas.steps import Steps
from celeriac.app.publish import many
from celeriac.canvas.expand import OF_LAST
from celeriac.errors import InvalidTaskError
from celeriac.model import states

S = TypeVar("S")


@Signature.register_type()
class chain(Listed):
    """Tasks that run one after the other: `chain(a.s(1), b.s())` is `a.s(1) | b.s()`.

    As with `|`, a group before a step is the header of a chord, so what comes of it may be a chord or a group. With a
    single signature, or with options, it is the chain of what is given, as it is."""

    def __new__(cls, *tasks: Any, **options: Any) -> Any:
        """Put the tasks together as `|` does, in linear time."""
        if options or not tasks or (len(tasks) == 1 and not is_list(tasks[0])):
            return super().__new__(cls)
        given = signatures(tasks[0] if len(tasks) == 1 else tasks)
        whole: Any = cls.of([])
        for step in [*(task.clone() for task in given[:-1]), *given[-1:]]:  # copies, so they may be changed
            whole = whole.extend(step)
        return whole

    def __init__(self, *tasks: Any, **options: Any) -> None:
        if dict.__len__(self):
            return  # __new__ has put it together
        options.pop("use_link", None)
        found = tasks[0] if len(tasks) == 1 and is_list(tasks[0]) else tasks
        app = options.get("app")
        super().__init__("celery.chain", (), {"tasks": signatures(found, app)}, **options)
        self["subtask_type"] = "chain"

    @classmethod
    def of(cls, tasks: list[Any], app: Any = None) -> Self:
        """The chain of these steps, as they are."""
        return cls.adopt(
            {
                "task": "celery.chain", "args": (), "kwargs": {"tasks": tasks}, "options": {}, "subtask_type": "chain",
                "immutable": False,
            },
            app,
        )  # fmt: skip

    def _copy(self, args: Any, kwargs: Any, options: dict[str, Any]) -> Self:
        # what is given to a chain is meant for its first step
        copy = super()._copy((), {}, options)
        more = {key: value for key, value in kwargs.items() if key != "tasks"}
        tasks = Steps.copied(self.tasks)
        if tasks and (args or more):
            tasks[0] = tasks[0].clone(args, more)
        copy["kwargs"] = {"tasks": tasks}
        return copy

    # Calling

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """`apply_async(args, kwargs)`; None of an empty chain."""
        return self.apply_async(args, kwargs) if self.tasks else None

    def run(
        self,
        args: Iterable[Any] | None = None,
        kwargs: Mapping[str, Any] | None = None,
        app: Any = None,
        **options: Any,
    ) -> Any:
        """`apply_async`, by another app where one is given."""
        whole = self if app is None else maybe_signature(self, app, clone=True)
        return whole.apply_async(args, kwargs, **options)

    def apply(
        self, args: Iterable[Any] | None = None, kwargs: Mapping[str, Any] | None = None, **options: Any
    ) -> Any:
        """Run the steps here and now. Returns the result of the last one; None of an empty chain. Raises what a step
        raises that is not the last."""
        given = {**self.options, **options}
        links, task_id = many(given.pop("link", None)), given.pop("task_id", None)
        steps = [task for task in signatures(self.tasks, self._app) if task.as_steps()]
        first = () if self.immutable else tuple(args or ()), kwargs
        last: Any = None
        for index, task in enumerate(steps):
            step = task.clone()
            if index == len(steps) - 1:
                given["task_id"] = task_id
                for link in links:
                    step.link(link)
            arguments = first if last is None else ((last.get(disable_sync_subtasks=False),), None)
            result = step.apply(*arguments, **given)
            result.parent, last = last, result
            if getattr(result, "state", "") in (states.IGNORED, states.REJECTED):
                break
        return last

    # Changing

    def unchain_tasks(self) -> list[Any]:
        """Copies of the steps with what is said of the chain: links at the last, error links at each, other options at
        the first."""
        tasks = [maybe_signature(task, clone=True) for task in self.tasks]
        if not tasks:
            return []
        options = self.options
        own = {key: value for key, value in options.items() if key not in OF_LAST}
        if own:
            tasks[0] = tasks[0].clone(**own)
        for link in many(options.get("link")):
            tasks[-1].link(link)
        for errback in many(options.get("link_error")):
            for task in tasks:
                task.link_error(maybe_signature(errback, clone=True))
        return tasks

    def stamp(self, visitor: Any = None, append_stamps: bool = False, **headers: Any) -> Self:
        """Stamp the steps; see `Signature.stamp`."""
        told = visitor.on_chain_start(self, **headers) if visitor is not None else None
        found = self._stamped(headers, told, append_stamps)
        self.stamp_links(visitor, append_stamps, **found)
        for task in self.tasks:
            task.stamp(visitor, append_stamps, **found)
        if visitor is not None:
            visitor.on_chain_end(self, **found)
        return self

    # Putting together

    def __or__(self, other: Signature[S]) -> Signature[S]:  # type: ignore[override]
        if not isinstance(other, Signature):
            return NotImplemented
        whole = self.of([], self._app)
        try:
            whole.tasks = self.unchain_tasks() if self.options else Steps.copied(self.tasks)
            made: Signature[S] = whole.extend(other)
        except RecursionError:
            raise InvalidTaskError(TOO_DEEP) from None
        return made

    def extend(self, step: Signature[Any]) -> Any:
        """What `self | step` is. A step after a group makes a chord of it, one after a chord is a part of its body."""
        whole: Any = self
        for one in step.as_steps():
            whole = whole._follow(one) if isinstance(whole, chain) else whole.extend(one)
        return whole

    def _follow(self, step: Signature[Any]) -> Any:
        tasks = self.tasks
        last = tasks[-1] if tasks else None
        if isinstance(step, group) and last is None:
            return step
        if isinstance(last, group) and not isinstance(step, group):
            made = last.extend(step)
            if len(tasks) > 1 and isinstance(tasks[-2], chord):
                tasks.pop()
                tasks[-1].extend_body(made)
            else:
                tasks[-1] = made
        elif isinstance(last, chord) and not isinstance(step, chord):
            last.extend_body(step)
        else:
            tasks.append(step)
        return self

    def as_steps(self) -> list[Signature[Any]]:
        """Its steps."""
        return self.unchain_tasks()

    def __repr__(self) -> str:
        tasks = self.tasks
        if not tasks:
            return f"<{type(self).__name__}@{id(self):#x}: empty>"
        return shortened(tasks[0]["task"], " | ".join(map(repr, tasks)))
