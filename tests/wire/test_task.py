"""Laws of task messages. That they are Celery's is shown by the golden files."""

from __future__ import annotations

import base64
import json
import pickle
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from celeriac.errors import ContentDisallowed, DecodeError, EncodeError, InvalidTaskError
from celeriac.wire import codec, frame, values
from celeriac.wire.task import Head, TaskMessage, Template, pack, read_head, unpack
from tests.wire.messages import EMBED, TASK_ID, message, protocol_1, seal

JSON = codec.accept_set(["json"])
ALL = codec.accept_set(["json", "pickle", "yaml", "msgpack"])

TEXT = st.text(st.characters(codec="utf-8"), max_size=10)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**60), 2**60) | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=8,
)
SIGNATURES = st.lists(st.dictionaries(TEXT, VALUES, max_size=2), max_size=2)
CUSTOM = st.dictionaries(st.sampled_from(["x", "traceparent", "delivery_tag", "args", "protocol", "ä"]), VALUES)
MOMENTS = st.datetimes(timezones=st.just(UTC) | st.none()).map(datetime.isoformat)
LIMITS = st.none() | st.integers(0, 1000) | st.floats(0, 1000)
MESSAGES = st.builds(
    TaskMessage,
    id=TEXT.filter(bool),
    task=TEXT.filter(bool),
    args=st.lists(VALUES, max_size=3),
    kwargs=st.dictionaries(TEXT, VALUES, max_size=3),
    callbacks=st.none() | SIGNATURES,
    errbacks=st.none() | SIGNATURES,
    chain=st.none() | SIGNATURES,
    chord=st.none() | st.dictionaries(TEXT, VALUES, max_size=2),
    embed_extra=st.none() | st.dictionaries(st.just("chord_size"), VALUES, min_size=1),
    retries=st.integers(0, 100),
    eta=st.none() | MOMENTS,
    expires=st.none() | MOMENTS,
    timelimit=st.tuples(LIMITS, LIMITS),
    group=st.none() | TEXT,
    group_index=st.none() | st.integers(0, 9),
    root_id=TEXT.filter(bool),
    parent_id=st.none() | TEXT,
    argsrepr=TEXT,
    kwargsrepr=TEXT,
    origin=TEXT,
    shadow=st.none() | TEXT,
    ignore_result=st.booleans() | st.none(),
    replaced_task_nesting=st.integers(0, 9),
    stamped_headers=st.none() | st.lists(TEXT, max_size=3),
    stamps=st.dictionaries(TEXT, VALUES, max_size=2),
    headers=CUSTOM.map(lambda found: found or None),
    properties=st.none() | st.dictionaries(st.sampled_from(["MessageGroupId", "expiration"]), TEXT, min_size=1),
    reply_to=TEXT,
    delivery_mode=st.sampled_from([1, 2]),
)


@given(MESSAGES, TEXT, TEXT, st.integers(-9, 9), st.sampled_from(["json", "msgpack", "pickle"]), st.booleans())
def test_what_is_packed_is_unpacked(
    sent: TaskMessage, queue: str, exchange: str, priority: int, serializer: str, compressed: bool
) -> None:
    """Every field arrives, by any serializer, compressed or not."""
    envelope = pack(
        sent, queue=queue, exchange=exchange, priority=priority, serializer=serializer, publish_id="tag",
        compression="gzip" if compressed else None,
    )  # fmt: skip
    got = unpack(envelope.blob, ALL)
    assert (envelope.id, envelope.queue, envelope.priority) == (sent.id, queue, priority)
    sent.queue = "" if exchange else queue
    sent.exchange, sent.routing_key, sent.priority, sent.delivery_tag = exchange, queue, priority, "tag"
    sent.correlation_id = sent.id
    sent.content_type, sent.content_encoding, _ = codec.encode(None, serializer)
    sent.compression = codec.GZIP if compressed else None
    if sent.eta is not None or sent.expires is not None or got.timelimit is not None:
        sent.timelimit = tuple(sent.timelimit)  # type: ignore[assignment]
    assert got == sent


