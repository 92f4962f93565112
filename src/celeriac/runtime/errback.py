"""Which error links are called in the failing process, and which are sent as tasks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def takes_failure(task: Any, signature: Mapping[str, Any]) -> bool:
    """True: the task's function has room for more than one positional argument beside those stored in the signature, so
    it is called here with `(request, exception, traceback)`. False: one argument, a bound task or a task class; it is
    sent as a task, with the id of the failed one."""
    run = task.run
    if getattr(run, "__self__", None) is task:
        return False
    import inspect

    try:
        parameters = inspect.signature(run).parameters.values()
    except (TypeError, ValueError):
        return False
    room = 0
    stored = set(signature.get("kwargs") or ()) if not signature.get("immutable") else set()
    for parameter in parameters:
        if parameter.kind is parameter.VAR_POSITIONAL:
            return True
        if parameter.kind in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD):
            room += parameter.name not in stored
    return room - (0 if signature.get("immutable") else len(signature.get("args") or ())) > 1
