# mypy: ignore-errors
# pyright: reportMissingImports=false, reportAttributeAccessIssue=false
"""How fast one process sends, one call after the other: `sender.py side task warm-up seconds`."""

import importlib
import json
import sys
import time

side, name, warmup, seconds = sys.argv[1:]
task = getattr(importlib.import_module(f"bench_{side}"), name)
send = task.send if side == "dramatiq" else task.delay
end = time.perf_counter() + float(warmup)
while time.perf_counter() < end:
    send(1, 2)
calls = 0
began, used = time.perf_counter(), time.process_time()
end = began + float(seconds)
while time.perf_counter() < end:
    for _ in range(20):
        send(1, 2)
    calls += 20
took, used = time.perf_counter() - began, time.process_time() - used
print("answer", json.dumps({"calls": calls, "seconds": took, "cpu": used}))
