"""Signatures as trees: chains laid flat, groups before a step made chords, every id given, and the results that come of
them. Pure; what is given is not changed."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from celeriac.errors import InvalidTaskError

Signature = Mapping[str, Any]
Next = Callable[[], str]
"""Gives the next id."""

CHAIN, GROUP, CHORD, CHUNKS = "chain", "group", "chord", "chunks"
MEMBERSHIP = ("group_id", "group_index", "chord")
"""Options that make a task a member of a chord."""


class Node:
    """A result that will be: of a task, or of a group (`members`)."""

    __slots__ = ("id", "members", "parent")

    def __init__(self, id: str, members: list[Node] | None = None) -> None:
        self.id = id
        self.members = members
        self.parent: Node | None = None

    def root(self) -> Node:
        """The first result on the way to this one."""
        node = self
        while node.parent is not None:
            node = node.parent
        return node

    def leaves(self) -> Iterator[str]:
        """Ids of the tasks that it is made of."""
        if self.members is None:
            yield self.id
        else:
            for member in self.members:
                yield from member.leaves()

    def as_tuple(self) -> list[Any]:
        """The tuple by which Celery stores results: `[[id, parent], members or null]`."""
        line: list[Node] = [self]
        while line[-1].parent is not None:
            line.append(line[-1].parent)
        form: Any = None
        for node in reversed(line):
            members = None if node.members is None else [member.as_tuple() for member in node.members]
            form = [[node.id, form], members]
        found: list[Any] = form
        return found


# --- reading signatures, which may come from anywhere


def kind(signature: Any) -> str:
    """chain, group, chord, chunks or "" for a single task. Raises InvalidTaskError for what is no signature."""
    if not isinstance(signature, Mapping) or not isinstance(signature.get("task"), str):
        raise InvalidTaskError(f"not a signature: {type(signature).__name__}")
    found = signature.get("subtask_type")
    return found if found in (CHAIN, GROUP, CHORD, CHUNKS) else ""


def options(signature: Signature) -> dict[str, Any]:
    """A copy of its options, without those that are None and an id that is none."""
    found = {k: v for k, v in mapping(signature.get("options"), "options").items() if v is not None}
    if "task_id" in found and not (isinstance(found["task_id"], str) and found["task_id"]):
        del found["task_id"]
    return found


def stamps(own: Mapping[str, Any]) -> Sequence[Any]:
    """Names of the stamps among options."""
    return sequence(own.get("stamped_headers"), "stamped_headers")


def keywords(signature: Signature) -> Mapping[str, Any]:
    """Its keyword arguments."""
    return mapping(signature.get("kwargs"), "kwargs")


def mapping(value: Any, what: str) -> Mapping[str, Any]:
    """A mapping, {} for None. Raises InvalidTaskError."""
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise InvalidTaskError(f"{what} of a signature must be a mapping, not {type(value).__name__}")
    return value


def sequence(value: Any, what: str) -> Sequence[Any]:
    """A sequence, () for None. Raises InvalidTaskError."""
    if value is None:
        return ()
    if not isinstance(value, Sequence) or isinstance(value, str | bytes):
        raise InvalidTaskError(f"{what} of a signature must be a list, not {type(value).__name__}")
    return value


def listed(value: Any, what: str) -> list[Any]:
    """Signatures of an option that holds one, several or none."""
    return [value] if isinstance(value, Mapping) else list(sequence(value, what))


def tasks(signature: Signature) -> list[Any]:
    """Members of a chain or group."""
    found = keywords(signature).get("tasks")
    if isinstance(found, Iterator):
        found = list(found)
    return list(sequence(found, "tasks"))


def header(signature: Signature) -> Signature:
    """The header of a chord as a group."""
    found = keywords(signature).get("header")
    if isinstance(found, Iterator):
        found = list(found)
    if isinstance(found, Mapping):
        if kind(found) in (GROUP, CHUNKS):
            return found
        found = tasks(found) if kind(found) == CHAIN else [found]
    return group(list(sequence(found, "header")))


def group(members: list[Any], **more: Any) -> dict[str, Any]:
    """A group signature."""
    return _form("celery.group", GROUP, {"tasks": members}, more)


def chain(steps: list[Any], **more: Any) -> dict[str, Any]:
    """A chain signature."""
    return _form("celery.chain", CHAIN, {"tasks": steps}, more)


def chord(head: Signature, body: Signature | None, **more: Any) -> dict[str, Any]:
    """A chord signature."""
    return _form("celery.chord", CHORD, {"header": head, "body": body, "kwargs": {}}, more)


def _form(task: str, subtask_type: str, kwargs: dict[str, Any], more: dict[str, Any]) -> dict[str, Any]:
    return {
        "task": task, "args": (), "kwargs": kwargs, "options": more, "subtask_type": subtask_type, "immutable": False,
    }  # fmt: skip


def with_options(signature: Signature, **more: Any) -> dict[str, Any]:
    """A copy with options beside or in place of its own."""
    return {**signature, "options": {**options(signature), **more}}


# --- laying flat


def steps(signature: Signature) -> list[Signature]:
    """The steps of a chain, one after the other: single tasks, chords, and at the end perhaps a group. Inner chains are
    laid flat, groups of one are their member, empty groups vanish, a group before a step is the header of a chord, and
    what follows a chord is part of its body."""
    waiting = deque(_linked(signature))
    flat: list[Signature] = []
    while waiting:
        step = waiting.popleft()
        if kind(step) == CHAIN:
            waiting.extendleft(reversed(_linked(step)))
            continue
        if kind(step) in (GROUP, CHUNKS):
            members = flattened(step)
            if len(members) == 1:
                waiting.appendleft(members[0])
                continue
            if not members:
                continue
        flat.append(step)
    for at, step in enumerate(flat[:-1]):
        if kind(step) in (GROUP, CHUNKS):
            return [*flat[:at], chord(step, _joined(flat[at + 1 :]))]
        if kind(step) == CHORD:
            body = keywords(step).get("body")
            rest = flat[at + 1 :]
            joined = _joined(rest) if body is None else followed(body, rest)
            return [*flat[:at], {**step, "kwargs": {**keywords(step), "body": joined}}]
    return flat


def _joined(found: list[Any]) -> Signature:
    return found[0] if len(found) == 1 else chain(found)


def followed(body: Signature, rest: list[Any]) -> Signature:
    """The body of a chord with steps behind it. A group there is a header also when it has one member, unless a chord
    follows: a step gets a list of one, each member of a header gets the one."""
    members = flattened(body) if kind(body) in (GROUP, CHUNKS) else []
    if len(members) > 1 or (members and kind(rest[0]) != CHORD):
        return chord(body, _joined(rest))
    return chain([body, *rest])


def _linked(signature: Signature) -> list[Any]:
    """A chain's tasks, with what is said of the chain as a whole: links for the last, error links for each."""
    found = tasks(signature)
    of_whole = options(signature)
    if found and "link_error" in of_whole:
        found = [with_errors(step, listed(of_whole["link_error"], "link_error")) for step in found]
    if found and "link" in of_whole:
        found[-1] = with_links(found[-1], listed(of_whole["link"], "link"))
    return found