@given(MESSAGES, st.sampled_from(["json", "pickle"]))
def test_the_parent_and_the_child_agree(sent: TaskMessage, serializer: str) -> None:
    """The head has what the message has."""
    blob = pack(sent, queue="q", serializer=serializer).blob
    head = read_head(blob)
    got = unpack(blob, ALL)
    for name in ("id", "task", "retries", "group", "root_id", "parent_id", "argsrepr", "kwargsrepr", "origin", "shadow",
                 "reply_to", "priority", "ignore_result", "stamped_headers", "delivery_tag"):  # fmt: skip
        assert getattr(head, name) == getattr(got, name), name
    assert (head.stamps or {}) == got.stamps
    assert (head.timelimit or (None, None)) == got.timelimit


@given(
    MESSAGES.filter(lambda m: m.eta is None or len(m.eta) > 0), st.none() | st.dictionaries(st.text(), st.integers())
)
def test_a_template_gives_the_same_bytes(sent: TaskMessage, body: Any) -> None:
    """Whatever the options and the chord, the template and `pack` agree."""
    for name in ("callbacks", "errbacks", "chain", "chord", "embed_extra"):
        setattr(sent, name, None)
    sent.argsrepr = sent.kwargsrepr = None
    template = Template(sent, queue="q", exchange="e", routing_key="r", priority=3)
    sent.chord = body
    expected = pack(sent, queue="q", exchange="e", routing_key="r", priority=3, publish_id="tag").blob
    chord = "" if body is None else values.dumps(body)
    ids = sent.id, "tag", sent.args, sent.kwargs, sent.root_id, sent.parent_id, sent.group, sent.group_index, chord
    assert template.pack(*ids) == expected


def test_template_takes_no_links() -> None:
    """They want `pack`."""
    for name in ("callbacks", "errbacks", "chain", "chord", "embed_extra"):
        with pytest.raises(ValueError, match="template"):
            Template(msgspec.structs.replace(TaskMessage("", "t"), **{name: [{"a": 1}]}), queue="q")


def test_template_whose_options_look_like_its_places() -> None:
    """Texts in the options can't be taken for ids, links or anything else."""
    sent = TaskMessage(
        "i", "t", (1,), headers={"x": '", "content-encoding"', "id2": "i", "e": "é\ud800"}, shadow='"', reply_to="i"
    )
    expected = pack(sent, queue="q", publish_id="tag").blob
    assert Template(sent, queue="q").pack("i", "tag", (1,), {}) == expected


def test_values_that_cannot_be_sent() -> None:
    """EncodeError, with any serializer; protocol 1 has no chains; there is no protocol 3."""
    for serializer in ("json", "msgpack", "pickle", "yaml"):
        with pytest.raises(EncodeError):
            pack(TaskMessage("i", "t", (lambda: 0,)), queue="q", serializer=serializer)
    with pytest.raises(EncodeError):
        Template(TaskMessage("", "t"), queue="q").pack("i", "p", (object(),), {})
    with pytest.raises(EncodeError, match="chain"):
        pack(TaskMessage("i", "t", chain=[{}]), queue="q", protocol=1)
    with pytest.raises(EncodeError, match="protocol 3"):
        pack(TaskMessage("i", "t"), queue="q", protocol=3)


def test_a_new_message_carries_no_old_marks() -> None:
    """A retry starts with fresh counters."""
    blob = frame.with_losses(pack(TaskMessage("i", "t", headers={"x": 1}), queue="q").blob, 1, 2)
    got = unpack(blob, JSON)
    assert (got.losses, got.redelivered, got.headers) == ((1, 2), True, {"x": 1})
    again = unpack(pack(got, queue="q").blob, JSON)
    assert (again.losses, again.redelivered, again.headers) == (None, False, {"x": 1})


