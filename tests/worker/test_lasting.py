"""How a worker comes back after its connection was lost."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import pytest

from celeriac.errors import OperationalError
from celeriac.worker import session


class Clock:
    """Stands in for the module `time`."""

    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now


def test_each_loss_is_told_once(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """Failed tries to connect again say nothing more; a connection that had stood is lost with a warning again."""
    clock = Clock()
    monkeypatch.setattr(session, "time", clock)
    lasted = iter((20.0, 0.0, 0.0, 20.0, 0.0))
    stopping = asyncio.Event()

    class Session:
        async def run(self) -> None:
            seconds = next(lasted, None)
            if seconds is None:
                stopping.set()
                return
            clock.now += seconds
            raise OperationalError("gone")

    made: Any = Session
    with caplog.at_level(logging.WARNING, "celeriac.worker"):
        asyncio.run(asyncio.wait_for(session.lasting(made, stopping, "here"), 10))
    assert [record.getMessage() for record in caplog.records] == [
        "the connection to here was lost: gone; connecting again"
    ] * 2
