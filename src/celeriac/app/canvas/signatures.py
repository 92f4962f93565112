"""A call that is not made yet, with its options; and what all shapes of a canvas have in common."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from copy import deepcopy
from typing import Any, ClassVar, Generic, Self, TypeVar, overload

from celeriac.app import registry
from celeriac.app.canvas import stamping
from celeriac.app.canvas.form import Form
from celeriac.app.handle import AsyncResult as Handle
from celeriac.app.publish import many
from celeriac.wire.ids import new_id

R = TypeVar("R")
S = TypeVar("S")
T = TypeVar("T", bound="type[Any]")

_LINKS = ("link", "link_error")


class Signature(Form, Generic[R]):
    """A call of a task, to be made later, elsewhere, or as the link of another one."""

    TYPES: ClassVar[dict[str, Any]] = {}
    """The class of each `subtask_type`."""

    @classmethod
    def register_type(cls, name: str | None = None) -> Callable[[T], T]:
        """A class decorator: signatures whose `subtask_type` is `name` (the name of the class) are made by its
        `from_dict`."""

        def register(made: T) -> T:
            cls.TYPES[name or made.__name__] = made
            return made

        return register

    def __init__(
        self,
        task: Any = None,
        args: Iterable[Any] | None = None,
        kwargs: Mapping[str, Any] | None = None,
        options: Mapping[str, Any] | None = None,
        type: Any = None,
        subtask_type: str | None = None,
        immutable: bool = False,
        app: Any = None,
        **more: Any,
    ) -> None:
        """`task`: a task, its name, or a dict of the form that stands on the wire. `more` are options."""
        self._app = app
        self._type: Any = None
        if isinstance(task, Mapping):
            super().__init__(task)
            return
        self._type = type if isinstance(task, str) else task
        name = task if isinstance(task, str) else getattr(task, "name", None)
        super().__init__(
            task=name,
            args=tuple(args or ()),
            kwargs=dict(kwargs or {}),
            options={**(options or {}), **more},
            subtask_type=subtask_type,
            immutable=immutable,
        )

    @classmethod
    def from_dict(cls, form: Mapping[str, Any], app: Any = None) -> Signature[Any]:
        """The signature of a dict: a chain, group or chord where `subtask_type` says so."""
        made = Signature.TYPES.get(form.get("subtask_type") or "", Signature)
        found: Signature[Any] = cls.adopt(form, app) if made is cls else made.from_dict(form, app=app)
        return found

    @classmethod
    def adopt(cls, form: Mapping[str, Any], app: Any = None) -> Self:
        """A signature of this class with what stands in a dict."""
        made = cls.__new__(cls)
        dict.update(made, form)
        made._app, made._type = app, None
        return made

    # What it is

    @property
    def app(self) -> Any:
        """The app that sends it."""
        return self.found_app() or registry.current()

    @app.setter
    def app(self, app: Any) -> None:
        self._app = app

    def found_app(self) -> Any:
        """The app of this signature or of its tasks; None where none of them says."""
        return self._app or getattr(self._type, "app", None)

    @property
    def type(self) -> Any:
        """The task. Raises NotRegistered when the app does not know it."""
        return self._type if self._type is not None else self.app.tasks[self["task"]]

    @property
    def AsyncResult(self) -> Any:
        """Makes the handle of a result by its id."""
        return self._type.AsyncResult if self._type is not None else self.app.AsyncResult

    # Calling

    def delay(self, *args: Any, **kwargs: Any) -> Handle[R]:
        """Send it, with more arguments."""
        return self.apply_async(args, kwargs)

    async def adelay(self, *args: Any, **kwargs: Any) -> Handle[R]:
        """`delay` for coroutines."""
        return await self.aapply_async(args, kwargs)

    def apply_async(
        self,
        args: Iterable[Any] | None = None,
        kwargs: Mapping[str, Any] | None = None,
        route_name: str | None = None,
        **options: Any,
    ) -> Handle[R]:
        """Send it, with more arguments and options; see `Task.apply_async`."""
        send, args, kwargs, options = self._call("apply_async", "send_task", args, kwargs, route_name, options)
        return send(args, kwargs, **options)  # type: ignore[no-any-return]

    async def aapply_async(
        self,
        args: Iterable[Any] | None = None,
        kwargs: Mapping[str, Any] | None = None,
        route_name: str | None = None,
        **options: Any,
    ) -> Handle[R]:
        """`apply_async` for coroutines."""
        send, args, kwargs, options = self._call("aapply_async", "asend_task", args, kwargs, route_name, options)
        return await send(args, kwargs, **options)  # type: ignore[no-any-return]

    def _call(
        self, of_task: str, of_app: str, args: Any, kwargs: Any, route_name: str | None, options: dict[str, Any]
    ) -> tuple[Callable[..., Any], Any, Any, dict[str, Any]]:
        args, kwargs, options = self._merge(args, kwargs, options)
        if route_name is not None:
            options["route_name"] = route_name
        task = self._type
        if task is None:
            task = self.app.tasks.get(self["task"])
        if task is not None:
            return getattr(task, of_task), args, kwargs, options
        send = getattr(self.app, of_app)
        return lambda args, kwargs, **how: send(self["task"], args, kwargs, **how), args, kwargs, options

    def apply(
        self, args: Iterable[Any] | None = None, kwargs: Mapping[str, Any] | None = None, **options: Any
    ) -> Any:
        """Run it here and now; see `Task.apply`."""
        args, kwargs, options = self._merge(args, kwargs, options)
        return self.type.apply(args, kwargs, **options)

    def __call__(self, *args: Any, **kwargs: Any) -> R:
        """Call the task's function, with its arguments before and keyword arguments beside the stored ones."""
        merged_args, merged_kwargs, _ = self._merge(args, kwargs, {})
        return self.type(*merged_args, **merged_kwargs)  # type: ignore[no-any-return]

    def election(self) -> Any:
        """Let one of all workers run it: what a queue does anyway, so this is `apply_async()`."""
        return self.apply_async()

    def __invert__(self) -> R:
        """`~sig`: send it and wait for the result."""
        result: R = self.apply_async().get()
        return result

    # Changing

    def clone(self, args: Iterable[Any] = (), kwargs: Mapping[str, Any] | None = None, **options: Any) -> Self:
        """A copy with more arguments (before the stored ones), keyword arguments and options."""
        if not (args or kwargs or options):
            given_args, given_kwargs, options = tuple(self.args or ()), dict(self.kwargs or {}), self.options
        else:
            given_args, given_kwargs, options = self._merge(args, kwargs, options)
        return self._copy(given_args, given_kwargs, options)

    partial = clone

    def _copy(self, args: Any, kwargs: Any, options: dict[str, Any]) -> Self:
        copy = self.__class__.__new__(self.__class__)
        dict.update(copy, self)
        copy["args"], copy["kwargs"], copy["options"] = args, kwargs, _copied(options)
        copy._app, copy._type = self._app, self._type
        return copy

    def replace(
        self,
        args: Iterable[Any] | None = None,
        kwargs: Mapping[str, Any] | None = None,
        options: Mapping[str, Any] | None = None,
    ) -> Self:
        """A copy with other arguments, keyword arguments or options."""
        copy = self.clone()
        for key, value in (("args", args), ("kwargs", kwargs), ("options", options)):
            if value is not None:
                copy[key] = value
        return copy

    def set(self, immutable: bool | None = None, **options: Any) -> Self:
        """Set options; returns the signature itself."""
        if immutable is not None:
            self.set_immutable(immutable)
        self.options.update(options)
        return self

    def set_immutable(self, immutable: bool) -> None:
        """Let it take no more arguments."""
        self["immutable"] = immutable

    def freeze(
        self,
        _id: str | None = None,
        group_id: str | None = None,
        chord: Any = None,
        root_id: str | None = None,
        parent_id: str | None = None,
        group_index: int | None = None,
    ) -> Any:
        """Give it the id that it will have when it is sent; returns the handle of its result."""
        options = self.options
        task_id = options.setdefault("task_id", _id or new_id())
        options.setdefault("reply_to", self.app.thread_oid)
        for key, value in (("root_id", root_id), ("parent_id", parent_id), ("group_index", group_index)):
            if value is not None:
                options[key] = value
        if group_id is not None and "group_id" not in options:
            options["group_id"] = group_id
        if chord is not None:
            options["chord"] = chord
        return self.AsyncResult(task_id)

    _freeze = freeze

    def link(self, callback: Any) -> Any:
        """Let another signature follow when this task has returned; it gets the result as its first argument. Returns
        the other one."""
        return self.append_to_list_option("link", callback)

    def link_error(self, errback: Any) -> Any:
        """Let another signature follow when this task has failed. Returns the other one."""
        return self.append_to_list_option("link_error", errback)

    def on_error(self, errback: Any) -> Self:
        """`link_error` that returns this signature."""
        self.link_error(errback)
        return self

    def flatten_links(self) -> list[Any]:
        """This signature, its links, their links, and so on."""
        links = [maybe_signature(link, self._app) for link in many(self.options.get("link"))]
        return [self, *(inner for link in links for inner in link.flatten_links())]

    def stamp(self, visitor: Any = None, append_stamps: bool = False, **headers: Any) -> Self:
        """Stamp every task of it, links too: with `headers`, and with what the visitor says (`StampingVisitor`).

        A stamp that is there is replaced; with `append_stamps` both stay, in a list with the newest first."""
        self.stamp_links(visitor, append_stamps, **headers)
        told = visitor.on_signature(self, **headers) if visitor is not None else None
        self.options.update(self._stamped(headers, told, append_stamps))
        return self

    def stamp_links(self, visitor: Any = None, append_stamps: bool = False, **headers: Any) -> None:
        """Stamp the links alone."""
        for key, asked in (("link", "on_callback"), ("link_error", "on_errback")):
            links = [maybe_signature(link, self._app) for link in many(self.options.get(key))]
            for link in links:
                told = getattr(visitor, asked)(link, **headers) if visitor is not None else None
                link.stamp(visitor, append_stamps, **stamping.merged(headers, told, append_stamps))
            if links:
                self.options[key] = links

    def _stamped(self, headers: Mapping[str, Any], told: Any, append: bool) -> dict[str, Any]:
        found = stamping.merged(headers, told, append)
        return stamping.merged(found, stamping.stamps(self.options), append)

    def reprcall(self, *args: Any, **kwargs: Any) -> str:
        """The call as one would write it."""
        args, kwargs, _ = self._merge(args, kwargs, {}, force=True)
        words = [*map(repr, args), *(f"{key}={value!r}" for key, value in kwargs.items())]
        return f"{self['task']}({', '.join(words)})"

    # Putting together

    def __or__(self, other: Signature[S]) -> Signature[S]:  # type: ignore[override]
        if not isinstance(other, Signature):
            return NotImplemented
        return self.extend(other)

    def __ror__(self, other: Mapping[str, Any]) -> Signature[R]:  # type: ignore[override]
        if not isinstance(other, Mapping):
            return NotImplemented
        first: Signature[Any] = maybe_signature(other, self._app)
        return first | self

    def __ior__(self, other: Signature[S]) -> Signature[S]:  # type: ignore[override]
        return self | other

    def extend(self, step: Signature[S]) -> Signature[S]:
        """What `self | step` is. A chain or chord may be changed itself: `|` calls this on a copy."""
        made: Signature[S] = self.TYPES["chain"].of([self, *step.as_steps()], self._app)
        return made

    def as_steps(self) -> list[Signature[Any]]:
        """The steps that it adds to a chain in front of it."""
        return [self]

    def __repr__(self) -> str:
        return self.reprcall()

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        copy = self.__class__.__new__(self.__class__)
        memo[id(self)] = copy
        dict.update(copy, deepcopy(dict(self), memo))
        copy._app, copy._type = self._app, self._type
        return copy

    def __copy__(self) -> Self:
        return self.clone()

    def __reduce__(self) -> Any:
        return signature, (dict(self),)

    def __json__(self) -> dict[str, Any]:
        """The dict."""
        return dict(self)


