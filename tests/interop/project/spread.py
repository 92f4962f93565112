# mypy: ignore-errors
# pyright: reportFunctionMemberAccess=false
"""Sends some of everything to each of several queues: `spread.py queue ...`; prints the ids."""

from __future__ import annotations

import json
import sys

import tasks


def send(name: str, count: int, args: tuple[object, ...] = (), **options: object) -> list[str]:
    """Send one kind of task."""
    return [getattr(tasks, name).apply_async(args, **options).id for _ in range(count)]


found = {
    queue: {
        "add": send("add", 20, (2, 3), queue=queue),
        "flaky": send("flaky", 1, (2,), queue=queue),
        "moment": send("moment", 1, queue=queue, countdown=2),
        "request_of": send("request_of", 1, queue=queue, headers={"x-mine": "1"}, priority=3),
    }
    for queue in sys.argv[1:]
}
print("answer", json.dumps(found))
