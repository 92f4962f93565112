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
        _fill()
        return _one(os.urandom(16).hex())


def _one(h: str) -> str:
    return f"{h[:8]}-{h[8:12]}-4{h[13:16]}-{_VARIANT[int(h[16], 16) & 3]}{h[17:20]}-{h[20:]}"


def _fill() -> None:
    digits = os.urandom(16 * _BATCH).hex()
    _pool.extend([_one(digits[start : start + 32]) for start in range(0, len(digits), 32)])


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
