"""For operators: look into the places where messages lie, take out, put back. Nothing here is in a hurry."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

from celeriac.brokers.redis import recovery, scripts
from celeriac.brokers.redis.layout import Layout
from celeriac.drivers.redis.aio import AsyncLink
from celeriac.drivers.redis.protocol import Words
from celeriac.errors import CeleryError
from celeriac.model.message import Counts, Item, Page
from celeriac.ports import Place
from celeriac.wire import frame

BATCH = 100
"""Entries looked at in one script."""
FOREIGN_EXCHANGES = ("celeryev", "reply.celery.pidbox")
"""Exchanges whose queues hold no tasks; those that end in .pidbox do neither."""


async def browse(link: AsyncLink, layout: Layout, where: Place, queue: str, limit: int, cursor: str) -> Page:
    """A page. The cursor is the number of entries seen; entries that come and go meanwhile may shift it."""
    offset = int(cursor) if cursor.isdecimal() else 0
    limit = max(1, limit)
    match where:
        case Place.READY:
            items, total = await _browse_lists(
                link, [(key, str(step), None) for step, key in _steps(layout, queue)], offset, limit
            )
        case Place.PARKED:
            keys = await _parkings(link, layout, queue)
            lists: list[tuple[str, str, str | None]] = [(f"{layout.base(queue)}parked:{key}", key, key) for key in keys]
            items, total = await _browse_lists(link, lists, offset, limit)
        case Place.IN_FLIGHT:
            items, total = await _browse_in_flight(link, layout, queue, offset, limit)
        case Place.SCHEDULED | Place.DEAD:
            items, total = await _browse_set(link, layout, where, queue, offset, limit)
    reached = offset + limit
    return Page(items, str(reached) if reached < total else "")


def _steps(layout: Layout, queue: str) -> list[tuple[int, str]]:
    return [(step, layout.ready(queue, step)) for step in layout.steps]


async def _parkings(link: AsyncLink, layout: Layout, queue: str) -> list[str]:
    return sorted(key.decode() for key in await link.call("SMEMBERS", f"{layout.base(queue)}parkings"))


async def _browse_lists(
    link: AsyncLink, lists: Sequence[tuple[str, str, str | None]], offset: int, limit: int
) -> tuple[list[Item], int]:
    """Entries of lists, each from its right end. A list is (key, what its entries' ids end with, limit key or None)."""
    lengths = await link.many([("LLEN", key) for key, _, _ in lists])
    items: list[Item] = []
    skip, want = offset, limit
    for (key, ending, parked), length in zip(lists, lengths, strict=True):
        take = min(want, length - skip)
        if take <= 0:
            skip = max(0, skip - length)
            continue
        entries: list[bytes] = await link.call("LRANGE", key, -(skip + take), -(skip + 1))
        for entry in reversed(entries):
            blob = entry.partition(b":")[2] if parked is not None else entry
            items.append(Item(f"{_digest(entry)}:{ending}", blob, key=parked or ""))
        want -= take
        skip = 0
        if want <= 0:
            break
    return items, sum(lengths)


def _digest(entry: bytes) -> str:
    return hashlib.sha1(entry, usedforsecurity=False).hexdigest()


async def _browse_in_flight(
    link: AsyncLink, layout: Layout, queue: str, offset: int, limit: int
) -> tuple[list[Item], int]:
    epochs = await _epochs(link, layout)
    holdings = await link.many([("HKEYS", layout.inflight(queue, epoch)) for epoch in epochs])
    entries = [
        (epoch, tag)
        for epoch, tags in zip(epochs, holdings, strict=True)
        for tag in sorted((tag.decode() for tag in tags), key=recovery.claim_order)
    ]
    page = entries[offset : offset + limit]
    blobs = await link.many([("HGET", layout.inflight(queue, epoch), tag) for epoch, tag in page])
    items = [
        Item(f"{tag} {epoch}", blob, owner=epoch)
        for (epoch, tag), blob in zip(page, blobs, strict=True)
        if blob is not None
    ]
    return items, len(entries)


async def _epochs(link: AsyncLink, layout: Layout) -> list[str]:
    return [epoch.decode() for epoch in await link.call("ZRANGE", f"{layout.private}workers", 0, -1)]


async def _browse_set(
    link: AsyncLink, layout: Layout, where: Place, queue: str, offset: int, limit: int
) -> tuple[list[Item], int]:
    base = layout.base(queue)
    zset, values = ("schedule", "scheduled") if where is Place.SCHEDULED else ("dead", "letters")
    found, total = await link.many([
        ("ZRANGE", base + zset, offset, offset + limit - 1, "WITHSCORES"), ("ZCARD", base + zset)
    ])  # fmt: skip
    entries: list[tuple[bytes, float]] = [(name, float(score)) for name, score in found]
    if not entries:
        return [], total
    blobs = await link.call("HMGET", base + values, *(name for name, _ in entries))
    items = []
    for (name, score), blob in zip(entries, blobs, strict=True):
        if blob is None:
            continue
        if where is Place.SCHEDULED:
            items.append(Item(name.decode(), blob, due=score))
        else:
            reason, message = _open_letter(blob)
            items.append(Item(name.decode(), message, reason=reason))
    return items, total


def _open_letter(letter: bytes) -> tuple[str, bytes]:
    size, _, rest = letter.partition(b":")
    length = int(size) if size.isdigit() else 0
    return rest[:length].decode(errors="replace"), rest[length:]


async def remove(link: AsyncLink, layout: Layout, where: Place, queue: str, ids: Sequence[str]) -> int:
    """Delete entries. Returns how many there were."""
    ids = [name for name in ids if name]
    if not ids:
        return 0
    base = layout.base(queue)
    match where:
        case Place.READY | Place.PARKED:
            return await _seek(link, layout, where, queue, ids, "remove")
        case Place.IN_FLIGHT:
            pairs = [name.partition(" ") for name in ids]
            gone: list[int] = await link.many([("HDEL", layout.inflight(queue, epoch), tag) for tag, _, epoch in pairs])
            return sum(gone)
        case Place.SCHEDULED:
            gone = await link.many([("ZREM", f"{base}schedule", *ids), ("HDEL", f"{base}scheduled", *ids)])
            return int(gone[0])
        case Place.DEAD:
            gone = await link.many([("ZREM", f"{base}dead", *ids), ("HDEL", f"{base}letters", *ids)])
            return int(gone[0])


async def restore(link: AsyncLink, layout: Layout, where: Place, queue: str, ids: Sequence[str]) -> int:
    """Put entries back to their ready lists. Returns how many."""
    if where is Place.PARKED:
        return await _seek(link, layout, where, queue, ids, "restore")
    if where not in (Place.SCHEDULED, Place.DEAD):
        raise ValueError(f"nothing can be restored from {where}")
    count = 0
    for start in range(0, len(ids), BATCH):
        batch = ids[start : start + BATCH]
        replaced: list[bytes] = [b""] * len(batch)
        if where is Place.DEAD:
            letters = await link.call("HMGET", f"{layout.base(queue)}letters", *batch)
            replaced = [_begin_anew(letter) for letter in letters]
        words: list[str | bytes] = []
        for name, blob in zip(batch, replaced, strict=True):
            words += (name, blob)
        kind = "dead" if where is Place.DEAD else "schedule"
        count += await link.run(scripts.RESTORE, (), layout.prefix, layout.separator, queue, kind, *words)
    return count


def _begin_anew(letter: bytes | None) -> bytes:
    """What takes the place of a dead letter whose loss counters stand: the same with none; nothing otherwise."""
    if letter is None:
        return b""
    blob = _open_letter(letter)[1]
    try:
        return b"=" + frame.with_losses(blob, 0, 0) if frame.losses(blob) != (0, 0) else b""
    except CeleryError:
        return b""


async def _seek(link: AsyncLink, layout: Layout, where: Place, queue: str, ids: Sequence[str], action: str) -> int:
    """Remove or restore entries of lists by the digests in their ids, looking from the right end."""
    wanted: dict[str, list[str]] = {}
    for name in ids:
        digest, _, ending = name.partition(":")
        if where is Place.PARKED:
            wanted.setdefault(f"{layout.base(queue)}parked:{ending}", []).append(digest)
        elif ending.isdecimal():
            wanted.setdefault(layout.ready(queue, ending), []).append(digest)
    count = 0
    for key, digests in wanted.items():
        left = list(digests)
        at = 0
        length = await link.call("LLEN", key)
        while left and at < length:
            found: list[Any] = await link.run(
                scripts.SEEK, (), layout.prefix, layout.separator, queue, key, -(at + BATCH), -(at + 1), action,
                "1" if where is Place.PARKED else "0", *left,
            )  # fmt: skip
            count += len(found)
            for digest in found:
                left.remove(digest.decode())
            at += BATCH - len(found)
    return count


async def queues(link: AsyncLink, layout: Layout) -> list[str]:
    """Names of all queues, from our own set and from kombu's bindings."""
    names = set(await recovery.known_queues(link, layout))
    start = f"{layout.prefix}_kombu.binding."
    pattern = "".join(f"\\{c}" if c in "*?[]\\^" else c for c in start) + "*"
    cursor: bytes | int = 0
    while True:
        cursor, keys = await link.call("SCAN", cursor, "MATCH", pattern, "COUNT", 1000, "TYPE", "set")
        for key in keys:
            exchange = key.decode()[len(start) :]
            if exchange in FOREIGN_EXCHANGES or exchange.endswith(".pidbox"):
                continue
            for member in await link.call("SMEMBERS", key):
                name = member.decode(errors="replace").rpartition(layout.separator)[2]
                if name:
                    names.add(name)
        if int(cursor) == 0:
            return sorted(names)


async def count(link: AsyncLink, layout: Layout, queue: str) -> Counts:
    """How much lies where."""
    base = layout.base(queue)
    epochs = await _epochs(link, layout)
    keys = await _parkings(link, layout, queue)
    commands: list[Words] = [("ZCARD", f"{base}schedule"), ("ZCARD", f"{base}dead")]
    commands += [("LLEN", key) for key in layout.ready_lists(queue)]
    commands += [("HLEN", layout.inflight(queue, epoch)) for epoch in epochs]
    commands += [("LLEN", f"{base}parked:{key}") for key in keys]
    scheduled, dead, *rest = await link.many(commands)
    ready, flying = len(layout.steps), len(layout.steps) + len(epochs)
    return Counts(
        ready=sum(rest[:ready]), scheduled=scheduled, in_flight=sum(rest[ready:flying]), parked=sum(rest[flying:]),
        dead=dead,
    )  # fmt: skip


async def purge(link: AsyncLink, layout: Layout, queue: str) -> int:
    """Delete what is ready. Returns how many."""
    lists = layout.ready_lists(queue)
    commands: list[Words] = [("MULTI",), *(("LLEN", key) for key in lists), ("DEL", *lists), ("EXEC",)]
    lengths: list[int] = (await link.many(commands))[-1][:-1]
    return sum(lengths)


async def release(link: AsyncLink, layout: Layout, queue: str) -> int:
    """Move everything private back into kombu's lists. Returns how many."""
    total = 0
    for key in await _parkings(link, layout, queue):
        total += await _move_all(link, layout, queue, "parked", key)
    workers = f"{layout.private}workers"
    seconds, micros = await link.call("TIME")
    ended = await link.call("ZRANGEBYSCORE", workers, "-inf", f"{int(seconds)}.{int(micros):06d}")
    for epoch in ended:
        total += await recovery.give_back(link, layout, epoch.decode(), only_dead=True, queues=[queue])
    return total + await _move_all(link, layout, queue, "schedule", "")


async def _move_all(link: AsyncLink, layout: Layout, queue: str, kind: str, key: str) -> int:
    total: int = 0
    while True:
        moved, seen = await link.run(scripts.RELEASE, (), layout.prefix, layout.separator, queue, kind, key)
        total += int(moved)
        if seen < BATCH:
            return total
