"""Times as the tables hold them."""

from __future__ import annotations

import math

_LATEST = 1 << 59


def micros(seconds: float) -> int:
    """Seconds since 1970 as whole microseconds, rounded up: what is due must not come early. Raises ValueError."""
    if not math.isfinite(seconds):
        raise ValueError(f"a time of {seconds} seconds")
    return max(0, min(math.ceil(seconds * 1e6), _LATEST))
