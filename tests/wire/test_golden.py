"""What real Celery wrote is read, and written by us to the byte. `make_golden.py` made the files."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import msgspec
import pytest

from celeriac import errors
from celeriac.wire import codec, failure, frame, notice, record, values
from celeriac.wire.repr import safe_repr
from celeriac.wire.task import TaskMessage, Template, pack, read_head, unpack
from tests.wire import golden_cases as cases

GOLDEN = Path(__file__).parent / "golden"
ALL = codec.accept_set(["json", "pickle", "yaml", "msgpack"])
TASKS = [file for folder in ("protocol2", "protocol1", "canvas") for file in sorted((GOLDEN / folder).iterdir())]
SERIALIZERS = {entry.content_type: name for name, entry in codec._serializers.items()}
NAMES = {**vars(errors), **vars(cases)}

SHARED = (
    "id", "task", "retries", "group", "root_id", "parent_id", "reply_to", "priority", "shadow", "origin",
    "ignore_result", "exchange", "routing_key", "delivery_tag", "protocol", "losses",
)  # fmt: skip
ARGUMENTS = ("priority", "serializer", "compression", "exchange", "routing_key")


def golden(kind: str, name: str) -> bytes:
    return (GOLDEN / kind / (name.replace(" ", "-") + ".bin")).read_bytes()


def label(file: Path) -> str:
    return f"{file.parent.name}/{file.stem}"


def same(left: Any, right: Any) -> bool:
    """Equal, NaN included."""
    return left == right or (isinstance(left, float) and isinstance(right, float) and math.isnan(left + right))


@pytest.mark.parametrize("name", cases.VALUES)
def test_values_have_kombus_text(name: str) -> None:
    """Every value becomes the text that kombu writes."""
    text = json.loads((GOLDEN / "values.json").read_text())[name]
    assert values.dumps(cases.VALUES[name]) == text
    assert values.dumps(values.loads(text.encode())) == text
    assert values.dumps(values.loads(text)) == text


@pytest.mark.parametrize("number", range(len(cases.REPRS)))
def test_reprs_are_celerys(number: int) -> None:
    """Arguments are shown as Celery's saferepr shows them."""
    text, limit, levels, expected = json.loads((GOLDEN / "reprs.json").read_text())[number]
    assert safe_repr(eval(text, dict(vars(cases))), limit, levels) == expected


@pytest.mark.parametrize("file", TASKS, ids=label)
def test_a_message_is_read_and_written_back(file: Path) -> None:
    """Nothing of a message is lost between `unpack` and `pack`, and every byte is as it was."""
    blob = file.read_bytes()
    message = unpack(blob, ALL)
    assert message.task.startswith(("tasks.", "celery."))
    assert not message.redelivered
    envelope = pack(
        message,
        queue=message.queue,
        exchange=message.exchange,
        routing_key=message.routing_key,
        serializer=SERIALIZERS[message.content_type or ""],
        compression=message.compression,
        publish_id=message.delivery_tag,
        priority=message.priority,
        protocol=message.protocol,
    )
    if "pickle" in file.stem:  # equal values may be memoized otherwise
        assert unpack(envelope.blob, ALL) == message
        assert frame.unpack(envelope.blob).headers == frame.unpack(blob).headers
    elif file.stem == "lone-surrogate":  # shown in an escaped form, because nothing could store it
        assert message.argsrepr == "('a\\ud800b',)"
    else:
        assert envelope.blob == blob


@pytest.mark.parametrize("file", TASKS, ids=label)
def test_the_head_agrees_with_the_message(file: Path) -> None:
    """The parent and the child read the same fields."""
    blob = file.read_bytes()
    if file.parent.name == "protocol1" or "pickle" not in file.stem:
        head, message = read_head(blob), unpack(blob, ALL)
        for name in SHARED:
            assert getattr(head, name) == getattr(message, name), name
        assert (head.eta_text, head.expires_text) == (message.eta, message.expires)
        assert head.timelimit == (None if message.timelimit == (None, None) else message.timelimit)
        assert head.argsrepr == message.argsrepr


