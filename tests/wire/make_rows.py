# mypy: ignore-errors
# pyright: reportMissingImports=false
"""Writes `rows/celery-<version>.json`: the rows that a real Celery's database backend makes. Run it by a Python that
has Celery and SQLAlchemy: `python tests/wire/make_rows.py`. The files are kept; no test needs that Celery."""

from __future__ import annotations

import base64
import json
import sqlite3
import tempfile
from datetime import date, datetime
from decimal import Decimal
from pathlib import Path
from types import SimpleNamespace
from uuid import UUID

import celery
from celery import Celery

CASES = {
    "number": ("SUCCESS", 5),
    "nothing": ("SUCCESS", None),
    "text": ("SUCCESS", "ÄÖ \u2028"),
    "nested": ("SUCCESS", {"a": [1, 2.5, True, None], "b": {"c": "d"}}),
    "tuple": ("SUCCESS", [1, (2, 3)]),
    "bytes": ("SUCCESS", b"\x00\xff"),
    "date": ("SUCCESS", date(2026, 1, 2)),
    "moment": ("SUCCESS", datetime(2026, 1, 2, 3, 4, 5)),
    "decimal": ("SUCCESS", Decimal("1.10")),
    "uuid": ("SUCCESS", UUID(int=7)),
    "error": ("FAILURE", KeyError("nope", 3)),
    "started": ("STARTED", {"pid": 1, "hostname": "w@h"}),
    "progress": ("PROGRESS", {"done": 3}),
}


def rows(serializer: str, extended: bool) -> dict[str, dict[str, object]]:
    """The rows of all cases."""
    with tempfile.TemporaryDirectory() as folder:
        path = f"{folder}/results.db"
        app = Celery("t", backend=f"db+sqlite:///{path}")
        app.conf.update(result_serializer=serializer, accept_content=["json", "pickle"], result_extended=extended)
        request = SimpleNamespace(
            task="tasks.t", args=[1, "ä"], kwargs={"k": [2]}, hostname="w@h", retries=1, children=[],
            delivery_info={"routing_key": "q"}, group=None, parent_id=None, chord=None,
            stamped_headers=["where"], stamps={"where": ["here"]}, ignore_result=False,
        )  # fmt: skip
        for name, (state, value) in CASES.items():
            app.backend.store_result(name, value, state, request=request)
        app.backend.save_group("group", app.GroupResult("group", [app.AsyncResult("number")]))
        connection = sqlite3.connect(path)
        connection.row_factory = sqlite3.Row
        found = {row["task_id"]: dict(row) for row in connection.execute("SELECT * FROM celery_taskmeta")}
        found["group"] = dict(connection.execute("SELECT * FROM celery_tasksetmeta").fetchone())
        return found


def plain(value: object) -> object:
    """A column as JSON."""
    return {"base64": base64.b64encode(value).decode()} if isinstance(value, bytes) else value


made = {}
for serializer in ("json", "pickle"):
    for extended in (False, True):
        found = rows(serializer, extended)
        made[f"{serializer}{' extended' if extended else ''}"] = {
            name: {column: plain(value) for column, value in row.items()} for name, row in found.items()
        }
folder = Path(__file__).parent / "rows"
folder.mkdir(exist_ok=True)
(folder / f"celery-{celery.__version__}.json").write_text(json.dumps(made, indent=1, ensure_ascii=False) + "\n")
