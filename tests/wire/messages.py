"""Messages made by hand, for the tests."""

from __future__ import annotations

import base64
import json
from typing import Any

TASK_ID = "a7b3241c-0000-4000-8000-000000000001"
EMBED: dict[str, Any] = {"callbacks": None, "errbacks": None, "chain": None, "chord": None}


def message() -> dict[str, Any]:
    """A plain message of protocol 2, open: `body` is a value."""
    return {
        "body": [[1, 2], {}, dict(EMBED)],
        "content-encoding": "utf-8",
        "content-type": "application/json",
        "headers": {
            "lang": "py",
            "task": "tasks.add",
            "id": TASK_ID,
            "shadow": None,
            "eta": None,
            "expires": None,
            "group": None,
            "group_index": None,
            "retries": 0,
            "timelimit": [None, None],
            "root_id": TASK_ID,
            "parent_id": None,
            "argsrepr": "(1, 2)",
            "kwargsrepr": "{}",
            "origin": "gen1@host",
            "ignore_result": False,
            "replaced_task_nesting": 0,
            "stamped_headers": None,
            "stamps": {},
        },
        "properties": {
            "correlation_id": TASK_ID,
            "reply_to": "me",
            "delivery_mode": 2,
            "delivery_info": {"exchange": "", "routing_key": "q"},
            "priority": 0,
            "body_encoding": "base64",
            "delivery_tag": "tag",
        },
    }


def protocol_1() -> dict[str, Any]:
    """A message of protocol 1, open."""
    return message() | {
        "headers": {},
        "body": {
            "task": "tasks.add",
            "id": TASK_ID,
            "args": [1, 2],
            "kwargs": {},
            "group": None,
            "group_index": None,
            "retries": 0,
            "eta": None,
            "expires": None,
            "utc": True,
            "callbacks": None,
            "errbacks": None,
            "timelimit": [None, None],
            "taskset": None,
            "chord": None,
        },
    }


def seal(open_message: dict[str, Any], body: bytes | None = None) -> bytes:
    """The blob of an open message; `body` in place of its own, if given."""
    data = json.dumps(open_message["body"]).encode() if body is None else body
    return json.dumps(open_message | {"body": base64.b64encode(data).decode()}).encode()
