"""A distributed task queue with Celery's API and Celery's messages: small, safe by default, fast, sync and async.

The names below are imported when they are first touched; `import celeriac` itself brings nothing along.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from celeriac.model.version import VERSION, __version__

if TYPE_CHECKING:
    from celeriac import states
    from celeriac.app.app import Celeriac, Celery
    from celeriac.app.canvas import (
        Signature,
        StampingVisitor,
        chain,
        chord,
        chunks,
        group,
        maybe_signature,
        signature,
        subtask,
        xmap,
        xstarmap,
    )
    from celeriac.app.eager_result import EagerResult
    from celeriac.app.handle import AsyncResult
    from celeriac.app.joining import allow_join_result
    from celeriac.app.result_set import GroupResult, ResultSet
    from celeriac.app.task import Task
    from celeriac.compat.current import current_app, current_task
    from celeriac.compat.shared import shared_task
    from celeriac.model.routing import Broadcast, Exchange, Queue
    from celeriac.wire.ids import new_id as uuid

_APP = "celeriac.app."
_HOMES = {
    "Celeriac": "celeriac.app.app:Celeriac",
    "Celery": "celeriac.app.app:Celery",
    "Task": "celeriac.app.task:Task",
    "Signature": "celeriac.app.canvas:Signature",
    "signature": "celeriac.app.canvas:signature",
    "subtask": "celeriac.app.canvas:subtask",
    "maybe_signature": "celeriac.app.canvas:maybe_signature",
    "chain": "celeriac.app.canvas:chain",
    "group": "celeriac.app.canvas:group",
    "chord": "celeriac.app.canvas:chord",
    "chunks": "celeriac.app.canvas:chunks",
    "xmap": "celeriac.app.canvas:xmap",
    "xstarmap": "celeriac.app.canvas:xstarmap",
    "StampingVisitor": "celeriac.app.canvas:StampingVisitor",
    "AsyncResult": "celeriac.app.handle:AsyncResult",
    "EagerResult": "celeriac.app.eager_result:EagerResult",
    "ResultSet": "celeriac.app.result_set:ResultSet",
    "GroupResult": "celeriac.app.result_set:GroupResult",
    "allow_join_result": "celeriac.app.joining:allow_join_result",
    "shared_task": "celeriac.compat.shared:shared_task",
    "current_app": "celeriac.compat.current:current_app",
    "current_task": "celeriac.compat.current:current_task",
    "Queue": "celeriac.model.routing:Queue",
    "Exchange": "celeriac.model.routing:Exchange",
    "Broadcast": "celeriac.model.routing:Broadcast",
    "uuid": "celeriac.wire.ids:new_id",
}

__all__ = [
    "VERSION", "AsyncResult", "Broadcast", "Celeriac", "Celery", "EagerResult", "Exchange", "GroupResult", "Queue",
    "ResultSet", "Signature", "StampingVisitor", "Task", "__version__", "allow_join_result", "chain", "chord", "chunks",
    "current_app", "current_task", "group", "maybe_signature", "shared_task", "signature", "states", "subtask", "uuid",
    "xmap", "xstarmap",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        if name == "states":
            return import_module("celeriac.states")
        raise AttributeError(f"module 'celeriac' has no attribute {name!r}")
    module, _, attribute = home.partition(":")
    if module.startswith(_APP):
        import_module("celeriac.app.app")  # it says how the default app is made
    value = globals()[name] = getattr(import_module(module), attribute)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
