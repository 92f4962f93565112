"""How tasks come into an app: by the decorator, as classes, from other apps; and when they are complete."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from functools import cached_property
from typing import Any, Concatenate, Literal, ParamSpec, TypeVar, overload

from celeriac.app import annotating, builtin_tasks, publish, registry, retrying
from celeriac.app.config import symbol
from celeriac.app.loading import Discovery, Loader, Packages, discover
from celeriac.app.registry import TaskRegistry
from celeriac.app.settled import Settled
from celeriac.app.task import Task as AnyTask
from celeriac.app.task_options import SETTINGS
from celeriac.errors import DuplicateTaskNameWarning
from celeriac.runtime.context import current
from celeriac.telemetry import Signal

P = ParamSpec("P")
R = TypeVar("R")


class Making(Settled):
    """The tasks of an app."""

    task_cls: Any = AnyTask
    registry_cls: type[TaskRegistry] = TaskRegistry

    def __init__(
        self,
        main: str | None,
        tasks: TaskRegistry | Mapping[str, Any] | None,
        task_cls: Any,
        autofinalize: bool,
        strict_typing: bool,
        *settled: Any,
    ) -> None:
        """`settled` is what `Settled` takes."""
        super().__init__(*settled)
        self.main = main
        self.autofinalize = autofinalize
        self.strict_typing = strict_typing
        self.finalized = False
        self.on_after_finalize = Signal(name="app.on_after_finalize")
        self.loader = Loader(self)
        if task_cls is not None:
            self.task_cls = symbol(task_cls) if isinstance(task_cls, str) else task_cls
        self._tasks = tasks if isinstance(tasks, TaskRegistry) else self.registry_cls(tasks or {})

    @overload
    def task(self, fun: Callable[P, R], /) -> AnyTask[P, R]: ...

    @overload
    def task(
        self, *, bind: Literal[True], **opts: Any
    ) -> Callable[[Callable[Concatenate[Any, P], R]], AnyTask[P, R]]: ...

    @overload
    def task(self, *, bind: Literal[False] = False, **opts: Any) -> Callable[[Callable[P, R]], AnyTask[P, R]]: ...

    def task(self, *args: Any, **opts: Any) -> Any:
        """Make a task of a function; a decorator, with or without options.

        Options: `name` (else module and function), `bind` (the function gets the task as its first argument), `base` (a
        task class), `shared` (every other app of the process gets the task as well), and every attribute of `Task`.
        Under a name that is taken, the first task stays, with a warning."""
        if len(args) > 1:
            raise TypeError(f"@app.task takes one function, not {len(args)} arguments")
        if not args:
            return lambda fun: self._make_task(fun, **opts)
        if not callable(args[0]):
            raise TypeError("@app.task takes a function, and options by name: @app.task(name='...')")
        return self._make_task(args[0], **opts)

    def _make_task(self, fun: Callable[..., Any], shared: bool = True, lazy: bool = True, **opts: Any) -> Any:
        accept = opts.pop("filter", None)
        if accept is not None:
            fun = accept(fun)
        task = self.task_from_fun(fun, **opts)
        if shared:
            registry.on_finalize(lambda app: app.task_from_fun(fun, warn=False, **opts))
        return task

    def task_from_fun(
        self,
        fun: Callable[..., Any],
        name: str | None = None,
        base: Any = None,
        bind: bool = False,
        warn: bool = True,
        **opts: Any,
    ) -> Any:
        """The task of a function under its name; the one that is there already, if there is one."""
        if opts.get("pydantic"):
            raise NotImplementedError("pydantic=True is not part of this version of celeriac")
        for key in ("pydantic", "pydantic_strict", "pydantic_context", "pydantic_dump_kwargs"):
            opts.pop(key, None)
        if isinstance(fun, AnyTask):
            raise TypeError(f"{fun.name} is a task already: decorate the function once")
        name = name or self.gen_task_name(getattr(fun, "__name__", type(fun).__name__), fun.__module__)
        with self._lock:
            known = self._tasks.get(name)
            if known is None:
                task = make(self, fun, base or self.Task, name, bind, opts)
                self._tasks[name] = task
                if self.finalized:
                    self.annotate(task)
                return task
        if warn and _function_of(known) is not fun and not _same_source(known, fun):
            warnings.warn(
                f"the task name {name!r} is taken by {_function_of(known)!r}, which stays; give {fun!r} another name",
                DuplicateTaskNameWarning,
                stacklevel=4,
            )
        return known

    def register_task(self, task: Any, **options: Any) -> Any:
        """Register a task class or an instance of one; it takes the place of what has its name."""
        made = task() if isinstance(task, type) else task
        cls = type(made)
        if not made.name:
            made.name = self.gen_task_name(cls.__name__, cls.__module__)
        made.app = self
        for key, value in options.items():
            setattr(made, key, value)
        retrying.add_autoretry(made)
        with self._lock:
            self._tasks[made.name] = made
        if self.finalized:
            self.annotate(made)
        made.on_bound(self)
        return made

    def gen_task_name(self, name: str, module: str | None) -> str:
        """`module.name`; of the script that runs as `__main__`, the app's name takes the module's place."""
        if module is None or module == "__main__":
            module = self.main or "__main__"
        return f"{module}.{name}"

    @property
    def tasks(self) -> TaskRegistry:
        """The tasks by name. Finalizes the app."""
        self.finalize(auto=True)
        return self._tasks

    def known_task(self, name: str) -> Any:
        """The task of a name, or None. Does not finalize the app."""
        return self._tasks.get(name)

    def finalize(self, auto: bool = False) -> None:
        """Take in what other apps share, and what `task_annotations` says. Raises RuntimeError where `autofinalize` is
        off and nobody has called this."""
        if self.finalized:
            return
        with self._lock:
            if self.finalized:
                return
            if auto and not self.autofinalize:
                raise RuntimeError("the app is not finalized: call app.finalize() first (autofinalize is off)")
            self.finalized = True
            for take_in in registry.finalizers():
                take_in(self)
            builtin_tasks.add(self)
            for task in list(self._tasks.values()):
                self.annotate(task)
        self.on_after_finalize.send(self)

    def annotate(self, task: Any) -> None:
        """Take over what `task_annotations` says of a task; once."""
        annotating.annotate(self, task)

    def prepare_task(self, task: Any) -> None:
        """Before a task is first sent: what `task_annotations` says of it counts."""
        if not self.finalized and self.autofinalize:
            self.finalize(auto=True)
        if "_annotated" not in task.__dict__:
            self.annotate(task)

    @cached_property
    def Task(self) -> type[AnyTask[..., Any]]:
        """The class that tasks of this app derive from."""
        return type("Task", (self.task_cls,), {"app": self, "abstract": True, "__module__": self.task_cls.__module__})

    def create_task_cls(self) -> type[Any]:
        """`app.Task`."""
        return self.Task

    def autodiscover_tasks(
        self, packages: Packages = None, related_name: str | None = "tasks", force: bool = False
    ) -> None:
        """Import the module `related_name` of these packages when a worker starts, or now with `force`. Without
        packages: of Django's installed apps."""
        discovery = Discovery(packages, related_name)
        if force:
            discover(discovery)
        else:
            self.loader.discoveries.append(discovery)

    @property
    def current_task(self) -> Any:
        """The task that runs here now, or None."""
        request = current.get()
        return None if request is None else request.instance

    @property
    def current_worker_task(self) -> Any:
        """The task that a worker runs here; one that it calls as a function does not count."""
        request = publish.worker_request()
        return None if request is None else request.instance


