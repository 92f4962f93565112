# mypy: ignore-errors
# pyright: reportMissingImports=false, reportAttributeAccessIssue=false
"""celeriac's side: all defaults."""

import os
import time

from celeriac import Celeriac

app = Celeriac("bench", broker=os.environ["BENCH_BROKER"], backend=os.environ["BENCH_BACKEND"])
app.conf.task_default_queue_type = os.environ.get("BENCH_QUEUE_TYPE", "classic")
if "BENCH_EXPIRES" in os.environ:
    app.conf.result_expires = float(os.environ["BENCH_EXPIRES"])
_marks: int | None = None


@app.task(ignore_result=True)
def ignored(x: int, y: int) -> int:
    """Nothing to do, and nothing kept of it."""
    return x


@app.task
def stored(x: int, y: int) -> int:
    """Nothing to do, and the result is kept."""
    return x


@app.task
def total(numbers: list[int]) -> int:
    """The body of a chord."""
    return sum(numbers)


@app.task(bind=True, ignore_result=True)
def stamp(self, due: float = 0.0) -> None:  # type: ignore[no-untyped-def]
    """Say when it began: the first line is the measurement."""
    now, wall = time.monotonic_ns(), time.time()
    global _marks
    if _marks is None:
        _marks = os.open(os.environ["BENCH_MARKS"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(_marks, f"{self.request.id} {now} {wall - due}\n".encode())