def with_links(signature: Signature, links: Sequence[Any]) -> Signature:
    """With more links of its result. Of a group they hang on the first member, and can't get what the others return."""
    what = kind(signature)
    if what in (GROUP, CHUNKS):
        members = flattened(signature)
        if members:
            members[0] = with_links(members[0], [{**link, "immutable": True} for link in links])
        return {**group(members), "options": options(signature)}
    if what == CHORD:
        kwargs = keywords(signature)
        return {**signature, "kwargs": {**kwargs, "body": with_links(kwargs["body"], links)}}
    return _more(signature, "link", links)


def with_errors(signature: Signature, errors: Sequence[Any]) -> Signature:
    """With more error links, for each task of it; for the body of a chord, not its header."""
    what = kind(signature)
    if what in (GROUP, CHUNKS):
        members = [with_errors(member, errors) for member in flattened(signature)]
        return {**group(members), "options": options(signature)}
    if what == CHORD:
        kwargs = keywords(signature)
        return {**signature, "kwargs": {**kwargs, "body": with_errors(kwargs["body"], errors)}}
    return _more(signature, "link_error", errors)  # a chain hands them to its steps


def _more(signature: Signature, key: str, more: Sequence[Any]) -> dict[str, Any]:
    own = options(signature)
    there = listed(own.get(key), key)
    own[key] = [*there, *(one for one in more if one not in there)]
    return {**signature, "options": own}


def flattened(signature: Signature) -> list[Signature]:
    """Members of a group; groups among them are replaced by their members, empty chains left out."""
    if kind(signature) == CHUNKS:
        return _chunks(signature)
    of_whole = options(signature)
    found: list[Signature] = []
    for member in tasks(signature):
        what = kind(member)
        if what in (GROUP, CHUNKS):
            found += flattened(member)
        elif what == CHAIN:
            inner = steps(member)
            if inner:
                found.append(member)
        else:
            found.append(member)
    if "link_error" in of_whole:
        errors = listed(of_whole["link_error"], "link_error")
        found = [with_errors(member, errors) for member in found]
    if "link" in of_whole and found:
        links = [{**link, "immutable": True} for link in listed(of_whole["link"], "link")]
        found[0] = with_links(found[0], links)
    return found


def _chunks(signature: Signature) -> list[Signature]:
    given = keywords(signature)
    items = given.get("it")
    items = list(items) if isinstance(items, Iterator) else list(sequence(items, "it"))
    size = given.get("n")
    if not isinstance(size, int) or size < 1:
        raise InvalidTaskError(f"chunks of {size!r} items")
    own = options(signature)
    return [
        {
            "task": "celery.starmap", "args": (), "kwargs": {"task": given.get("task"), "it": items[at : at + size]},
            "options": dict(own), "subtask_type": None, "immutable": True,
        }
        for at in range(0, len(items), size)
    ]  # fmt: skip


