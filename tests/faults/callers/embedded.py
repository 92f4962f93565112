# mypy: ignore-errors
# pyright: reportMissingImports=false, reportAttributeAccessIssue=false
"""An embedding without threads, as uWSGI without --enable-threads: the GIL is held between two requests, so no other
thread ever runs then; with `strict`, no thread can be started at all."""

from __future__ import annotations

import ctypes
import sys
import threading

from tasks import echo

if "strict" in sys.argv:

    def start(self: threading.Thread) -> None:
        """No threads here."""
        raise RuntimeError("can't start new thread")

    threading.Thread.start = start  # type: ignore[method-assign]

between_requests = ctypes.PyDLL(None).sleep
for number in range(2):
    result = echo.delay(number)
    between_requests(1)
    assert result.get(timeout=30) == number
    assert echo.delay(number).get(timeout=30) == number
print("all right")
