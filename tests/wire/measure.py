"""Times of the hot calls, medians of many short runs: `python -m tests.wire.measure`."""

from __future__ import annotations

import statistics
import time
import timeit
from collections.abc import Callable
from typing import Any

from celeriac.wire import codec, frame, record, values
from celeriac.wire.task import TaskMessage, Template, new_id, pack, read_head, safe_repr, unpack
from tests.wire.messages import TASK_ID, message, protocol_1, seal

ACCEPT = codec.accept_set(["json"])
RUNS = 31
LOOPS = 3000


def main() -> None:
    """Print microseconds of CPU time, median and best."""
    options = TaskMessage("", "tasks.add", origin="gen1@host", reply_to=TASK_ID)
    template = Template(options, queue="q")
    sent = TaskMessage(TASK_ID, "tasks.add", (1, 2), origin="gen1@host", reply_to=TASK_ID)
    blob = pack(sent, queue="q", publish_id=TASK_ID).blob
    traced = frame.with_headers(blob, traceparent="00-ab-cd-01")
    tagged = pack(TaskMessage(TASK_ID, "tasks.add", (b"x",)), queue="q").blob
    old = seal(protocol_1())
    date = "2026-01-02T03:04:05.678901+00:00"
    document = record.success(TASK_ID, "5", date)
    calls: dict[str, Callable[[], Any]] = {
        "read_head": lambda: read_head(blob),
        "unpack": lambda: unpack(blob, ACCEPT),
        "unpack, a custom header": lambda: unpack(traced, ACCEPT),
        "unpack, a tagged value": lambda: unpack(tagged, ACCEPT),
        "read_head, protocol 1": lambda: read_head(old),
        "Template.pack (1, 2)": lambda: template.pack(TASK_ID, TASK_ID, (1, 2), {}),
        "Template.pack, texts and keywords": lambda: template.pack(TASK_ID, TASK_ID, ("spam", 1), {"k": "eggs"}),
        "pack": lambda: pack(sent, queue="q", publish_id=TASK_ID),
        "record.success": lambda: record.success(TASK_ID, "5", date),
        "record.success, with dumps and parent": lambda: record.success(
            TASK_ID, values.dumps({"a": 1}), date, parent_id=TASK_ID
        ),
        "record.document": lambda: record.document(TASK_ID, "SUCCESS", 5, date_done=date),
        "record.read": lambda: record.read(document),
        "values.dumps(5)": lambda: values.dumps(5),
        "values.dumps([1, 'a'])": lambda: values.dumps([1, "a"]),
        "values.loads": lambda: values.loads(b'[1, "a", {"k": null}]'),
        "safe_repr((1, 2))": lambda: safe_repr((1, 2)),
        "new_id": new_id,
        "frame.with_losses": lambda: frame.with_losses(blob, 1, 0),
        "frame.unpack": lambda: frame.unpack(blob),
    }
    assert read_head(seal(message())).id == TASK_ID
    for name, call in calls.items():
        found = [time * 1e6 / LOOPS for time in timeit.repeat(call, timer=time.thread_time, number=LOOPS, repeat=RUNS)]
        print(f"{name:40} {statistics.median(found):7.2f} us  best {min(found):7.2f}")


if __name__ == "__main__":
    main()
