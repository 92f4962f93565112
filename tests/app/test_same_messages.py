"""celeriac sends what Celery sends, call for call."""

from __future__ import annotations

import base64
import json
import pickle
import subprocess
import zlib
from pathlib import Path
from typing import Any

import pytest

from celeriac.app.app import Celeriac
from tests.app.celery_messages import CALLS, SETTINGS, make_tasks
from tests.app.conftest import Broker
from tests.processes import celery_python

SCRIPT = Path(__file__).with_name("celery_messages.py")


@pytest.fixture(scope="module")
def theirs() -> dict[str, Any]:
    """What real Celery puts on the wire: call -> [queue, envelope]."""
    done = subprocess.run([celery_python(), str(SCRIPT)], capture_output=True, text=True, timeout=60, check=True)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def plain(envelope: dict[str, Any]) -> dict[str, Any]:
    """With its body opened, and without what differs from one call or process to the next."""
    body = base64.b64decode(envelope["body"])
    if envelope["headers"].get("compression"):
        body = zlib.decompress(body)
    opened = pickle.loads(body) if envelope["content-type"].endswith("serialize") else json.loads(body)
    headers, properties = dict(envelope["headers"]), dict(envelope["properties"])
    own = headers["id"]
    for place in (headers, properties):
        for key, value in place.items():
            if value == own and own != "the-id":
                place[key] = "<id>"
    assert headers["origin"].startswith("gen")
    headers["origin"] = properties["delivery_tag"] = "-"
    if properties["reply_to"] != "me":
        properties["reply_to"] = "-"
    if "expiration" in properties:
        properties["expiration"] = properties["expiration"][:5]  # milliseconds from now
    return {
        "body": json.loads(json.dumps(opened)), "headers": headers, "properties": properties,
        "type": envelope["content-type"], "encoding": envelope["content-encoding"],
    }  # fmt: skip


@pytest.mark.parametrize("call", CALLS)
def test_the_same_message(theirs: dict[str, Any], app: Celeriac, broker: Broker, call: str) -> None:
    """Headers, their order, body, properties, serializer, queue."""
    app.conf.update(SETTINGS)
    app.conf.accept_content = ["json", "pickle"]
    tasks = make_tasks(app)
    app.finalize()
    app.stamp["schedules directly"] = False  # as on a broker where Celery may stand on the other side
    CALLS[call](tasks)
    ((queue, blob),) = [(queue, blob) for queue in broker.server.queues for blob in broker.blobs(queue)]
    their_queue, their_envelope = theirs[call]
    ours, expected = plain(json.loads(blob)), plain(their_envelope)
    assert queue == their_queue
    assert ours == expected
    assert list(ours["headers"]) == list(expected["headers"])
