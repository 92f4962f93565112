"""The outbox: messages that transactions of the user's have left are sent to the broker by any worker."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping

from celeriac.drivers.alarm import Alarm
from celeriac.drivers.postgres.arrays import Int8s
from celeriac.drivers.postgres.line import Line
from celeriac.drivers.postgres.site import parse
from celeriac.drivers.postgres.within import left
from celeriac.errors import CeleryError, OperationalError
from celeriac.model.message import Envelope
from celeriac.ports import Broker

log = logging.getLogger("celeriac.postgres")

_BATCH = 500
_LOOK_SECONDS = 5.0
"""How often it looks where notifications come through."""
_LOOK_OFTEN = 1.0
_NEXT = """
SELECT id, envelope FROM celeriac_outbox WHERE error IS NULL ORDER BY id LIMIT $1::integer FOR UPDATE
"""


class PostgresRelay:
    """Sends what lies in the outbox of a database. One of all workers does it at a time, so that the order stays."""

    def __init__(self, url: str, options: Mapping[str, object]) -> None:
        self.site = parse(url, options)

    async def run(self, broker: Broker) -> None:
        """Send until cancelled. A database or broker that is not there is tried again."""
        rung = Alarm()
        line = Line(self.site, channels=("celeriac_outbox",), hear=lambda channel, payload: rung.set())
        troubled = False
        try:
            while True:
                rung.clear()
                sent = 0
                try:
                    sent = await self._send(line, broker)
                    troubled = False
                except OperationalError as error:
                    if not troubled:
                        log.warning("the outbox can't be sent now: %s; trying again", error)
                    troubled = True
                if sent < _BATCH:
                    await rung.wait(_LOOK_SECONDS if line.listens else _LOOK_OFTEN)
        finally:
            await line.close()

    async def _send(self, line: Line, broker: Broker) -> int:
        """Send a batch. It is deleted when the broker has it: who dies in between sends it again, by the same ids."""
        async with line.transaction() as run:
            if (await run("SELECT pg_try_advisory_xact_lock(1667591269, 1)"))[0][0] is not True:
                return 0
            rows = await run(_NEXT, (_BATCH,))
            if not rows:
                return 0
            failed = await _published(broker, [(number, left(text)) for number, text in rows])
            await run("DELETE FROM celeriac_outbox WHERE id = ANY ($1)", (
                Int8s([number for number, _ in rows if number not in failed]),
            ))  # fmt: skip
            for number, reason in failed.items():
                log.error("message %d of the outbox can't be sent: %s; it stays there with its error", number, reason)
                await run("UPDATE celeriac_outbox SET error = $1::text WHERE id = $2::bigint", (reason, number))
        return len(rows)


async def _published(broker: Broker, messages: list[tuple[int, Envelope]]) -> dict[int, str]:
    """Send messages; those that the broker can't take are told with the reason. Raises OperationalError."""
    try:
        async with asyncio.timeout(10.0):
            await broker.publish([envelope for _, envelope in messages])
    except TimeoutError:
        raise OperationalError(f"{broker.describe()} did not take the messages within 10 s") from None
    except OperationalError:
        raise
    except CeleryError as error:
        if len(messages) == 1:
            return {messages[0][0]: str(error)}
        failed: dict[int, str] = {}
        for message in messages:
            failed |= await _published(broker, [message])
        return failed
    return {}
