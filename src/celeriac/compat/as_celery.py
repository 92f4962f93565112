"""The alias: after `install()`, `import celery` and what stands below it are served by celeriac.

For projects and packages that are not to be changed. Nothing happens by importing this module. Where kombu is not
installed, `from kombu import Queue, Exchange` is served as well.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Mapping, Sequence
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any, NamedTuple

from celeriac.errors import ImproperlyConfigured

CELERY_VERSION = "5.7.0"
"""The version of Celery whose API this is; extensions look at it."""


class VersionInfo(NamedTuple):
    """`celery.VERSION`."""

    major: int
    minor: int
    micro: int
    releaselevel: str = ""
    serial: str = ""


_APP = "celeriac.app.app:{}"
_ERRORS = (
    "AlreadyRegistered", "AlwaysEagerIgnored", "BackendError", "BackendGetMetaError", "BackendStoreError",
    "CDeprecationWarning", "CPendingDeprecationWarning", "CeleryCommandException", "CeleryError",
    "CeleryWarning", "ChordError", "DuplicateNodenameWarning", "DuplicateTaskNameWarning", "FixupWarning",
    "Ignore", "ImproperlyConfigured", "IncompleteStream", "InvalidTaskError", "MaxRetriesExceededError",
    "NotConfigured", "NotRegistered", "OperationalError", "QueueNotFound", "Reject", "Retry", "RetryTaskError",
    "SecurityError", "SecurityWarning", "SoftTimeLimitExceeded", "SystemTerminate", "TaskError",
    "TaskPredicate", "TaskRevokedError", "Terminated", "TimeLimitExceeded", "TimeoutError", "WorkerLostError",
    "WorkerShutdown", "WorkerTerminate",
)  # fmt: skip


def _all(module: str, names: Sequence[str] | str) -> dict[str, str]:
    return {name: f"{module}:{name}" for name in (names.split() if isinstance(names, str) else names)}


_RESULTS = {
    **_all("celeriac.app.handle", "AsyncResult"),
    **_all("celeriac.app.eager_result", "EagerResult"),
    **_all("celeriac.app.lineage", "ResultBase result_from_tuple"),
    **_all("celeriac.app.result_set", "GroupResult ResultSet"),
    **_all(
        "celeriac.app.joining", "allow_join_result denied_join_result assert_will_not_block task_join_will_block"
    ),
}  # fmt: skip
_CANVAS = _all(
    "celeriac.app.canvas",
    "Signature chain chord chunks group maybe_signature maybe_subtask signature subtask xmap xstarmap",
)
_CURRENT = _all(
    "celeriac.compat.current",
    "current_app current_task get_current_app get_current_task set_default_app app_or_default",
)
_APPS = {"Celery": _APP.format("Celery"), "App": _APP.format("Celery")}
_TASKS = {"Task": "celeriac.app.task:Task", "BaseTask": "celeriac.app.task:Task"}
_CONTEXT = {"Context": "celeriac.runtime.context:Context"}
_QUEUES = _all("celeriac.model.routing", "Queue Exchange")

MODULES: Mapping[str, Mapping[str, str]] = {
    "celery": {
        **_APPS, **_TASKS, **_CANVAS, **_CURRENT, "shared_task": "celeriac.compat.shared:shared_task",
        "uuid": "celeriac.wire.ids:new_id",
    },
    "celery._state": {**_CURRENT, "_task_join_will_block": "celeriac.app.joining:task_join_will_block"},
    "celery.app": {**_APPS, **_CURRENT, "shared_task": "celeriac.compat.shared:shared_task"},
    "celery.app.base": _APPS,
    "celery.app.control": _all("celeriac.app.control", "Control Inspect"),
    "celery.app.log": {"TaskFormatter": "celeriac.app.log:TaskFormatter"},
    "celery.app.registry": {"TaskRegistry": "celeriac.app.registry:TaskRegistry"},
    "celery.app.task": {**_TASKS, **_CONTEXT},
    "celery.app.utils": {"Settings": "celeriac.app.config:Settings"},
    "celery.canvas": {
        **_CANVAS, **_all("celeriac.app.canvas", "StampingVisitor"), "_chain": "celeriac.app.canvas:chain",
        "_chord": "celeriac.app.canvas:chord",
    },
    "celery.contrib": {},
    "celery.contrib.django": {},
    "celery.contrib.django.task": {"DjangoTask": "celeriac.contrib.django.task:DjangoTask"},
    "celery.exceptions": _all("celeriac.errors", _ERRORS),
    "celery.local": {"Proxy": "celeriac.compat.proxy:Proxy", "PromiseProxy": "celeriac.compat.proxy:Proxy"},
    "celery.registry": {},
    "celery.result": _RESULTS,
    "celery.signals": {},
    "celery.states": {},
    "celery.task": {},
    "celery.utils": {"uuid": "celeriac.wire.ids:new_id", "gen_unique_id": "celeriac.wire.ids:new_id"},
    "celery.utils.imports": {"symbol_by_name": "celeriac.app.sources:symbol"},
    "celery.utils.log": _all("celeriac.compat.loggers", "get_logger get_task_logger task_logger"),
    "celery.utils.saferepr": {"saferepr": "celeriac.wire.repr:safe_repr"},
}  # fmt: skip
"""Module of Celery's -> name -> where celeriac has it."""

