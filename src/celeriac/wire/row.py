"""Results as rows of Celery's SQL tables, and back to documents. Pure.

Celery 5.7 writes each value in the result serializer's form into a column of its own; before, `result` was a pickle.
A document that can't be taken apart (of pickled objects, which only the app may load) is kept whole behind a mark: then
only celeriac can read it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any

import msgspec

from celeriac.errors import CeleryError, DecodeError
from celeriac.wire import codec, plain_pickle, record, values

WHOLE = b"\0celeriac-document\0"
"""Before a document, or a group's, that is kept whole."""
TEXT_LIMIT = 155
"""Characters of `name`, `worker` and `queue`."""


class Row(msgspec.Struct, frozen=True, gc=False):
    """What one row of `celery_taskmeta` says, but for its id."""

    status: str
    result: bytes | None = None
    date_done: datetime | None = None
    """Naive, UTC."""
    traceback: str | None = None
    children: bytes | None = None
    name: str | None = None
    args: bytes | None = None
    kwargs: bytes | None = None
    worker: str | None = None
    retries: int | None = None
    queue: str | None = None
    stamps: bytes | None = None
    """`{"stamped_headers": [...], "stamps": {...}}`."""


_pieces = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_piece = msgspec.json.Decoder(msgspec.Raw).decode
_plain = msgspec.json.decode


def split(document: bytes, state: str, serializer: str = "json") -> Row:
    """The row of a document. `state` is what the row says where the document can't be taken apart."""
    try:
        plain = record.decompress(document)
        if serializer == "json":
            try:
                return _row(_pieces(plain), _plain, bytes)
            except msgspec.MsgspecError:
                pass  # a text that only the stdlib reads, such as one with NaN
        return _row(_mapping(_read(plain, serializer)), _same, lambda value: _write(value, serializer))
    except (CeleryError, ValueError, TypeError, KeyError, RecursionError):
        return Row(state, WHOLE + document)


def _row(found: Mapping[str, Any], value: Callable[[Any], Any], written: Callable[[Any], bytes]) -> Row:
    """`value` gives a piece's value, `written` its bytes."""

    def column(name: str) -> bytes | None:
        return written(found[name]) if name in found else None

    def text(name: str) -> str | None:
        given = value(found[name]) if name in found else None
        return None if given is None else _storable(str(given))

    children = value(found["children"]) if "children" in found else None
    stamps = None
    if "stamped_headers" in found and (headers := value(found["stamped_headers"])):
        there = [name for name in headers if name in found]
        names = written(found["stamped_headers"])
        if isinstance(found["stamped_headers"], msgspec.Raw):
            inner = b", ".join(values.dumps(name).encode() + b": " + written(found[name]) for name in there)
            stamps = b'{"stamped_headers": ' + names + b', "stamps": {' + inner + b"}}"
        else:
            stamps = written({"stamped_headers": headers, "stamps": {name: found[name] for name in there}})
    done = value(found["date_done"]) if "date_done" in found else None
    retries = value(found["retries"]) if "retries" in found else None
    return Row(
        str(value(found["status"])),
        column("result"),
        None if done is None else naive(done),
        text("traceback"),
        column("children") if children else None,
        _short(text("name")),
        column("args"),
        column("kwargs"),
        _short(text("worker")),
        retries if isinstance(retries, int) else None,
        _short(text("queue")),
        stamps,
    )


def join(task_id: str, row: Row, serializer: str = "json") -> bytes:
    """The document of a row. Where a value may not be read (`plain_pickle`) or can't be, it is one of `record.refused`:
    it says so when it is read."""
    result = row.result
    if result is not None and result.startswith(WHOLE):
        return result[len(WHOLE) :]
    try:
        return _join_json(task_id, row) if serializer == "json" else _join(task_id, row, serializer)
    except (CeleryError, ValueError, TypeError, RecursionError) as error:
        return record.refused(f"{task_id}: {error}")


