# mypy: ignore-errors
# pyright: reportMissingImports=false, reportAttributeAccessIssue=false
"""pgqueuer's side: `bench_pgqueuer.py url`."""

import asyncio
import sys
from datetime import timedelta

import asyncpg
from pgqueuer import PgQueuer
from pgqueuer.db import AsyncpgDriver


async def main(url: str) -> None:
    """Run no-op jobs until killed."""
    queue = PgQueuer(AsyncpgDriver(await asyncpg.connect(url)))

    @queue.entrypoint("noop")
    async def noop(job) -> None:
        """Nothing to do."""

    await queue.run(dequeue_timeout=timedelta(seconds=5), batch_size=100)


asyncio.run(main(sys.argv[1]))
