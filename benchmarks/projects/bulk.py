# mypy: ignore-errors
# pyright: reportMissingImports=false, reportAttributeAccessIssue=false
"""How fast one process sends many at once: `bulk.py count`."""

import json
import sys
import time

from bench_celeriac import app, ignored

count = int(sys.argv[1])
began, used = time.perf_counter(), time.process_time()
for start in range(0, count, 1000):
    app.send_many([ignored.s(number, 2) for number in range(start, min(start + 1000, count))])
took, used = time.perf_counter() - began, time.process_time() - used
print("answer", json.dumps({"calls": count, "seconds": took, "cpu": used}))
