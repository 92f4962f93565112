# mypy: ignore-errors
# pyright: reportMissingImports=false, reportAttributeAccessIssue=false
"""How fast one process sends many at once: `bulk.py count`."""

import json
import sys
import time

from bench_celeriac import ignored

count = int(sys.argv[1])
ignored.delay(0, 0)
began, used = time.perf_counter(), time.process_time()
results = ignored.delay_many((number, 2) for number in range(count))
took, used = time.perf_counter() - began, time.process_time() - used
assert len(results) == count
print("answer", json.dumps({"calls": count, "seconds": took, "cpu": used}))
