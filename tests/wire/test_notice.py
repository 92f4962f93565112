"""Laws of events and remote control. That they are Celery's is shown by the golden files."""

from __future__ import annotations

import contextlib
import json
import pickle
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from celeriac.errors import ContentDisallowed, DecodeError
from celeriac.wire import codec, frame, notice
from celeriac.wire.notice import Reply, Request

TEXT = st.text(st.characters(codec="utf-8"), max_size=10)
MAPS = st.dictionaries(TEXT, st.none() | st.integers(-(2**60), 2**60) | TEXT, max_size=3)
ALL = codec.accept_set(["json", "msgpack", "yaml", "pickle"])


@given(st.lists(MAPS, max_size=3), st.sampled_from(["json", "msgpack"]))
def test_events_come_back(events: list[dict[str, Any]], serializer: str) -> None:
    """One or many, by any serializer."""
    for event in events:
        event["type"] = "task-sent"
        blob = notice.write_event(event, hostname="h", serializer=serializer)
        assert notice.read_events(blob, ALL) == [event]
        assert frame.unpack(blob).properties["delivery_info"] == {"exchange": "celeryev", "routing_key": "task.sent"}
        assert frame.unpack(blob).headers == {"hostname": "h"}
    blob = notice.write_events(events, hostname="h", group="worker", exchange="ev", serializer=serializer)
    assert notice.read_events(blob, ALL) == events
    assert frame.unpack(blob).properties["delivery_info"] == {"exchange": "ev", "routing_key": "worker.multi"}


@given(
    st.builds(
        Request,
        method=TEXT,
        arguments=MAPS,
        destination=st.none() | st.lists(TEXT, max_size=2),
        pattern=st.none() | TEXT,
        matcher=st.none() | st.sampled_from(["glob", "pcre"]),
        ticket=st.none() | TEXT.filter(bool),
        reply_routing_key=TEXT,
        clock=st.integers(0, 2**40),
        expires=st.floats(0, 1e10),
    )
)
def test_requests_come_back(request: Request) -> None:
    """Every field; where to answer only with a ticket."""
    got = notice.read_request(notice.write_request(request))
    if not request.ticket:
        request.reply_exchange = request.reply_routing_key = ""
    assert got == request


@given(MAPS, st.none() | TEXT, st.integers(0, 2**40))
def test_replies_come_back(answers: dict[str, Any], ticket: str | None, clock: int) -> None:
    """Answers, ticket and clock."""
    reply = Reply(answers, ticket, clock)
    assert notice.read_reply(notice.write_reply(reply, routing_key="oid")) == reply


def test_who_is_meant() -> None:
    """A list decides, else pattern and matcher, else everybody is meant."""
    assert Request("ping").meant_for("a@h")
    assert Request("ping", destination=["a@h"], pattern="b*", matcher="glob").meant_for("a@h")
    assert not Request("ping", destination=["a@h"]).meant_for("b@h")
    assert Request("ping", destination=[]).meant_for("b@h")
    assert Request("ping", pattern="a@*", matcher="glob").meant_for("a@h")
    assert not Request("ping", pattern="b@*", matcher="glob").meant_for("a@h")
    assert Request("ping", pattern="[ab]@.$", matcher="pcre").meant_for("a@h")
    assert not Request("ping", pattern="h$", matcher="pcre").meant_for("a@h")
    assert Request("ping", pattern="x").meant_for("a@h")
    for pattern, matcher in (("x", "nosuch"), ("[", "pcre"), ("(" * 5000, "pcre")):
        with pytest.raises(DecodeError):
            Request("ping", pattern=pattern, matcher=matcher).meant_for("a@h")


def sealed(body: Any, headers: Any = None, serializer: str = "json") -> bytes:
    content_type, content_encoding, data = codec.encode(body, serializer)
    return frame.pack(headers or {}, data, {}, content_type, content_encoding)


def test_foreign_requests() -> None:
    """A destination as text, an old clock or none, unknown fields."""
    got = notice.read_request(
        sealed({"method": "ping", "destination": "a@h", "more": 1}, {"clock": "x", "expires": "x"})
    )
    assert got == Request("ping", destination=["a@h"], reply_exchange="")
    clocks: list[Any] = [None, "x", -1, 1.5, True, 2**70, []]
    for clock in clocks:
        assert notice.read_request(sealed({"method": "p"}, {"clock": clock, "expires": clock})).clock == 0
    assert notice.read_reply(sealed({"a@h": 1}, {"ticket": 5, "expires": None})) == Reply({"a@h": 1})


@pytest.mark.parametrize(
    "body",
    [None, 5, "x", [], {}, {"method": 5}, {"method": None}, {"method": "p", "arguments": 5},
     {"method": "p", "arguments": ["x"]}, {"method": "p", "destination": 5}, {"method": "p", "destination": [5]},
     {"method": "p", "pattern": 5}, {"method": "p", "matcher": 5}, {"method": "p", "ticket": 5},
     {"method": "p", "reply_to": 5}, {"method": "p", "reply_to": {"exchange": 5}},
     {"method": "p", "reply_to": {"routing_key": [1]}}],
)  # fmt: skip
def test_requests_that_are_none(body: Any) -> None:
    """DecodeError."""
    with pytest.raises(DecodeError):
        notice.read_request(sealed(body))


@pytest.mark.parametrize("body", [None, 5, "x", {}, {"type": 5}, [5], [{}], [{"type": "x"}, None], {"type": None}])
def test_events_that_are_none(body: Any) -> None:
    """DecodeError."""
    with pytest.raises(DecodeError):
        notice.read_events(sealed(body))


@pytest.mark.parametrize("body", [None, 5, "x", []])
def test_replies_that_are_none(body: Any) -> None:
    """DecodeError."""
    with pytest.raises(DecodeError):
        notice.read_reply(sealed(body))


def test_names_that_are_no_text() -> None:
    """msgpack may have keys of any type."""
    for body in ({"method": "p", "arguments": {1: 2}}, {1: 2}):
        with pytest.raises(DecodeError):
            notice.read_request(sealed(body, serializer="msgpack"), ALL)
    with pytest.raises(DecodeError):
        notice.read_reply(sealed({1: 2}, serializer="msgpack"), ALL)


def test_what_is_not_accepted_is_not_read() -> None:
    """Pickles never, unless the list says so."""
    blob = frame.pack({}, pickle.dumps({"method": "p"}), {}, codec.PICKLE, "binary")
    for read in (notice.read_events, notice.read_request, notice.read_reply):
        with pytest.raises(ContentDisallowed):
            read(blob)
        with pytest.raises(ContentDisallowed):
            read(blob, codec.accept_set(["json"]))
    assert notice.read_request(blob, ALL).method == "p"


@given(st.data())
def test_mutated_blobs(data: st.DataObject) -> None:
    """A notice with some bytes changed is read or refused."""
    body = bytearray(
        json.dumps({"method": "ping", "arguments": {"a": 1}, "ticket": "t", "reply_to": {"exchange": "e"}}).encode()
    )
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(body) - 1))
        body[at : at + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=3))
    blob = frame.pack({"clock": 1}, bytes(body), {}, "application/json", "utf-8")
    for read in (notice.read_events, notice.read_request, notice.read_reply):
        with contextlib.suppress(DecodeError):
            read(blob)
