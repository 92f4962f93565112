"""Canvases are what Celery makes of the same expressions, and send the same messages."""

from __future__ import annotations

import base64
import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

from celeriac.app.app import Celeriac
from celeriac.app.canvas import Signature
from celeriac.model.message import Chord
from celeriac.wire import values
from tests.app.canvas.celery_canvas import CALLS, EXPRESSIONS, FROZEN, QUEUES
from tests.app.conftest import Broker
from tests.processes import celery_python

pytestmark = pytest.mark.filterwarnings("ignore::celeriac.errors.CPendingDeprecationWarning")
SCRIPT = Path(__file__).with_name("celery_canvas.py")


@pytest.fixture(scope="module")
def theirs() -> dict[str, Any]:
    """What real Celery makes of all."""
    done = subprocess.run([celery_python(), str(SCRIPT)], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def plain(form: Any) -> Any:
    """Without what has no order, and without ids that were given by chance."""
    if isinstance(form, list):
        return [plain(item) for item in form]
    if not isinstance(form, dict):
        return form
    found = {key: plain(value) for key, value in form.items()}
    if isinstance(found.get("stamped_headers"), list):
        found["stamped_headers"] = sorted(found["stamped_headers"])
    return found


def blank(form: Any) -> Any:
    """Ids replaced by the order in which they appear."""
    text = json.dumps(form)
    seen: dict[str, str] = {}
    for word in text.split('"'):
        if len(word) == 36 and word.count("-") == 4 and word not in seen:
            seen[word] = f"id {len(seen)}"
    for task_id, name in seen.items():
        text = text.replace(task_id, name)
    return json.loads(text)


@pytest.mark.parametrize("name", EXPRESSIONS)
def test_the_same_form(theirs: dict[str, Any], t: Any, name: str) -> None:
    """As JSON, as repr, with all links."""
    signature = EXPRESSIONS[name](t)
    assert isinstance(signature, Signature)
    if name != "stamp a chord":  # without a visitor Celery leaves the body out
        assert plain(json.loads(values.dumps(signature))) == plain(theirs["forms"][name])
    assert [repr(link) for link in signature.flatten_links()][1:] == theirs["links"][name][1:]
    if name != "group of two":  # Celery keeps a tuple there
        assert readable(repr(signature)) == readable(theirs["reprs"][name])


def readable(text: str) -> str:
    """A repr without addresses, and without what Celery keeps generators in."""
    return re.sub(r"<_regen: (.*?\])>", r"\1", text).replace("_chain@", "chain@").partition("@0x")[0]


@pytest.mark.parametrize("name", EXPRESSIONS)
def test_the_same_steps(theirs: dict[str, Any], t: Any, name: str) -> None:
    """Of chains: the steps one by one, with the links of the whole."""
    signature = EXPRESSIONS[name](t)
    if name not in theirs["unchained"] or name == "chain with options":  # Celery loses the options
        return
    steps = json.loads(values.dumps(signature.unchain_tasks()))
    assert plain(headers_as_lists(steps)) == plain(theirs["unchained"][name])


def headers_as_lists(steps: Any) -> Any:
    """Chords whose header is a list: Celery makes one of a group where it copies a chord."""
    for step in steps:
        header = step["kwargs"].get("header")
        if isinstance(header, dict):
            step["kwargs"]["header"] = header["kwargs"]["tasks"]
    return steps


@pytest.mark.parametrize("name", FROZEN)
def test_the_same_results(theirs: dict[str, Any], t: Any, name: str) -> None:
    """Frozen, it promises the same tree of results, and keeps to it when it is sent."""
    signature = EXPRESSIONS[name](t)
    promised = json.loads(values.dumps(signature.freeze().as_tuple()))
    assert blank(promised) == blank(theirs["frozen"][name])
    again = json.loads(values.dumps(signature.freeze().as_tuple()))
    assert again == promised


def opened_up(envelope: dict[str, Any]) -> dict[str, Any]:
    """A message with its body opened, and without what differs from one process to the next."""
    headers, properties = dict(envelope["headers"]), dict(envelope["properties"])
    headers["origin"] = properties["delivery_tag"] = properties["reply_to"] = "-"
    headers["stamped_headers"] = sorted(headers["stamped_headers"] or ())
    body = without_reply(plain(json.loads(base64.b64decode(envelope["body"]))))
    return {"headers": headers, "properties": properties, "body": body}


def without_reply(form: Any) -> Any:
    """Without who gets replies, without options that are None, and without ids and places in a group, which count when
    it is sent."""
    if isinstance(form, list):
        return [without_reply(item) for item in form]
    if not isinstance(form, dict):
        return form
    left_out = ["reply_to", "group_index", "group_id"]
    found = {key: without_reply(value) for key, value in form.items() if key not in left_out and value is not None}
    if found.get("subtask_type") == "chord":
        found["options"].pop("task_id", None)  # that of its header, which has it too
    return found


@pytest.mark.parametrize("name", CALLS)
def test_the_same_messages(
    theirs: dict[str, Any], t: Any, app: Celeriac, broker: Broker, opened: list[Chord], name: str
) -> None:
    """Of every shape that is sent: queues, headers, arguments, what follows."""
    app.finalize()
    app.stamp["schedules directly"] = False  # as on a broker where Celery may stand on the other side
    CALLS[name](t)
    ours = [[queue, opened_up(json.loads(blob))] for queue in QUEUES for blob in broker.blobs(queue)]
    expected = [[queue, opened_up(envelope)] for queue, envelope in theirs["messages"][name]]
    if name == "group in a group":  # Celery counts anew in the inner one
        expected[-1][1]["headers"]["group_index"] = 2
    assert blank(ours) == blank(expected)