WHOLE = {"celery.signals": "celeriac.compat.signals", "celery.states": "celeriac.states"}
"""Modules of which every public name is taken over."""

KOMBU: Mapping[str, Mapping[str, str]] = {
    "kombu": {**_QUEUES, "uuid": "celeriac.wire.ids:new_id"},
    "kombu.common": {"Broadcast": "celeriac.model.routing:Broadcast"},
    "kombu.entity": _QUEUES,
    "kombu.exceptions": _all(
        "celeriac.errors",
        "KombuError OperationalError SerializationError EncodeError DecodeError ContentDisallowed",
    ),
    "kombu.serialization": {"register": "celeriac.wire.codec:register"},
    "kombu.utils": {},
    "kombu.utils.json": _all("celeriac.wire.values", "dumps loads register_type"),
    "kombu.utils.uuid": {"uuid": "celeriac.wire.ids:new_id"},
}
"""The same for kombu, where it is not installed."""

class Alias(MetaPathFinder, Loader):
    """Finds and makes the modules of the alias."""

    def __init__(self, modules: Mapping[str, Mapping[str, str]]) -> None:
        self.modules = modules
        self._roots = tuple({name.partition(".")[0] for name in modules})

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        """The spec of a module of the alias; what it does not have is told."""
        if fullname.partition(".")[0] not in self._roots:
            return None
        if fullname not in self.modules:
            raise ModuleNotFoundError(
                f"celeriac stands in for Celery here, and has no module {fullname!r}", name=fullname
            )
        return ModuleSpec(fullname, self, is_package=any(name.startswith(f"{fullname}.") for name in self.modules))

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        """The usual one."""
        return None

    def exec_module(self, module: ModuleType) -> None:
        """Let its names be looked up when they are touched."""
        name = module.__name__
        table = self.modules[name]
        whole = WHOLE.get(name)

        def look_up(attribute: str) -> Any:
            home = table.get(attribute)
            if home is not None:
                place, _, target = home.partition(":")
                value = getattr(import_module(place), target)
                setattr(module, attribute, value)
                return value
            if whole is not None and not attribute.startswith("_"):
                return getattr(import_module(whole), attribute)
            if f"{name}.{attribute}" in self.modules:
                return import_module(f"{name}.{attribute}")
            raise AttributeError(f"{name}.{attribute}: celeriac stands in for Celery here, and it has no such name")

        module.__getattr__ = look_up  # type: ignore[method-assign]
        module.__doc__ = f"celeriac in the place of {name}."
        if name == "celery":
            from celeriac.app import app  # noqa: F401 - it says how the default app is made

            module.__version__ = CELERY_VERSION  # type: ignore[attr-defined]
            major, minor, micro = (int(part) for part in CELERY_VERSION.split("."))
            version = VersionInfo(major, minor, micro)
            module.VERSION = module.version_info = version  # type: ignore[attr-defined]
        names = [*table, *(import_module(whole).__all__ if whole is not None else ())]
        module.__all__ = sorted(key for key in names if not key.startswith("_"))  # type: ignore[attr-defined]


_installed: list[Alias] = []


def install() -> None:
    """Serve `import celery` from here on. A second call does nothing. Raises ImproperlyConfigured when real Celery has
    been imported already."""
    if _installed:
        return
    found = sys.modules.get("celery")
    if found is not None:
        raise ImproperlyConfigured(
            f"celery is imported already, from {getattr(found, '__file__', 'somewhere')}: install the alias first"
        )
    modules = dict(MODULES)
    if "kombu" not in sys.modules and importlib.util.find_spec("kombu") is None:
        modules.update(KOMBU)
    alias = Alias(modules)
    _installed.append(alias)
    sys.meta_path.insert(0, alias)


def uninstall() -> None:
    """Take the alias back, and the modules that it has made."""
    while _installed:
        alias = _installed.pop()
        sys.meta_path.remove(alias)
        for name in list(sys.modules):
            if name in alias.modules and getattr(sys.modules[name].__spec__, "loader", None) is alias:
                del sys.modules[name]
