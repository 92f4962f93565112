# mypy: ignore-errors
# pyright: reportMissingImports=false, reportAttributeAccessIssue=false
"""Send one task: `one.py side task arguments-as-JSON`."""

import importlib
import json
import sys

module = importlib.import_module(f"bench_{sys.argv[1]}")
task = getattr(module, sys.argv[2])
(task.send if sys.argv[1] == "dramatiq" else task.delay)(*json.loads(sys.argv[3]))
