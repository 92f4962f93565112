"""The memory result backend keeps the contract."""

from __future__ import annotations

import time

import pytest

from celeriac.backends.memory import MemoryBackend, MemoryReader
from celeriac.drivers.memory import MemoryServer
from celeriac.testing.contract_backend import BackendContract, ReaderContract
from celeriac.testing.rigs import BackendRig


class MemoryRig(BackendRig):
    """A server whose clock jumps instead of going."""

    merges = False

    def __init__(self) -> None:
        self.ahead = 0.0
        self.server = MemoryServer("test", lambda: time.time() + self.ahead)

    def backend(self) -> MemoryBackend:
        return MemoryBackend(self.server)

    def reader(self) -> MemoryReader:
        return MemoryReader(self.server)

    async def elapse(self, seconds: float) -> None:
        self.ahead += seconds


class TestMemoryBackend(BackendContract):
    @pytest.fixture
    def rig(self) -> MemoryRig:
        return MemoryRig()


class TestMemoryReader(ReaderContract):
    @pytest.fixture
    def rig(self) -> MemoryRig:
        return MemoryRig()
