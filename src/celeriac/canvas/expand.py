"""From a signature of any shape to the messages that have to be sent now. Pure: ids come from `name`, nothing is
sent."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from celeriac.canvas import tree
from celeriac.canvas.tree import Node, Signature
from celeriac.errors import InvalidTaskError

Name = Callable[[str, int], str]
"""`(edge, index)` -> the id of what follows from this run by that edge. The same for a run that is repeated."""

OF_LAST = frozenset({"link", "link_error", "task_id", *tree.MEMBERSHIP})
"""Options of a chain that are not its first task's."""
NOT_OF_BODY = frozenset({"countdown", "eta", "parent_id", "task_id"})
"""Options of a chord that its body does not get."""
NOT_OF_HEADER = frozenset({"link", "link_error", "chain", "task_id", "reply_to", *tree.MEMBERSHIP})


@dataclass(slots=True)
class Call:
    """One message."""

    task: str
    args: list[Any]
    kwargs: dict[str, Any]
    options: dict[str, Any]
    """As `apply_async` takes them: task_id, root_id, parent_id, chain (the next step last), chord, link, queue ..."""
    edge: str
    index: int
    """With the edge it names the message among all that follow from a run."""


@dataclass(slots=True)
class Opened:
    """A chord whose members are among the calls."""

    group: str
    size: int
    body: dict[str, Any]
    members: list[str]
    """`task id:index` of those whose end counts."""
    structure: list[Any] | None
    """The header's result tuple, where a member's result is a group itself; the body gets lists of lists then."""


@dataclass(slots=True)
class Expansion:
    """What has to be sent, and the result of the whole."""

    result: Node
    calls: list[Call] = field(default_factory=list)
    chords: list[Opened] = field(default_factory=list)


@dataclass(slots=True)
class _Where:
    """What a signature gets from where it stands."""

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    chain: list[Any]
    """Steps behind it, the next one last."""
    options: dict[str, Any]
    """Given when it is sent; they override its own."""


class _Expander:
    def __init__(
        self, name: Name, edge: str, defaults: Mapping[str, Any], over: Mapping[str, Any], errors_in_header: bool
    ) -> None:
        self._name = name
        self._edge = edge
        self._defaults = defaults
        self._over = over
        self._errors_in_header = errors_in_header
        self._ids = 0
        more = {"reply_to": defaults["reply_to"]} if defaults.get("reply_to") else None
        self.freeze = tree.Freezer(self._new, more).freeze
        self.calls: list[Call] = []
        self.chords: list[Opened] = []

    def _new(self) -> str:
        self._ids += 1
        return self._name(self._edge, self._ids - 1)

    def send(self, signature: Signature, where: _Where) -> None:
        what = tree.kind(signature)
        if what == tree.CHAIN:
            self._chain(signature, where)
        elif what == tree.GROUP:
            self._group(signature, where)
        elif what == tree.CHORD:
            self._chord(signature, where)
        else:
            self._single(signature, where)

    def _single(self, signature: Signature, where: _Where) -> None:
        own = tree.options(signature)
        kept = {"task_id", "group_id", "stamped_headers", *tree.stamps(own)}
        more = {k: v for k, v in where.options.items() if v is not None and not (k in kept and k in own)}
        found = {**self._defaults, **own, **more, **self._over}
        if "stamped_headers" in own and "stamped_headers" in self._defaults:
            names = (*tree.stamps(self._defaults), *tree.stamps(own))
            found["stamped_headers"] = list(dict.fromkeys(names))
        found["chain"] = [*where.chain, *tree.sequence(own.get("chain"), "chain")] or None
        args = list(tree.sequence(signature.get("args"), "args"))
        kwargs = dict(tree.keywords(signature))
        if not signature.get("immutable"):
            args = [*where.args, *args]
            kwargs |= where.kwargs
        self.calls.append(Call(signature["task"], args, kwargs, found, self._edge, len(self.calls)))

    def _chain(self, signature: Signature, where: _Where) -> None:
        steps = tree.tasks(signature)
        own = {k: v for k, v in tree.options(signature).items() if k not in OF_LAST}
        given = {k: v for k, v in where.options.items() if k not in OF_LAST}
        marks = {k: v for k, v in where.options.items() if k in tree.MEMBERSHIP}
        if "link_error" in where.options:
            steps = [tree.with_errors(step, where.options["link_error"]) for step in steps]
        if marks:
            steps[-1] = tree.mark(steps[-1], marks)
        args = () if signature.get("immutable") else where.args
        args = (*args, *tree.sequence(signature.get("args"), "args"))
        self.send(
            steps[0], _Where(args, where.kwargs, [*where.chain, *reversed(steps[1:])], {**own, **given})
        )

    def _group(self, signature: Signature, where: _Where) -> None:
        own = tree.options(signature)
        given = {**{k: v for k, v in own.items() if k not in NOT_OF_HEADER}, **where.options}
        given.pop("task_id", None)
        member_of = own if "chord" in own else given
        marks = {k: member_of[k] for k in tree.MEMBERSHIP if k in member_of} if "chord" in member_of else None
        for index, member in enumerate(tree.tasks(signature)):
            # where the whole group is a member of a chord, so is each of its tasks
            place = marks or {"group_id": own["task_id"], "group_index": index}
            self.send(member, _Where(where.args, where.kwargs, [], {**given, **place}))

    def _chord(self, signature: Signature, where: _Where) -> None:
        kwargs = tree.keywords(signature)
        head, body = tree.header(signature), kwargs["body"]
        group_id = tree.options(head)["task_id"]
        own = {**tree.options(signature), **where.options}
        behind = [*where.chain, *tree.sequence(own.pop("chain", None), "chain")]
        if behind:
            body, _ = self.freeze(tree.followed(body, [*reversed(behind)]))
        marks = {key: own.pop(key) for key in tree.MEMBERSHIP if key in own}
        if marks:
            body = tree.mark(body, marks)
        if "link_error" in own:
            body = tree.with_errors(body, own.pop("link_error"))
        of_body = tree.options(body)
        kept = {"stamped_headers", *tree.stamps(of_body)}
        more = {k: v for k, v in own.items() if k not in NOT_OF_BODY and not (k in kept and k in of_body)}
        # of a body of several tasks the group would be taken for the chord that it is a member of
        known = {} if tree.kind(body) else {"group_id": group_id}
        body = tree.with_options(body, **{**known, **of_body, **more})
        members = tree.tasks(head)
        if not members:
            self.send(body, _Where(([],), {}, [], {}))
            return
        given = {k: v for k, v in own.items() if k not in NOT_OF_HEADER}
        if self._errors_in_header and "link_error" in of_body:
            errors = tree.listed(of_body["link_error"], "link_error")
            given["link_error"] = [{**error, "immutable": True} for error in errors]
        args = () if signature.get("immutable") else where.args
        args = (*args, *tree.sequence(signature.get("args"), "args"))
        keywords = {**tree.mapping(kwargs.get("kwargs"), "kwargs"), **where.kwargs}
        nodes: list[Node] = []
        leaves: list[str] = []
        for index, member in enumerate(members):
            place = {"group_id": group_id, "group_index": index, "chord": body}
            self.send(_unmarked(member), _Where(args, keywords, [], {**given, **place}))
            _, node = self.freeze(member)
            nodes.append(node)
            leaves += (f"{leaf}:{index}" for leaf in node.leaves())
        size = sum(map(tree.size, members))
        if not size:  # members that end in nothing: nobody would ever count
            self.send(body, _Where(([_nothing(node) for node in nodes],), {}, [], {}))
            return
        nested = any(node.members is not None for node in nodes)
        structure = Node(group_id, nodes).as_tuple() if nested else None
        self.chords.append(Opened(group_id, size, body, leaves, structure))


