"""Result documents, as Celery's key/value backends store them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

import msgspec

from celeriac.errors import ContentDisallowed, DecodeError
from celeriac.wire import codec, failure, values
from celeriac.wire.values import escape

COMPRESSED = b"\0celery-compressed\0"
"""How a compressed document begins; then the content type of the compression, a zero byte and the data (Celery 5.7)."""
EXCEPTION_STATES = frozenset({"FAILURE", "RETRY", "REVOKED"})
READY_STATES = frozenset({"SUCCESS", "FAILURE", "REVOKED"})
_REFUSED = b"\0celeriac-refused\0"


class Record(msgspec.Struct, gc=False):
    """A stored result."""

    id: str
    """Empty where the store doesn't write it into the document."""
    status: str
    result: Any = None
    """The value; for FAILURE, RETRY and REVOKED what `failure.rebuild` takes."""
    traceback: str | None = None
    children: list[Any] | None = None
    """Result tuples `[[id, parent], null]` or `[[id, parent], [children]]`. None: not known."""
    date_done: str | None = None
    """ISO 8601; None as long as the state is not final."""
    parent_id: str | None = None
    group_id: str | None = None
    name: str | None = None
    args: Any = None
    kwargs: Any = None
    worker: str | None = None
    retries: int | None = None
    queue: str | None = None
    stamps: dict[str, Any] | None = None


