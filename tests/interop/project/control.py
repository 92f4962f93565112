# mypy: ignore-errors
"""Asks all workers who they are."""

from __future__ import annotations

import json

import tasks

nodes = ["celery0@here", "celeriac1@here"]
answers = tasks.app.control.ping(destination=nodes, timeout=5.0)
registered = tasks.app.control.inspect(destination=nodes, timeout=5.0).registered()
assert sorted(registered) == sorted(nodes)
print("answer", json.dumps(sorted(name for answer in answers for name in answer)))
