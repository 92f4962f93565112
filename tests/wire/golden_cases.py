"""What `make_golden.py` asks real Celery to write, and the tests ask us to write. Plain data, read by both."""

from __future__ import annotations

from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from typing import Any
from uuid import UUID

NOW = datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=UTC)
"""The clock of every golden file."""
ORIGIN = "gen1@host"
LATER = NOW + timedelta(seconds=90)

VALUES: dict[str, Any] = {
    "none": None,
    "true": True,
    "false": False,
    "zero": 0,
    "int": -17,
    "big int": 2**100,
    "float": 1.5,
    "whole float": 3.0,
    "tiny float": 5e-324,
    "long float": 0.1 + 0.2,
    "large float": 1e300,
    "nan": float("nan"),
    "infinity": float("inf"),
    "minus infinity": float("-inf"),
    "text": "abc",
    "empty text": "",
    "quotes": 'it\'s "so" \\ / \b\f\n\r\t\x00\x7f',
    "umlauts": "äöü ß €",
    "emoji": "\U0001f40d",
    "lone surrogate": "a\ud800b",
    "line separators": "\u2028\u2029",
    "list": [1, "a", None, [2, []]],
    "tuple": (1, (2,), ()),
    "dict": {"a": 1, "b": {"c": [1, 2]}},
    "odd keys": {1: "a", 2.5: "b", None: "c", False: "d"},
    "datetime": datetime(2026, 1, 2, 3, 4, 5, 678, tzinfo=UTC),
    "naive datetime": datetime(2026, 1, 2, 3, 4, 5),
    "zoned datetime": datetime(2026, 1, 2, 3, 4, 5, tzinfo=timezone(timedelta(hours=5, minutes=30))),
    "date": date(2026, 1, 2),
    "time": time(1, 2, 3),
    "exact time": time(1, 2, 3, 4, tzinfo=UTC),
    "decimal": Decimal("1.50"),
    "decimal nan": Decimal("NaN"),
    "uuid": UUID(int=5),
    "bytes": b"abc",
    "empty bytes": b"",
    "binary": b"\xff\x00",
    "utf-8 bytes": "äö".encode(),
    "mixed": {"when": [date(2026, 1, 2), {"id": UUID(int=7)}], "raw": (b"\x80", Decimal(1))},
    "looks tagged": {"__type__": "date", "other": 1},
}

REPRS: list[tuple[str, int | None, int]] = [
    ("()", 1024, 3),
    ("(1, 2)", 1024, 3),
    ("('a',)", 1024, 3),
    ("({'a': [1, (2, {3: 4})]},)", 1024, 3),
    ("[[[[]]]]", 1024, 3),
    ("[[[[1]], {}], (((1,),),)]", 1024, 3),
    ("{'k': {'k': {'k': {'k': 1}}}}", 1024, 3),
    ("{1, 2}", 1024, 3),
    ("frozenset({1})", 1024, 3),
    ("set()", 1024, 3),
    ("(1.5, True, None, 2**70)", 1024, 3),
    ("(b'ab', b'\\xff\\x00', \"it's\", 'a\\nb', 'ä')", 1024, 3),
    ("(Decimal('1.5'), UUID(int=5), date(2026, 1, 2), datetime(2026, 1, 2))", 1024, 3),
    ("('x' * 2000,)", 1024, 3),
    ("('word ' * 400, 1)", 1024, 3),
    ("(b'x' * 2000, 1)", 1024, 3),
    ("tuple(range(1000))", 1024, 3),
    ("[list(range(9))] * 200", 1024, 3),
    ("{i: 'v' * i for i in range(100)}", 1024, 3),
    ("(range(3), Ellipsis, 1j)", 1024, 3),
    ("(1, 2, 3, 4)", 5, 3),
    ("[1, [2, [3, [4]]]]", 12, 3),
    ("[1, [2, [3, [4, [5]]]]]", None, 0),
    ("{'a': 1, 'b': 2}", 8, 3),
    ("('abc', 'def')", 3, 3),
    ("({(1, (2, (3, (4,)))): 1},)", 1024, 3),
]
"""Expression, limit, levels."""

