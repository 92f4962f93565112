# mypy: ignore-errors
# pyright: reportMissingImports=false, reportAttributeAccessIssue=false
"""How long a chord of no-ops takes, from sending to its result: `chords.py side members seconds`."""

import importlib
import json
import sys
import time

side, members, seconds = sys.argv[1], int(sys.argv[2]), float(sys.argv[3])
bench = importlib.import_module(f"bench_{side}")
chord = importlib.import_module(side).chord


def once():
    """Send one and wait for it."""
    began = time.perf_counter()
    result = chord([bench.stored.s(number, 2) for number in range(members)])(bench.total.s())
    sent = time.perf_counter() - began
    assert result.get(timeout=120) == members * (members - 1) // 2
    return sent, time.perf_counter() - began


once()
found = []
end = time.perf_counter() + seconds
while time.perf_counter() < end or len(found) < 3:
    found.append(once())
print("answer", json.dumps({"sent": [each[0] for each in found], "done": [each[1] for each in found]}))
