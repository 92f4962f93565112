"""Whatever Celery's tasks, signatures and results can be asked for, ours can; what is left out is written down."""

from __future__ import annotations

import json
import re
import subprocess
import sys

from tests.processes import ROOT, SOURCE, celery_says

SCRIPT = """
import json, sys
from importlib import import_module

package, result = map(import_module, sys.argv[1:] or ["celery", "celery.result"])
app = package.Celery("names", broker="memory://", backend="cache+memory://" if package is not result else "memory://")

@app.task
def add(x, y):
    return x + y

sig = add.s(1, 2)
things = {
    "Task": add, "Signature": sig, "chain": package.chain(sig), "group": package.group([sig]),
    "chord": package.chord([sig], sig), "chunks": add.chunks([(1, 2)], 1), "xmap": add.map([1]),
    "xstarmap": add.starmap([(1, 2)]), "AsyncResult": app.AsyncResult("a"),
    "ResultSet": result.ResultSet([], app=app), "GroupResult": result.GroupResult("g", [], app=app),
    "EagerResult": result.EagerResult("e", 1, "SUCCESS"),
}
print(json.dumps({kind: [name for name in dir(thing) if name[0] != "_"] for kind, thing in things.items()}))
"""


def test_every_public_name_of_celerys_is_there() -> None:
    """But for those in the table of differences, each of which is one."""
    theirs = json.loads(celery_says(SCRIPT))
    found = subprocess.run(
        [sys.executable, "-c", SCRIPT, "celeriac", "celeriac"],
        env={"PYTHONPATH": str(SOURCE)}, stdout=subprocess.PIPE, check=True, timeout=60,
    )  # fmt: skip
    ours = json.loads(found.stdout)
    assert len(theirs) == len(ours) == 12
    assert all(len(names) > 20 for names in theirs.values())
    absent = {f"{kind}.{name}" for kind, names in theirs.items() for name in {*names} - {*ours[kind]}}
    page = (ROOT / "docs" / "differences.md").read_text()
    table = page.partition("## Names that are not there")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| (`.+`) \| \w", table, re.MULTILINE)
    assert absent == {name for row in rows for name in re.findall(r"`([\w.]+)`", row)}
