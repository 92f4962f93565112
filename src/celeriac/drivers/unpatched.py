"""The standard library as it was before gevent or eventlet replaced parts of it, for threads that run no greenlets."""

from __future__ import annotations

import importlib
import sys
from typing import Any


def unpatched(module: str, name: str) -> Any:
    """A name of the standard library as it was before gevent or eventlet replaced it."""
    monkey = sys.modules.get("gevent.monkey")
    if monkey is not None and monkey.is_module_patched(module):
        return monkey.get_original(module, name)
    patcher = sys.modules.get("eventlet.patcher")
    if patcher is not None and any(patcher.is_monkey_patched(part) for part in ("socket", "thread", "select")):
        return getattr(patcher.original(module), name)
    return getattr(importlib.import_module(module), name)