def make(app: Any, function: Callable[..., Any], base: type[Any], name: str, bind: bool, options: Any) -> Any:
    """A task of a function: the only instance of a class of its own."""
    run: Any = function if bind else staticmethod(function)
    given = {key: value for key, value in options.items() if value is not None or key not in SETTINGS}
    space = {
        "app": app, "name": name, "run": run, "abstract": False, "__doc__": function.__doc__,
        "__module__": function.__module__, "__annotations__": getattr(function, "__annotations__", {}),
        "__wrapped__": run, **given,
    }  # fmt: skip
    title = getattr(function, "__name__", type(function).__name__)
    task = type(title, (base,), space)()
    task.__dict__.setdefault("__name__", title)
    task.__dict__.setdefault("__qualname__", getattr(function, "__qualname__", title))
    retrying.add_autoretry(task)
    return task


def _function_of(task: Any) -> Any:
    return type(task).__dict__.get("__wrapped__", task)


def _same_source(task: Any, fun: Any) -> bool:
    """The module of the function was imported a second time."""
    known = _function_of(task)
    known = getattr(known, "__func__", known)
    return known is fun or _place(known) == _place(fun)


def _place(fun: Any) -> tuple[Any, ...]:
    code = getattr(fun, "__code__", None)
    line = getattr(code, "co_firstlineno", id(fun))
    return getattr(fun, "__module__", None), getattr(fun, "__qualname__", None), line
