"""Publishing to the server in this process: the synchronous side."""

from __future__ import annotations

from collections.abc import Sequence

from celeriac.drivers.memory import MemoryServer
from celeriac.model.message import Envelope


class MemorySender:
    """The synchronous side."""

    def __init__(self, server: MemoryServer) -> None:
        self.server = server

    def publish(self, envelopes: Sequence[Envelope], timeout: float) -> None:
        """Hand over envelopes. On return the server has all of them."""
        self.server.publish(envelopes)

    def close(self) -> None:
        """Nothing to close."""
