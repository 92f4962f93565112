# mypy: ignore-errors
# pyright: reportMissingImports=false, reportAttributeAccessIssue=false
"""Reads results by id and prints them. Run by either interpreter."""

from __future__ import annotations

import json
import sys
from typing import Any

from tasks import app


def read(task_id: str, timeout: float) -> dict[str, Any]:
    """One result, in words that both interpreters share."""
    result = app.AsyncResult(task_id)
    try:
        value = result.get(timeout=timeout, propagate=False)
    except Exception as error:  # a timeout of either side
        return {"state": result.state, "error": type(error).__name__}
    found: dict[str, Any] = {"state": result.state, "traceback": result.traceback}
    if isinstance(value, BaseException):
        found["exception"] = [type(value).__name__, str(value), [repr(arg) for arg in value.args]]
        found["module"] = type(value).__module__
    else:
        found["value"] = repr(value)
    found["successful"] = result.successful()
    found["children"] = [child.id for child in result.children or ()]
    return found


ids, empty = json.loads(sys.argv[1]), json.loads(sys.argv[2])
print("answer", json.dumps({key: read(key, 0.2 if index in empty else 30.0) for index, key in enumerate(ids)}))
