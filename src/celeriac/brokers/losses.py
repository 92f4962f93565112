"""The loss counters in a message, for brokers that give back what lost workers held."""

from __future__ import annotations

from celeriac.errors import CeleryError
from celeriac.wire import frame


def after_lost_worker(blob: bytes, ran: bool) -> bytes:
    """The message as it comes back from a lost worker: marked as redelivered, because it may have been done already,
    and with one more loss in it if it ran. What can't be read, as it is: a broker loses nothing."""
    if not blob:
        return blob
    try:
        child, worker = frame.losses(blob)
        return frame.with_losses(blob, child, worker + ran)
    except CeleryError:
        return blob


def begin_anew(blob: bytes) -> bytes:
    """The message with its loss counters set back, if it has any: a dead letter that an operator puts back to work
    would be dead again at the next loss."""
    try:
        return frame.with_losses(blob, 0, 0) if frame.losses(blob) != (0, 0) else blob
    except CeleryError:
        return blob
