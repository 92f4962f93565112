# mypy: ignore-errors
# pyright: reportMissingImports=false, reportAttributeAccessIssue=false, reportFunctionMemberAccess=false
"""Tasks that stand on both sides: PEER says whether real Celery or celeriac runs them."""

from __future__ import annotations

import json
import os
import time
from typing import Any

PEER = os.environ["PEER"]
if PEER == "celery":
    from celery import Celery  # type: ignore[import-not-found, unused-ignore]
else:
    from celeriac import Celeriac as Celery

app = Celery("tasks")
settings = json.loads(os.environ["PEER_SETTINGS"])
if settings.pop("PEER_QUEUES", False):
    if PEER == "celery":
        from kombu import Exchange, Queue  # type: ignore[import-not-found, unused-ignore]
    else:
        from celeriac.model.queues import Exchange, Queue
    topics = Exchange("topics", "topic")
    settings["task_queues"] = [
        Queue("plain"),
        Queue("topical", topics, routing_key="a.#", queue_arguments={"x-message-ttl": 3600000}),
        Queue("quorum", topics, routing_key="quorum", queue_arguments={"x-queue-type": "quorum"}, max_priority=None),
    ]
app.conf.update(settings)


def note_down(what: str, **fields: Any) -> None:
    """Append a line to the file that the test reads."""
    line = json.dumps({"what": what, "peer": PEER, "pid": os.getpid(), "time": time.time(), **fields})
    with open(os.environ["PEER_NOTES"], "a") as notes:
        notes.write(line + "\n")


class OwnError(Exception):
    """An exception of the project."""


@app.task
def add(x: int, y: int) -> int:
    """The usual one."""
    return x + y


@app.task
def step(*args: Any) -> list[Any]:
    """A step of a workflow: what it was given."""
    return list(args)


@app.task
def breaks(*args: Any) -> None:
    """A step that fails."""
    raise ValueError("broken")


@app.task
def echo(*args: Any, **kwargs: Any) -> Any:
    """What arrived."""
    return [args, kwargs]


@app.task(bind=True, max_retries=5)
def flaky(self: Any, times: int) -> list[Any]:
    """Succeeds at the last try."""
    note_down("flaky", id=self.request.id, retries=self.request.retries)
    if self.request.retries < times:
        raise self.retry(countdown=0.3)
    return [self.request.retries, self.request.id]


@app.task(bind=True, max_retries=1)
def exhausted(self: Any) -> None:
    """Never succeeds."""
    raise self.retry(exc=KeyError("the key"), countdown=0.1)


@app.task
def fails(text: str) -> None:
    """A common error."""
    raise ValueError(text)


@app.task
def fails_oddly() -> None:
    """An error of the project."""
    raise OwnError("odd", 7)


@app.task
def moment() -> float:
    """When it ran."""
    return time.time()


@app.task(bind=True)
def request_of(self: Any) -> dict[str, Any]:
    """What a task sees of its message."""
    request = self.request
    return {
        "headers": {key: value for key, value in (request.headers or {}).items() if key.startswith("x-mine")},
        "retries": request.retries, "root_id": request.root_id, "parent_id": request.parent_id,
        "correlation_id": request.correlation_id, "shadow": request.shadow, "timelimit": list(request.timelimit or []),
        "priority": request.delivery_info.get("priority"), "routing_key": request.delivery_info.get("routing_key"),
    }  # fmt: skip


@app.task
def ordered(tag: str) -> None:
    """Leave a trace of the order."""
    note_down("ordered", tag=tag)


@app.task
def sleepy(seconds: float) -> str:
    """Take long."""
    time.sleep(seconds)
    return PEER


@app.task(bind=True)
def traced(self: Any, seconds: float = 0.0) -> str:
    """Leave a trace of who ran it."""
    note_down("start", id=self.request.id, redelivered=bool(self.request.delivery_info.get("redelivered")))
    time.sleep(seconds)
    note_down("end", id=self.request.id)
    return PEER


@app.task
def linked(*args: Any) -> None:
    """A link."""
    note_down("linked", args=args)


@app.task
def errback(request: Any, exc: Any, traceback: Any) -> None:
    """An errback of the newer form."""
    note_down("errback", id=request.id, exc=type(exc).__name__, text=str(exc))


@app.task
def errback_by_id(task_id: str) -> None:
    """An errback of the older form."""
    note_down("errback_by_id", id=task_id)


@app.task
def relay(queue: str, countdown: float) -> str:
    """Send another task from inside one."""
    return str(traced.apply_async(queue=queue, countdown=countdown).id)


if PEER == "celery":

    @app.task
    def only_celery(number: int) -> str:
        """Known to Celery alone."""
        note_down("only", number=number, name="celery")
        return PEER
else:

    @app.task
    def only_celeriac(number: int) -> str:
        """Known to celeriac alone."""
        note_down("only", number=number, name="celeriac")
        return PEER


if os.environ.get("PEER_GIVES_BACK") and PEER == "celery":
    import importlib.util

    spec = importlib.util.spec_from_file_location("celery_peer", os.environ["PEER_GIVES_BACK"])
    assert spec is not None
    assert spec.loader is not None
    celery_peer = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(celery_peer)
    celery_peer.give_back_unknown(app, longest_delay=1.0)

