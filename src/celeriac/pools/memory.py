"""Giving memory back to the system after something huge: the C library keeps freed pages until it is asked."""

from __future__ import annotations

import contextlib
import sys

HUGE = 8 << 20
"""Bytes of one message or result from which on it is worth asking."""


def trim() -> None:
    """Ask the C library to return what is free. Does nothing where it can't."""
    if sys.platform == "linux":
        import ctypes

        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).malloc_trim(0)
