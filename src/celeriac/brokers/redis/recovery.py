"""Giving back what dead workers hold: ours by the end of their lease, Celery's by kombu's mutex and visibility
timeout."""

from __future__ import annotations

import logging
import re
import uuid
from collections.abc import Collection, Sequence

import msgspec

from celeriac.brokers.losses import after_lost_worker
from celeriac.brokers.redis import scripts
from celeriac.brokers.redis.layout import Layout
from celeriac.drivers.redis.aio import AsyncLink
from celeriac.errors import CeleryError
from celeriac.wire import frame

log = logging.getLogger("celeriac.redis")

BATCH = 100
"""Messages in one step."""
TURN = 30_000
"""Milliseconds after which another worker may take a recovery over."""


async def recover(link: AsyncLink, layout: Layout, run_id: str, own: str, lease: float) -> int:
    """Give back what is in flight under ended leases, if it is our turn. Returns how many."""
    token = uuid.uuid4().hex
    dead = await link.run(scripts.DEAD_WORKERS, (), layout.prefix, lease, run_id, token, TURN)
    if not dead:
        return 0
    count = 0
    try:
        for name in dead:
            epoch = name.decode()
            if epoch == own:
                continue
            marked = await link.call("GET", f"{layout.private}running:{epoch}")
            running = frozenset(marked.decode().split("\n")) if marked else frozenset()
            count += await give_back(link, layout, epoch, only_dead=True, running=running)
            await end_epoch(link, layout, epoch, only_dead=True)
    finally:
        await link.run(scripts.UNLOCK, (), f"{layout.private}recovering", token)
    return count


async def give_back(
    link: AsyncLink,
    layout: Layout,
    epoch: str,
    *,
    only_dead: bool,
    keep: Collection[str] = (),
    running: Collection[str] = (),
    queues: Sequence[str] | None = None,
) -> int:
    """Return to the heads of their lists what is in flight under an epoch, but for the tags in `keep`; what a dead
    worker held is marked, and those in `running` get one more lost worker. Stops when the lease lives again. Returns
    how many."""
    if queues is None:
        queues = await known_queues(link, layout)
    holdings = await link.many([("HKEYS", layout.inflight(queue, epoch)) for queue in queues])
    count = 0
    for queue, found in zip(queues, holdings, strict=True):
        tags = [tag for tag in (name.decode() for name in found) if tag not in keep]
        tags.sort(key=claim_order, reverse=True)  # the first one claimed goes to the head last
        for start in range(0, len(tags), BATCH):
            batch = tags[start : start + BATCH]
            replaced: dict[str, bytes] = {}
            if only_dead:
                blobs = await link.call("HMGET", layout.inflight(queue, epoch), *batch)
                replaced = {
                    tag: b"=" + after_lost_worker(blob, tag in running)
                    for tag, blob in zip(batch, blobs, strict=True)
                    if blob is not None
                }
            words: list[str | bytes] = []
            for tag in batch:
                words += (tag, replaced.get(tag, b""))
            given, error = await link.run(
                scripts.GIVE_BACK, (), layout.prefix, layout.separator, epoch, queue, "1" if only_dead else "0", *words
            )
            if error:
                text = error.decode(errors="replace")
                log.error("%s: a message can't be given back: %s", link.server.describe(), text)
            if given < 0:
                return count
            count += given
    return count


async def end_epoch(link: AsyncLink, layout: Layout, epoch: str, *, only_dead: bool) -> None:
    """Forget a worker that holds nothing any more."""
    queues = await known_queues(link, layout)
    await link.run(scripts.END_EPOCH, (), layout.prefix, epoch, "1" if only_dead else "0", *queues)


async def known_queues(link: AsyncLink, layout: Layout) -> list[str]:
    """The queues that were published to or consumed by us."""
    return sorted(name.decode() for name in await link.call("SMEMBERS", f"{layout.private}queues"))


def claim_order(tag: str) -> tuple[str, int, int, str]:
    """Sorts receipt tags by the order of their claims: `consumer-cycle-roundletter.step`."""
    consumer, _, rest = tag.partition("-")
    cycle, _, code = rest.partition("-")
    code = code.partition(".")[0]
    try:
        return consumer, int(cycle), int(code[:-1]), code[-1]
    except (ValueError, IndexError):  # not of our making
        return tag, 0, 0, ""


_Unacked = msgspec.json.Decoder(tuple[msgspec.Raw, str | None, str | None])


async def restore_unacked(link: AsyncLink, layout: Layout) -> int:
    """What kombu does for Celery workers that died: under its mutex, put messages that were taken longer ago than the
    visibility timeout to the heads of their lists, marked as redelivered. Returns how many."""
    seconds, _ = await link.call("TIME")
    before = int(seconds) - layout.visibility_timeout
    if not await link.call("ZCOUNT", layout.unacked_index, 0, before):
        return 0
    token = uuid.uuid4().hex
    expire = max(1, int(layout.unacked_mutex_expire * 1000))
    if await link.call("SET", layout.unacked_mutex, token, "NX", "PX", expire) is None:
        return 0
    count = 0
    try:
        most = layout.unacked_restore_limit
        limit: tuple[str | int, ...] = ("LIMIT", 0, most) if most else ()
        tags = await link.call("ZREVRANGEBYSCORE", layout.unacked_index, before, 0, *limit)
        for start in range(0, len(tags), BATCH):
            batch = tags[start : start + BATCH]
            entries = await link.call("HMGET", layout.unacked, *batch)
            words: list[str | bytes | int] = []
            for tag, entry in zip(batch, entries, strict=True):
                blob, lists = await _destination(link, layout, entry)
                words += (tag, blob, len(lists), *lists)
            count += await link.run(scripts.RESTORE_UNACKED, (), layout.unacked, layout.unacked_index, *words)
    finally:
        await link.run(scripts.UNLOCK, (), layout.unacked_mutex, token)
    if count:
        log.warning("%s: %d unacknowledged message(s) of Celery workers were restored", link.server.describe(), count)
    return count


async def _destination(link: AsyncLink, layout: Layout, entry: bytes | None) -> tuple[bytes, list[str]]:
    """Message and lists of an entry of `unacked`; no lists when it can't be read (then it stays)."""
    if entry is None:
        return b"", []
    try:
        raw, exchange, routing_key = _Unacked.decode(entry)
        blob = bytes(raw)
        priority = frame.unpack(blob).properties.get("priority")
        blob = frame.with_losses(blob, *frame.losses(blob))
    except (msgspec.MsgspecError, CeleryError, RecursionError) as error:
        log.error("%s: an entry of %s can't be read: %s", link.server.describe(), layout.unacked, error)
        return b"", []
    step = layout.step(priority if isinstance(priority, int) else 0)
    queues = [routing_key or ""]
    if exchange:
        members = await link.call("SMEMBERS", f"{layout.prefix}_kombu.binding.{exchange}")
        bound = [tuple(member.decode().split(layout.separator)) for member in members]
        queues = [each[2] for each in bound if len(each) == 3 and _binds(each[0], each[1], routing_key or "")] or queues
    return blob, [layout.ready(queue, step) for queue in sorted(set(queues)) if queue]


def _binds(key: str, pattern: str, routing_key: str) -> bool:
    if key == routing_key:
        return True
    try:
        return bool(pattern) and re.match(pattern, routing_key) is not None
    except re.error:
        return False
