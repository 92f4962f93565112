# mypy: ignore-errors
# pyright: reportMissingImports=false, reportAttributeAccessIssue=false
"""A gevent-patched web process: 50 greenlets send and get while the process also runs an event loop; then it revokes a
task and asks the workers."""

from __future__ import annotations

from gevent import monkey

monkey.patch_all()

import asyncio  # noqa: E402
import time  # noqa: E402

import gevent  # noqa: E402
from tasks import app, echo, work  # noqa: E402


def request(number: int) -> bool:
    """One web request."""
    return all(echo.delay(f"{number} {turn}").get(timeout=60) == f"{number} {turn}" for turn in range(5))


async def other() -> str:
    """What a library does that has an event loop of its own."""
    await asyncio.sleep(0.2)
    result = await echo.adelay("from the loop")
    value: str = await result.aget(timeout=60)
    return value


ticks = 0


def tick() -> None:
    """Count while others wait."""
    global ticks
    while True:
        gevent.sleep(0.01)
        ticks += 1


ticker = gevent.spawn(tick)
greenlets = [gevent.spawn(request, number) for number in range(50)]
loop = gevent.spawn(asyncio.run, other())
gevent.joinall([*greenlets, loop], timeout=90, raise_error=True)
assert all(greenlet.value for greenlet in greenlets), [greenlet.exception for greenlet in greenlets]
assert loop.value == "from the loop"
before, began = ticks, time.monotonic()
work.delay(1.0).get(timeout=30)
assert ticks - before > 20 * (time.monotonic() - began), "waiting for a result stopped the other greenlets"
before, began = ticks, time.monotonic()
revoked = echo.apply_async(("too late",), countdown=3600)
revoked.revoke()
found = app.control.inspect().revoked()
assert found, "no worker has answered"
assert all(revoked.id in ids for ids in found.values()), found
assert ticks - before > 20 * (time.monotonic() - began), "remote control stopped the other greenlets"
print("all right")