MESSAGES: dict[str, dict[str, Any]] = {
    "plain": {"args": (1, 2)},
    "no arguments": {},
    "keywords": {"args": [1], "kwargs": {"b": 2, "c": "x"}},
    "text": {"args": ("äöü €", "it's", 'say "hi"', "a\nb", "\x00", "\U0001f40d")},
    "lone surrogate": {"args": ("a\ud800b",)},
    "nested": {"args": ({"a": [1, {"b": [2, {"c": [3, [4]]}]}]},), "kwargs": {"k": [[[[1]]]]}},
    "values": {"args": (VALUES["mixed"], Decimal("1.5")), "kwargs": {"when": NOW}},
    "numbers": {"args": (1.5, float("nan"), float("inf"), 2**100, True, None)},
    "long": {"args": ("word " * 500, list(range(1000))), "kwargs": {"k": "x" * 3000}},
    "eta": {"args": (1,), "options": {"eta": LATER}},
    "expires": {"args": (1,), "options": {"expires": LATER}},
    "limits": {"args": (1,), "options": {"time_limit": 10, "soft_time_limit": 2.5}},
    "priority": {"args": (1,), "options": {"priority": 5}},
    "transient": {"args": (1,), "options": {"delivery_mode": 1}},
    "custom headers": {"args": (1,), "options": {"headers": {"x": 1, "traceparent": "00-ab", "when": NOW}}},
    "custom properties": {"args": (1,), "options": {"MessageGroupId": "g", "reply_to": "me"}},
    "shadow": {"args": (1,), "options": {"shadow": "other.name"}},
    "ignored": {"args": (1,), "options": {"ignore_result": True}},
    "family": {
        "args": (1,),
        "options": {"root_id": "root", "parent_id": "parent", "group_id": "group", "group_index": 3, "retries": 2},
    },
    "replaced": {"args": (1,), "options": {"replaced_task_nesting": 2}},
    "reprs": {"args": ("secret",), "options": {"argsrepr": "('***',)", "kwargsrepr": "<hidden>"}},
    "stamps": {"args": (1,), "options": {"stamped_headers": ["a", "b"], "a": ["x"], "b": 7}},
    "named exchange": {"args": (1,), "options": {"exchange": "ex", "routing_key": "rk", "queue": None}},
    "compressed with gzip": {"args": ("x" * 500,), "options": {"compression": "gzip"}},
    "compressed with bzip2": {"args": ("x" * 500,), "options": {"compression": "bzip2"}},
    "compressed with lzma": {"args": ("x" * 500,), "options": {"compression": "lzma"}},
    "yaml": {"args": (1, "ä"), "kwargs": {"k": [1, None]}, "options": {"serializer": "yaml"}},
    "msgpack": {"args": (1, "ä", b"\xff", 2.5, None), "kwargs": {"k": [1]}, "options": {"serializer": "msgpack"}},
    "pickle": {"args": (1, date(2026, 1, 2)), "kwargs": {"k": {1, 2}}, "options": {"serializer": "pickle"}},
}
"""Single calls: args, kwargs, options of apply_async."""

PROTOCOL_1 = ("plain", "keywords", "values", "eta", "expires", "limits", "family", "msgpack", "custom headers")
"""Those of MESSAGES that are also written with `task_protocol = 1`."""

CANVAS: dict[str, str] = {
    "links": "add.s(1, 2).apply_async(link=add.s(5), link_error=[fail.s(), fail.si(1)])",
    "chain": "(add.s(1, 2) | add.s(3) | add.s(4)).apply_async()",
    "group": "group(add.s(1, 1), add.s(2, 2)).apply_async()",
    "chord": "chord([add.s(1, 1), add.s(2, 2)])(tsum.s())",
    "chord and chain": "(group(add.s(1, 1), add.s(2, 2)) | tsum.s() | add.s(4)).apply_async()",
    "map": "add.starmap([(1, 2), (3, 4)]).apply_async()",
    "links in pickle": "add.s(1, 2).apply_async(link=add.s(5), link_error=fail.s(), serializer='pickle')",
}
"""Calls of canvas objects; every message that leaves is kept."""


class Custom(Exception):
    """An exception that lives in a module that a peer doesn't have."""

    __module__ = "golden_cases"

    class Inner(Exception):
        """Its qualified name has a dot."""

        __module__ = "golden_cases"


class Blocked(Exception):
    """Pickle does not carry it."""

    __module__ = "golden_cases"

    def __reduce__(self) -> Any:
        raise TypeError("no")


