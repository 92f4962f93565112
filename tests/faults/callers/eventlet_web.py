# mypy: ignore-errors
# pyright: reportMissingImports=false, reportAttributeAccessIssue=false
"""An eventlet-patched web process: 50 green threads send and get; then it revokes a task and asks the workers."""

from __future__ import annotations

import eventlet

eventlet.monkey_patch()

from tasks import app, echo, work  # noqa: E402

ticks = 0


def request(number: int) -> bool:
    """One web request."""
    return all(echo.delay(f"{number} {turn}").get(timeout=60) == f"{number} {turn}" for turn in range(5))


def tick() -> None:
    """Count while others wait."""
    global ticks
    while True:
        eventlet.sleep(0.01)  # type: ignore[arg-type, unused-ignore]  # pyright: ignore
        ticks += 1


eventlet.spawn(tick)
pool = eventlet.GreenPool(50)
assert all(pool.imap(request, range(50)))
before = ticks
work.delay(1.0).get(timeout=30)
assert ticks - before > 20, "waiting for a result stopped the other green threads"
before = ticks
revoked = echo.apply_async(("too late",), countdown=3600)
revoked.revoke()
found = app.control.inspect().revoked()
assert found, "no worker has answered"
assert all(revoked.id in ids for ids in found.values()), found
assert ticks - before > 20, "remote control stopped the other green threads"
print("all right")
