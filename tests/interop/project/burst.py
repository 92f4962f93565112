# mypy: ignore-errors
# pyright: reportMissingImports=false, reportAttributeAccessIssue=false
"""Sends many tasks of one name and prints their ids: `burst.py name count [args as JSON] [options as JSON]`."""

from __future__ import annotations

import json
import sys

from tasks import app

name, count, args, options = (*sys.argv[1:], "[]", "{}")[:4]
if args == "number":
    ids = [app.send_task(f"tasks.{name}", [number], **json.loads(options)).id for number in range(int(count))]
else:
    ids = [app.send_task(f"tasks.{name}", json.loads(args), **json.loads(options)).id for _ in range(int(count))]
print("answer", json.dumps(ids))