EXCEPTIONS: dict[str, str] = {
    "key error": "KeyError('nope', 3)",
    "no arguments": "ValueError()",
    "unserializable": "ValueError(1, {1, 2}, Ellipsis)",
    "values": "ValueError(date(2026, 1, 2), Decimal('1.5'), b'\\xff')",
    "nested": "ValueError([1, {'a': (2,)}])",
    "inner class": "Custom.Inner('x')",
    "os error": "FileNotFoundError(2, 'No such file', 'f')",
    "unicode error": "UnicodeDecodeError('utf-8', b'\\xff', 0, 1, 'invalid start byte')",
    "text": "ValueError('äöü', 'it\\'s')",
}
"""Stored as FAILURE. Expressions over the names of this module."""

CELERY_EXCEPTIONS: dict[str, str] = {
    "revoked": "TaskRevokedError('terminated')",
    "not registered": "NotRegistered('nosuch.task')",
    "reject": "Reject('no', False)",
    "retries": 'MaxRetriesExceededError("Can\'t retry")',
    "chord": "ChordError(\"Dependency x raised KeyError('nope', 3)\")",
    "hard limit": "TimeLimitExceeded(1)",
    "soft limit": "SoftTimeLimitExceeded(2.5)",
    "lost": "WorkerLostError('Worker exited prematurely: signal 9 (SIGKILL) Job: 0.')",
    "terminated": "Terminated(15)",
    "encode": "EncodeError('Object of type set is not JSON serializable')",
    "operational": "OperationalError('no broker')",
    "disallowed": "ContentDisallowed('pickle')",
    "ignore": "Ignore()",
    "timeout": "TimeoutError('The operation timed out.')",
}
"""The same, over Celery's names, which are ours too."""

RESULTS: dict[str, dict[str, Any]] = {
    **{f"value {name}": {"state": "SUCCESS", "result": value} for name, value in VALUES.items()},
    "started": {"state": "STARTED", "result": {"pid": 12, "hostname": "w@host"}},
    "custom state": {"state": "PROGRESS", "result": {"done": 3}},
    "retry": {"state": "RETRY", "result": ValueError("x1"), "traceback": "Traceback ...\nRetry in 1s"},
    "failure": {"state": "FAILURE", "result": KeyError("nope", 3), "traceback": "Traceback ...\nKeyError"},
    "family": {"state": "SUCCESS", "result": 5, "request": {"group": "G", "parent_id": "P", "root_id": "R"}},
    "parent": {"state": "SUCCESS", "result": 5, "request": {"parent_id": "P"}},
    "no request": {"state": "REVOKED", "result": None, "request": None},
    "children": {"state": "SUCCESS", "result": 5, "children": ["c1", "c2"]},
    "extended": {
        "state": "SUCCESS",
        "result": 5,
        "extended": True,
        "request": {
            "task": "t.add", "args": (1, 2), "kwargs": {"k": NOW}, "hostname": "w@host", "retries": 1,
            "delivery_info": {"routing_key": "q"},
        },
    },
    "extended with stamps": {
        "state": "SUCCESS",
        "result": 5,
        "extended": True,
        "request": {
            "task": "t.add", "args": [], "kwargs": {}, "hostname": "w@host", "retries": 0, "group": "G",
            "delivery_info": {"routing_key": "q"}, "stamped_headers": ["a", "b"],
            "stamps": {"a": ["x"], "b": 7, "c": 1},
        },
    },
    "gzip": {"state": "SUCCESS", "result": "x" * 100, "compression": "gzip"},
    "bzip2": {"state": "SUCCESS", "result": "x" * 100, "compression": "bzip2"},
    "msgpack": {"state": "SUCCESS", "result": [1, "ä", b"\xff"], "serializer": "msgpack"},
    "yaml": {"state": "SUCCESS", "result": [1, "ä"], "serializer": "yaml"},
    "pickle": {"state": "SUCCESS", "result": {1, 2}, "serializer": "pickle"},
    "failure in pickle": {"state": "FAILURE", "result": KeyError("nope"), "serializer": "pickle"},
    "blocked failure in pickle": {"state": "FAILURE", "result": Blocked("a", 1), "serializer": "pickle"},
    "failure in msgpack": {"state": "FAILURE", "result": KeyError("nope", 3), "serializer": "msgpack"},
}  # fmt: skip
