"""What a cycle asks for, and how what it claimed becomes deliveries."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from celeriac.brokers.redis import scripts
from celeriac.brokers.redis.control import Control
from celeriac.brokers.redis.layout import Layout
from celeriac.drivers.redis.protocol import Words, driver
from celeriac.model.message import Delivery, Receipt, Turn


def deliver(plan: Plan, begin: str, unparked: list[Any], claimed: list[Any], deliveries: list[Delivery]) -> None:
    """Make deliveries of what the script claimed. The tags are counted here as they were there."""
    codes = _codes(len(unparked) // 3 + sum(map(len, claimed[1::2])))
    at = 0
    for n in range(0, len(unparked), 3):
        tag = f"{begin}{codes[at]}.{unparked[n + 1].decode()}"
        number: int = unparked[n]
        deliveries.append(Delivery(Receipt(plan.queues[number], tag), unparked[n + 2]))
        at += 1
    for n in range(0, len(claimed), 2):
        queue, ending = plan.sources[claimed[n]]
        for blob in claimed[n + 1]:
            deliveries.append(Delivery(Receipt(queue, f"{begin}{codes[at]}{ending}"), blob))
            at += 1


class Grab:
    """The command that takes one message from one list, packed but for the tag."""

    def __init__(self, layout: Layout, queue: str, step: int, epoch: str, lease: float) -> None:
        self.key = layout.ready(queue, step)
        self._queue = queue
        self._ending = f"0{_LETTERS[0]}.{step}"
        self._words = (
            2, self.key, f"{layout.private}cancelled:version",
            f"{layout.private}workers", epoch, lease, layout.inflight(queue, epoch),
        )  # fmt: skip
        self._head = driver().pack_command(("EVALSHA", scripts.GRAB.digest, *self._words, ""))[: -len(b"0\r\n\r\n")]

    def tag(self, begin: str) -> str:
        """The tag of the message, as a whole cycle would have made it."""
        return begin + self._ending

    def packed(self, tag: str) -> bytes:
        """The command for a server that knows the script. Tags are ASCII."""
        return b"%b%d\r\n%b\r\n" % (self._head, len(tag), tag.encode())

    def whole(self, tag: str) -> Words:
        """The command for a server that does not."""
        return ("EVAL", scripts.GRAB.source, *self._words, tag)

    def turn(self, tag: str, reply: Sequence[Any], next_due: float | None) -> Turn:
        """What the answer says."""
        seconds, micros, version, again, message = reply
        deliveries = [Delivery(Receipt(self._queue, tag), message)] if message else []
        return Turn(deliveries, [], next_due, int(seconds) + int(micros) / 1_000_000, int(version), bool(again))


_LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
_made: list[str] = []


def _codes(count: int) -> list[str]:
    """What the first tags of a cycle have behind their beginning: rounds of the letters, letter."""
    while len(_made) < count:
        turn = len(_made) // len(_LETTERS)
        _made.extend(f"{turn}{letter}" for letter in _LETTERS)
    return _made


class Plan:
    """The unchanging words of a cycle for one order of the queues."""

    def __init__(self, control: Control, queues: Sequence[str], epoch: str, lease: float) -> None:
        self._control = control
        layout = control.layout
        self.queues = queues
        steps = layout.steps
        lists = [layout.ready(queue, step) for step in steps for queue in queues]
        self.sources = [(queue, f".{step}") for step in steps for queue in queues]
        self.keys = [
            *lists, *(f"{layout.base(queue)}due" for queue in queues), f"{layout.private}cancelled:version"
        ]  # fmt: skip
        self.before = (
            "EVALSHA", scripts.CYCLE.digest, len(self.keys), *self.keys,
            layout.prefix, layout.separator, epoch, lease,
        )  # fmt: skip
        self._ending = (
            layout.dead_limit, "0" if layout.strategy == "round_robin" else "1", len(queues), len(steps),
            *queues, *steps,
        )  # fmt: skip

    @property
    def after(self) -> Iterable[Any]:
        """What stands between the beginning of the tags and the parked keys."""
        site = self._control.stores_at
        own = self._control.server.db
        return (_LETTERS, "" if site is None or site.db == own else site.db, own, *self._ending)
