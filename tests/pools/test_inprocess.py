"""The pool without processes: calls run one at a time in the worker's own process."""

from __future__ import annotations

import asyncio
import os

from celeriac.pools.inprocess import InProcess
from tests.pools.test_processes import Told, call, until


def test_calls_run_here_one_at_a_time() -> None:
    """Each call ends once, in this process, in order."""

    async def main() -> None:
        told = Told()
        pool = told.pool = InProcess(told, loader="tests.pools.sample:load", spec={})  # type: ignore[assignment]
        catalogue = await pool.start()
        assert "add" in {t.name for t in catalogue.tasks}
        assert pool.hunger() == 1
        for i in range(20):
            pool.submit(call("pid", owner=f"p{i}"))
        assert pool.hunger() == 0
        pool.feed()
        await until(lambda: told.ended == 20)
        assert all(str(os.getpid()).encode() in (d or b"") for d in told.done.values())
        pool.submit(call("ask", "fetch", ["i"], owner="asks"))
        pool.feed()
        await until(lambda: "asks" in told.done)
        pool.submit(call("add", 1, 1, owner="ended", end=("revoked", "")))
        pool.feed()
        await until(lambda: "ended" in told.reports)
        assert told.reports["ended"].state == "REVOKED"
        await pool.stop(1)

    asyncio.run(main())
