"""What SQL brokers show of a place, page by page."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from celeriac.model.message import Item, Page
from celeriac.ports import Place


def page_of(where: Place, rows: Sequence[Sequence[Any]], limit: int) -> Page:
    """A page of rows `(rank, due, id, blob, text)`, in order, one more than `limit` where there is more. The cursor is
    the key of the last entry (rank, due, id), so nothing shifts it."""
    items = [
        Item(
            id=str(number),
            blob=blob,
            due=due / 1e6 if where is Place.SCHEDULED else None,
            reason=text if where is Place.DEAD else "",
            key=text if where is Place.PARKED else "",
            owner=text if where is Place.IN_FLIGHT else "",
        )
        for _, due, number, blob, text in rows[:limit]
    ]
    more = len(rows) > limit and limit > 0
    return Page(items, ".".join(map(str, rows[limit - 1][:3])) if more else "")
