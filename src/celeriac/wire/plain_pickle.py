"""Pickles that hold nothing but data. Celery before 5.7 writes its SQL results as pickles whatever the serializer is,
and who can write to a table must not be able to run code in who reads it: of all that a pickle can name, only the types
below are looked up, and nothing is imported, nor is anything called but what stands here."""

from __future__ import annotations

import builtins
import io
import pickle
from collections.abc import Callable
from datetime import date, datetime, time, timedelta, timezone
from decimal import Decimal
from typing import Any, NoReturn
from uuid import UUID

from celeriac import errors
from celeriac.errors import ContentDisallowed, DecodeError

MARK = b"\x80"
"""How every pickle begins that Celery or SQLAlchemy writes (protocol 2 and above)."""


def is_exception(found: Any) -> bool:
    """Is it a class of exceptions?"""
    return isinstance(found, type) and issubclass(found, BaseException)


def _latin(text: str, encoding: str = "latin1") -> bytes:
    """In a pickle of protocol 2 bytes are a text that is encoded."""
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"_codecs.encode to {encoding!r}")
    return text.encode("latin1")


def _bytes(*args: Any) -> bytes:
    if args and isinstance(args[0], int):  # so many zeros: an answer that is larger than the question
        raise pickle.UnpicklingError("bytes of a number")
    return bytes(*args)


def _bytearray(*args: Any) -> bytearray:
    return bytearray(_bytes(*args))


def _result(kind: str, args: tuple[Any, ...]) -> list[Any]:
    """A saved group holds result objects: here they are the tuples that they are elsewhere."""
    if kind == "GroupResult":
        return [[args[0], None], list(args[1])]
    if kind == "AsyncResult":
        return [[args[0], args[4] if len(args) > 4 else None], None]
    raise pickle.UnpicklingError(f"a {kind}")


def _nothing(*_: Any) -> None:
    """A saved result also names the backend that it came from."""


def _exception(module: str, name: str) -> Callable[..., dict[str, Any]]:
    """An exception is the map that it is elsewhere."""

    def described(*args: Any) -> dict[str, Any]:
        return {"exc_type": name, "exc_message": list(args), "exc_module": module}

    return described


_ALLOWED: dict[tuple[str, str], Any] = {
    **{("builtins", cls.__name__): cls for cls in (set, frozenset, complex)},
    ("builtins", "bytes"): _bytes,
    ("builtins", "bytearray"): _bytearray,
    **{("datetime", cls.__name__): cls for cls in (date, datetime, time, timedelta, timezone)},
    ("decimal", "Decimal"): Decimal,
    ("uuid", "UUID"): UUID,
    ("_codecs", "encode"): _latin,
    ("celery.app.base", "_unpickle_appattr"): _result,
    ("celery.backends.base", "unpickle_backend"): _nothing,
    ("celery.backends.database", "DatabaseBackend"): _nothing,
    **{
        (module, name): _exception(module, name)
        for module, name in [
            *(("builtins", name) for name, found in vars(builtins).items() if is_exception(found)),
            *((module, cls.__name__) for cls, module in errors.FOREIGN_MODULES.items() if is_exception(cls)),
        ]
    },
}


class _Plain(pickle.Unpickler):
    def find_class(self, module_name: str, global_name: str, /) -> Any:
        module = "builtins" if module_name == "__builtin__" else module_name
        found = _ALLOWED.get((module, global_name))
        if found is None:
            raise ContentDisallowed(
                f"the result is a pickle that names {module_name}.{global_name}: to read it would run code."
                " Only plain data is read from pickles; have it stored with result_serializer='json'"
            )
        return found

    def persistent_load(self, _: Any, /) -> NoReturn:
        raise ContentDisallowed("the result is a pickle that refers to something outside of it")


def read(data: bytes) -> Any:
    """The value of a pickle of plain data: None, bool, numbers, text, bytes, lists, tuples, dicts, sets, dates,
    Decimal, UUID. Python's and Celery's own exceptions come as maps, Celery's result objects as tuples. Raises
    ContentDisallowed for one that names anything else, DecodeError for what is no pickle."""
    load: Callable[[], Any] = _Plain(io.BytesIO(data)).load
    try:
        return load()
    except ContentDisallowed:
        raise
    except Exception as error:  # whatever a broken pickle makes it stumble over
        raise DecodeError(f"the result is no pickle that can be read: {str(error)[:200] or error!r}") from None
