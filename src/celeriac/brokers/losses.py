"""The loss counter in a message, for brokers that recover the messages of lost workers."""

from __future__ import annotations

from celeriac.errors import CeleryError
from celeriac.wire import frame


def count_lost_worker(blob: bytes) -> bytes:
    """The message with one more lost worker in it; what can't be read, as it is: a broker loses nothing."""
    try:
        child, worker = frame.losses(blob)
        return frame.with_losses(blob, child, worker + 1)
    except CeleryError:
        return blob