def _join_json(task_id: str, row: Row) -> bytes:
    parts = [f'{{"status": {values.dumps(row.status)}, "result": '.encode(), _json(row.result)]
    parts.append(f', "traceback": {values.dumps(row.traceback)}, "children": '.encode())
    parts.append(_json(row.children) if row.children else b"[]")
    parts.append(f', "date_done": {values.dumps(_iso(row.date_done))}'.encode())
    for name in ("name", "worker", "retries", "queue"):
        given = getattr(row, name)
        if given is not None:
            parts.append(f', "{name}": {values.dumps(given)}'.encode())
    for name, blob in (("args", row.args), ("kwargs", row.kwargs)):
        if blob is not None:
            parts += [f', "{name}": '.encode(), _json(blob)]
    headers, stamps = _stamps(row, "json")
    if headers:
        parts.append(b", " + values.dumps({"stamped_headers": headers, **stamps}).encode()[1:-1])
    parts.append(f', "task_id": {values.dumps(task_id)}}}'.encode())
    return b"".join(parts)


def _json(blob: bytes | None) -> bytes:
    """A column as a piece of JSON."""
    if blob is None:
        return b"null"
    try:
        _piece(blob)
        return blob
    except msgspec.MsgspecError:
        return values.dumps(_read(blob, "json")).encode()


def _join(task_id: str, row: Row, serializer: str) -> bytes:
    found: dict[str, Any] = {
        "status": row.status,
        "result": _read(row.result, serializer),
        "traceback": row.traceback,
        "children": _read(row.children, serializer) or [],
        "date_done": _iso(row.date_done),
    }
    for name in ("name", "worker", "retries", "queue"):
        if getattr(row, name) is not None:
            found[name] = getattr(row, name)
    for name in ("args", "kwargs"):
        if getattr(row, name) is not None:
            found[name] = _read(getattr(row, name), serializer)
    headers, stamps = _stamps(row, serializer)
    if headers:
        found |= {"stamped_headers": headers, **stamps}
    return _write({**found, "task_id": task_id}, serializer)


def _stamps(row: Row, serializer: str) -> tuple[list[str], dict[str, Any]]:
    if row.stamps is None:
        return [], {}
    found = _mapping(_read(row.stamps, serializer))
    headers, stamps = found.get("stamped_headers"), found.get("stamps")
    if not isinstance(headers, list | tuple | set | frozenset) or not isinstance(stamps, dict):
        raise DecodeError("the stamps of the row are none")
    names = [name for name in headers if isinstance(name, str)]
    return names, {name: value for name, value in stamps.items() if name in names}


def split_group(document: bytes, serializer: str = "json") -> bytes:
    """The `result` column of a group's document."""
    try:
        return _write(record.read_group(document, serializer, _reads(serializer)), serializer)
    except (CeleryError, ValueError, TypeError, RecursionError):
        return WHOLE + document


def join_group(group_id: str, blob: bytes | None, serializer: str = "json") -> bytes:
    """The group's document of a `result` column."""
    if blob is not None and blob.startswith(WHOLE):
        return blob[len(WHOLE) :]
    try:
        return record.group_document(_read(blob, serializer), serializer)
    except (CeleryError, ValueError, TypeError, RecursionError) as error:
        return record.refused(f"group {group_id}: {error}")


def naive(moment: str | datetime) -> datetime:
    """An ISO date, or an aware datetime, as tables hold it. Raises ValueError."""
    found = datetime.fromisoformat(moment) if isinstance(moment, str) else moment
    return found if found.tzinfo is None else found.astimezone(UTC).replace(tzinfo=None)


def _iso(moment: datetime | None) -> str | None:
    if moment is None:
        return None
    return (moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment).isoformat()


def _reads(serializer: str) -> frozenset[str]:
    return frozenset({codec.content_type_of(serializer)}) - {codec.PICKLE}


def _read(blob: bytes | None, serializer: str) -> Any:
    """The value of a column. What the serializer can't read may be a pickle of Celery before 5.7."""
    if blob is None:
        return None
    if serializer == "pickle":
        return plain_pickle.read(blob)
    try:
        return codec.decode(blob, codec.content_type_of(serializer), None, _reads(serializer))
    except DecodeError:
        if not blob.startswith(plain_pickle.MARK):
            raise
    return plain_pickle.read(blob)


def _write(value: Any, serializer: str) -> bytes:
    return codec.encode(value, serializer)[2]


def _mapping(found: Any) -> Mapping[str, Any]:
    if not isinstance(found, dict):
        raise DecodeError(f"a map is wanted, not {type(found).__name__}")
    return found


def _same(value: Any) -> Any:
    return value


def _storable(text: str) -> str:
    """Without what no database takes for text."""
    return text.replace("\0", "\N{REPLACEMENT CHARACTER}").encode("utf-8", "replace").decode()


def _short(text: str | None) -> str | None:
    return text if text is None else text[:TEXT_LIMIT]
