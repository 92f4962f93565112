# mypy: ignore-errors
"""Asks all workers who they are."""

from __future__ import annotations

import json

import tasks

answers = tasks.app.control.ping(timeout=2.0)
assert tasks.app.control.inspect(timeout=2.0).registered()
print("answer", json.dumps(sorted(name for answer in answers for name in answer)))
