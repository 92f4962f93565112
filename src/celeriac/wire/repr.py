"""The short texts of arguments in messages, events and logs: the output of Celery's saferepr."""

from __future__ import annotations

from collections.abc import Iterator
from decimal import Decimal
from enum import IntEnum
from numbers import Number
from typing import Any

_PLAIN_INT = 1 << 62


def safe_repr(value: Any, limit: int | None = 1024, levels: int = 3) -> str:
    """A repr of about `limit` characters at most and of `levels` nested containers; the rest shows as `...`, and
    brackets are always closed. `limit=None` and `levels=0` mean no limit. Never raises."""
    if limit is not None:
        text = _short(value, limit, levels or -1, ())
        if text is not None and len(text) < limit:
            return text
    try:
        return _long(value, limit, levels)
    except Exception as exc:
        return _unrepresentable(value, exc)


def _short(value: Any, room: int, levels: int, above: tuple[Any, ...]) -> str | None:
    """The repr of plain values that will be cut nowhere, or None. The same text as `_long`, in a tenth of the time.
    `levels`: how many more containers may be opened; `above`: the containers around this one, to see a circle."""
    kind = type(value)
    if kind is str:
        if len(value) >= room:
            return None
        return "'" + value.replace("'", "\\'") + "'" if "'" in value else f"'{value}'"
    if kind is int:
        return repr(value) if -_PLAIN_INT < value < _PLAIN_INT else None
    if value is None or kind is bool or kind is float:
        return repr(value)
    if kind is not tuple and kind is not list and kind is not dict:
        return None
    if levels == 0 or levels < -20 or len(value) * 3 > room:
        return None
    for container in above:
        if container is value:
            return None
    above = (*above, value)
    levels -= 1
    parts = []
    if kind is dict:
        for key, item in value.items():
            name = f"'{key}'" if type(key) is str and "'" not in key else _short(key, room, 0, above)
            text = _short(item, room, levels, above)
            if name is None or text is None:
                return None
            room -= len(name) + len(text)
            parts.append(f"{name}: {text}")
        return "{" + ", ".join(parts) + "}"
    for item in value:
        # What most arguments are, without a call for each.
        if type(item) is int and -_PLAIN_INT < item < _PLAIN_INT:
            text = repr(item)
        elif type(item) is str and len(item) < room and "'" not in item:
            text = f"'{item}'"
        else:
            text = _short(item, room, levels, above)
            if text is None:
                return None
        room -= len(text)
        parts.append(text)
    inside = ", ".join(parts)
    if kind is list:
        return f"[{inside}]"
    return f"({inside},)" if len(parts) == 1 else f"({inside})"


class _Kind(IntEnum):
    OPEN = 1
    """(opening text, closing text) of a container; never cut."""
    CLOSE = 2
    """Closing text; never cut, nor counted once the room is used up."""
    LITERAL = 3
    """Text that is not cut."""
    TEXT = 4
    """Text that is cut to the room that is left."""
    CHARS = 5
    """A str or bytes."""
    KEY = 6
    """A key of a dict, shown with levels of its own."""


def _long(value: Any, limit: int | None, levels: int) -> str:
    room = limit
    out: list[str] = []
    closers: list[str] = []
    for kind, payload in _tokens(value, levels):
        if room is not None and room <= 0:
            if kind is _Kind.CLOSE:
                out.append(closers.pop())
                continue
            out.append(", ...")
            out.extend(reversed(closers))
            break
        if kind is _Kind.OPEN:
            text, closer = payload
            closers.append(closer)
        elif kind is _Kind.CLOSE:
            text = closers.pop()
        elif kind is _Kind.TEXT:
            text = _cut(payload, room)
        elif kind is _Kind.CHARS:
            text = _chars(payload, room)
        elif kind is _Kind.KEY:
            text = _long(payload, room, levels)
        else:
            text = payload
        out.append(text)
        if room is not None:
            room -= len(text)
    return "".join(out)


def _tokens(value: Any, levels: int) -> Iterator[tuple[_Kind, Any]]:
    """The pieces of a repr, made as they are asked for. No recursion, so a deep value does no harm."""
    stack: list[tuple[Iterator[tuple[_Kind | None, Any]], int]] = [(iter([(None, value)]), 0)]
    seen: set[int] = set()
    while stack:
        pieces, identity = stack[-1]
        for kind, item in pieces:
            if kind is not None:
                yield kind, item
                continue
            if isinstance(item, Number):
                yield _Kind.TEXT, _text(item, repr if isinstance(item, Decimal) else str)
            elif isinstance(item, bytes | str):
                yield _Kind.CHARS, item
            elif not isinstance(item, list | tuple | dict | set | frozenset):
                yield _Kind.TEXT, _text(item, repr)
            elif isinstance(item, set | frozenset) and not item:
                yield _Kind.TEXT, f"{type(item).__name__}()"
            else:
                start, end = _brackets(item)
                if levels and len(stack) > levels:
                    yield _Kind.LITERAL, f"{start}...{end}"
                elif id(item) in seen:
                    yield _Kind.TEXT, f"<Recursion on {type(item).__name__} with id={id(item)}>"
                else:
                    seen.add(id(item))
                    stack.append((_pieces(item), id(item)))
                    yield _Kind.OPEN, (start, end)
                    break
        else:
            stack.pop()
            if stack:
                seen.discard(identity)
                yield _Kind.CLOSE, None


def _brackets(container: Any) -> tuple[str, str]:
    if isinstance(container, dict):
        return "{", "}"
    if isinstance(container, list):
        return "[", "]"
    if isinstance(container, tuple):
        return "(", ",)" if len(container) == 1 else ")"
    if type(container) is set:
        return "{", "}"
    return f"{type(container).__name__}({{", "})"


def _pieces(container: Any) -> Iterator[tuple[_Kind | None, Any]]:
    """The inside of a container: its members (None), keys and separators."""
    separate = False
    for item in container.items() if isinstance(container, dict) else container:
        if separate:
            yield _Kind.LITERAL, ", "
        separate = True
        if isinstance(container, dict):
            yield _Kind.KEY, item[0]
            yield _Kind.LITERAL, ": "
            yield None, item[1]
        else:
            yield None, item


def _cut(text: str, room: int | None) -> str:
    """At most `room` characters, cut at the last space before."""
    return text[:room].rsplit(" ", 1)[0] + "..." if room and len(text) >= room else text


def _chars(value: str | bytes, room: int | None) -> str:
    if isinstance(value, str):
        cut = _cut(value, room).replace("'", "\\'")
        return f"'{cut}'"
    dots = "..." if room and len(value) > room else ""
    piece = value[:room] if dots else value
    try:
        text = piece.decode()
    except UnicodeDecodeError:
        text = piece.hex()
    return f"b'{text}{dots}'"


def _text(value: Any, how: Any) -> str:
    try:
        text: str = how(value)
        return text
    except Exception as exc:
        return _unrepresentable(value, exc)


def _unrepresentable(value: Any, exc: Exception) -> str:
    return f"<Unrepresentable {type(value)!r}{id(value):#x}: {type(exc).__name__}>"
