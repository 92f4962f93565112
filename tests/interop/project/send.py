# pyright: reportFunctionMemberAccess=false
# mypy: ignore-errors
# pyright: reportMissingImports=false, reportAttributeAccessIssue=false
"""Sends one task for each feature and prints `{feature: task id}`. Run by either interpreter."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from uuid import UUID

import tasks
from tasks import app

MOMENT = datetime(2026, 11, 24, 6, 30, 15, 250000, tzinfo=UTC)
ids: dict[str, str] = {}


def send(feature: str, name: str, args: tuple[object, ...] = (), kwargs: object = None, **options: object) -> None:
    """Send by the task object and keep the id."""
    ids[feature] = str(getattr(tasks, name).apply_async(args, kwargs, **options).id)


send("plain", "add", (2, 3))
ids["by name"] = str(app.send_task("tasks.add", (4, 5)).id)
send("delay", "add", (1, 1))
send("keywords", "echo", (), {"text": "ÄÖ 漢字 \u2028", "none": None, "nested": {"list": [1, 2.5, True]}})
send("typed", "echo", (MOMENT, Decimal("1.10"), UUID(int=7)))
send("retries", "flaky", (2,))
send("exhausted", "exhausted")
send("error", "fails", ("boom ä",))
send("own error", "fails_oddly")
send("countdown", "moment", (), countdown=2)
send("eta", "moment", (), eta=datetime.now(UTC) + timedelta(seconds=2))
send("expired", "add", (1, 1), expires=datetime.now(UTC) + timedelta(seconds=0.05))
send("not expired", "add", (1, 1), expires=3600)
send("headers", "request_of", (), headers={"x-mine": "yes", "x-mine-too": "5"}, shadow="its-shadow", priority=6)
send("link", "add", (20, 3), link=tasks.linked.s("second"))
send("links", "add", (30, 3), link=[tasks.linked.si("alone"), tasks.linked.s("both")])
send("link error", "fails", ("for the errback",), link_error=tasks.errback.s())
send("old link error", "fails", ("for the older errback",), link_error=tasks.errback_by_id.s())
for compression in ("gzip", "bzip2"):
    send(compression, "echo", ("x" * 5000,), compression=compression)
for serializer in ("msgpack", "yaml"):
    send(serializer, "echo", ("ä", 1, [True, None, 2.5]), {"key": "value"}, serializer=serializer)
send("msgpack gzip", "echo", ("y" * 5000,), serializer="msgpack", compression="gzip")
send("soft limit", "sleepy", (3.0,), soft_time_limit=1)
send("hard limit", "sleepy", (5.0,), time_limit=1)
send("ignored", "add", (1, 2), ignore_result=True)
for priority in (9, 5, 0, 3):
    send(f"priority {priority}", "ordered", (f"p{priority}",), queue="prio", priority=priority)
print("answer", json.dumps(ids))