@pytest.mark.parametrize("name", cases.MESSAGES)
def test_a_call_becomes_celerys_message(name: str) -> None:
    """The message of a call is the one that Celery's apply_async sends."""
    case = cases.MESSAGES[name]
    options = dict(case.get("options", {}))
    expected = golden("protocol2", name)
    read = unpack(expected, ALL)
    stamped = options.pop("stamped_headers", None)
    message = TaskMessage(
        read.id,
        "tasks.add",
        case.get("args", ()),
        case.get("kwargs", {}),
        retries=options.pop("retries", 0),
        eta=options.pop("eta").isoformat() if "eta" in options else None,
        expires=options.pop("expires").isoformat() if "expires" in options else None,
        timelimit=(options.pop("time_limit", None), options.pop("soft_time_limit", None)),
        group=options.pop("group_id", None),
        group_index=options.pop("group_index", None),
        root_id=options.pop("root_id", None),
        parent_id=options.pop("parent_id", None),
        argsrepr=options.pop("argsrepr", None),
        kwargsrepr=options.pop("kwargsrepr", None),
        origin=cases.ORIGIN,
        shadow=options.pop("shadow", None),
        ignore_result=options.pop("ignore_result", False),
        replaced_task_nesting=options.pop("replaced_task_nesting", 0),
        stamped_headers=stamped,
        stamps={stamp: options.pop(stamp) for stamp in stamped or ()},
        headers=options.pop("headers", None),
        reply_to=options.pop("reply_to", "00000000-0000-3000-8000-000000000000"),
        delivery_mode=options.pop("delivery_mode", 2),
    )
    arguments = {name: options.pop(name) for name in ARGUMENTS if name in options}
    options.pop("queue", None)
    if message.expires:
        options["expiration"] = "90000"
    if message.argsrepr is not None:  # Celery says these two once more, as properties; nobody reads them there
        options |= {"argsrepr": message.argsrepr, "kwargsrepr": message.kwargsrepr}
    message.properties = options or None
    envelope = pack(message, queue="q", publish_id=read.delivery_tag, **arguments)
    if name == "pickle":
        assert unpack(envelope.blob, ALL) == read
    else:
        assert envelope.blob == expected


def test_a_restored_message_is_seen_as_redelivered() -> None:
    """What a Celery worker put back is read as such, and our own mark is the same plus the counters."""
    blob = golden("restored", "plain")
    assert read_head(blob).redelivered
    assert unpack(blob, ALL).redelivered
    first = blob.replace(b', "redelivered": true', b"")
    assert not read_head(first).redelivered
    assert frame.with_losses(first, 1, 2) == blob.replace(
        b'"redelivered": true}, "prop', b'"redelivered": true, "x-celeriac-losses": [1, 2]}, "prop'
    )


def test_template() -> None:
    """A template gives the bytes that `pack` gives, and so those of Celery."""
    template = Template(
        TaskMessage("", "tasks.add", origin=cases.ORIGIN, reply_to="00000000-0000-3000-8000-000000000000"), queue="q"
    )
    for name in ("plain", "no arguments", "keywords", "text", "lone surrogate", "nested", "values", "numbers", "long"):
        case, expected = cases.MESSAGES[name], golden("protocol2", name)
        read = unpack(expected, ALL)
        assert template.pack(read.id, read.delivery_tag, case.get("args", ()), case.get("kwargs", {})) == expected


CHILDREN = [[["c1", None], None], [["c2", None], None]]


@pytest.mark.parametrize("name", cases.RESULTS)
def test_results(name: str) -> None:
    """A result of any state is the document that Celery stores, and is read back."""
    case, expected = cases.RESULTS[name], golden("results", name)
    serializer, request = case.get("serializer", "json"), case.get("request", {}) or {}
    state, result = case["state"], case["result"]
    done = cases.NOW.isoformat() if state in record.READY_STATES else None
    family = {"parent_id": request.get("parent_id"), "group_id": request.get("group")}
    extended = None
    if case.get("extended"):
        extended = record.extended_fields(
            request["task"], request["args"], request["kwargs"], request["hostname"], request["retries"],
            request["delivery_info"]["routing_key"], request.get("stamped_headers"), request.get("stamps"),
        )  # fmt: skip
    children = None if name == "no request" else CHILDREN if "children" in case else ()
    data = record.document(
        "tid", state, result, traceback=case.get("traceback"), children=children, date_done=done, extended=extended,
        serializer=serializer, compression=case.get("compression"), **family,
    )  # fmt: skip
    read = record.read(expected, serializer, ALL)
    if "pickle" not in name:
        assert data == expected
    assert (read.id, read.status, read.date_done, read.traceback) == ("tid", state, done, case.get("traceback"))
    assert (read.parent_id, read.group_id) == (family["parent_id"], family["group_id"])
    assert record.read(data, serializer, ALL).status == state
    if state == "SUCCESS" and serializer == "json":
        text = values.dumps(result)
        quick = record.success("tid", text, str(done), values.dumps(children), extended=extended, **family)
        if "compression" in case:
            quick = record.compress(quick, case["compression"])
        assert quick == expected
        assert values.dumps(read.result) == text
    if extended:
        assert (read.name, read.worker, read.queue, read.retries) == ("t.add", "w@host", "q", request["retries"])
        assert list(read.args) == list(request["args"])
        if "stamps" in request:
            assert read.stamps == {"a": ["x"], "b": 7}


