"""Arrays in PostgreSQL's binary form, made in one go: psycopg's own way costs more than all else of a cycle.

The form: number of dimensions, has nulls, type of the elements; length and lower bound; each element with its length.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from struct import Struct

_HEAD = Struct("!iiIii").pack
_EMPTY = Struct("!iiI").pack
_LENGTH = Struct("!i").pack
_INT8 = Struct("!iq").pack
_INT4 = Struct("!ii").pack
_FLOAT8 = Struct("!id").pack
_NULL = _LENGTH(-1)


class Packed:
    """The finished bytes of an array."""

    __slots__ = ("data",)

    def __init__(self, element: int, count: int, items: Iterable[bytes]) -> None:
        head = _HEAD(1, 1, element, count, 1) if count else _EMPTY(0, 0, element)
        self.data = b"".join((head, *items))


class Int8s(Packed):
    """bigint[]. None becomes null. Raises struct.error for a number that is too large."""

    __slots__ = ()

    def __init__(self, values: Sequence[int | None]) -> None:
        super().__init__(20, len(values), [_NULL if value is None else _INT8(8, value) for value in values])


class Int4s(Packed):
    """integer[]."""

    __slots__ = ()

    def __init__(self, values: Sequence[int | None]) -> None:
        super().__init__(23, len(values), [_NULL if value is None else _INT4(4, value) for value in values])


class Float8s(Packed):
    """double precision[]."""

    __slots__ = ()

    def __init__(self, values: Sequence[float | None]) -> None:
        super().__init__(701, len(values), [_NULL if value is None else _FLOAT8(8, value) for value in values])


class Byteas(Packed):
    """bytea[]."""

    __slots__ = ()

    def __init__(self, values: Sequence[bytes | None]) -> None:
        super().__init__(17, len(values), _items(values))


class Texts(Packed):
    """text[]. Raises UnicodeEncodeError for what is no Unicode."""

    __slots__ = ()

    def __init__(self, values: Sequence[str | None]) -> None:
        super().__init__(25, len(values), _items([None if value is None else value.encode() for value in values]))


def _items(values: Iterable[bytes | None]) -> list[bytes]:
    items: list[bytes] = []
    for value in values:
        if value is None:
            items.append(_NULL)
        else:
            items.append(_LENGTH(len(value)))
            items.append(value)
    return items


OIDS: dict[type[Packed], int] = {Int8s: 1016, Int4s: 1007, Float8s: 1022, Byteas: 1001, Texts: 1009}
"""The types by which the server knows them."""
