"""Tasks for canvases, and a result store that opens chords."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest

import celeriac
from celeriac.app.app import Celeriac
from celeriac.backends.memory import MemoryBackend, MemoryReader
from celeriac.model.message import Chord
from celeriac.wire import values
from tests.app.canvas.celery_canvas import make_tasks

NAMES = ("chain", "group", "chord", "signature", "StampingVisitor")


@pytest.fixture
def t(app: Celeriac) -> Any:
    """The tasks of the golden expressions, with celeriac's names beside them."""
    tasks = make_tasks(app)
    return SimpleNamespace(**tasks, dumps=values.dumps, **{name: getattr(celeriac, name) for name in NAMES})


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[Chord]:
    """The chords that were opened in the result store."""
    found: list[Chord] = []

    def open_chords(self: Any, chords: Sequence[Chord]) -> None:
        found.extend(chords)

    async def aopen_chords(self: Any, chords: Sequence[Chord]) -> None:
        found.extend(chords)

    monkeypatch.setattr(MemoryReader, "open_chords", open_chords, raising=False)
    monkeypatch.setattr(MemoryBackend, "open_chords", aopen_chords, raising=False)
    return found