@pytest.mark.parametrize("name", [*cases.EXCEPTIONS, *cases.CELERY_EXCEPTIONS])
def test_failures(name: str) -> None:
    """An exception becomes the map that Celery stores, and is rebuilt from it."""
    text = (cases.EXCEPTIONS | cases.CELERY_EXCEPTIONS)[name]
    exc = eval(text, dict(NAMES))
    expected = golden("failures", name)
    assert record.document("tid", "FAILURE", exc, date_done=cases.NOW.isoformat()) == expected
    rebuilt = failure.rebuild(record.read(expected).result)
    if isinstance(exc, cases.Custom.Inner):
        assert (type(rebuilt).__name__, type(rebuilt).__bases__) == ("Custom.Inner", (Exception,))
        assert rebuilt.args == exc.args
    else:
        assert type(rebuilt) is type(exc)
        if name not in ("unserializable", "nested"):
            assert rebuilt.args == exc.args


def test_group() -> None:
    """A saved group is the document that Celery stores."""
    expected = golden("groups", "nested")
    found = record.read_group(expected)
    assert found[0] == ["gid", [["parent", None], None]]
    assert record.group_document(found) == expected


def test_events() -> None:
    """Events go out as from Celery's dispatcher, one or many."""
    for name, kind in (("one", "worker-heartbeat"), ("many", "task-received")):
        blob = golden("events", name)
        events = notice.read_events(blob)
        assert events[0]["type"] == kind
        tag = frame.unpack(blob).properties["delivery_tag"]
        if name == "one":
            assert notice.write_event(events[0], hostname="w@host", delivery_tag=tag) == blob
        else:
            assert len(events) == 2
            assert notice.write_events(events, hostname="w@host", delivery_tag=tag) == blob


def test_remote_control() -> None:
    """Requests and answers are those of kombu's mailbox."""
    blob = golden("control", "cast")
    request = notice.read_request(blob)
    assert (request.method, request.arguments, request.ticket) == ("shutdown", {"a": 1}, None)
    assert request.meant_for("w@host")
    assert not request.meant_for("v@host")
    assert notice.write_request(request, delivery_tag=frame.unpack(blob).properties["delivery_tag"]) == blob

    blob = golden("control", "call")
    request = notice.read_request(blob)
    assert request.meant_for("w@host")
    assert not request.meant_for("v@host")
    assert request.reply_queue == "00000000-0000-3000-8000-000000000000.reply.celery.pidbox"
    assert notice.write_request(request, delivery_tag=frame.unpack(blob).properties["delivery_tag"]) == blob

    blob = golden("control", "reply")
    reply = notice.read_reply(blob)
    assert reply == notice.Reply({"w@host": {"ok": "pong"}}, "ticket", clock=reply.clock)
    tag = frame.unpack(blob).properties["delivery_tag"]
    assert notice.write_reply(reply, routing_key=request.reply_routing_key, delivery_tag=tag) == blob


def test_compressed_forms_are_peers() -> None:
    """Every compression that Celery wrote is undone."""
    for name in ("gzip", "bzip2", "lzma"):
        message = unpack(golden("protocol2", f"compressed with {name}"), ALL)
        assert message.args == ["x" * 500]
        assert message.compression == codec.compression_type(name)


def test_exceptions_that_celery_wrapped() -> None:
    """What pickle could not carry comes back under its name, without Celery."""
    found = failure.rebuild(record.read(golden("results", "blocked failure in pickle"), "pickle", ALL).result)
    assert (type(found).__name__, type(found).__module__, found.args) == ("Blocked", "golden_cases", ("a", 1))


def test_pickled_signatures_need_no_celery() -> None:
    """Links in a pickled body are Celery's classes there, and plain maps here."""
    message = unpack(golden("canvas", "links in pickle 0"), ALL)
    assert message.callbacks is not None
    assert type(message.callbacks[0]) is dict
    assert message.callbacks[0]["task"] == "tasks.add"
    assert msgspec.json.decode(values.dumps(message.callbacks))[0]["args"] == [5]
