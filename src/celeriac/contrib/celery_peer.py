"""For the Celery side of a queue that celeriac's workers serve too, while each side knows only some of the task names.

A Celery worker answers a message whose task name it does not know with FAILURE NotRegistered, and throws the message
away. celeriac gives such a message back, for a worker that knows it. This module teaches a Celery worker the same, in
the Celery project:

    from celeriac.contrib.celery_peer import give_back_unknown

    app = Celery("proj", ...)
    give_back_unknown(app)

It is imported by Celery's interpreter: nothing of celeriac's dependencies is needed, and the file may as well be copied
into the project. celeriac's own workers need nothing; `task_unknown_patience` says how long they give back.
"""

from __future__ import annotations

import importlib
import logging
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

log = logging.getLogger("celeriac.celery_peer")

REMEMBERED = 100_000
"""Messages whose tries are remembered at most; the oldest are forgotten, and begin anew when they come again."""


class Patience:
    """How long a message with an unknown task name is kept before it goes back, and when it is given up.

    The delay doubles with each time that this worker meets the message, so that two workers that both don't know it
    don't pass it on in a loop."""

    def __init__(self, first: float, longest: float, total: float) -> None:
        self.first = first
        self.longest = longest
        self.total = total
        self._met: OrderedDict[str, tuple[float, int]] = OrderedDict()

    def next_delay(self, task_id: str, now: float) -> float | None:
        """Seconds until it should go back; None: it has gone round long enough."""
        since, tries = self._met.pop(task_id, (now, 0))
        delay = min(self.longest, self.first * 2.0 ** min(tries, 30))
        if now + delay > since + self.total:
            return None
        self._met[task_id] = since, tries + 1
        while len(self._met) > REMEMBERED:
            self._met.popitem(last=False)
        return delay


def task_id_of(message: Any) -> str:
    """The task id of a kombu message, of protocol 2 or 1. Empty when it has none."""
    headers = message.headers or {}
    found = headers.get("id")
    if found is None:
        try:
            found = message.payload["id"]
        except Exception:  # whatever a serializer says: Celery's own handler will say it again
            found = None
    return found if isinstance(found, str) else ""


def give_back_unknown(
    app: Any, *, first_delay: float = 0.1, longest_delay: float = 5.0, patience: float = 600.0
) -> None:
    """Let the workers of a Celery app put messages with unknown task names back to the tail of their queue.

    A message stays unacknowledged until it goes back, in one step: nothing is lost if the worker is killed meanwhile.
    It goes back after `first_delay` seconds, then after twice as long, up to `longest_delay`. After `patience` seconds
    in all it is Celery's again: FAILURE NotRegistered. Call it once, before the worker starts.
    """
    bootsteps = importlib.import_module("celery.bootsteps")

    class GiveBackUnknown(bootsteps.StartStopStep):  # type: ignore[misc, name-defined]
        """Takes the place of the consumer's handler of unknown tasks; runs anew after each reconnect."""

        requires = ("celery.worker.consumer.tasks:Tasks",)

        def __init__(self, consumer: Any, **options: Any) -> None:
            super().__init__(consumer, **options)
            self.patience = Patience(first_delay, longest_delay, patience)

        def start(self, consumer: Any) -> None:
            consumer.on_unknown_task = _handler(consumer, type(consumer).on_unknown_task, self.patience)

    app.steps["consumer"].add(GiveBackUnknown)


def _handler(consumer: Any, give_up: Callable[..., Any], patience: Patience) -> Callable[[Any, Any, Any], None]:
    def on_unknown_task(body: Any, message: Any, error: Any) -> None:
        delay = patience.next_delay(task_id_of(message), time.monotonic())
        if delay is None:
            give_up(consumer, body, message, error)
            return
        log.info("task %s is not registered here; its message goes back in %.1f s", error, delay)

        def give_back() -> None:
            try:
                message.requeue()
            except consumer.connection_errors as lost:
                log.warning("a message could not be given back, the broker will restore it: %s", lost)
            finally:
                consumer.qos.decrement_eventually()

        consumer.qos.increment_eventually()  # as for an ETA: what waits takes no place of what can run
        consumer.timer.call_after(delay, consumer.call_soon, (give_back,))

    return on_unknown_task
