"""Has real Celery build the expressions of `EXPRESSIONS` and send those of `CALLS`, and prints what came of it. Run by
Celery's own Python, and by the tests, which have celeriac do the same."""

from __future__ import annotations

import copy
import json
import sys
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any


def stamper(api: Any, **said: Any) -> Any:
    """A visitor that says what is given by the name of the method."""

    def answer(name: str) -> Any:
        return lambda self, sig, **headers: dict(said.get(name, {}))

    names = (
        "on_signature", "on_group_start", "on_chain_start", "on_chord_body", "on_callback", "on_errback",
    )  # fmt: skip
    space = {name: answer(name) for name in names if name == "on_signature" or name in said}
    return type("Visitor", (api.StampingVisitor,), space)()


def stamped(signature: Any, *args: Any, **how: Any) -> Any:
    """The signature, stamped."""
    signature.stamp(*args, **how)
    return signature


def linked(signature: Any, link: Any = None, error: Any = None) -> Any:
    """The signature, with links."""
    if link is not None:
        signature.link(link)
    if error is not None:
        signature.link_error(error)
    return signature


EXPRESSIONS: dict[str, Callable[[Any], Any]] = {
    "single": lambda t: t.add.s(1, y=2),
    "immutable": lambda t: t.add.si(1),
    "options": lambda t: t.add.s(1).set(queue="q", countdown=3, immutable=True),
    "clone": lambda t: t.add.s(2, y=3).clone((1,), {"y": 4}, queue="r"),
    "clone immutable": lambda t: t.add.si(2).clone((1,), {"y": 4}, queue="r"),
    "replace": lambda t: t.add.s(2).set(queue="q").replace(args=(9,), options={}),
    "links": lambda t: linked(linked(t.add.s(1), t.add.s(2), t.err.s()), t.add.s(3), t.err.s()),
    "two": lambda t: t.add.s(1) | t.add.s(2),
    "three": lambda t: t.add.s(1) | t.add.s(2) | t.mul.s(3),
    "right": lambda t: t.add.s(1) | (t.add.s(2) | t.mul.s(3)),
    "chains": lambda t: (t.add.s(1) | t.add.s(2)) | (t.mul.s(3) | t.mul.s(4)),
    "chain of two": lambda t: t.chain(t.add.s(1), t.add.s(2)),
    "chain of a list": lambda t: t.chain([t.add.s(1), t.add.s(2)]),
    "chain of a generator": lambda t: t.chain(t.add.s(i) for i in range(3)),
    "chain of one": lambda t: t.chain(t.add.s(1)),
    "chain of one in a list": lambda t: t.chain([t.add.s(1)]),
    "empty chain": lambda t: t.chain(),
    "empty chain of a list": lambda t: t.chain([]),
    "empty chain and a step": lambda t: t.chain() | t.add.s(1),
    "empty chain and a group": lambda t: t.chain() | t.group([t.add.s(1), t.add.s(2)]),
    "chain with options": lambda t: t.chain(t.add.s(1), t.add.s(2), queue="q"),
    "chain, raw": lambda t: t.chain(t.add.s(1), t.group([t.add.s(2), t.add.s(3)]), t.add.s(4), app=None),
    "group": lambda t: t.group([t.add.s(1), t.add.s(2)]),
    "group of two": lambda t: t.group(t.add.s(1), t.add.s(2)),
    "group of a generator": lambda t: t.group(t.add.s(i) for i in range(3)),
    "group of one": lambda t: t.group(t.add.s(1)),
    "group of a group": lambda t: t.group(t.group([t.add.s(1), t.add.s(2)])),
    "group in a group": lambda t: t.group([t.group([t.add.s(1), t.add.s(2)]), t.add.s(3)]),
    "empty group": lambda t: t.group([]),
    "group with options": lambda t: t.group([t.add.s(1)], queue="q"),
    "group, cloned": lambda t: t.group([t.add.s(1), t.add.s(2)]).clone(queue="q"),
    "step and group": lambda t: t.add.s(1) | t.group([t.add.s(2), t.add.s(3)]),
    "step and group of one": lambda t: t.add.s(1) | t.group([t.add.s(2)]),
    "chain and empty group": lambda t: (t.add.s(1) | t.add.s(2)) | t.group([]),
    "group and step": lambda t: t.group([t.add.s(1), t.add.s(2)]) | t.xsum.s(),
    "group of one and step": lambda t: t.group([t.add.s(1)]) | t.xsum.s(),
    "group and group": lambda t: t.group([t.add.s(1), t.add.s(2)]) | t.group([t.xsum.s(), t.mul.s(3)]),
    "group and empty group": lambda t: t.group([t.add.s(1), t.add.s(2)]) | t.group([]),
    "group and chain": lambda t: t.group([t.add.s(1), t.add.s(2)]) | (t.xsum.s() | t.mul.s(3)),
    "group, step, step": lambda t: t.group([t.add.s(1), t.add.s(2)]) | t.xsum.s() | t.mul.s(3),
    "step, group, step": lambda t: t.add.s(1) | t.group([t.add.s(2), t.add.s(3)]) | t.xsum.s(),
    "step, group, step, step": lambda t: t.add.s(1) | t.group([t.add.s(2), t.add.s(3)]) | t.xsum.s() | t.add.s(9),
    "step, group, group": lambda t: t.add.s(1) | t.group([t.add.s(2), t.add.s(3)]) | t.group([t.mul.s(2), t.mul.s(3)]),
    "step, group, step, group": lambda t: (
        t.add.s(1) | t.group([t.add.s(2), t.add.s(3)]) | t.xsum.s() | t.group([t.mul.s(2), t.mul.s(3)])
    ),
    "chain folds": lambda t: t.chain(t.add.s(1), t.group([t.add.s(2), t.add.s(3)]), t.xsum.s(), t.mul.s(4)),
    "chain folds, group first": lambda t: t.chain(t.group([t.add.s(2), t.add.s(3)]), t.xsum.s(), t.mul.s(4)),
    "chain folds, twice": lambda t: t.chain(
        t.add.s(1), t.group([t.add.s(2), t.add.s(3)]), t.group([t.mul.s(2), t.mul.s(3)]), t.xsum.s()
    ),
    "chain of a group": lambda t: t.chain([t.group([t.add.s(2), t.add.s(3)])]),
    "chain of a group of one": lambda t: t.chain(t.group([t.add.s(2)]), t.mul.s(1)),
    "chain of a chord": lambda t: t.chain(t.chord([t.add.s(1)], t.xsum.s()), t.mul.s(2)),
    "chain of chords": lambda t: t.chain(t.chord([t.add.s(1)], t.xsum.s()), t.chord([t.add.s(2)], t.xsum.s())),
    "chain of chains": lambda t: t.chain(t.chain(t.add.s(1), t.add.s(2)), t.chain(t.mul.s(1), t.mul.s(2))),
    "chain of a chain with links": lambda t: t.chain(
        t.add.s(0), linked(t.chain(t.add.s(1), t.add.s(2)), t.mul.s(7), t.err.s()), t.mul.s(1)
    ),
    "chord": lambda t: t.chord([t.add.s(1), t.add.s(2)], t.xsum.s()),
    "chord of a group": lambda t: t.chord(t.group([t.add.s(1), t.add.s(2)]), t.xsum.s()),
    "chord of a chain": lambda t: t.chord(t.chain(t.add.s(1), t.add.s(2)), t.xsum.s()),
    "chord of a generator": lambda t: t.chord((t.add.s(i) for i in range(3)), t.xsum.s()),
    "chord of one": lambda t: t.chord(t.add.s(1), t.xsum.s()),
    "chord, empty": lambda t: t.chord([], t.xsum.s()),
    "chord with options": lambda t: t.chord([t.add.s(1)], t.xsum.s(), queue="q", countdown=3),
    "chord without a body": lambda t: t.chord([t.add.s(1)]),
    "chord, cloned": lambda t: t.chord([t.add.s(1)], t.xsum.s()).clone((1,), queue="r"),
    "chord and step": lambda t: t.chord([t.add.s(1)], t.xsum.s()) | t.mul.s(2),
    "chord and chord": lambda t: t.chord([t.add.s(1)], t.xsum.s()) | t.chord([t.add.s(2)], t.xsum.s()),
    "chord and group": lambda t: t.chord([t.add.s(1)], t.xsum.s()) | t.group([t.mul.s(2), t.mul.s(3)]),
    "chord and group of one": lambda t: t.chord([t.add.s(1)], t.xsum.s()) | t.group([t.mul.s(2)]),
    "chord and chain": lambda t: t.chord([t.add.s(1)], t.xsum.s()) | (t.mul.s(2) | t.mul.s(3)),
    "step and chord": lambda t: t.add.s(1) | t.chord([t.add.s(1)], t.xsum.s()),
    "chain and chord and step": lambda t: t.add.s(1) | t.chord([t.add.s(1)], t.xsum.s()) | t.mul.s(2),
    "chord, group, step": lambda t: (
        t.chord([t.add.s(1)], t.xsum.s()) | t.group([t.mul.s(2), t.mul.s(3)]) | t.xsum.s()
    ),
    "deep": lambda t: t.group([
        t.add.s(1) | t.group([t.add.s(2), t.chord([t.add.s(3), t.add.s(4)], t.xsum.s())]) | t.xsum.s(), t.add.s(5),
    ]) | t.xsum.s() | t.group([t.mul.s(1), t.mul.s(2)]),
    "chord, links": lambda t: linked(t.chord([t.add.s(1)], t.xsum.s()), t.mul.s(2), t.err.s()),
    "group, links": lambda t: linked(t.group([t.add.s(1), t.add.s(2)]), t.mul.s(2), t.err.s()),
    "chain, links": lambda t: linked(t.add.s(1) | t.add.s(2), t.mul.s(2), t.err.s()),
    "group, immutable": lambda t: (lambda g: g.set_immutable(True) or g)(t.group([t.add.s(1), t.add.s(2)])),
    "chord, immutable": lambda t: (lambda g: g.set_immutable(True) or g)(t.chord([t.add.s(1)], t.xsum.s())),
    "skew": lambda t: t.group([t.add.s(i) for i in range(5)]).skew(start=1, stop=3.5, step=1.5),
    "map": lambda t: t.add.map([1, 2, 3]),
    "starmap": lambda t: t.add.starmap([(1, 2), (3, 4)]),
    "long map": lambda t: t.add.map(list(range(100))),
    "chunks": lambda t: t.add.chunks([(1, 2), (3, 4), (5, 6)], 2),
    "chunks of a generator": lambda t: t.add.chunks(((i, i) for i in range(3)), 2),
    "chunks as a group": lambda t: t.add.chunks([(1, 2), (3, 4), (5, 6)], 2).group(),
    "map in a chain": lambda t: t.add.s(1) | t.add.map([1, 2]),
    "chunks in a group": lambda t: t.group([t.add.chunks([(1, 2)], 1), t.add.map([1])]),
    "stamp": lambda t: stamped(t.add.s(1), color="red", size=3),
    "stamp twice": lambda t: stamped(stamped(t.add.s(1), color="red"), color="blue"),
    "stamp appended": lambda t: stamped(
        stamped(stamped(t.add.s(1), color="red"), append_stamps=True, color="blue"), append_stamps=True, color="green"
    ),
    "stamp a chain": lambda t: stamped(t.add.s(1) | t.add.s(2), color="red"),
    "stamp a group": lambda t: stamped(t.group([t.add.s(1), t.add.s(2)]), color="red"),
    "stamp a chord": lambda t: stamped(t.chord([t.add.s(1), t.add.s(2)], t.xsum.s()), color="red"),
    "stamp links": lambda t: stamped(linked(t.add.s(1), t.add.s(2), t.err.s()), color="red"),
    "visit": lambda t: stamped(t.add.s(1), stamper(t, on_signature={"a": 1})),
    "visit, named": lambda t: stamped(t.add.s(1), stamper(t, on_signature={"a": 1, "b": 2, "stamped_headers": ["a"]})),
    "visit and say": lambda t: stamped(t.add.s(1), stamper(t, on_signature={"a": 1}), a=2, b=3),
    "visit a chain": lambda t: stamped(
        t.add.s(1) | t.add.s(2), stamper(t, on_signature={"a": 1}, on_chain_start={"c": 1})
    ),
    "visit a group": lambda t: stamped(
        t.group([t.add.s(1), t.add.s(2)]), stamper(t, on_signature={"a": 1}, on_group_start={"g": 1, "a": 0})
    ),
    "visit a chord": lambda t: stamped(
        t.chord([t.add.s(1), t.add.s(2)], t.xsum.s()),
        stamper(t, on_signature={"a": 1}, on_group_start={"g": 1}, on_chord_body={"body": 1}),
    ),
    "visit links": lambda t: stamped(
        linked(t.add.s(1), t.add.s(2), t.err.s()),
        stamper(t, on_signature={"a": 1}, on_callback={"back": 1}, on_errback={"err": 2, "x": 1}),
    ),
    "visit, appended": lambda t: stamped(
        stamped(t.add.s(1), color="red"), stamper(t, on_signature={"color": "blue"}), append_stamps=True, color="green"
    ),
    "visit deep": lambda t: stamped(
        t.add.s(1) | t.group([t.add.s(2), t.add.s(3)]) | t.xsum.s(),
        stamper(t, on_signature={"s": 1}, on_group_start={"g": 1}, on_chain_start={"c": 1}, on_chord_body={"b": 1}),
    ),
    "deep copy": lambda t: t.signature(copy.deepcopy(dict(t.add.s(1) | t.group([t.add.s(2), t.add.s(3)]) | t.mul.s()))),
    "from json": lambda t: t.signature(json.loads(t.dumps(t.add.s(1) | t.group([t.add.s(2), t.add.s(3)]) | t.mul.s()))),
    "chord from json": lambda t: t.signature(json.loads(t.dumps(t.chord([t.add.s(1)], t.xsum.s(), queue="q")))),
}  # fmt: skip
"""Name -> signature. `t` has the tasks, and the names of either of the two packages."""

