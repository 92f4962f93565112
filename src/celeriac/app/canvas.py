"""Signatures as users write them: a call that is not made yet, with its options. Single tasks; no chain, group or
chord.

A signature is a dict, because that is what stands on the wire: task, args, kwargs, options, subtask_type, immutable.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from copy import deepcopy
from typing import Any, Generic, NoReturn, TypeVar

from celeriac.app import registry
from celeriac.app.handle import AsyncResult as Handle
from celeriac.wire.ids import new_id

R = TypeVar("R")

NOT_YET = (
    "chains, groups and chords are not part of this version of celeriac: use link= to let one task follow another,"
    " or send the tasks one by one"
)
_KINDS = frozenset({"chain", "group", "chord", "chunks", "xmap", "xstarmap"})
_KEPT = frozenset({"group_id", "stamped_headers"})
"""Options of a signature that a later call can't override."""


class Signature(dict[str, Any], Generic[R]):
    """A call of a task, to be made later, elsewhere, or as the link of another one."""

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
        """The signature of a dict. Raises NotImplementedError for chains, groups and chords."""
        if form.get("subtask_type") in _KINDS:
            raise NotImplementedError(f"a signature of kind {form['subtask_type']}: {NOT_YET}")
        return Signature(form, app=app)

    # What it is

    @property
    def app(self) -> Any:
        """The app that sends it."""
        app = self._app
        if app is None:
            app = self._app = getattr(self._type, "app", None) or registry.current()
        return app

    @app.setter
    def app(self, app: Any) -> None:
        self._app = app

    @property
    def type(self) -> Any:
        """The task. Raises NotRegistered when the app does not know it."""
        return self._type if self._type is not None else self.app.tasks[self["task"]]

    @property
    def task(self) -> str:
        """The task's name."""
        name: str = self["task"]
        return name

    @task.setter
    def task(self, name: str) -> None:
        self["task"] = name

    name = task

    @property
    def args(self) -> Any:
        """The arguments."""
        return self.setdefault("args", ())

    @args.setter
    def args(self, args: Any) -> None:
        self["args"] = args

    @property
    def kwargs(self) -> dict[str, Any]:
        """The keyword arguments."""
        kwargs: dict[str, Any] = self.setdefault("kwargs", {})
        return kwargs

    @kwargs.setter
    def kwargs(self, kwargs: dict[str, Any]) -> None:
        self["kwargs"] = kwargs

    @property
    def options(self) -> dict[str, Any]:
        """Options of the call."""
        options = self.get("options")
        if options is None:
            options = self["options"] = {}
        found: dict[str, Any] = options
        return found

    @options.setter
    def options(self, options: dict[str, Any]) -> None:
        self["options"] = options

    @property
    def subtask_type(self) -> str | None:
        """None for a single task."""
        return self.get("subtask_type")

    @property
    def immutable(self) -> bool:
        """It takes no more arguments, not even the result of the task whose link it is."""
        return bool(self.get("immutable"))

    @immutable.setter
    def immutable(self, value: bool) -> None:
        self["immutable"] = value

    @property
    def id(self) -> str | None:
        """The task id, if it is frozen."""
        return self.options.get("task_id")

    @property
    def parent_id(self) -> str | None:
        """The id of the task that it follows from, if that is known."""
        return self.options.get("parent_id")

    @property
    def root_id(self) -> str | None:
        """The id of the first task of its tree, if that is known."""
        return self.options.get("root_id")

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

    def __invert__(self) -> R:
        """`~sig`: send it and wait for the result."""
        result: R = self.apply_async().get()
        return result

    def _merge(
        self, args: Iterable[Any] | None, kwargs: Mapping[str, Any] | None, options: Mapping[str, Any] | None
    ) -> tuple[tuple[Any, ...], dict[str, Any], dict[str, Any]]:
        stored = self.options
        kept = {*_KEPT, *(stored.get("stamped_headers") or ())}
        more = {k: v for k, v in (options or {}).items() if v is not None and not (k in kept and k in stored)}
        merged = {**stored, **more}
        if self.immutable:
            return tuple(self.args or ()), dict(self.kwargs or {}), merged
        return (*(args or ()), *(self.args or ())), {**(self.kwargs or {}), **(kwargs or {})}, merged

    # Changing

    def clone(
        self, args: Iterable[Any] = (), kwargs: Mapping[str, Any] | None = None, **options: Any
    ) -> Signature[R]:
        """A copy with more arguments (before the stored ones), keyword arguments and options."""
        args, kwargs, merged = self._merge(args, kwargs, options)
        copy = Signature[R](
            {**self, "args": args, "kwargs": deepcopy(kwargs), "options": _copied(merged)}, app=self._app
        )
        copy._type = self._type
        return copy

    partial = clone

    def replace(
        self,
        args: Iterable[Any] | None = None,
        kwargs: Mapping[str, Any] | None = None,
        options: Mapping[str, Any] | None = None,
    ) -> Signature[R]:
        """A copy with other arguments, keyword arguments or options."""
        copy = self.clone()
        if args is not None:
            copy["args"] = args
        if kwargs is not None:
            copy["kwargs"] = kwargs
        if options is not None:
            copy["options"] = options
        return copy

    def set(self, immutable: bool | None = None, **options: Any) -> Signature[R]:
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

    def append_to_list_option(self, key: str, value: Any) -> Any:
        """Add a value to an option that is a list, unless it is in it."""
        items = self._list_option(key)
        if value not in items:
            items.append(value)
        return value

    def extend_list_option(self, key: str, values: Any) -> None:
        """Add values to an option that is a list."""
        self._list_option(key).extend(values if isinstance(values, list | tuple) else [values])

    def _list_option(self, key: str) -> list[Any]:
        items = self.options.get(key)
        if not isinstance(items, list):
            items = self.options[key] = list(items) if isinstance(items, tuple) else [] if items is None else [items]
        return items

    def link(self, callback: Any) -> Any:
        """Let another signature follow when this task has returned; it gets the result as its first argument. Returns
        the other one."""
        return self.append_to_list_option("link", callback)

    def link_error(self, errback: Any) -> Any:
        """Let another signature follow when this task has failed. Returns the other one."""
        return self.append_to_list_option("link_error", errback)

    def on_error(self, errback: Any) -> Signature[R]:
        """`link_error` that returns this signature."""
        self.link_error(errback)
        return self

    def flatten_links(self) -> list[Any]:
        """This signature, its links, their links, and so on."""
        links = [maybe_signature(link, self._app) for link in self._many("link")]
        return [self, *(inner for link in links for inner in link.flatten_links())]

    def _many(self, key: str) -> list[Any]:
        value = self.options.get(key)
        return [] if value is None else [value] if isinstance(value, Mapping) else list(value)

    def stamp(self, visitor: Any = None, append_stamps: bool = False, **headers: Any) -> Signature[R]:
        """Stamp it and its links. `headers` are stamps; a visitor's `on_signature(signature, **headers)` gives more."""
        stamps = {key: value for key, value in headers.items() if key != "stamped_headers"}
        if visitor is not None:
            found = dict(visitor.on_signature(self, **headers) or {})
            names = found.get("stamped_headers")
            stamps |= {key: found[key] for key in (found if names is None else names) if key != "stamped_headers"}
        options = self.options
        for key, value in stamps.items():
            if append_stamps and key in options:
                old = options[key]
                value = [*_listed(value), *(one for one in _listed(old) if one not in _listed(value))]
            options[key] = value
        if stamps:
            options["stamped_headers"] = list(dict.fromkeys([*(options.get("stamped_headers") or ()), *stamps]))
        self.stamp_links(visitor, append_stamps, **headers)
        return self

    def stamp_links(self, visitor: Any, append_stamps: bool = False, **headers: Any) -> None:
        """Stamp the links. A visitor's `on_callback` and `on_errback` are asked as well."""
        for key, method in (("link", "on_callback"), ("link_error", "on_errback")):
            links = [maybe_signature(link, self._app) for link in self._many(key)]
            for link in links:
                found = getattr(visitor, method, lambda *_, **__: None)(link, **headers) or {}
                link.stamp(visitor, append_stamps, **{**headers, **found})
            if links:
                self.options[key] = links

    def reprcall(self, *args: Any, **kwargs: Any) -> str:
        """The call as one would write it."""
        args, kwargs, _ = self._merge(args, kwargs, {})
        words = [*map(repr, args), *(f"{key}={value!r}" for key, value in kwargs.items())]
        return f"{self['task']}({', '.join(words)})"

    # Operators

    def __or__(self, other: Any) -> NoReturn:
        raise NotImplementedError(f"{self.reprcall()} | ...: {NOT_YET}")

    def __ror__(self, other: Any) -> NoReturn:
        raise NotImplementedError(f"... | {self.reprcall()}: {NOT_YET}")

    def __ior__(self, other: Any) -> NoReturn:
        raise NotImplementedError(f"{self.reprcall()} |= ...: {NOT_YET}")

    def __repr__(self) -> str:
        return self.reprcall()

    def __deepcopy__(self, memo: dict[int, Any]) -> Signature[R]:
        memo[id(self)] = self
        copy = Signature[R](deepcopy(dict(self), memo), app=self._app)
        copy._type = self._type
        return copy

    def __copy__(self) -> Signature[R]:
        return self.clone()

    def __reduce__(self) -> Any:
        return signature, (dict(self),)

    def __json__(self) -> dict[str, Any]:
        """The dict."""
        return dict(self)


def _copied(options: dict[str, Any]) -> dict[str, Any]:
    """Options of a copy: lists of links are its own."""
    return {key: list(value) if isinstance(value, list) else value for key, value in options.items()}


def _listed(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list | tuple | set) else [value]


def signature(varies: Any, *args: Any, **kwargs: Any) -> Signature[Any]:
    """A signature of a dict, a signature (copied), a task, or a task's name with what `Signature` takes."""
    app = kwargs.get("app")
    if isinstance(varies, Signature):
        return varies.clone()
    if isinstance(varies, Mapping):
        return Signature.from_dict(varies, app=app)
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