def _nothing(node: Node) -> list[Any]:
    return [_nothing(member) for member in node.members or ()]


def _unmarked(signature: Signature) -> Signature:
    own = signature.get("options") or {}
    if not any(key in own for key in tree.MEMBERSHIP):
        return signature
    return {**signature, "options": {k: v for k, v in own.items() if k not in tree.MEMBERSHIP}}


def expand(
    signature: Signature,
    args: Sequence[Any] = (),
    kwargs: Mapping[str, Any] | None = None,
    *,
    name: Name,
    edge: str = "",
    root_id: str | None = None,
    parent_id: str | None = None,
    priority: int | None = None,
    chain: Sequence[Any] = (),
    options: Mapping[str, Any] | None = None,
    defaults: Mapping[str, Any] | None = None,
    errors_in_header: bool = False,
) -> Expansion:
    """What is to be sent when `signature` is applied to `args` and `kwargs`.

    `chain`: steps that come behind it, the next one last. `options`: given at this call; they override the signature's.
    `root_id` and `parent_id` are those of the run that sends it, `priority` and `defaults` (stamps, reply_to) count
    where nothing else is said. Raises InvalidTaskError for what is no signature."""
    given = {k: v for k, v in (options or {}).items() if v is not None}
    whole: Signature = signature
    if chain and tree.kind(signature):
        whole = tree.chain([signature, *reversed(chain)])
        chain = ()
    for key, attach in (("link", tree.with_links), ("link_error", tree.with_errors)):
        if key in given:
            whole = attach(whole, tree.listed(given.pop(key), key))
    over = {key: value for key, value in (("root_id", root_id), ("parent_id", parent_id)) if value is not None}
    fallback = dict(defaults or {})
    if priority is not None:
        fallback["priority"] = priority
    expander = _Expander(name, edge, fallback, over, errors_in_header)
    try:
        frozen, node = expander.freeze(whole, given.pop("task_id", None))
        expander.send(frozen, _Where(tuple(args), kwargs or {}, list(chain), given))
    except RecursionError:
        raise InvalidTaskError("signatures are nested too deeply, or contain themselves") from None
    return Expansion(node, expander.calls, expander.chords)