FROZEN = (
    "single", "three", "chain of one", "group", "group in a group", "group of one", "step and group", "group and step",
    "step, group, step", "group, step, step", "group and group", "chord", "chord and step", "chord and chord",
    "chord and group", "deep", "chain of chords", "chord of a group", "empty group", "chain, raw", "chord, group, step",
)  # fmt: skip
"""Those of which the results are compared that they promise."""

CALLS: dict[str, Callable[[Any], Any]] = {
    "chain": lambda t: (t.add.s(1, 2) | t.add.s(3) | t.mul.s(4)).delay(),
    "chain, arguments": lambda t: (t.add.s(1) | t.add.s(3)).apply_async((7,), {"y": 1}, queue="q", priority=3),
    "chain, links": lambda t: (t.add.s(1) | t.add.s(3)).apply_async(link=t.mul.s(1), link_error=t.err.s()),
    "chain, eta": lambda t: (t.add.s(1) | t.add.s(3).set(countdown=5)).apply_async(eta="2030-01-02T03:04:05+00:00"),
    "group": lambda t: t.group([t.add.s(1, 2), t.mul.s(3)]).apply_async((1,), headers={"h": 1}),
    "group in a group": lambda t: t.group([t.group([t.add.s(1), t.add.s(2)]), t.add.s(3)]).delay(5),
    "group of chains": lambda t: t.group([t.add.s(1) | t.add.s(2), t.add.s(3)]).delay(),
    "group with options": lambda t: t.group([t.add.s(1), t.add.s(2).set(queue="s")], queue="q").delay(),
    "chord": lambda t: t.chord([t.add.s(1), t.add.s(2)], t.xsum.s()).delay(),
    "chord called": lambda t: t.chord([t.add.s(1), t.add.s(2)])(t.xsum.s()),
    "chord, options": lambda t: t.chord([t.add.s(1), t.add.s(2)], t.xsum.s()).apply_async(queue="q", priority=2),
    "chord, eta": lambda t: t.chord([t.add.s(1), t.add.s(2)], t.xsum.s()).apply_async(eta="2030-01-02T03:04:05+00:00"),
    "chord, empty": lambda t: t.chord([], t.xsum.s()).delay(),
    "chain, run": lambda t: (t.add.s(1) | t.mul.s(4)).run((7,), {"y": 1}, queue="q", priority=3),
    "chord, run": lambda t: t.chord([t.add.s(1)], t.mul.s(1), queue="q").run(
        t.group([t.add.s(2), t.add.s(3)]), t.xsum.s(), (5,), priority=3, max_retries=4, interval=2
    ),
    "chord, links": lambda t: t.chord([t.add.s(1), t.add.s(2)], t.xsum.s()).apply_async(link=t.mul.s(2)),
    "chord, chain body": lambda t: (t.group([t.add.s(1), t.add.s(2)]) | t.xsum.s() | t.mul.s(3)).delay(),
    "step and group": lambda t: (t.add.s(1) | t.group([t.add.s(2), t.add.s(3)])).delay(),
    "step, group, step": lambda t: (t.add.s(1) | t.group([t.add.s(2), t.add.s(3)]) | t.xsum.s()).delay(),
    "group and group": lambda t: (t.group([t.add.s(1), t.add.s(2)]) | t.group([t.xsum.s(), t.mul.s(3)])).delay(),
    "map": lambda t: t.add.map([1, 2]).apply_async(),
    "starmap": lambda t: t.add.starmap([(1, 2), (3, 4)]).apply_async(queue="q"),
    "chunks": lambda t: t.add.chunks([(1, 2), (3, 4), (5, 6)], 2)(),
    "stamped": lambda t: stamped(t.add.s(1) | t.group([t.add.s(2), t.add.s(3)]), color="red").delay(),
    "stamped group": lambda t: stamped(t.group([t.add.s(2), t.add.s(3)]), color="red").delay(),
    "immutable chain": lambda t: (t.add.si(1, 2) | t.add.si(3, 4)).delay(),
}  # fmt: skip
"""Name -> a call, whose messages are compared."""
QUEUES = ("celery", "q", "s")


