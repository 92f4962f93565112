"""Completions as the columns that `celeriac_1_cycle` takes. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from celeriac.drivers.postgres import calls
from celeriac.drivers.postgres.arrays import Byteas, Int4s, Int8s, Texts
from celeriac.drivers.postgres.instants import micros
from celeriac.model.message import (
    Ack,
    Completion,
    Dead,
    Delay,
    Envelope,
    Park,
    Receipt,
    Requeue,
    Return,
    Settlement,
    Store,
)

NOTHING: tuple[None, ...] = (None,) * 25
"""The columns where nothing is finished."""
Settled = tuple[int, int | None, str | None, bytes | None]


def parts_of(receipt: Receipt) -> tuple[int, int]:
    """The message and the claim that a receipt's tag names; (-1, 0) for a tag that no claim has made."""
    number, _, claim = receipt.tag.partition(".")
    try:
        return int(number), int(claim)
    except ValueError:
        return -1, 0


def columns(finished: Sequence[tuple[int, Completion]], kept: frozenset[int]) -> tuple[Any, ...]:
    """The parameters for completions with their numbers. Those in `kept` are not settled: they completed a chord. No
    two may have documents of one id. Raises what `failures.is_about_values`."""
    acks: list[tuple[int, int, int]] = []
    others: list[tuple[int, int, int, Settled]] = []
    rung: dict[str, None] = {}
    stores: list[tuple[int, Store]] = []
    envelopes: list[Envelope] = []
    owners: list[int] = []
    for number, completion in finished:
        receipt = completion.receipt
        if receipt is not None and number not in kept:
            message, claim = parts_of(receipt)
            if type(completion.settlement) is Ack:
                acks.append((number, message, claim))
            else:
                settled = _settled(completion.settlement)
                others.append((number, message, claim, settled))
                if settled[0] in (1, 2):
                    rung[receipt.queue] = None
        if completion.store is not None:
            stores.append((number, completion.store))
        if completion.publish:
            envelopes += completion.publish
            owners += [number] * len(completion.publish)
    return (*_acknowledged(acks), *_others(others, rung), *_stored(stores), *_published(envelopes, owners))


def _acknowledged(acks: list[tuple[int, int, int]]) -> tuple[Any, ...]:
    if not acks:
        return (None,) * 3
    numbers, messages, claims = zip(*acks, strict=True)
    return Int4s(numbers), Int8s(messages), Int8s(claims)


def _others(others: list[tuple[int, int, int, Settled]], rung: dict[str, None]) -> tuple[Any, ...]:
    if not others:
        return (None,) * 8
    numbers, messages, claims, settled = zip(*others, strict=True)
    kinds, dues, words, blobs = zip(*settled, strict=True)
    return (
        Int4s(numbers), Int8s(messages), Int8s(claims), Int4s(kinds), Int8s(dues), Texts(words), Byteas(blobs),
        Texts(list(rung)) if rung else None,
    )  # fmt: skip


def _stored(stores: list[tuple[int, Store]]) -> tuple[Any, ...]:
    if not stores:
        return (None,) * 6
    ids, states, expires, documents, guarded = calls.stored([store for _, store in stores])
    return Int4s([number for number, _ in stores]), ids, states, expires, documents, guarded


def _published(envelopes: list[Envelope], owners: list[int]) -> tuple[Any, ...]:
    if not envelopes:
        return (None,) * 8
    found, places = calls.columns(envelopes, remember=False)
    return Int4s([owners[place] for place in places]), *calls.packed(found)


def _settled(settlement: Settlement) -> Settled:
    match settlement:
        case Return(blob=blob):
            return 1, None, None, blob
        case Requeue(blob=blob):
            return 2, None, None, blob
        case Delay(until=until, blob=blob):
            return 3, micros(until), None, blob
        case Park(key=key):
            return 4, None, key, None
        case Dead(reason=reason):
            return 5, None, reason.replace("\x00", ""), None
        case _:
            raise TypeError(f"{settlement} is no settlement")
