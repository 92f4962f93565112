# mypy: ignore-errors
# pyright: reportMissingImports=false, reportAttributeAccessIssue=false
"""Send tasks that are due later: `later.py side count seconds-ahead span`, spread over the span."""

import importlib
import json
import random
import sys
import time
from datetime import UTC, datetime

side, count, ahead, span = sys.argv[1:]
stamp = importlib.import_module(f"bench_{side}").stamp
first = time.time() + float(ahead)
chance = random.Random(5)
began = time.perf_counter()
for _ in range(int(count)):
    due = first + chance.uniform(0.0, float(span))
    stamp.apply_async((due,), eta=datetime.fromtimestamp(due, UTC) if float(ahead) else None)
print("answer", json.dumps({"calls": int(count), "seconds": time.perf_counter() - began}))