def make_tasks(app: Any) -> dict[str, Any]:
    """The same tasks for either of the two."""

    def take(*args: Any, **kwargs: Any) -> Any:
        return args, kwargs

    return {name: app.task(name=f"proj.{name}")(take) for name in ("add", "mul", "xsum", "err")}


def form(signature: Any, dumps: Any) -> Any:
    """The JSON form."""
    return json.loads(dumps(signature))


def main() -> None:
    """Build all, send all, print all."""
    from celery import Celery, canvas  # type: ignore[import-not-found,import-untyped,unused-ignore]
    from kombu.utils.json import dumps  # type: ignore[import-not-found,import-untyped,unused-ignore]

    app = Celery("x", broker="memory://", backend="cache+memory://")
    tasks = SimpleNamespace(**make_tasks(app), dumps=dumps, **{
        name: getattr(canvas, name) for name in ("chain", "group", "chord", "signature", "StampingVisitor")
    })  # fmt: skip
    app.finalize()
    found: dict[str, Any] = {"forms": {}, "reprs": {}, "links": {}, "unchained": {}, "frozen": {}, "messages": {}}
    for name, make in EXPRESSIONS.items():
        signature = make(tasks)
        found["forms"][name] = form(signature, dumps)
        found["reprs"][name] = repr(signature)
        found["links"][name] = [repr(link) for link in signature.flatten_links()]
        if hasattr(signature, "unchain_tasks"):
            found["unchained"][name] = form(signature.unchain_tasks(), dumps)
    for name in FROZEN:
        found["frozen"][name] = json.loads(dumps(EXPRESSIONS[name](tasks).freeze().as_tuple()))
    with app.connection_for_write() as connection:
        channel = connection.default_channel
        for name, call in CALLS.items():
            call(tasks)
            sent = found["messages"][name] = []
            for queue in QUEUES:
                while queue in channel.queues and channel._size(queue):
                    sent.append([queue, channel._get(queue)])
    json.dump(found, sys.stdout)


if __name__ == "__main__":
    main()
