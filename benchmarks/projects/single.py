# mypy: ignore-errors
# pyright: reportMissingImports=false, reportAttributeAccessIssue=false
"""How fast one process sends one after the other: `single.py count`."""

import json
import sys
import time

from bench_celeriac import ignored

count = int(sys.argv[1])
ignored.delay(0, 0)
began, used = time.perf_counter(), time.process_time()
for number in range(count):
    ignored.delay(number, 2)
took, used = time.perf_counter() - began, time.process_time() - used
print("answer", json.dumps({"calls": count, "seconds": took, "cpu": used}))
