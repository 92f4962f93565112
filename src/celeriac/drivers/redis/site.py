"""Where results are stored: what a broker must know to store them in the same step as it settles."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec


class Site(msgspec.Struct, frozen=True):
    """A database and key prefix on one server process."""

    run_id: str
    db: int
    prefix: str
    is_success: Callable[[bytes], bool]
    """Reads the state in a document that a script can't look into (a compressed one)."""


def run_id_of(info: Any) -> str:
    """The run id in the reply of `INFO server`; empty when there is none."""
    text = info if isinstance(info, str) else info.decode(errors="replace") if isinstance(info, bytes) else ""
    for line in text.splitlines():
        if line.startswith("run_id:"):
            return line[7:].strip()
    return ""
