"""How a canvas is sent: the planner says which calls go out now; they become messages, chords are opened in the result
store, and the broker gets everything at once."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from celeriac.app import bulk, publish
from celeriac.canvas import tree
from celeriac.canvas.expand import Call, Expansion, Opened, expand
from celeriac.canvas.tree import Node
from celeriac.errors import EncodeError
from celeriac.model.message import Chord, Envelope
from celeriac.wire import values
from celeriac.wire.ids import new_id

NO_STORE = (
    "a chord needs a result backend: it counts the members that have ended, and keeps what they returned. Set"
    " result_backend, for example 'redis://localhost/0'"
)
_NOT_PASSED = frozenset({"producer", "publisher", "connection", "result_cls", "add_to_parent"})
_DIRECT = frozenset({"task_id", "reply_to", "group_id", "group_index", "chord", "chain"})
"""Options of a call that the direct path can carry; a chain only if it is empty."""


def send(app: Any, signature: Any, args: Any, kwargs: Any, options: Mapping[str, Any]) -> Any:
    """Send a canvas; returns the handle of the whole. See `Compound.apply_async`."""
    batch = _Batch(app, signature, args, kwargs, options, "apply_async")
    if batch.chords:
        app.reader.open_chords(batch.chords)
    if batch.envelopes:
        publish.publish(app.sender, batch.envelopes, batch.timeout, batch.pauses())
    for task, call in batch.apart:
        task.apply_async(tuple(call.args), call.kwargs, add_to_parent=False, **call.options)
    return batch.sent(options.get("add_to_parent", True))


async def asend(app: Any, signature: Any, args: Any, kwargs: Any, options: Mapping[str, Any]) -> Any:
    """`send` for coroutines."""
    batch = _Batch(app, signature, args, kwargs, options, "aapply_async")
    if batch.chords:
        backend = await app.result_backend()
        await backend.open_chords(batch.chords)
    if batch.envelopes:
        await publish.apublish(app, batch.envelopes, batch.timeout, batch.pauses())
    for task, call in batch.apart:
        await task.aapply_async(tuple(call.args), call.kwargs, add_to_parent=False, **call.options)
    return batch.sent(options.get("add_to_parent", True))


def handle(app: Any, node: Node, ignored: frozenset[str] = frozenset()) -> Any:
    """The handle of a result that will be."""
    line = [node]
    while line[-1].parent is not None:
        line.append(line[-1].parent)
    result: Any = None
    for one in reversed(line):
        above = result
        if one.members is None:
            result = app.AsyncResult(one.id)
            if one.id in ignored:
                result.ignored = True
        else:
            result = app.GroupResult(one.id, [handle(app, member, ignored) for member in one.members])
        result.parent = above
    return result


class _Batch:
    """Everything that is to be known of a canvas before anything is sent."""

    def __init__(
        self, app: Any, signature: Any, args: Any, kwargs: Any, options: Mapping[str, Any], method: str
    ) -> None:
        self._app = app
        self._method = method
        self._expansion = _expand(app, signature, args, kwargs, options)
        self._nothing = not self._expansion.calls and tree.kind(signature) == tree.CHAIN
        self._ways: dict[str, tuple[Any, Any, bool]] = {}
        self._embeds: dict[int, str] = {}
        self._outgoing: list[publish.Outgoing] = []
        self._ignored: set[str] = set()
        self._request = publish.worker_request()
        self.envelopes: list[Envelope] = []
        self.apart: list[tuple[Any, Call]] = []
        """Calls of tasks that have a way of their own to be sent."""
        self.timeout = 0.0
        self.chords = self._chords(self._expansion)
        for call in self._expansion.calls:
            self._add(call)

    def _chords(self, expansion: Expansion) -> list[Chord]:
        app = self._app
        if app.backend.is_disabled and (expansion.chords or any(map(_leads_to_chord, expansion.calls))):
            raise NotImplementedError(NO_STORE)
        return [_chord(app, opened) for opened in expansion.chords]

    def _add(self, call: Call) -> None:
        way = self._ways.get(call.task)
        if way is None:
            way = self._ways[call.task] = self._way(call.task)
        task, plan, apart = way
        options = call.options
        if plan is not None and not options.get("chain") and options.keys() <= _DIRECT and self._replies_here(options):
            self.envelopes.append(
                bulk.envelope(
                    plan, self._request, *bulk.checked(task, plan, tuple(call.args), call.kwargs), options["task_id"],
                    options.get("group_id"), options.get("group_index"), self._embed(options.get("chord")),
                )
            )  # fmt: skip
            self.timeout = max(self.timeout, plan.timeout)
            if plan.ignored:
                self._ignored.add(options["task_id"])
            return
        if publish.manner(self._app).protocol == 1:
            _link_chain(options)
        if apart:
            self.apart.append((task, call))
            return
        if task is None:
            outgoing = self._app.outgoing(call.task, tuple(call.args), call.kwargs, options)
        else:
            outgoing = task.outgoing(tuple(call.args), call.kwargs, options)
        self._outgoing.append(outgoing)
        self.envelopes += outgoing.envelopes
        self.timeout = max(self.timeout, outgoing.timeout)
        if outgoing.message.ignore_result:
            self._ignored.add(outgoing.message.id)

    def _way(self, name: str) -> tuple[Any, Any, bool]:
        """`(task, direct plan or None, whether it is sent apart)`."""
        task = self._app.tasks.get(name)
        if task is None:
            return None, None, False
        if not task.is_sent_plainly(self._method):
            return task, None, True
        return task, task.direct(), False

    def _replies_here(self, options: Mapping[str, Any]) -> bool:
        return options.get("reply_to") in (None, self._app.thread_oid)

    def _embed(self, body: Any) -> str:
        """The part of a message that names its chord; the same for all members, so it is written once."""
        if body is None:
            return ""
        text = self._embeds.get(id(body))
        if text is None:
            text = self._embeds[id(body)] = values.dumps(body)
        return text

    def pauses(self) -> Iterable[float]:
        """Seconds before each further try of sending."""
        return self._outgoing[0].pauses if self._outgoing else self._app.publish_pauses()

    def sent(self, add_to_parent: bool) -> Any:
        """Tell of what was sent. Returns the handle of the whole."""
        app = self._app
        for outgoing in self._outgoing:
            publish.tell_after(app, outgoing)
        if self._nothing:
            return None
        result = handle(app, self._expansion.result, frozenset(self._ignored))
        if add_to_parent and self._request is not None:
            first = result  # what a run has sent itself: what follows from that is recorded there
            while first.parent is not None:
                first = first.parent
            publish.trail(self._request, first)
        return result


def _expand(app: Any, signature: Any, args: Any, kwargs: Any, options: Mapping[str, Any]) -> Expansion:
    found = expand(
        signature,
        tuple(args or ()),
        kwargs,
        name=lambda edge, index: new_id(),
        options={key: value for key, value in options.items() if key not in _NOT_PASSED},
        defaults={"reply_to": app.thread_oid},
        errors_in_header=bool(app.conf["task_allow_error_cb_on_chord_header"]),
    )
    members = found.result.members
    if tree.kind(signature) == tree.GROUP and members is not None and len(members) == 1:
        (only,) = members
        if only.members is not None:
            found.result = only  # a group of one whose result is a group: nothing is gained by one more level
    return found


def _leads_to_chord(call: Call) -> bool:
    return any(tree.kind(step) == tree.CHORD for step in call.options.get("chain") or ())


def _chord(app: Any, opened: Opened) -> Chord:
    structure = b""
    if opened.structure is not None:
        structure, _ = app.backend.group_document(opened.structure)
    try:
        body = values.dumps(opened.body).encode()
    except EncodeError:
        body = b""  # it stands in the messages of the members, in whatever serializer they have
    expires = app.conf.seconds("result_chord_expires") or app.backend.expires()
    return Chord(opened.group, opened.size, body, tuple(opened.members), structure, expires)


def _link_chain(options: dict[str, Any]) -> None:
    """Protocol 1 has no place for a chain: each step is a link of the one before."""
    following: Any = None
    for step in options.pop("chain", None) or ():
        following = step if following is None else tree.with_links(step, [following])
    if following is not None:
        options["link"] = [*publish.many(options.get("link")), following]
