"""The result store of an app as its sync side sees it: `app.backend`. Documents in, records out; no waiting here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, Protocol

from celeriac.errors import TaskRevokedError
from celeriac.model import states
from celeriac.model.message import Store
from celeriac.ports import CleanedReader, Reader, ResultBackend
from celeriac.wire import codec, failure, record
from celeriac.wire.record import Record

DISABLED = (
    "there is no result backend: the app has a broker but no result_backend. Set one, for example"
    " result_backend='redis://localhost/0'; without any URL results are kept in a SQLite file"
)


class Owner(Protocol):
    """What a result store asks of its app."""

    conf: Any

    @property
    def reader(self) -> Reader | None:
        """The synchronous adapter; None where results are not kept."""
        ...

    def make_backend(self) -> ResultBackend | None:
        """A new asynchronous adapter."""
        ...

    def now(self) -> datetime:
        """The time now, in the app's zone."""
        ...

    def per_settings(self, key: str, make: Any) -> Any:
        """What `make` works out from the settings, once."""
        ...


class Results:
    """`app.backend`. Called, it makes an asynchronous adapter (`ports.ResultBackend`), or None where there is none.

    Its methods are those of Celery's backend objects that applications use."""

    def __init__(self, app: Owner) -> None:
        self.app = app

    def __call__(self) -> ResultBackend | None:
        """A new asynchronous adapter, for the loop that runs. Whoever takes it closes it."""
        return self.app.make_backend()

    def __repr__(self) -> str:
        return f"<Results: {self.as_uri()}>"

    @property
    def reader(self) -> Reader:
        """The synchronous adapter. Raises NotImplementedError where results are not kept."""
        reader = self.app.reader
        if reader is None:
            raise NotImplementedError(DISABLED)
        return reader

    @property
    def is_disabled(self) -> bool:
        """Results are not kept."""
        return self.app.reader is None

    @property
    def serializer(self) -> str:
        """`result_serializer`."""
        name: str = self.app.conf["result_serializer"]
        return name

    @property
    def accept(self) -> frozenset[str]:
        """Content types that a document may have."""
        conf = self.app.conf
        accept: frozenset[str] = self.app.per_settings(
            "result accept", lambda: codec.accept_set(conf["result_accept_content"] or conf["accept_content"])
        )
        return accept

    def as_uri(self, include_password: bool = False) -> str:
        """Where results are kept, without the password."""
        backend = self.app.make_backend()
        return "disabled://" if backend is None else backend.describe()

    # Reading

    def read(self, task_id: str, document: bytes) -> Record:
        """The record of a document. Raises DecodeError and ContentDisallowed."""
        found = record.read(document, self.serializer, self.accept)
        found.id = found.id or task_id
        return found

    def record(self, task_id: str) -> Record:
        """What is known of a task now; state PENDING when nothing is."""
        document = self.reader.fetch([task_id]).get(task_id)
        return Record(task_id, states.PENDING) if document is None else self.read(task_id, document)

    def get_task_meta(self, task_id: str) -> dict[str, Any]:
        """The record as the map that Celery's backends give."""
        return meta(self.record(task_id))

    def get_state(self, task_id: str) -> str:
        """The state."""
        return self.record(task_id).status

    get_status = get_state

    def get_result(self, task_id: str) -> Any:
        """The value, or the exception."""
        return value(self.record(task_id))

    def get_traceback(self, task_id: str) -> str | None:
        """The traceback of a failure."""
        return self.record(task_id).traceback

    def get_children(self, task_id: str) -> list[Any] | tuple[Any, ...] | None:
        """Result tuples of the children."""
        return self.record(task_id).children

    def forget(self, task_id: str) -> None:
        """Delete the record."""
        self.reader.forget([task_id])

    def cleanup(self) -> None:
        """Delete results that have expired. Most stores do it by themselves."""
        reader = self.app.reader
        if isinstance(reader, CleanedReader):
            reader.clean_up()

    # Writing

    def store_result(
        self,
        task_id: str,
        result: Any,
        state: str,
        traceback: str | None = None,
        request: Any = None,
        **_: Any,
    ) -> Any:
        """Store a state with its result (or meta, or exception). A stored SUCCESS stays. Returns `result`."""
        store = self.document(task_id, result, state, traceback, request)
        self.reader.store([store])
        return result

    def document(
        self, task_id: str, result: Any, state: str, traceback: str | None = None, request: Any = None
    ) -> Store:
        """What `store_result` stores."""
        conf = self.app.conf
        extended = None
        if conf["result_extended"] and request is not None:
            info = getattr(request, "delivery_info", None) or {}
            extended = record.extended_fields(
                getattr(request, "task", None), getattr(request, "args", None), getattr(request, "kwargs", None),
                getattr(request, "hostname", None), getattr(request, "retries", None), info.get("routing_key"),
                getattr(request, "stamped_headers", None), getattr(request, "stamps", None),
            )  # fmt: skip
        data = record.document(
            task_id,
            state,
            tuple_form(result),
            traceback=traceback,
            children=None if request is None else [tuple_form(child) for child in request.children],
            date_done=self.app.now().isoformat() if state in states.READY_STATES else None,
            parent_id=getattr(request, "parent_id", None),
            group_id=getattr(request, "group", None),
            extended=extended,
            serializer=self.serializer,
            compression=conf["result_compression"],
        )
        return Store(task_id, data, state, self.expires(state), guard=True)

    def expires(self, state: str = states.SUCCESS) -> float | None:
        """Seconds until a document of this state may be forgotten; None: never."""
        conf = self.app.conf
        if state == states.FAILURE:
            seconds: float | None = conf.seconds("result_failure_expires")
            if seconds:
                return seconds
        return conf.seconds("result_expires") or None

    def mark_as_started(self, task_id: str, **fields: Any) -> Any:
        """Store STARTED."""
        return self.store_result(task_id, fields, states.STARTED)

    def mark_as_done(self, task_id: str, result: Any, request: Any = None, **_: Any) -> None:
        """Store SUCCESS."""
        self.store_result(task_id, result, states.SUCCESS, request=request)

    def mark_as_failure(
        self, task_id: str, exc: BaseException, traceback: str | None = None, request: Any = None, **_: Any
    ) -> None:
        """Store FAILURE."""
        self.store_result(task_id, exc, states.FAILURE, traceback=traceback, request=request)

    def mark_as_revoked(self, task_id: str, reason: str = "", request: Any = None, **_: Any) -> None:
        """Store REVOKED."""
        self.store_result(task_id, TaskRevokedError(reason), states.REVOKED, request=request)

    def mark_as_retry(
        self, task_id: str, exc: BaseException, traceback: str | None = None, request: Any = None, **_: Any
    ) -> None:
        """Store RETRY."""
        self.store_result(task_id, exc, states.RETRY, traceback=traceback, request=request)

    # Groups

    def save_group(self, group_id: str, form: Sequence[Any]) -> None:
        """Store the tuple of a group."""
        document, expires = self.group_document(form)
        self.reader.save_group(group_id, document, expires)

    def group_document(self, form: Sequence[Any]) -> tuple[bytes, float | None]:
        """The document of a group's tuple, and how long it is kept."""
        return record.group_document(form, self.serializer, self.app.conf["result_compression"]), self.expires()

    def restore_group(self, group_id: str) -> Any:
        """The tuple of a stored group, or None."""
        document = self.reader.fetch_group(group_id)
        return None if document is None else self.read_group(document)

    def read_group(self, document: bytes) -> Any:
        """The tuple in a group's document. Raises DecodeError and ContentDisallowed."""
        return record.read_group(document, self.serializer, self.accept)

    def delete_group(self, group_id: str) -> None:
        """Delete a stored group."""
        self.reader.forget_group(group_id)


def tuple_form(result: Any) -> Any:
    """A result object as the tuple by which it is stored; anything else as it is."""
    as_tuple = getattr(type(result), "as_tuple", None)
    return result if as_tuple is None else as_tuple(result)


def value(found: Record) -> Any:
    """The value of a record; an exception is rebuilt. Raises SecurityError where that is no exception."""
    result = found.result
    if found.status in states.EXCEPTION_STATES and isinstance(result, Mapping | BaseException):
        return failure.rebuild(result)
    return result


def meta(found: Record) -> dict[str, Any]:
    """A record as the map that Celery's backends give."""
    fields: dict[str, Any] = {
        "status": found.status,
        "result": value(found),
        "traceback": found.traceback,
        "children": found.children,
        "date_done": found.date_done,
        "task_id": found.id,
    }
    for name in ("parent_id", "group_id", "name", "args", "kwargs", "worker", "retries", "queue"):
        given = getattr(found, name)
        if given is not None:
            fields[name] = given
    return fields
