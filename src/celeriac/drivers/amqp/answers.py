"""Results as messages to whoever asked, as Celery's `rpc://` sends and reads them."""

from __future__ import annotations

from typing import Any

from celeriac.drivers.amqp import frames
from celeriac.drivers.amqp.frames import M
from celeriac.drivers.amqp.table import properties, read_properties
from celeriac.model.message import Store

CONTENT_TYPES = {"json": "application/json", "pickle": "application/x-python-serialize",
                 "yaml": "application/x-yaml", "msgpack": "application/x-msgpack"}  # fmt: skip


def header(store: Store, serializer: str = "json", persistent: bool = False) -> bytes:
    """Properties of the message that carries a result."""
    kind = CONTENT_TYPES.get(serializer, "application/json")
    return properties({
        "content_type": kind, "content_encoding": "binary" if serializer in ("pickle", "msgpack") else "utf-8",
        "correlation_id": store.id, "delivery_mode": 2 if persistent else 1, "headers": {}, "priority": 0,
    })  # fmt: skip


def correlation(raw: bytes) -> str:
    """The task id in the properties of an answer."""
    return str(read_properties(raw).get("correlation_id", ""))


def queue_arguments(expires: float | None) -> dict[str, Any]:
    """Of a queue for answers."""
    return {} if expires is None else {"x-expires": max(1, int(expires * 1000))}


def declaration(name: str, expires: float | None) -> tuple[M, bytes, M, str]:
    """How a queue for answers is declared, to the byte as Celery does it."""
    arguments = frames.queue_declare(name, durable=True, auto_delete=True, arguments=queue_arguments(expires))
    return M.QUEUE_DECLARE, arguments, M.QUEUE_DECLARE_OK, f"the queue {name!r}"
