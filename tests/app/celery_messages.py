"""Has real Celery send the calls of `CALLS` and prints what it put on the wire. Run by Celery's own Python, and by the
test, which makes celeriac send the same."""

from __future__ import annotations

import datetime
import json
import sys
from collections.abc import Callable
from typing import Any

MOMENT = datetime.datetime(2030, 1, 2, 3, 4, 5, tzinfo=datetime.timezone.utc)  # noqa: UP017 - any Python of Celery's
SETTINGS: dict[str, Any] = {
    "task_routes": {"routed.*": {"queue": "by-route", "priority": 4}},
    "task_default_priority": None,
}

CALLS: dict[str, Callable[[Any], Any]] = {
    "plain": lambda t: t["add"].delay(1, 2),
    "keywords": lambda t: t["add"].delay(1, y=2),
    "values": lambda t: t["add"].delay({"a": [1, None, True, "\u00fc"]}, MOMENT),
    "countdown": lambda t: t["add"].apply_async((1,), eta=MOMENT),
    "text eta": lambda t: t["add"].apply_async((1,), eta="2030-01-02T03:04:05+00:00"),
    "expires": lambda t: t["add"].apply_async((1,), expires=MOMENT),
    "queue": lambda t: t["add"].apply_async((1,), queue="q"),
    "options": lambda t: t["add"].apply_async(
        (1,), priority=3, headers={"x": 1}, time_limit=10, soft_time_limit=5, shadow="sh", ignore_result=True,
        task_id="the-id", retries=2, root_id="r", parent_id="p", group_id="g", group_index=1, reply_to="me",
    ),
    "stamps": lambda t: t["add"].apply_async((1,), stamped_headers=["k"], k="v"),
    "links": lambda t: t["add"].apply_async((1,), link=t["add"].s(2), link_error=[t["add"].si(3), t["add"].s(y=4)]),
    "extra": lambda t: t["add"].apply_async((1,), MessageGroupId="m"),
    "compressed": lambda t: t["add"].apply_async((1,), compression="zlib"),
    "pickle": lambda t: t["add"].apply_async((1,), serializer="pickle"),
    "signature": lambda t: t["add"].s(2).set(queue="s", priority=1).apply_async((1,)),
    "by name": lambda t: t["app"].send_task("far.away", (1,), {"a": 2}),
    "known by name": lambda t: t["app"].send_task("limited", (1,)),
    "routed": lambda t: t["routed"].delay(),
    "task options": lambda t: t["limited"].delay(1),
    "bound": lambda t: t["bound"].delay(1),
}  # fmt: skip


def make_tasks(app: Any) -> dict[str, Any]:
    """The same tasks for either of the two."""

    def add(x: Any, y: Any = 0) -> Any:
        return x

    def nothing() -> None:
        pass

    def one(x: Any) -> Any:
        return x

    def bound(self: Any, x: Any) -> Any:
        return x

    limits = {"queue": "lim", "time_limit": 9, "soft_time_limit": 8, "ignore_result": True, "priority": 2}
    return {
        "app": app,
        "add": app.task(name="add")(add),
        "routed": app.task(name="routed.one")(nothing),
        "limited": app.task(name="limited", **limits)(one),
        "bound": app.task(name="bound", bind=True)(bound),
    }


def main() -> None:
    """Send each call to a memory transport and print the envelopes."""
    from celery import Celery  # type: ignore[import-not-found,import-untyped,unused-ignore]

    app = Celery("x", broker="memory://", backend="cache+memory://")
    app.conf.update(SETTINGS)
    tasks = make_tasks(app)
    app.finalize()
    found = {}
    with app.connection_for_write() as connection:
        channel = connection.default_channel
        for name, call in CALLS.items():
            call(tasks)
            for queue in ("celery", "q", "s", "lim", "by-route"):
                message = channel._get(queue) if queue in channel.queues and channel._size(queue) else None
                if message:
                    found[name] = [queue, message]
    json.dump(found, sys.stdout)


if __name__ == "__main__":
    main()
