# mypy: ignore-errors
# pyright: reportMissingImports=false, reportAttributeAccessIssue=false
"""64 threads and 4 event loops of one process send and get at once."""

from __future__ import annotations

import asyncio
import sys
import threading

from tasks import echo

ROUNDS = int(sys.argv[1])
wrong: list[object] = []


def in_a_thread(number: int) -> None:
    """Send and get, one after the other."""
    for turn in range(ROUNDS):
        value = f"thread {number} {turn}"
        if (got := echo.delay(value).get(timeout=60)) != value:
            wrong.append((value, got))


def in_a_loop(number: int) -> None:
    """Send and get, many at once."""

    async def one(turn: int) -> None:
        value = f"loop {number} {turn}"
        result = await echo.adelay(value)
        if (got := await result.aget(timeout=60)) != value:
            wrong.append((value, got))

    async def all_of_them() -> None:
        await asyncio.gather(*(one(turn) for turn in range(ROUNDS * 4)))

    asyncio.run(all_of_them())


def guarded(function: object, number: int) -> None:
    """Keep what went wrong."""
    try:
        function(number)  # type: ignore[operator]
    except BaseException as error:
        wrong.append(repr(error))
        raise


threads = [threading.Thread(target=guarded, args=(in_a_thread, number)) for number in range(64)]
threads += [threading.Thread(target=guarded, args=(in_a_loop, number)) for number in range(4)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
print(f"{len(threads)} callers", wrong[:5] or "all right")
sys.exit(1 if wrong else 0)
