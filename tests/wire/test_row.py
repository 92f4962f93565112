"""Rows of Celery's SQL tables: those that real Celery 5.6 and 5.7 made, and what comes of our own documents."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import pickle
from collections import OrderedDict
from datetime import UTC, date, datetime
from decimal import Decimal
from functools import partial
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from celeriac.errors import ContentDisallowed, DecodeError
from celeriac.wire import plain_pickle, record, row
from celeriac.wire.row import Row

FROZEN = {path.stem.rpartition("-")[2]: json.loads(path.read_text()) for path in Path(__file__).parent.glob("rows/*")}
VALUES: dict[str, Any] = {
    "number": 5,
    "nothing": None,
    "text": "ÄÖ \u2028",
    "nested": {"a": [1, 2.5, True, None], "b": {"c": "d"}},
    "tuple": [1, [2, 3]],
    "bytes": b"\x00\xff",
    "date": date(2026, 1, 2),
    "moment": datetime(2026, 1, 2, 3, 4, 5),
    "decimal": Decimal("1.10"),
    "uuid": UUID(int=7),
    "started": {"pid": 1, "hostname": "w@h"},
    "progress": {"done": 3},
}
NAMES = st.text(st.characters(codec="ascii", exclude_categories=["Cc"]), min_size=1, max_size=8)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


def stored(columns: dict[str, Any]) -> Row:
    """A frozen row."""
    found: dict[str, Any] = {
        name: base64.b64decode(value["base64"]) if isinstance(value, dict) else value
        for name, value in columns.items()
        if name in Row.__struct_fields__
    }
    if found["date_done"]:
        found["date_done"] = datetime.fromisoformat(found["date_done"])
    return Row(**found)


@pytest.mark.parametrize("version", sorted(FROZEN))
@pytest.mark.parametrize("kind", ["json", "json extended"])
@pytest.mark.parametrize("case", [*VALUES, "error"])
def test_rows_of_real_celery(version: str, kind: str, case: str) -> None:
    """Whatever Celery wrote, 5.6 as pickle and 5.7 as JSON, is read as the document that it means."""
    found = record.read(row.join(case, stored(FROZEN[version][kind][case]), "json"))
    if case == "error":
        assert found.status == "FAILURE"
        assert found.result == {"exc_type": "KeyError", "exc_message": ["nope", 3], "exc_module": "builtins"}
    else:
        assert found.status == {"started": "STARTED", "progress": "PROGRESS"}.get(case, "SUCCESS")
        assert found.result == VALUES[case]
    assert (found.date_done or "").endswith("+00:00") or case in ("started", "progress")
    if "extended" in kind:
        assert (found.name, found.args, found.kwargs) == ("tasks.t", [1, "ä"], {"k": [2]})
        assert (found.worker, found.retries, found.queue) == ("w@h", 1, "q")
        assert found.stamps == ({"where": ["here"]} if version >= "5.7" else None)


@pytest.mark.parametrize("version", sorted(FROZEN))
@pytest.mark.parametrize("case", [*VALUES, "error"])
def test_rows_of_celery_with_pickle(version: str, case: str) -> None:
    """Rows of an app with `result_serializer="pickle"` are read too, by an app with JSON and without running code."""
    found = record.read(row.join(case, stored(FROZEN[version]["pickle extended"][case]), "pickle"), "pickle", ALL)
    expected = {"exc_type": "KeyError", "exc_message": ["nope", 3], "exc_module": "builtins"}
    assert found.result == (expected if case == "error" else [1, (2, 3)] if case == "tuple" else VALUES[case])


ALL = frozenset({"application/json", "application/x-python-serialize"})


@pytest.mark.parametrize("version", sorted(FROZEN))
@pytest.mark.parametrize("kind", ["json", "pickle"])
def test_groups_of_real_celery(version: str, kind: str) -> None:
    """A saved group, in 5.6 a pickle of result objects, is its tuple."""
    blob = base64.b64decode(FROZEN[version][kind]["group"]["result"]["base64"])
    assert record.read_group(row.join_group("group", blob, "json")) == [["group", None], [[["number", None], None]]]


@pytest.mark.parametrize("case", [*VALUES, "error"])
def test_written_as_celery_writes(case: str) -> None:
    """The columns of our documents are those of Celery 5.7, to the byte."""
    theirs = stored(FROZEN["5.7.0"]["json extended"][case])
    extended = record.extended_fields(
        "tasks.t", [1, "ä"], {"k": [2]}, "w@h", 1, "q", ["where"], {"where": ["here"]}
    )
    value = KeyError("nope", 3) if case == "error" else VALUES[case]
    done = theirs.date_done.replace(tzinfo=UTC).isoformat() if theirs.date_done else None
    document = record.document(case, theirs.status, value, date_done=done, extended=extended)
    assert row.split(document, "?", "json") == theirs


@given(JSON, st.sampled_from(["SUCCESS", "STARTED", "FAILURE"]), st.booleans(), st.lists(JSON, max_size=2), NAMES)
def test_there_and_back(value: Any, state: str, extended: bool, args: list[Any], name: str) -> None:
    """A document that becomes a row and a document again says the same."""
    more = record.extended_fields(name, args, {name: value}, "w", 2, "q", [name], {name: value}) if extended else None
    document = record.document("id", state, value, date_done="2026-01-02T03:04:05.678901+00:00", extended=more)
    assert record.read(row.join("id", row.split(document, state))) == record.read(document)


@pytest.mark.parametrize("serializer", ["json", "msgpack", "yaml", "pickle"])
@pytest.mark.parametrize("compression", [None, "gzip"])
def test_every_serializer(serializer: str, compression: str | None) -> None:
    """Each value is in the form of the serializer; what was compressed is not."""
    extended = record.extended_fields("t", [1], {"k": "v"}, "w", 0, "q", ["s"], {"s": [1]})
    document = record.document(
        "id", "SUCCESS", {"a": [1, "ä"]}, children=[[["c", None], None]], serializer=serializer,
        compression=compression, extended=extended, date_done="2026-01-02T03:04:05+00:00",
    )  # fmt: skip
    made = row.split(document, "SUCCESS", serializer)
    assert not (made.result or b"").startswith(row.WHOLE)
    accept = ALL if serializer == "pickle" else None
    again = record.read(row.join("id", made, serializer), serializer, accept)
    assert (again.result, again.children, again.args, again.stamps) == (
        {"a": [1, "ä"]}, [[["c", None], None]], [1], {"s": [1]},
    )  # fmt: skip
    group = record.group_document((("g", None), [(("a", None), None)]), serializer, compression)
    blob = row.split_group(group, serializer)
    read = record.read_group(row.join_group("g", blob, serializer), serializer, accept)
    assert json.loads(json.dumps(read)) == [["g", None], [[["a", None], None]]]


@given(st.binary(max_size=60))
def test_any_bytes_are_kept(document: bytes) -> None:
    """What is no document comes back as it was."""
    made = row.split(document, "SUCCESS")
    if (made.result or b"").startswith(row.WHOLE):
        assert (made.status, row.join("id", made)) == ("SUCCESS", document)
    assert row.join_group("g", row.WHOLE + document) == document


def test_odd_documents() -> None:
    """NaN is kept; texts that no database takes are made storable; long names are cut."""
    made = row.split(b'{"status": "SUCCESS", "result": NaN, "traceback": null}', "SUCCESS")
    assert str(record.read(row.join("id", made)).result) == "nan"
    odd = b'{"status": "FAILURE", "result": null, "traceback": "a\\u0000b", "name": "%s"}' % (b"n" * 200)
    made = row.split(odd, "FAILURE")
    assert made.traceback == "a\ufffdb"
    assert made.name == "n" * 155


class Trap:
    """Runs a command when it is unpickled."""

    def __reduce__(self) -> Any:
        return os.mkdir, ("trapped",)


@pytest.mark.parametrize("trap", [Trap(), [Trap()], partial(print), OrderedDict(a=1), Trap, os.mkdir])
@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_no_code_runs(trap: Any, protocol: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A pickle that names anything but data is refused, in a line that names the setting; nothing has happened."""
    monkeypatch.chdir(tmp_path)
    document = row.join("evil", Row("SUCCESS", pickle.dumps(trap, protocol)))
    with pytest.raises(ContentDisallowed, match=r"evil: the result is a pickle that names .*result_serializer='json'"):
        record.read(document)
    assert not list(tmp_path.iterdir())


@given(st.binary(max_size=80))
def test_broken_pickles(data: bytes) -> None:
    """Anything that begins like a pickle is read or refused."""
    with contextlib.suppress(DecodeError):
        plain_pickle.read(plain_pickle.MARK + data)


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_plain_pickles(protocol: int) -> None:
    """Plain data of every protocol comes back as it is."""
    data = {
        "a": [1, 2.5, True, None, "ä", b"\xff", 2**70], "b": (1, (2,)), "c": {1, 2}, "d": frozenset({3}), "e": 1j,
        "f": bytearray(b"x"), "g": datetime(2026, 1, 2, tzinfo=UTC), "h": date(2026, 1, 2), "i": Decimal("1.1"),
        "j": UUID(int=1), "k": b"",
    }  # fmt: skip
    assert plain_pickle.read(pickle.dumps(data, protocol)) == data
