# mypy: ignore-errors
# pyright: reportMissingImports=false, reportAttributeAccessIssue=false
"""How fast one process sends many at once, a thousand to a publish: `bulk.py count`."""

import json
import sys
import time

from bench_celeriac import app, ignored

from celeriac.model.message import Envelope
from celeriac.wire.ids import new_id

count = int(sys.argv[1])
ignored.delay(0, 0)
pack, queue = ignored._plan.pack, ignored._plan.queue


def envelope(number):
    """One message, as `delay()` writes it."""
    task_id, tag = new_id(), new_id()
    return Envelope(task_id, tag, queue, pack(task_id, tag, (number, 2), {}))


began, used = time.perf_counter(), time.process_time()
for start in range(0, count, 1000):
    app.publish([envelope(number) for number in range(start, min(start + 1000, count))])
took, used = time.perf_counter() - began, time.process_time() - used
print("answer", json.dumps({"calls": count, "seconds": took, "cpu": used}))
