# mypy: ignore-errors
# pyright: reportFunctionMemberAccess=false
"""Sends to a queue and waits for the answers in the same process: `ask.py queue`."""

from __future__ import annotations

import json
import sys

import tasks

queue = sys.argv[1]
sent = [tasks.add.apply_async((1, 2), queue=queue) for _ in range(10)]
bad = tasks.fails.apply_async(("why",), queue=queue)
flaky = tasks.flaky.apply_async((1,), queue=queue)
found: dict[str, object] = {"add": [result.get(timeout=20) for result in sent]}
try:
    bad.get(timeout=20)
except Exception as error:
    found["fails"] = f"{type(error).__name__}: {error}"
found["flaky"] = flaky.get(timeout=20)[0]
print("answer", json.dumps(found))