def test_marks() -> None:
    """Losses and redelivery are seen by parent and child."""
    blob = seal(message())
    assert (read_head(blob).losses, read_head(blob).redelivered) == (None, False)
    marked = frame.with_losses(blob, 2, 1)
    for found in (read_head(marked), unpack(marked, JSON)):
        assert (found.losses, found.redelivered) == ((2, 1), True)
    restored = message()
    restored["properties"]["delivery_info"]["redelivered"] = True
    for found in (read_head(seal(restored)), unpack(seal(restored), JSON)):
        assert (found.losses, found.redelivered) == (None, True)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("2026-01-02T03:04:05+00:00", 1767323045.0),
        ("2026-01-02T03:04:05", 1767323045.0),
        ("2026-01-02T03:04:05Z", 1767323045.0),
        ("2026-01-02T03:04:05.5+05:30", 1767323045.5 - 19800),
        ("2026-01-02 03:04:05", 1767323045.0),
        ("20260102T030405Z", 1767323045.0),
        ("2026-01-02", 1767312000.0),
        ("0001-01-01T00:00:00+14:00", -62135596800.0 - 14 * 3600),
        ("9999-12-31T23:59:59-14:00", 253402300799.0 + 14 * 3600),
    ],
)
def test_dates(text: str, seconds: float) -> None:
    """ISO 8601 in all its forms; a naive date is UTC; the text is kept."""
    dated = message()
    dated["headers"]["eta"] = dated["headers"]["expires"] = text
    head = read_head(seal(dated))
    assert (head.eta, head.expires, head.eta_text, head.expires_text) == (seconds, seconds, text, text)
    assert unpack(seal(dated), JSON).eta == text


