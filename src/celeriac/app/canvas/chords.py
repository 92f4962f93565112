"""Chords: a task that follows when all of others have ended, and gets what they returned."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Self, TypeVar

from celeriac.app.canvas.compound import TOO_DEEP, Compound, is_list, signatures
from celeriac.app.canvas.groups import group, shortened
from celeriac.app.canvas.signatures import Signature, maybe_signature, signature
from celeriac.app.publish import many
from celeriac.errors import CPendingDeprecationWarning, InvalidTaskError

S = TypeVar("S")

_ERRORS_STAY_OUT = (
    "link_error of a chord follows its body, and not the members of its header, because"
    " task_allow_error_cb_on_chord_header is off; Celery means to turn it on, so set it to say which you want"
)

_OF_UNLOCK = frozenset({"interval", "countdown", "max_retries", "eager"})


@Signature.register_type()
class chord(Compound[Any]):
    """A header and a body: `chord([a.s(1), b.s(2)], c.s())` runs `c([a's result, b's result])`.

    The header is a list, generator or group of signatures. `chord(header)(body)` sends it."""

    def __init__(
        self,
        header: Any,
        body: Any = None,
        task: str = "celery.chord",
        args: Iterable[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
        app: Any = None,
        **options: Any,
    ) -> None:
        found = {**(kwargs or {"kwargs": {}}), "header": _header(header, app), "body": maybe_signature(body, app)}
        super().__init__(task, args, found, app=app, **options)
        self["subtask_type"] = "chord"

    @classmethod
    def adopt(cls, form: Mapping[str, Any], app: Any = None) -> Self:
        """A chord with what stands in a dict."""
        made = super().adopt(form, app)
        kwargs = made["kwargs"] = {"kwargs": {}, **(form.get("kwargs") or {})}
        header = kwargs.get("header")
        is_group = isinstance(header, Mapping) and header.get("subtask_type") == "group"
        kwargs["header"] = maybe_signature(header, app) if is_group else _header(() if header is None else header, app)
        kwargs["body"] = maybe_signature(kwargs.get("body"), app)
        return made

    @property
    def tasks(self) -> Any:
        """The header: a list of signatures, or a group."""
        return self["kwargs"]["header"]

    @tasks.setter
    def tasks(self, tasks: Any) -> None:
        self["kwargs"]["header"] = tasks

    @property
    def body(self) -> Any:
        """What follows the header."""
        return self["kwargs"]["body"]

    @body.setter
    def body(self, body: Any) -> None:
        self["kwargs"]["body"] = body

    def header_group(self) -> group:
        """The header, as a group from now on."""
        if not isinstance(self.tasks, group):
            self.tasks = group(self.tasks, app=self._app)
        found: group = self.tasks
        return found

    def members(self) -> list[Any]:
        """The signatures of the header."""
        header = self.tasks
        found: list[Any] = header.tasks if isinstance(header, group) else header
        return found

    def parts(self) -> Iterator[Any]:
        """The header's members, then the body."""
        yield from self.members()
        if self.body is not None:
            yield self.body

    def _copy(self, args: Any, kwargs: Any, options: dict[str, Any]) -> Self:
        copy = super()._copy(args, {}, options)
        header, body = kwargs["header"], kwargs["body"]
        more = {key: value for key, value in kwargs.items() if key not in ("header", "body", "kwargs")}
        copy["kwargs"] = {
            "kwargs": {**(kwargs.get("kwargs") or {}), **more},
            "header": header.clone() if isinstance(header, group) else [maybe_signature(t, clone=True) for t in header],
            "body": maybe_signature(body, clone=True),
        }
        return copy

    # Calling

    def __call__(self, body: Any = None, **options: Any) -> Any:
        """Send it, with this body instead of its own."""
        return self.apply_async((), {"body": body} if body is not None else {}, **options)

    def _with_body(self, kwargs: Mapping[str, Any] | None) -> tuple[chord, dict[str, Any]]:
        """This chord with the body that a call names, and the rest of the call's keyword arguments."""
        more = dict(kwargs or {})
        body = more.pop("body", None)
        whole = self if body is None else self.replace_body(body)
        if whole.body is None:
            raise ValueError(f"{self!r} has no body: write chord(header, body), or chord(header)(body)")
        return whole, more

    def replace_body(self, body: Any) -> Self:
        """A copy with another body."""
        copy = self.clone()
        copy.body = maybe_signature(body, self._app)
        return copy

    def apply_async(
        self,
        args: Iterable[Any] | None = None,
        kwargs: Mapping[str, Any] | None = None,
        route_name: str | None = None,
        **options: Any,
    ) -> Any:
        """Send the header, with more arguments; `countdown` and `eta` hold for it alone, other options for the body
        too. `kwargs` may hold another `body`. Returns the handle of the body's result; its `parent` is the header's."""
        whole, kwargs = self._with_body(kwargs)
        return Compound.apply_async(whole, args, kwargs, route_name, **options)

    async def aapply_async(
        self,
        args: Iterable[Any] | None = None,
        kwargs: Mapping[str, Any] | None = None,
        route_name: str | None = None,
        **options: Any,
    ) -> Any:
        """`apply_async` for coroutines."""
        whole, kwargs = self._with_body(kwargs)
        return await Compound.aapply_async(whole, args, kwargs, route_name, **options)

    def run(
        self,
        header: Any,
        body: Any,
        partial_args: Iterable[Any] = (),
        app: Any = None,
        kwargs: Mapping[str, Any] | None = None,
        header_delay: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> Any:
        """Send this header and body with the options of this chord. `partial_args`, `kwargs` and `header_delay`
        (`countdown`, `eta`) are the header's. Nothing polls, so what says how Celery's `chord_unlock` does (`interval`,
        `countdown`, `max_retries`, `eager`) counts for nothing."""
        whole = maybe_signature(self.replace_body(body), app)
        whole.tasks = maybe_signature(header, self._app) if isinstance(header, Mapping) else _header(header, self._app)
        given = {**{key: value for key, value in options.items() if key not in _OF_UNLOCK}, **(header_delay or {})}
        return whole.apply_async(partial_args, kwargs, **given)

    def apply(
        self,
        args: Iterable[Any] | None = None,
        kwargs: Mapping[str, Any] | None = None,
        propagate: bool = True,
        body: Any = None,
        **options: Any,
    ) -> Any:
        """Run the header here and now, then the body."""
        whole, more = self._with_body({"body": body, **(kwargs or {})})
        given = (*(args or ()), *(self.args or ()))
        tasks = whole.tasks if isinstance(whole.tasks, group) else group(whole.tasks, app=self._app)
        header = tasks.apply(given, {**self["kwargs"].get("kwargs", {}), **more})
        last = whole.body.clone()
        for key in ("link", "link_error"):
            for link in [*many(self.options.get(key)), *many(options.get(key))]:
                last.link(link) if key == "link" else last.link_error(link)
        result = last.apply((header.get(propagate=propagate, disable_sync_subtasks=False),))
        result.parent = header
        return result

    # Changing

    def link(self, callback: Any) -> Any:
        """Let another signature follow the body."""
        self.body.link(callback)
        return callback

    def link_error(self, errback: Any) -> Any:
        """Let another signature follow when the body fails, or a member of the header, for then the body fails. With
        `task_allow_error_cb_on_chord_header` it follows each member that fails as well."""
        errback = maybe_signature(errback)
        if self.app.conf["task_allow_error_cb_on_chord_header"]:
            for task in self.members():
                task.link_error(errback.clone().set(immutable=True))
        else:
            warnings.warn(_ERRORS_STAY_OUT, CPendingDeprecationWarning, stacklevel=2)
            for task in self.members():
                if isinstance(task, chord):
                    task.link_error(errback)
        self.body.link_error(errback)
        return errback

    def set_immutable(self, immutable: bool) -> None:
        """Let the members of the header take no more arguments."""
        for task in self.members():
            task.set_immutable(immutable)

    def stamp(self, visitor: Any = None, append_stamps: bool = False, **headers: Any) -> Self:
        """Stamp the header and the body; see `Signature.stamp`."""
        told = visitor.on_chord_header_start(self, **headers) if visitor is not None else None
        found = self._stamped(headers, told, append_stamps)
        self.stamp_links(visitor, append_stamps, **found)
        for task in self.members():
            task.stamp(visitor, append_stamps, **found)
        if visitor is not None:
            visitor.on_chord_header_end(self, **found)
        if self.body is not None:
            if visitor is not None:
                found = self._stamped(found, visitor.on_chord_body(self, **found), append_stamps)
            self.body.stamp(visitor, append_stamps, **found)
        return self

    # Putting together

    def __or__(self, other: Signature[S]) -> Signature[S]:  # type: ignore[override]
        if not isinstance(other, Signature):
            return NotImplemented
        try:
            made: Signature[S] = self.clone().extend(other)
        except RecursionError:
            raise InvalidTaskError(TOO_DEEP) from None
        return made

    def extend(self, step: Signature[Any]) -> Any:
        """What `self | step` is: the step follows the body, and is a part of it. Groups and chains stay beside it."""
        steps = step.as_steps()
        if not steps:
            return self
        if len(steps) > 1 or isinstance(steps[0], group):
            return self.TYPES["chain"].of([self, *steps], self._app)
        self.extend_body(steps[0])
        return self

    def extend_body(self, step: Signature[Any]) -> None:
        """Let a step follow the body, as a part of it."""
        self.body = step if self.body is None else self.body.extend(step)

    def __length_hint__(self) -> int:
        return sum(_ends(task) for task in self.members())

    def __repr__(self) -> str:
        body = self.body
        if body is None:
            return f"<chord without body: {self.tasks!r}>"
        if body.subtask_type == "chain" and body.tasks:
            first, *rest = body.tasks
            behind = f" | {self.TYPES['chain'].of(rest, self._app)!r}" if rest else ""
            return shortened(first["task"], f"%({first.reprcall(self.tasks)}{behind})")
        return "%" + shortened(body["task"], body.reprcall(self.tasks))


def _header(header: Any, app: Any) -> list[Any]:
    if isinstance(header, Mapping):
        header = maybe_signature(header, app)
        if header.subtask_type in ("group", "chain"):
            return signatures(header.tasks, app)
        return [header.clone()]
    return [signature(task, app=app) for task in header] if is_list(header) else [signature(header, app=app)]


def _ends(task: Any) -> int:
    """How many tasks of a signature end as members of a chord."""
    task = maybe_signature(task)
    if isinstance(task, group):
        return sum(_ends(member) for member in task.tasks)
    if isinstance(task, chord):
        return _ends(task.body)
    if task.subtask_type == "chain":
        return next((count for step in reversed(task.tasks) if (count := _ends(step))), 0)
    return 1
