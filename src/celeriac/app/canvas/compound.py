"""What chains, groups and chords have in common: how they are frozen and sent."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Self, TypeVar

from celeriac.app.canvas import sending
from celeriac.app.canvas.signatures import Signature, maybe_signature
from celeriac.canvas import tree
from celeriac.wire.ids import new_id

R = TypeVar("R")

TOO_DEEP = (
    "signatures are nested too deeply: what follows a group stands inside its chord, so about a hundred groups and"
    " steps in turn are as much as a message holds; let a task send the rest"
)


class Compound(Signature[R]):
    """A signature that is made of signatures."""

    def parts(self) -> Iterator[Any]:
        """The signatures that it is made of, one level down."""
        raise NotImplementedError  # each kind says its own

    def found_app(self) -> Any:
        """The app of this signature or of its parts; None where none of them says."""
        if self._app is not None:
            return self._app
        apps = (part.found_app() for part in self.parts() if isinstance(part, Signature))
        return next((app for app in apps if app is not None), None)

    # Sending

    def apply_async(
        self,
        args: Iterable[Any] | None = None,
        kwargs: Mapping[str, Any] | None = None,
        route_name: str | None = None,
        **options: Any,
    ) -> Any:
        """Send what is to run first; the rest follows from it, and stands in its messages.

        Everything is handed to the broker at once. Returns the handle of the whole: for a chain and a chord of what is
        last, for a group a GroupResult; what came before is found by `parent`. Raises as `Task.apply_async` does, and
        NotImplementedError for a chord where results are not kept."""
        app = self.app
        if app.conf["task_always_eager"]:
            return self.apply(args, kwargs, **options)
        return sending.send(app, self, args, kwargs, {**options, "route_name": route_name})

    async def aapply_async(
        self,
        args: Iterable[Any] | None = None,
        kwargs: Mapping[str, Any] | None = None,
        route_name: str | None = None,
        **options: Any,
    ) -> Any:
        """`apply_async` for coroutines."""
        app = self.app
        if app.conf["task_always_eager"]:
            return self.apply(args, kwargs, **options)
        return await sending.asend(app, self, args, kwargs, {**options, "route_name": route_name})

    # Ids

    def freeze(
        self,
        _id: str | None = None,
        group_id: str | None = None,
        chord: Any = None,
        root_id: str | None = None,
        parent_id: str | None = None,
        group_index: int | None = None,
    ) -> Any:
        """Give every task the id that it will have when it is sent; returns the handle of the whole. Inner chains and
        groups are laid flat, and groups before a step become chords."""
        app = self.app
        given = {"reply_to": app.thread_oid, "root_id": root_id}
        more = {key: value for key, value in given.items() if value is not None}
        form, node = tree.Freezer(new_id, more).freeze(self, _id)
        marks = {"group_id": group_id, "group_index": group_index, "chord": chord}
        marks = {key: value for key, value in marks.items() if value is not None}
        if marks:
            form = tree.mark(form, marks)
        frozen = Signature.from_dict(form, app)
        self["kwargs"], self["options"] = frozen["kwargs"], frozen["options"]
        if parent_id is not None:
            self["options"]["parent_id"] = parent_id
        return sending.handle(app, node)

    _freeze = freeze


class Listed(Compound[Any]):
    """A compound whose parts stand in one list, `tasks`: a chain or a group."""

    @classmethod
    def adopt(cls, form: Mapping[str, Any], app: Any = None) -> Self:
        """A chain or group with what stands in a dict."""
        made = super().adopt(form, app)
        kwargs = made["kwargs"] = dict(form.get("kwargs") or {})
        kwargs["tasks"] = signatures(kwargs.get("tasks") or (), app)
        return made

    @property
    def tasks(self) -> Any:
        """The steps of a chain, or the members of a group."""
        return self["kwargs"]["tasks"]

    @tasks.setter
    def tasks(self, tasks: Any) -> None:
        self["kwargs"]["tasks"] = tasks

    def parts(self) -> Iterator[Any]:
        """The tasks."""
        return iter(self.tasks)


def signatures(found: Any, app: Any = None) -> list[Any]:
    """Signatures, or dicts of them, in a list of one's own. Raises TypeError for anything else."""
    return [one if isinstance(one, Signature) else _signature(one, app) for one in found]


def _signature(one: Any, app: Any) -> Any:
    if not isinstance(one, Mapping):
        raise TypeError(f"a signature is wanted here, not {one!r}: write task.s(...), which is a call not made yet")
    return maybe_signature(one, app)


def is_list(value: Any) -> bool:
    """Whether it stands for several signatures: a signature, being a dict, does not, and a generator does."""
    return isinstance(value, Iterable) and not isinstance(value, Mapping | str)