@given(st.datetimes(timezones=st.timedeltas(timedelta(hours=-14), timedelta(hours=14)).map(
    lambda delta: timezone(timedelta(minutes=delta // timedelta(minutes=1))))))  # fmt: skip
def test_dates_are_moments(moment: datetime) -> None:
    """What `isoformat` writes is read."""
    dated = message()
    dated["headers"]["eta"] = moment.isoformat()
    assert read_head(seal(dated)).eta == pytest.approx(moment.timestamp(), abs=1e-5)


@pytest.mark.parametrize("text", ["tomorrow", "", "2026-13-01", "2026-01-02T25:00:00", "1767323045", "\0", "2026-W99-1",
                                  "10000-01-01", "2026-01-02T03:04:05+99:00", "x" * 100_000])  # fmt: skip
@pytest.mark.parametrize("name", ["eta", "expires"])
def test_bad_dates_are_told(name: str, text: str) -> None:
    """The error says which field and what stands in it, in bounds."""
    dated = message()
    dated["headers"][name] = text
    with pytest.raises(InvalidTaskError, match=f"invalid {name}") as caught:
        read_head(seal(dated))
    assert len(str(caught.value)) < 300


HEADERS = list(message()["headers"])
WRONG: dict[str, list[Any]] = {
    "task": [None, 5, [], {}, "", True],
    "id": [None, 5, [], {}, "", True],
    "shadow": [5, [], {}],
    "eta": [5, 1.5, [], {}, True],
    "expires": [5, 1.5, [], {}, True],
    "group": [5, [], {}],
    "group_index": ["x", 1.5, [], 10**400, True],
    "retries": ["1", 1.5, [], -1, 2**31, 10**400, True],
    "timelimit": [5, "x", [1], [1, 2, 3], ["1", None], [-1, None], [None, 10**400], [1e300, None], {}, True],
    "root_id": [5, [], {}],
    "parent_id": [5, [], {}],
    "argsrepr": [5, [], {}],
    "kwargsrepr": [5, [], {}],
    "origin": [5, [], {}],
    "ignore_result": ["x", 5, []],
    "replaced_task_nesting": ["x", 1.5, 10**400],
    "stamped_headers": ["x", 5, [5], {}],
    "stamps": ["x", 5, []],
}


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in WRONG.items() for value in values])
def test_headers_of_the_wrong_type_are_refused(name: str, value: Any) -> None:
    """InvalidTaskError names the field, for parent and child alike."""
    wrong = message()
    wrong["headers"][name] = value
    blob = seal(wrong)
    if name == "task" and value is None:
        with pytest.raises(InvalidTaskError):
            read_head(blob)
        return
    with pytest.raises(InvalidTaskError, match=name):
        read_head(blob)
    with pytest.raises(InvalidTaskError, match=name):
        unpack(blob, ALL)


@pytest.mark.parametrize(
    ("name", "value"),
    [("correlation_id", 5), ("reply_to", []), ("delivery_mode", "2"), ("delivery_info", "x"),
     ("delivery_info", {"exchange": 5}), ("delivery_info", {"routing_key": []}), ("priority", "high"),
     ("priority", 10**400), ("priority", 1.5),
     ("delivery_tag", [])],
)  # fmt: skip
def test_properties_of_the_wrong_type_are_refused(name: str, value: Any) -> None:
    """InvalidTaskError names the field."""
    wrong = message()
    wrong["properties"][name] = value
    for read in (read_head, lambda blob: unpack(blob, ALL)):
        if name == "delivery_mode" and read is read_head:
            continue  # nothing that the parent looks at
        with pytest.raises(InvalidTaskError, match="property"):
            read(seal(wrong))


@pytest.mark.parametrize("name", [*HEADERS, "correlation_id", "reply_to", "delivery_mode", "delivery_info", "priority",
                                  "delivery_tag"])  # fmt: skip
def test_fields_may_be_missing_or_null(name: str) -> None:
    """All but task and id: an older peer, or another client, may not write them."""
    if name in ("task", "id"):
        return
    values: list[Any] = [None, ...]
    for value in values:
        lean = message()
        where = lean["headers"] if name in HEADERS else lean["properties"]
        if value is ...:
            del where[name]
        else:
            where[name] = value
        head, got = read_head(seal(lean)), unpack(seal(lean), JSON)
        assert (head.id, head.task, head.retries, head.priority) == (TASK_ID, "tasks.add", 0, 0)
        assert (got.id, got.args, got.retries, got.timelimit, got.delivery_mode) == (
            TASK_ID,
            [1, 2],
            0,
            (None, None),
            2,
        )


def test_the_least_message() -> None:
    """Only task, id and body."""
    blob = seal({"headers": {"task": "t", "id": "i"}, "body": [[], {}, {}], "content-type": "application/json",
                 "properties": {"body_encoding": "base64"}})  # fmt: skip
    assert read_head(blob) == Head("i", "t", content_type="application/json")
    got = unpack(blob, JSON)
    assert (got.args, got.kwargs, got.ignore_result, got.argsrepr) == ([], {}, None, None)


@pytest.mark.parametrize(
    "body",
    [None, 5, "x", [], [[]], [[], {}], [[], {}, {}, {}], [None, {}, {}], [5, {}, {}], ["x", {}, {}], [{}, {}, {}],
     [[], None, {}], [[], [], {}], [[], "x", {}], [[], {}, 5], [[], {}, []], [[], {}, "x"],
     *[[[], {}, {name: value}] for name in ("callbacks", "errbacks", "chain") for value in (5, "x", [5], [None])],
     [[], {}, {"chord": 5}], [[], {}, {"chord": []}], [[], {}, {"chord": "x"}]],
)  # fmt: skip
def test_bodies_that_are_none(body: Any) -> None:
    """The child says what is wrong; the parent does not look."""
    blob = seal(message() | {"body": body})
    assert read_head(blob).id == TASK_ID
    with pytest.raises(InvalidTaskError):
        unpack(blob, JSON)
    if body is not None:
        with pytest.raises(InvalidTaskError):
            unpack(seal(message() | {"content-type": codec.MSGPACK}, codec.encode(body, "msgpack")[2]), ALL)


def test_bodies_that_are_nearly_right() -> None:
    """Links as a single map, further fields in the third part, that part null, keywords that are no text."""
    link = {"task": "t"}
    got = unpack(seal(message() | {"body": [[], {}, {"callbacks": link, "chain": [link], "chord_size": 3}]}), JSON)
    assert (got.callbacks, got.chain, got.embed_extra) == ([link], [link], {"chord_size": 3})
    assert unpack(seal(message() | {"body": [[], {}, None]}), JSON).callbacks is None
    body = pickle.dumps(([], {1: 2}, {}))
    with pytest.raises(InvalidTaskError, match="names"):
        unpack(seal(message() | {"content-type": codec.PICKLE}, body), ALL)


def test_content_types() -> None:
    """What is not accepted is refused; what can't be read is a DecodeError; the parent doesn't mind either."""
    for content_type, body in (
        (codec.PICKLE, pickle.dumps([[], {}, {}])),
        (codec.YAML, b"[[], {}, {}]"),
        ("text/plain", b"x"),
        ("x" * 10_000, b""),
    ):
        blob = seal(message() | {"content-type": content_type}, body)
        assert read_head(blob).content_type == content_type
        with pytest.raises(ContentDisallowed):
            unpack(blob, JSON)
    with pytest.raises(ContentDisallowed):
        unpack(seal(message()), codec.accept_set(["pickle"]))
    for content_type in ALL:
        blob = seal(message() | {"content-type": content_type}, b"\xc1\xff: [garbage")
        with pytest.raises(DecodeError):
            unpack(blob, ALL)
    for missing in (None, "application/data"):
        blob = seal(message() | {"content-type": missing})
        with pytest.raises(InvalidTaskError, match="body"):
            unpack(blob, JSON)


def test_compression_of_the_body() -> None:
    """Damaged or unknown compression is a DecodeError of the child, a bomb too."""
    plain = json.dumps([["x" * 1000], {}, EMBED]).encode()
    packed, header = codec.compress(plain, "gzip")
    pressed = message()
    pressed["headers"]["compression"] = header
    assert unpack(seal(pressed, packed), JSON).args == ["x" * 1000]
    assert read_head(seal(pressed, b"?")).id == TASK_ID
    with pytest.raises(DecodeError):
        unpack(seal(pressed, packed[:-5]), JSON)
    values: list[Any] = ["zip", 5, [], {}]
    for value in values:
        pressed["headers"]["compression"] = value
        with pytest.raises((DecodeError, InvalidTaskError)):
            unpack(seal(pressed, packed), JSON)


def test_hostile_headers_keep_their_place() -> None:
    """Custom headers that are called like properties, fields of the body or of ours stay custom headers."""
    names = ("delivery_tag", "priority", "reply_to", "args", "kwargs", "callbacks", "queue", "exchange",
             "routing_key", "headers", "properties", "body", "content_type", "losses", "protocol", "eta_text",
             "embed_extra")  # fmt: skip
    values: list[Any] = ["evil", 5, [1], {"a": 1}, None]
    for value in values:
        hostile = message()
        hostile["headers"] |= dict.fromkeys(names, value)
        got, head = unpack(seal(hostile), JSON), read_head(seal(hostile))
        assert got.headers == dict.fromkeys(names, value)
        plain = unpack(seal(message()), JSON)
        plain.headers = got.headers
        assert got == plain
        assert head == read_head(seal(message()))


def test_other_body_encodings() -> None:
    """A body as text, where body_encoding says so or says nothing."""
    text = json.dumps([["ä"], {}, EMBED], ensure_ascii=False)
    for encoding in ("utf-8", None):
        other: dict[str, Any] = message() | {"body": text}
        other["properties"]["body_encoding"] = encoding
        assert unpack(json.dumps(other).encode(), JSON).args == ["ä"]
    other = message()
    bodies: list[Any] = ["!!!", "eA=", "\ud800", "ä", 5, None, [], {}]
    for bad in bodies:
        blob = json.dumps(other | {"body": bad}).encode()
        if bad != "\ud800":  # nothing that the fast decoder reads past
            assert read_head(blob).id == TASK_ID
        with pytest.raises(InvalidTaskError):
            unpack(blob, JSON)


def test_protocol_1() -> None:
    """Every field stands in the body; the parent opens it."""
    old = protocol_1()
    old["body"] |= {"taskset": "G", "retries": 2, "eta": "2026-01-02T03:04:05", "timelimit": [5, 2.5], "unknown": 1,
                    "callbacks": [{"task": "x"}]}  # fmt: skip
    old["headers"] = {"x": 1}
    head, got = read_head(seal(old)), unpack(seal(old), JSON)
    assert (head.protocol, head.id, head.task, head.group, head.retries) == (1, TASK_ID, "tasks.add", "G", 2)
    assert (head.eta, head.timelimit, head.argsrepr, head.kwargsrepr) == (1767323045.0, (5, 2.5), "[1, 2]", "{}")
    assert (got.protocol, got.args, got.group, got.headers) == (1, [1, 2], "G", {"x": 1})
    assert (got.callbacks, got.queue) == ([{"task": "x"}], "q")
    marked = frame.with_losses(seal(old), 1, 0)
    assert (read_head(marked).losses, unpack(marked, JSON).redelivered) == ((1, 0), True)
    body = codec.encode(old["body"], "msgpack")[2]
    assert read_head(seal(old | {"content-type": codec.MSGPACK}, body)).group == "G"


def test_protocol_1_in_other_serializers() -> None:
    """The parent does not open pickles and YAML; the child does where they are accepted."""
    old = protocol_1() | {"content-type": codec.PICKLE}
    blob = seal(old, pickle.dumps(old["body"]))
    with pytest.raises(InvalidTaskError, match="JSON or msgpack only"):
        read_head(blob)
    assert unpack(blob, ALL).args == [1, 2]
    with pytest.raises(ContentDisallowed):
        unpack(blob, JSON)


@pytest.mark.parametrize(
    ("name", "value"),
    [("task", 5), ("task", None), ("id", None), ("id", 5), ("args", 5), ("args", None), ("kwargs", []),
     ("kwargs", None), ("retries", "x"), ("eta", 5), ("timelimit", 5), ("taskset", 5), ("callbacks", 5), ("chord", 5),
     ("group_index", "x")],
)  # fmt: skip
def test_protocol_1_with_wrong_types(name: str, value: Any) -> None:
    """InvalidTaskError, for parent and child."""
    old = protocol_1()
    old["body"][name] = value
    for read in (read_head, lambda blob: unpack(blob, JSON)):
        with pytest.raises(InvalidTaskError):
            read(seal(old))


def test_hybrid() -> None:
    """A body of protocol 1 with headers of protocol 2: the headers win, what they lack stands in the body."""
    hybrid = protocol_1()
    hybrid["headers"] = {"task": "tasks.mul", "id": "other", "root_id": "r"}
    hybrid["body"] |= {"retries": 4, "eta": "2026-01-02T03:04:05"}
    head, got = read_head(seal(hybrid)), unpack(seal(hybrid), JSON)
    assert (head.task, head.id, head.root_id, head.retries, head.eta) == ("tasks.mul", "other", "r", 4, 1767323045.0)
    assert (got.task, got.args, got.retries, got.protocol) == ("tasks.mul", [1, 2], 4, 2)
    with pytest.raises(InvalidTaskError):
        unpack(seal(hybrid | {"body": {"task": "t"}}), JSON)


@pytest.mark.parametrize(
    "blob",
    [
        b"",
        b"garbage",
        b"{}",
        b"[]",
        b'{"headers": {}}',
        b'{"headers": {}, "body": "e30=", "content-type": "application/json", "properties": '
        b'{"body_encoding": "base64"}}',
        b'{"headers": {"protocol": 3}, "body": "W10=", "properties": {"body_encoding": "base64"}}',
        seal(message())[:-1],
        seal(message())[:300],
        b"\x00" * 100,
    ],
)
def test_garbage(blob: bytes) -> None:
    """What is no task message is an InvalidTaskError."""
    for read in (read_head, lambda blob: unpack(blob, ALL)):
        with pytest.raises(InvalidTaskError):
            read(blob)


def test_reasons_are_told_apart() -> None:
    """Garbage, no envelope, unknown protocol, a wrong type and a bad date each have their own words."""
    unknown = message() | {"headers": {}}
    wrong, late = message(), message()
    wrong["headers"]["retries"] = "x"
    late["headers"]["eta"] = "x"
    for blob, words in (
        (b"garbage", "not JSON"),
        (b"[]", "not a message envelope"),
        (seal(unknown), "unknown protocol"),
        (seal(wrong), "retries"),
        (seal(late), "invalid eta"),
    ):
        with pytest.raises(InvalidTaskError, match=words):
            read_head(blob)


def test_big_messages() -> None:
    """A body of 10 MB is none too big, for parent and child."""
    args = ["x" * (10 << 20)]
    blob = pack(TaskMessage("i", "t", args), queue="q").blob
    assert read_head(blob).id == "i"
    assert unpack(blob, JSON).args == args
    assert frame.losses(frame.with_losses(blob, 1, 0)) == (1, 0)


@pytest.mark.parametrize("depth", [10_000, 1_000_000])
def test_nesting_bombs(depth: int) -> None:
    """In the body a DecodeError of the child, in the envelope an InvalidTaskError."""
    bomb = b"[" * depth + b"]" * depth
    blob = seal(message(), b"[[" + bomb + b"], {}, {}]")
    assert read_head(blob).id == TASK_ID
    with pytest.raises(DecodeError, match="deeply"):
        unpack(blob, JSON)
    for place in (b'"origin": "gen1@host"', b'"delivery_mode": 2', b'"lang": "py"'):
        name = place.split(b":")[0]
        blob = seal(message()).replace(place, name + b": " + bomb)
        for read in (read_head, lambda blob: unpack(blob, JSON)):
            with pytest.raises(InvalidTaskError):
                read(blob)
    blob = seal(message() | {"content-type": codec.MSGPACK}, b"\x93" + b"\x91" * depth)
    with pytest.raises(DecodeError):
        unpack(blob, ALL)
    with pytest.raises(InvalidTaskError):
        read_head(seal(protocol_1(), b'{"task": "t", "id": "i", "args": ' + bomb + b"}"))


def test_odd_texts() -> None:
    """NUL bytes and lone surrogates in every text."""
    for text in ("\0", "a\0b", "\ud800", "\udfff\ud800", "\uffff", "\U0010ffff", '"', "\\"):
        odd = message()
        for name in ("task", "id", "shadow", "group", "root_id", "parent_id", "argsrepr", "kwargsrepr", "origin"):
            odd["headers"][name] = text
        odd["headers"]["stamps"] = {text: text}
        odd["headers"][text] = text
        odd["properties"]["reply_to"] = odd["properties"]["delivery_tag"] = text
        odd["body"] = [[text], {text: text}, dict(EMBED)]
        head, got = read_head(seal(odd)), unpack(seal(odd), JSON)
        assert (got.args, got.kwargs) == ([text], {text: text})
        assert head.id == got.id
        for found in (head.id, head.task, head.reply_to, head.argsrepr, got.id, got.root_id):
            assert found is not None
            found.encode()
        if "\ud800" not in text and "\udfff" not in text:
            assert (head.id, head.stamps) == (text, {text: text})


def test_tagged_values_in_headers_and_stamps() -> None:
    """They are restored wherever kombu restores them."""
    tagged = message()
    date = {"__type__": "datetime", "__value__": "2026-01-02T03:04:05+00:00"}
    tagged["headers"] |= {"stamps": {"a": date}, "stamped_headers": ["a"], "eta": date, "when": date}
    moment = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
    head, got = read_head(seal(tagged)), unpack(seal(tagged), JSON)
    assert (head.stamps, head.eta) == ({"a": moment}, 1767323045.0)
    assert (got.stamps, got.headers, got.eta) == ({"a": moment}, {"when": moment}, moment.isoformat())
    tagged["headers"] = message()["headers"] | {"stamps": {"a": date}}
    assert read_head(seal(tagged)).stamps == {"a": moment} == unpack(seal(tagged), JSON).stamps
    tagged["headers"]["stamps"] = {"a": {"__type__": "nosuch", "__value__": 1}}
    for read in (read_head, lambda blob: unpack(blob, JSON)):
        with pytest.raises(InvalidTaskError):
            read(seal(tagged))


def test_bodies_of_other_base64() -> None:
    """A line break or two in the base64 does no harm."""
    data = base64.encodebytes(json.dumps([["x" * 200], {}, EMBED]).encode()).decode()
    assert unpack(json.dumps(message() | {"body": data}).encode(), JSON).args == ["x" * 200]
