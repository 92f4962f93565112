"""An app of its own for each test, on a broker and a result store in memory, and a look into them."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from typing import Any
from uuid import uuid4

import pytest

from celeriac.app import registry, wiring
from celeriac.app.app import Celeriac
from celeriac.model.message import Store
from celeriac.wire import record
from celeriac.wire.task import TaskMessage, unpack

ACCEPT = frozenset({"application/json", "application/x-msgpack", "application/x-python-serialize"})


class Broker:
    """What lies in the memory server of an app."""

    def __init__(self, name: str) -> None:
        self.server = wiring.memory_server(name)
        self.url = f"memory://{name}"

    def blobs(self, queue: str = "celery") -> list[bytes]:
        """Ready messages, oldest first."""
        found = self.server.queues.get(queue)
        return [] if found is None else [entry.blob for entry in found.in_order()]

    def messages(self, queue: str = "celery") -> list[TaskMessage]:
        """Ready messages, read."""
        return [unpack(blob, ACCEPT) for blob in self.blobs(queue)]

    def last(self, queue: str = "celery") -> TaskMessage:
        """The newest ready message."""
        return self.messages(queue)[-1]

    def raw(self, queue: str = "celery") -> dict[str, Any]:
        """The newest ready message, as a map with its body opened."""
        found: dict[str, Any] = json.loads(self.blobs(queue)[-1])
        found["body"] = json.loads(base64.b64decode(found["body"]))
        return found

    def scheduled(self, queue: str = "celery") -> list[tuple[float, TaskMessage]]:
        """`(due, message)` of what waits for its time."""
        found = self.server.queues.get(queue)
        return [] if found is None else [(due, unpack(entry.blob, ACCEPT)) for due, _, entry in sorted(found.scheduled)]

    def finish(self, task_id: str, result: Any, state: str = "SUCCESS", **fields: Any) -> None:
        """Store a result, as a worker would."""
        done = "2026-11-24T06:49:42.429739+00:00" if state in ("SUCCESS", "FAILURE", "REVOKED") else None
        document = record.document(task_id, state, result, date_done=done, **fields)
        self.server.store([Store(task_id, document, state)])


@pytest.fixture
def broker() -> Iterator[Broker]:
    """A memory server of its own."""
    name = uuid4().hex
    yield Broker(name)
    wiring._servers.pop(name, None)


@pytest.fixture
def app(broker: Broker) -> Iterator[Celeriac]:
    """An app on that server; whatever was shared or current before is back afterwards."""
    before = (registry._thread.app, registry._latest, registry._default, dict(registry._finalizers))
    with Celeriac("tests", broker=broker.url, backend=broker.url) as made:
        yield made
    registry._thread.app, registry._latest, registry._default, finalizers = before
    registry._finalizers.clear()
    registry._finalizers.update(finalizers)
