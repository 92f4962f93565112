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
    ordered: bool = True
    """Chords keep what their members gave in the order of the header (`result_chord_ordered`)."""

    task: str = ""
    """What the keys of results begin with. Made of the prefix."""

    def __post_init__(self) -> None:
        msgspec.structs.force_setattr(self, "task", f"{self.prefix}celery-task-meta-")


def run_id_of(info: Any) -> str:
    """The run id in the reply of `INFO server`; empty when there is none."""
    text = info if isinstance(info, str) else info.decode(errors="replace") if isinstance(info, bytes) else ""
    for line in text.splitlines():
        if line.startswith("run_id:"):
            return line[7:].strip()
    return ""
