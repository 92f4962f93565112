# mypy: ignore-errors
# pyright: reportMissingImports=false, reportAttributeAccessIssue=false
"""A process that forks after it has sent and read results, as gunicorn does with --preload."""

from __future__ import annotations

import os
import sys
import threading

from tasks import echo

assert echo.delay("before").get(timeout=30) == "before"
kept = echo.delay("kept")


def serve(name: str) -> None:
    """What a web process does."""
    assert kept.get(timeout=30) == "kept"
    for turn in range(20):
        assert echo.delay(f"{name} {turn}").get(timeout=30) == f"{name} {turn}"
    results = [echo.delay(f"{name} {turn}") for turn in range(20)]
    assert [result.get(timeout=30) for result in results] == [f"{name} {turn}" for turn in range(20)]


children = []
for number in range(4):
    pid = os.fork()
    if not pid:
        code = 1
        try:
            thread = threading.Thread(target=serve, args=(f"child {number} thread",))
            thread.start()
            serve(f"child {number}")
            thread.join()
            code = 0
        finally:
            os._exit(code)
    children.append(pid)
serve("parent")
codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in children]
assert echo.delay("after").get(timeout=30) == "after"
print(codes)
sys.exit(any(codes))
