"""Sending within a transaction of the user's: one statement on the connection that the user has, whatever its driver.

No driver of ours is needed here. What goes wrong comes out as the driver says it, and the transaction is the user's to
roll back.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from importlib import import_module
from typing import Any

import msgspec

from celeriac.drivers.postgres.instants import micros
from celeriac.drivers.postgres.site import Site
from celeriac.drivers.publish_ids import KNOWN_SECONDS, ONCE_SECONDS, can_come_again
from celeriac.errors import ImproperlyConfigured
from celeriac.model.message import Envelope

_MISSING = ("42883", "42P01", "3F000")
"""SQLSTATE: there is no such function, table, schema."""


class Within:
    """Sends over a connection of the user's: one of psycopg, psycopg2, asyncpg, SQLAlchemy (session or connection,
    async ones too) or Django. Neither begins nor ends a transaction. Raises ImproperlyConfigured for anything else."""

    def __init__(self, connection: Any, site: Site, identity: int | None) -> None:
        """`identity`: of the broker's database, where the messages become ready with the commit. None: they are left in
        the outbox, for a relay to send to another broker."""
        way = "execute" if _is_async(connection) or _is_of(connection, "sqlalchemy") else "cursor"
        if not hasattr(connection, way):
            raise ImproperlyConfigured(
                "app.transaction takes a connection of psycopg, psycopg2 or asyncpg, a session or connection of "
                f"SQLAlchemy, or Django's `connection`, not {type(connection).__module__}.{type(connection).__name__}"
            )
        self._connection = connection
        self._identity = identity
        name = "enqueue" if identity is not None else "leave"
        self._function = f"{site.prefix}celeriac_1_{name}"

    def publish(self, envelopes: Sequence[Envelope], timeout: float = 0.0) -> None:
        """Write envelopes. They exist if and only if the transaction commits."""
        if not envelopes:
            return
        connection = self._connection
        if _is_async(connection):
            raise ImproperlyConfigured(
                "this connection is asynchronous: send with adelay() or aapply_async() within its transaction"
            )
        try:
            if _is_of(connection, "sqlalchemy"):
                connection.execute(*self._named(envelopes))
            else:
                cursor = connection.cursor()
                try:
                    cursor.execute(*self._marked(envelopes, "%s"))
                finally:
                    cursor.close()
        except Exception as error:
            raise self._explained(error) from error

    async def apublish(self, envelopes: Sequence[Envelope]) -> None:
        """`publish` for coroutines."""
        connection = self._connection
        if not _is_async(connection):
            self.publish(envelopes)
        elif envelopes:
            try:
                if _is_of(connection, "sqlalchemy"):
                    await connection.execute(*self._named(envelopes))
                elif _is_of(connection, "asyncpg"):
                    statement, parameters = self._marked(envelopes, "$")
                    await connection.execute(statement, *parameters)
                else:
                    await connection.execute(*self._marked(envelopes, "%s"))
            except Exception as error:
                raise self._explained(error) from error

    def close(self) -> None:
        """Nothing: the connection is the user's."""

    def _parameters(self, envelopes: Sequence[Envelope]) -> list[Any]:
        write = _ready if self._identity is not None else _whole
        text = json.dumps([write(envelope) for envelope in envelopes])
        return [text] if self._identity is None else [text, self._identity]

    def _marked(self, envelopes: Sequence[Envelope], mark: str) -> tuple[str, list[Any]]:
        parameters = self._parameters(envelopes)
        marks = [f"${place}" if mark == "$" else mark for place in range(1, len(parameters) + 1)]
        return f"SELECT {self._function}({', '.join(marks)})", parameters

    def _named(self, envelopes: Sequence[Envelope]) -> tuple[Any, dict[str, Any]]:
        names = ["envelopes", "identity"]
        parameters = self._parameters(envelopes)
        marks = ", ".join(f":{name}" for name in names[: len(parameters)])
        text = import_module("sqlalchemy").text(f"SELECT {self._function}({marks})")
        return text, dict(zip(names, parameters, strict=False))

    def _explained(self, error: Exception) -> Exception:
        inner = getattr(error, "orig", None) or error.__cause__ or error
        for each in (inner, getattr(inner, "__cause__", None), error):
            code = getattr(each, "sqlstate", None) or getattr(each, "pgcode", None)
            if code in _MISSING:
                return ImproperlyConfigured(
                    "celeriac's tables are not in the database of this connection, or in another schema: run "
                    "`celeriac migrate-schema`, or name the schema in the URL (?schema=...)"
                )
        return error


def _ready(envelope: Envelope) -> dict[str, Any]:
    """An envelope as `celeriac_1_enqueue` reads it."""
    envelope.id.encode()  # a message that can't be named can't be run
    remembered = envelope.once or can_come_again(envelope.publish_id)
    return {
        "queue": envelope.queue,
        "priority": envelope.priority,
        "due": None if envelope.not_before is None else micros(envelope.not_before),
        "blob": base64.b64encode(envelope.blob).decode(),
        "publish_id": envelope.publish_id if remembered else None,
        "kept": int(ONCE_SECONDS if envelope.once else KNOWN_SECONDS) if remembered else None,
    }


def _whole(envelope: Envelope) -> dict[str, Any]:
    """An envelope as `left` reads it."""
    envelope.id.encode()
    found: dict[str, Any] = json.loads(msgspec.json.encode(envelope))
    return found


def left(text: str) -> Envelope:
    """An envelope of the outbox. Its publish id is remembered by the broker that can: a relay that dies between sending
    and deleting leaves it to be sent again."""
    return msgspec.structs.replace(msgspec.json.decode(text, type=Envelope), once=True)


def _is_of(connection: Any, package: str) -> bool:
    # __class__ and not type(): what wraps a connection to watch it says of itself that it is one
    return any(cls.__module__.partition(".")[0] == package for cls in connection.__class__.__mro__)


def _is_async(connection: Any) -> bool:
    return _is_of(connection, "asyncpg") or any(
        cls.__name__ in ("AsyncConnection", "AsyncSession", "async_scoped_session")
        for cls in connection.__class__.__mro__
    )
