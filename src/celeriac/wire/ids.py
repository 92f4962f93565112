"""Ids: random ones from a pool, and ids that follow from what happened."""

from __future__ import annotations

import os
import uuid

_BATCH = 256
_VARIANT = ("8", "9", "a", "b")
_pool: list[str] = []


def new_id() -> str:
    """The text of a new random uuid4. A pool saves a system call for each; a fork empties it."""
    try:
        return _pool.pop()
    except IndexError:
        _pool.extend(_make(_BATCH - 1))
        return _make(1)[0]


def _make(count: int) -> list[str]:
    digits, kinds = os.urandom(16 * count).hex(), os.urandom(count)
    return [
        f"{digits[n : n + 8]}-{digits[n + 8 : n + 12]}-4{digits[n + 13 : n + 16]}-{_VARIANT[kind & 3]}"
        f"{digits[n + 17 : n + 20]}-{digits[n + 20 : n + 32]}"
        for n, kind in zip(range(0, 32 * count, 32), kinds, strict=True)
    ]


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_pool.clear)

FOLLOW_UP = uuid.UUID("5a2d3c0e-7f0b-5d8e-9c4e-6b1a0f4d2c37")
"""Namespace of `follow_up_id`."""


def follow_up_id(name: str, retries: int, edge: str, index: int = 0) -> str:
    """The id of the message that follows from run `retries` of what has this name (a task's `run_name`, a chord's group
    id) by an edge ("link", "errback", ...). A repeated run gets the same ids, so that a broker or a worker can tell a
    repeat."""
    name = f"{name}\n{retries}\n{edge}\n{index}"
    try:
        return str(uuid.uuid5(FOLLOW_UP, name))
    except UnicodeEncodeError:  # a lone surrogate in a foreign id
        return str(uuid.uuid5(FOLLOW_UP, name.encode("utf-8", "backslashreplace").decode()))
