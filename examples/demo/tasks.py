"""The tasks of the demo: one of each kind, and a small job that counts the words of many texts.

`celeriac demo` runs them. To run them by hand, in two terminals:

    celeriac -A tasks worker
    python run.py
"""

import asyncio
import os
import re
import signal
import time
from collections import Counter
from pathlib import Path

from celeriac import Celeriac, Task

app = Celeriac("demo", task_default_queue="celeriac-demo", task_track_started=True)


@app.task
def add(x: int, y: int) -> int:
    """A plain function."""
    return x + y


@app.task
async def listen(seconds: float) -> str:
    """A coroutine: many of them wait in one process at the same time."""
    await asyncio.sleep(seconds)
    return f"heard nothing for {seconds} s"


@app.task(bind=True, max_retries=3)
def knock(self: Task[..., int]) -> int:
    """Fails twice and is tried again each time. Returns how often it had to be retried."""
    retries: int = self.request.retries
    if retries < 2:
        raise self.retry(exc=ConnectionError("nobody opened"), countdown=0.5)
    return retries


@app.task
def divide(x: int, y: int) -> float:
    """Fails for good when y is 0: the caller gets the exception."""
    return x / y


@app.task(bind=True)
def survive(self: Task[..., str]) -> str:
    """Kills the process it runs in, as running out of memory does. The message is not lost: it comes again."""
    if not self.request.delivery_info.get("redelivered"):
        os.kill(os.getpid(), signal.SIGKILL)
    return "the process was killed, the task was not lost"


@app.task
def remind(planned: float) -> float:
    """Sent with a countdown. Returns how many seconds late it runs."""
    return round(time.time() - planned, 2)


@app.task
def count_words(path: str) -> dict[str, int]:
    """Count the words of one text."""
    return Counter(re.findall(r"[a-z]{4,}", Path(path).read_text(encoding="utf-8").lower()))


@app.task
def combine(counts: list[dict[str, int]]) -> list[tuple[str, int]]:
    """Add up the counts of many texts and name the most frequent words."""
    total: Counter[str] = Counter()
    for count in counts:
        total.update(count)
    return total.most_common(5)
