"""What stands in the durable cancel list: task ids, ids with a signal to terminate by, and stamps. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Set
from typing import Any

STAMP = "\x01"
"""How the entry of a stamp begins."""
SEPARATOR = "\x00"


def entries(ids: Iterable[str], signal: str | None = None) -> list[str]:
    """What is to be stored so that these tasks are not run; with a signal, that they are ended if they run."""
    ids = list(ids)
    return [*ids, *(f"{one}{SEPARATOR}{signal}" for one in ids)] if signal else ids


def stamp_entries(headers: Mapping[str, Any], signal: str | None = None) -> list[str]:
    """The same for all tasks that carry one of these stamps: `{header: value or list of values}`."""
    return entries((f"{STAMP}{header}={value}" for header, found in headers.items() for value in values(found)), signal)


def marks(cancelled: Iterable[str]) -> Iterator[tuple[str, str]]:
    """`(id or stamp entry, signal)` of what is to be terminated."""
    for entry in cancelled:
        name, separator, signal = entry.partition(SEPARATOR)
        if separator:
            yield name, signal


def is_cancelled(
    cancelled: Set[str], task_id: str, stamped_headers: Iterable[str] | None, stamps: Mapping[str, Any] | None
) -> bool:
    """Is a task on the list, by its id or by a stamp?"""
    if task_id in cancelled:
        return True
    if not stamped_headers or not stamps:
        return False
    return any(
        f"{STAMP}{header}={value}" in cancelled
        for header in stamped_headers
        if header in stamps
        for value in values(stamps[header])
    )


def values(found: Any) -> list[Any]:
    """Values of a stamp, which may be one or several."""
    return list(found) if isinstance(found, list | tuple | set | frozenset) else [found]