def _copied(options: Mapping[str, Any]) -> dict[str, Any]:
    """Options of a copy: its links are its own, for a visitor may stamp each otherwise."""
    if not options:
        return {}
    copy = {key: list(value) if isinstance(value, list) else value for key, value in options.items()}
    for key in _LINKS:
        if copy.get(key):
            copy[key] = [maybe_signature(link, clone=True) for link in many(copy[key])]
    return copy


@overload
def signature(varies: Signature[S], *args: Any, **kwargs: Any) -> Signature[S]: ...


@overload
def signature(varies: Any, *args: Any, **kwargs: Any) -> Signature[Any]: ...


def signature(varies: Any, *args: Any, **kwargs: Any) -> Signature[Any]:
    """A signature of a dict, a signature (copied), a task, or a task's name with what `Signature` takes."""
    if isinstance(varies, Signature):
        return varies.clone()
    if isinstance(varies, Mapping):
        return Signature.from_dict(varies, app=kwargs.get("app"))
    return Signature(varies, *args, **kwargs)


subtask = signature


def maybe_signature(form: Any, app: Any = None, clone: bool = False) -> Any:
    """A signature of a dict; a signature as it is, or copied; anything else as it is."""
    if isinstance(form, Mapping):
        if not isinstance(form, Signature):
            form = signature(form, app=app)
        elif clone:
            form = form.clone()
        if app is not None:
            form._app = app
    return form


maybe_subtask = maybe_signature
