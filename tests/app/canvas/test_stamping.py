"""Stamps and visitors, beyond what the golden expressions show."""

from __future__ import annotations

from typing import Any

import pytest

from celeriac.app.canvas import StampingVisitor, chain, chord, group
from celeriac.model.message import Chord
from tests.app.conftest import Broker


class Recorder(StampingVisitor):
    """Writes down what it visits, and stamps each task with a number."""

    def __init__(self) -> None:
        self.seen: list[str] = []

    def _note(self, what: str, sig: Any) -> None:
        self.seen.append(f"{what} {sig.task.rpartition('.')[2]}")

    def on_signature(self, sig: Any, **headers: Any) -> dict[str, Any]:
        self._note("task", sig)
        return {"number": len(self.seen)}

    def on_group_start(self, group: Any, **headers: Any) -> None:
        self._note("group", group)

    def on_group_end(self, group: Any, **headers: Any) -> None:
        self._note("end of", group)

    def on_chain_start(self, chain: Any, **headers: Any) -> None:
        self._note("chain", chain)

    def on_chain_end(self, chain: Any, **headers: Any) -> None:
        self._note("end of", chain)

    def on_chord_body(self, sig: Any, **header: Any) -> dict[str, Any]:
        self._note("body of", sig)
        return {"in_body": True}

    def on_callback(self, callback: Any, **header: Any) -> dict[str, Any]:
        self._note("link", callback)
        return {"linked": len(self.seen)}

    def on_errback(self, errback: Any, **header: Any) -> None:
        self._note("error link", errback)


def test_a_visitor_must_say_something() -> None:
    """Of single tasks at least."""
    with pytest.raises(TypeError, match="abstract"):
        StampingVisitor()  # type: ignore[abstract]


def test_the_order_of_visits(t: Any) -> None:
    """Outside first, links before the task they hang on."""
    visitor = Recorder()
    chain(t.add.s(1), group([t.add.s(2), t.mul.s(3).set(link=t.xsum.s())]), t.xsum.s()).stamp(visitor)
    assert visitor.seen == [
        "chain chain", "task add", "group group", "task add", "link xsum", "task xsum", "task mul", "end of group",
        "body of chord", "task xsum", "end of chain",
    ]  # fmt: skip


def test_each_link_has_stamps_of_its_own(t: Any) -> None:
    """What is said of one link is not said of the next; each task of a chain has its own error link."""
    sig = t.add.s(1).set(link=[t.mul.s(1), t.mul.s(2)])
    sig.stamp(Recorder())
    assert [link.options["linked"] for link in sig.options["link"]] == [1, 3]
    line = chain(t.add.s(0), chain(t.add.s(1), t.add.s(2)).on_error(t.err.s()), t.add.s(3))
    line.stamp(Recorder())
    numbers = [task.options["link_error"][0].options["number"] for task in line.tasks[1:3]]
    assert len(set(numbers)) == 2


def test_stamps_travel(t: Any, broker: Broker, opened: list[Chord]) -> None:
    """Into the headers of every message, and the forms of what follows; a call can't override them."""
    whole = chain(t.add.s(1), group([t.add.s(2), t.add.s(3)]), t.xsum.s())
    assert whole.stamp(color="red") is whole
    whole.apply_async(color="green")
    message = broker.last()
    assert (message.stamps, message.stamped_headers) == ({"color": "red"}, ["color"])
    (follows,) = message.chain or []
    body = follows["kwargs"]["body"]
    assert (body["options"]["color"], body["options"]["stamped_headers"]) == ("red", ["color"])
    chord([t.add.s(1)], t.xsum.s()).stamp(color="red").delay()
    assert broker.last().chord["options"]["color"] == "red"
    assert broker.last().stamps == {"color": "red"}


def test_links_as_dicts(t: Any) -> None:
    """Links that came over the wire are stamped too."""
    sig = t.add.s(1).set(link=[dict(t.mul.s(1))], link_error=dict(t.err.s()))
    sig.stamp(color="red")
    assert sig.options["link"][0]["options"]["color"] == "red"
    assert sig.options["link_error"][0]["options"]["color"] == "red"