# --- giving ids


class Freezer:
    """Gives ids: `new` gives the next one, `more` are options that each task gets where it has none of its own."""

    def __init__(self, new: Next, more: Mapping[str, Any] | None = None) -> None:
        self._new = new
        self._more = more or {}

    def freeze(self, signature: Signature, task_id: str | None = None) -> tuple[dict[str, Any], Node]:
        """The signature laid flat, with an id for each of its tasks, and the result that comes of it. Ids that stand in
        it are kept; `task_id` is that of its result."""
        what = kind(signature)
        own = options(signature)
        if what == CHAIN:
            return self._chain(signature, own, own.get("task_id") or task_id)
        if what in (GROUP, CHUNKS):
            group_id = own.get("task_id") or task_id or self._new()
            pairs = [self.freeze(member) for member in flattened(signature)]
            kept = {k: v for k, v in own.items() if k not in ("link", "link_error")}
            frozen = group([member for member, _ in pairs], **{**kept, "task_id": group_id})
            return frozen, Node(group_id, [node for _, node in pairs])
        if what == CHORD:
            return self._chord(signature, own, task_id)
        own["task_id"] = own.get("task_id") or task_id or self._new()
        return {**signature, "options": {**self._more, **own}}, Node(own["task_id"])

    def _chain(self, signature: Signature, own: dict[str, Any], task_id: str | None) -> tuple[dict[str, Any], Node]:
        flat = steps(signature)
        if not flat:
            return self.freeze(group([]), task_id)
        marks = {key: own[key] for key in MEMBERSHIP if key in own}
        frozen: list[Any] = []
        previous: Node | None = None
        for at, step in enumerate(flat):
            last = at == len(flat) - 1
            done, node = self.freeze(step, task_id if last else None)
            node.root().parent = previous
            previous = node
            frozen.append(mark(done, marks) if last and marks else done)
        assert previous is not None
        kept = {k: v for k, v in own.items() if k not in ("link", "link_error", *MEMBERSHIP)}
        return {**signature, "kwargs": {"tasks": frozen}, "options": {**kept, "task_id": previous.id}}, previous

    def _chord(self, signature: Signature, own: dict[str, Any], task_id: str | None) -> tuple[dict[str, Any], Node]:
        body = keywords(signature).get("body")
        if body is None:
            raise InvalidTaskError("a chord without a body")
        head, head_node = self.freeze(header(signature), own.pop("task_id", None))
        for key, attach in (("link", with_links), ("link_error", with_errors)):
            if key in own:
                body = attach(body, listed(own.pop(key), key))
        done, node = self.freeze(body, task_id)
        node.root().parent = head_node
        marks = {key: own.pop(key) for key in MEMBERSHIP if key in own}
        if marks:
            done = mark(done, marks)
        own["task_id"] = head_node.id  # from here a Celery worker takes the header's id
        kwargs = {**keywords(signature), "header": head, "body": done}
        return {**signature, "kwargs": kwargs, "options": own}, node


def mark(signature: Signature, marks: Mapping[str, Any]) -> dict[str, Any]:
    """Make a member of a chord of what ends last in it. (A group passes it on when it is sent.)"""
    what = kind(signature)
    if what == CHAIN:
        found = tasks(signature)
        return {**signature, "kwargs": {**keywords(signature), "tasks": [*found[:-1], mark(found[-1], marks)]}}
    if what == CHORD:
        kwargs = keywords(signature)
        return {**signature, "kwargs": {**kwargs, "body": mark(kwargs["body"], marks)}}
    return with_options(signature, **marks)


def size(signature: Signature) -> int:
    """How many tasks of a frozen signature end as members of the chord that it is marked for."""
    what = kind(signature)
    if what == CHAIN:
        found = tasks(signature)
        return size(found[-1]) if found else 0
    if what == CHORD:
        return size(keywords(signature)["body"])
    if what == GROUP:
        return sum(map(size, tasks(signature)))
    return 1


def singles(signature: Signature, marks: Mapping[str, Any] | None = None) -> Iterator[dict[str, Any]]:
    """Every task of a frozen signature, as it would be sent, whatever shape it is in: headers first. `marks` of a group
    reach its members."""
    what = kind(signature)
    if what == CHAIN:
        for step in tasks(signature):
            yield from singles(step)
    elif what == CHORD:
        yield from singles(header(signature))
        body = keywords(signature).get("body")
        if body is not None:
            yield from singles(body)
    elif what == GROUP:
        own = options(signature)
        passed = {key: own[key] for key in MEMBERSHIP if key in own} if "chord" in own else {}
        for member in tasks(signature):
            yield from singles(mark(member, passed) if passed else member)
    else:
        yield dict(signature)
        for step in reversed(sequence(options(signature).get("chain"), "chain")):
            yield from singles(step)
