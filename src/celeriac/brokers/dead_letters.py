"""How many dead letters a queue keeps."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from celeriac.errors import ImproperlyConfigured

DEAD_LETTER_LIMIT = 100_000
"""Unless the options say otherwise."""


def limit_of(options: Mapping[str, Any]) -> int:
    """The option `dead_letter_limit`; 0: without limit. Raises ImproperlyConfigured."""
    value = options.get("dead_letter_limit")
    if value is None:
        return DEAD_LETTER_LIMIT
    try:
        limit = int(str(value))
    except ValueError:
        limit = -1
    if limit < 0:
        raise ImproperlyConfigured(f"dead_letter_limit must be a number from 0 (no limit), not {value!r}")
    return limit
