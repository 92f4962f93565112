"""How finished completions become arguments of cycle.lua. Pure."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from celeriac.brokers.redis.layout import Layout
from celeriac.brokers.redis.recovery import claim_order
from celeriac.drivers.redis import chord_words
from celeriac.drivers.redis.protocol import Words
from celeriac.drivers.redis.site import Site
from celeriac.model.message import Ack, Completion, Dead, Delay, Park, Requeue, Return, Store


def settle(layout: Layout, site: Site, words: list[Any], finished: Sequence[Completion]) -> list[int] | None:
    """Append what is finished; results go to `site`. Returns the order in which the completions stand, None when it is
    theirs."""
    prefix = site.task
    queue: str | None = None
    returned: list[int] | None = None
    order: list[int] = []
    for index, completion in enumerate(finished):
        receipt, store = completion.receipt, completion.store
        kind = type(completion.settlement)
        if receipt is not None:
            if kind is Return:
                if returned is None:
                    returned, order = [], list(range(index))
                returned.append(index)
                continue
            if receipt.queue != queue:
                queue = receipt.queue
                words += ("q", queue)
            if (
                kind is Ack and not completion.publish and (store is None or not store.guard)
                and not completion.parts and completion.fire is None
            ):  # fmt: skip
                if store is None:
                    words += ("a", receipt.tag)
                else:
                    words += ("s", receipt.tag, prefix + store.id, expiry(store), store.document)
                if returned is not None:
                    order.append(index)
                continue
        append(layout, site, words, completion)
        if returned is not None:
            order.append(index)
    if returned is None:
        return None
    # The first one claimed is to be served first, so it is put to the head last.
    returned.sort(key=lambda index: _claimed(finished[index]), reverse=True)
    for index in returned:
        receipt = finished[index].receipt
        assert receipt is not None
        words += ("q", receipt.queue)
        append(layout, site, words, finished[index])
    return order + returned


def settle_one_by_one(
    layout: Layout, site: Site, words: list[Any], finished: Sequence[Completion], pack: Callable[[Words], bytes]
) -> dict[int, str]:
    """As `settle`, when something in a completion can't be sent: that one becomes a dead letter by itself. Returns
    which, and why. The completions stand in their order."""
    broken: dict[int, str] = {}
    for index, completion in enumerate(finished):
        part: list[Any] = []
        if completion.receipt is not None:
            part += ("q", completion.receipt.queue)
        try:
            append(layout, site, part, completion)
            pack(tuple(part))
        except (UnicodeEncodeError, TypeError) as error:
            broken[index] = f"it can't be sent to the server: {error}"
            part = ["q", completion.receipt.queue] if completion.receipt is not None else []
            append(layout, site, part, completion, broken[index])
        words += part
    return broken


def append(layout: Layout, site: Site, words: list[Any], completion: Completion, broken: str = "") -> None:
    """Append a completion in its general form."""
    receipt, settlement, store = completion.receipt, completion.settlement, completion.store
    how, argument, blob = "A", "", b""
    chorded = bool(completion.parts or completion.fire or completion.chords)
    if broken:
        how, argument, store, chorded = "!", broken, None, False
    elif receipt is not None:
        match settlement:
            case Ack():
                pass
            case Return(replacement) | Requeue(replacement):
                how = "R" if isinstance(settlement, Return) else "Q"
                argument = layout.ready(receipt.queue, receipt.tag.rpartition(".")[2])
                blob = b"" if replacement is None else b"=" + replacement
            case Delay(until, replacement):
                how, argument = "D", repr(until)
                blob = b"" if replacement is None else b"=" + replacement
            case Park(key):
                how, argument = "P", key
            case Dead(reason):
                how, argument = "X", reason
    words += ("c" if chorded else "x", "" if receipt is None else receipt.tag, how, argument, blob)
    if store is None:
        words += ("", "", "", "0")
    else:
        words += (site.task + store.id, expiry(store), store.document, "1" if store.guard else "0")
    publish = () if broken else completion.publish
    at = len(words)
    words.append(len(publish))
    for envelope in publish:
        if envelope.once:
            words[at] += 1
            words += ("", envelope.publish_id, "", "")
        if envelope.not_before is None:
            words += (layout.target(envelope), "", "", envelope.blob)
        else:
            words += (layout.base(envelope.queue), layout.entry(envelope), repr(envelope.not_before), envelope.blob)
    if chorded:
        fire = completion.fire
        words += (site.prefix, "1" if site.ordered else "0")
        words += ("", "") if fire is None else (fire.group, fire.token)
        words += (len(completion.chords), len(completion.parts))
        for chord in completion.chords:
            words += chord_words.opening(chord)
        for part in completion.parts:
            words += chord_words.counting(part)


def expiry(store: Store) -> str | int:
    """Whole seconds; empty: never."""
    expires = store.expires
    return "" if expires is None or expires <= 0 else max(1, int(expires))


def _claimed(completion: Completion) -> tuple[str, int, int, str]:
    assert completion.receipt is not None
    return claim_order(completion.receipt.tag)
