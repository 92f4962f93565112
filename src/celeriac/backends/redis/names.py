"""Names of keys, and how stores become arguments of the script. Pure, shared by both sides."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any

from celeriac.drivers.redis.protocol import Words
from celeriac.drivers.redis.script import Script
from celeriac.drivers.redis.url import flag
from celeriac.errors import CeleryError, OperationalError
from celeriac.model.message import DONE, LOST, Store, Verdict
from celeriac.wire import record

STORE = Script(("celeriac.drivers.redis", "lua/success.lua"), ("celeriac.backends", "lua/store.lua"))
LARGEST = 512 << 20
"""Bytes that a Redis string can hold."""
BATCH_BYTES = 1 << 20
"""About how much goes to the server in one script."""
BATCH_COUNT = 100
RECONNECT_PATIENCE = 10.0
"""Seconds that a watch tries to reach a server that went away."""


class Names:
    """The names of keys. `global_keyprefix` gets a `_` behind it unless it ends in one of `:_-.`, as Celery does.
    `result_chord_ordered` says whether chords keep what their members gave in the order of the header."""

    def __init__(self, options: Mapping[str, Any]) -> None:
        prefix = str(options.get("global_keyprefix") or "")
        self.prefix = prefix if not prefix or prefix[-1] in ":_-." else prefix + "_"
        self.task = f"{self.prefix}celery-task-meta-"
        self.group = f"{self.prefix}celery-taskset-meta-"
        self.ordered = flag(options, "result_chord_ordered", True)


def expiry(expires: float | None) -> str | int:
    """The argument of EX; empty: never."""
    return "" if expires is None or expires <= 0 else max(1, int(expires))


_STATE = rb"status[^A-Za-z]{1,12}SUCCESS"


def is_success(document: bytes) -> bool:
    """Does a compressed document tell of a SUCCESS? (Scripts look into plain ones.)"""
    if not document.startswith(record.COMPRESSED):
        return False
    try:
        plain = record.decompress(document)
    except CeleryError:
        return False
    return re.search(_STATE, plain[:256]) is not None or b"\nstatus: SUCCESS\n" in plain


Batch = tuple[list[int], list[Any]]
"""Which stores, and the arguments of the script for them."""


def batches(
    pack: Callable[[Words], bytes],
    prefix: str,
    stores: Sequence[Store],
    verdicts: list[Verdict],
    *,
    deadline: str = "",
    held: Collection[str] = (),
) -> Iterator[Batch]:
    """Cut stores into script calls. What can't be sent at all gets its verdict at once; what is `held` (its key has a
    compressed SUCCESS, which the script can't read) and guarded is left out."""
    indexes: list[int] = []
    words: list[Any] = [deadline]
    size = 0
    for index, store in enumerate(stores):
        if store.guard and store.id in held:
            continue
        part = (prefix + store.id, expiry(store.expires), store.document, "1" if store.guard else "0")
        try:
            if len(store.document) > LARGEST:
                raise ValueError(f"a document of {len(store.document)} bytes is more than Redis can hold (512 MiB)")
            pack(part[:2])
        except (ValueError, TypeError) as error:  # UnicodeEncodeError is a ValueError
            verdicts[index] = Verdict(False, error=f"it can't be sent to the server: {error}")
            continue
        indexes.append(index)
        words += part
        size += len(store.document)
        if size >= BATCH_BYTES or len(indexes) >= BATCH_COUNT:
            yield indexes, words
            indexes, words, size = [], [deadline], 0
    if indexes:
        yield indexes, words


def guarded(stores: Sequence[Store]) -> list[str]:
    """Ids whose documents have to be looked at first."""
    return [store.id for store in stores if store.guard]


def note(verdicts: list[Verdict], indexes: Sequence[int], done: int) -> None:
    """Write down what the script said."""
    for index in indexes:
        verdicts[index] = DONE if done else LOST


def again(error: CeleryError) -> CeleryError:
    """The same error to be raised once more: an exception raised twice would grow its traceback."""
    return type(error)(*error.args) if isinstance(error, OperationalError) else error
