# mypy: ignore-errors
# pyright: reportMissingImports=false, reportAttributeAccessIssue=false
"""Celery's side, tuned as its documentation says."""

import os
import time

from celery import Celery

app = Celery("bench", broker=os.environ["BENCH_BROKER"], backend=os.environ["BENCH_BACKEND"])
app.conf.update(
    worker_prefetch_multiplier=128,
    worker_disable_rate_limits=True,
    worker_enable_remote_control=False,
    worker_send_task_events=False,
    worker_cancel_long_running_tasks_on_connection_loss=True,
    broker_connection_retry_on_startup=True,
    broker_pool_limit=10,
    task_acks_late=False,
)
app.conf.task_default_queue_type = os.environ.get("BENCH_QUEUE_TYPE", "classic")
if os.environ.get("BENCH_EVENTS"):
    app.conf.worker_enable_remote_control = True
_marks = None


@app.task(ignore_result=True)
def ignored(x, y):
    """Nothing to do, and nothing kept of it."""
    return x


@app.task
def stored(x, y):
    """Nothing to do, and the result is kept."""
    return x


@app.task
def total(numbers):
    """The body of a chord."""
    return sum(numbers)


@app.task(bind=True, ignore_result=True)
def stamp(self, due=0.0):
    """Say when it began: the first line is the measurement."""
    now, wall = time.monotonic_ns(), time.time()
    global _marks
    if _marks is None:
        _marks = os.open(os.environ["BENCH_MARKS"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(_marks, f"{self.request.id} {now} {wall - due}\n".encode())