def extended_fields(
    name: str | None = None,
    args: Any = None,
    kwargs: Any = None,
    worker: str | None = None,
    retries: int | None = None,
    queue: str | None = None,
    stamped_headers: Sequence[str] | None = None,
    stamps: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """What setting `result_extended` adds to a document: the `extended` of `success` and `document`."""
    fields = {"name": name, "args": args, "kwargs": kwargs, "worker": worker, "retries": retries, "queue": queue}
    if stamps:
        fields["stamped_headers"] = stamped_headers
        fields |= {stamp: value for stamp, value in stamps.items() if stamp in (stamped_headers or ())}
    return fields


def success(
    task_id: str,
    result_text: str | bytes,
    date_done: str,
    children_text: str = "[]",
    parent_id: str | None = None,
    group_id: str | None = None,
    extended: Mapping[str, Any] | None = None,
) -> bytes:
    """The JSON document of a SUCCESS, from texts that are JSON already (`values.dumps`)."""
    if isinstance(result_text, bytes):
        result_text = result_text.decode()
    more = ""
    if group_id:
        more = f'"group_id": {escape(group_id)}, '
    if parent_id:
        more += f'"parent_id": {escape(parent_id)}, '
    if extended is not None:
        more += values.dumps(dict(extended))[1:-1] + ", "
    return (
        f'{{"status": "SUCCESS", "result": {result_text}, "traceback": null, "children": {children_text}, '
        f'"date_done": "{date_done}", {more}"task_id": {escape(task_id)}}}'
    ).encode()


def document(
    task_id: str,
    state: str,
    result: Any,
    *,
    traceback: str | None = None,
    children: Sequence[Any] | None = (),
    date_done: str | None = None,
    parent_id: str | None = None,
    group_id: str | None = None,
    extended: Mapping[str, Any] | None = None,
    serializer: str = "json",
    compression: str | None = None,
) -> bytes:
    """The document of any state. An exception as `result` is described (or pickled, with pickle). `date_done` is an
    aware ISO date for SUCCESS, FAILURE and REVOKED, else None; `children` is None where no request is known. Raises
    EncodeError when a value can't be serialized."""
    if isinstance(result, BaseException):
        result = failure.picklable(result) if serializer == "pickle" else failure.describe(result, serializer)
    found: dict[str, Any] = {
        "status": state,
        "result": result,
        "traceback": traceback,
        "children": children if children is None else list(children),
        "date_done": date_done,
    }
    if group_id:
        found["group_id"] = group_id
    if parent_id:
        found["parent_id"] = parent_id
    if extended is not None:
        found |= extended
    found["task_id"] = task_id
    data = codec.encode(found, serializer)[2]
    return compress(data, compression) if compression else data


def entry(
    task_id: str, state: str, result: Any, serializer: str = "json", compression: str | None = None
) -> bytes:
    """What is kept of a chord's member: `[1, task id, state, result]`. Raises EncodeError."""
    if isinstance(result, BaseException):
        result = failure.picklable(result) if serializer == "pickle" else failure.describe(result, serializer)
    data = codec.encode([1, task_id, state, result], serializer)[2]
    return compress(data, compression) if compression else data


def read_entry(
    data: bytes, serializer: str = "json", accept: frozenset[str] | None = None
) -> tuple[str, str, Any]:
    """`(task id, state, result)` of what is kept of a chord's member. Raises DecodeError, ContentDisallowed."""
    found = _decode(data, serializer, accept)
    if not isinstance(found, list | tuple) or len(found) != 4 or not isinstance(found[1], str):
        raise DecodeError("not the entry of a chord's member")
    return found[1], str(found[2]), found[3]


def compress(data: bytes, compression: str) -> bytes:
    """The compressed form of a finished document. Raises ImproperlyConfigured for an unknown method."""
    packed, header = codec.compress(data, compression)
    return b"".join((COMPRESSED, header.encode(), b"\0", packed))


def decompress(data: bytes, limit: int = codec.LIMIT) -> bytes:
    """The document in its plain form; a plain one comes back as it is. Raises DecodeError."""
    if not data.startswith(COMPRESSED):
        return data
    header, _, packed = data[len(COMPRESSED) :].partition(b"\0")
    return codec.decompress(packed, header.decode("utf-8", "replace"), limit)


def refused(reason: str) -> bytes:
    """What stands for a document that its store may not read: `read` raises ContentDisallowed with the reason."""
    return _REFUSED + reason.encode("utf-8", "replace")


class _Stored(msgspec.Struct, gc=False):
    status: str
    result: Any = None
    traceback: str | None = None
    children: list[Any] | None = None
    date_done: str | None = None
    group_id: str | None = None
    parent_id: str | None = None
    task_id: str | None = None


class _PlainStored(_Stored, gc=False, forbid_unknown_fields=True):
    """A document without the fields of `Extended`."""


_decode_plain = msgspec.json.Decoder(_PlainStored).decode


def read(data: bytes, serializer: str = "json", accept: frozenset[str] | None = None) -> Record:
    """Read a document. `accept` holds content types; None accepts the serializer's own. Raises ContentDisallowed when
    that is not among them, DecodeError for what is no document."""
    plain = serializer == "json" and data[:1] == b"{" and data.find(values.TAG) < 0
    if plain and (accept is None or codec.JSON in accept):
        try:
            found = _decode_plain(data)
            return Record(
                found.task_id or "", found.status, found.result, found.traceback, found.children, found.date_done,
                found.parent_id, found.group_id,
            )  # fmt: skip
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            pass
    return _read_any(data, serializer, accept)


def _decode(data: bytes, serializer: str, accept: frozenset[str] | None) -> Any:
    if data.startswith(_REFUSED):
        raise ContentDisallowed(data[len(_REFUSED) :].decode("utf-8", "replace"))
    content_type = codec.content_type_of(serializer)
    return codec.decode(decompress(data), content_type, None, frozenset({content_type}) if accept is None else accept)


def _read_any(data: bytes, serializer: str, accept: frozenset[str] | None) -> Record:
    found = _decode(data, serializer, accept)
    if not isinstance(found, dict):
        raise DecodeError(f"a result document must be a map, not {type(found).__name__}")
    names = found.get("stamped_headers") or ()
    if not isinstance(names, list | tuple | set | frozenset) or not all(isinstance(name, str) for name in names):
        raise DecodeError("not a result document: stamped_headers must be a list of names")
    try:
        if isinstance(found.get("date_done"), datetime):
            found["date_done"] = found["date_done"].isoformat()
        record = msgspec.convert(
            {name: found[name] for name in _FIELDS if name in found}
            | {"id": found.get("task_id") or "", "result": None, "args": None, "kwargs": None},
            Record,
        )
        record.result, record.args, record.kwargs = found.get("result"), found.get("args"), found.get("kwargs")
        if names:
            record.stamps = {name: found[name] for name in names if name in found}
        return record
    except (msgspec.MsgspecError, ValueError, RecursionError) as exc:
        raise DecodeError(f"not a result document: {exc}") from None


_FIELDS = frozenset(Record.__struct_fields__) - {"id", "result", "args", "kwargs", "stamps"}


def group_document(result: Sequence[Any], serializer: str = "json", compression: str | None = None) -> bytes:
    """The document of a saved group. `result` is its tuple `((id, parent), [member tuples])`."""
    data = codec.encode({"result": result}, serializer)[2]
    return compress(data, compression) if compression else data


def read_group(data: bytes, serializer: str = "json", accept: frozenset[str] | None = None) -> Any:
    """The tuple of a saved group. Raises DecodeError."""
    found = _decode(data, serializer, accept)
    if not isinstance(found, dict) or not isinstance(found.get("result"), list | tuple):
        raise DecodeError("not the document of a group")
    return found["result"]
