# mypy: ignore-errors
# pyright: reportMissingImports=false, reportAttributeAccessIssue=false
"""Fill pgqueuer's queue: `fill_pgqueuer.py url count`."""

import asyncio
import sys

import asyncpg
from pgqueuer.db import AsyncpgDriver
from pgqueuer.queries import Queries


async def main(url: str, count: int) -> None:
    """Make its tables and put so many jobs into its queue."""
    queries = Queries(AsyncpgDriver(await asyncpg.connect(url)))
    await queries.install()
    while count > 0:
        size = min(count, 1000)
        await queries.enqueue(["noop"] * size, [b"[1, 2]"] * size, [0] * size)
        count -= size


asyncio.run(main(sys.argv[1], int(sys.argv[2])))
