"""How results hang together: what came before (`parent`), what a task has sent (`children`), members of a group."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from typing import Any

from celeriac.app import registry
from celeriac.errors import IncompleteStream


class ResultBase:
    """What AsyncResult, ResultSet and EagerResult have in common."""

    __slots__ = ()


class Lineage(ResultBase):
    """A result with an id: of a task or of a group."""

    __slots__ = ()

    def iterdeps(self, intermediate: bool = False) -> Iterator[tuple[Any, Any]]:
        """`(parent, node)` of this result and of all that it has sent, breadth first. Raises IncompleteStream at a node
        that has not ended, unless `intermediate`."""
        line: deque[tuple[Any, Any]] = deque([(None, self)])
        seen: set[Any] = set()
        while line:
            parent, node = line.popleft()
            if node.id in seen:
                continue  # a retried task of Celery's names itself among its children
            seen.add(node.id)
            yield parent, node
            if node.ready():
                line.extend((node, child) for child in node.children or ())
            elif not intermediate:
                raise IncompleteStream

    def collect(self, intermediate: bool = False, **how: Any) -> Iterator[tuple[Any, Any]]:
        """`(node, its result)` of this result and of all that it has sent."""
        for _, node in self.iterdeps(intermediate=intermediate):
            yield node, node.get(**how)

    def get_leaf(self) -> Any:
        """The result of the last node of `iterdeps`."""
        value = None
        for _, node in self.iterdeps():
            value = node.get()
        return value

    def build_graph(self, intermediate: bool = False, formatter: Any = None) -> Graph:
        """This result and all that it has sent, as a graph. `formatter` means nothing here."""
        return Graph(self.iterdeps(intermediate=intermediate))

    @property
    def graph(self) -> Graph:
        """`build_graph()`."""
        return self.build_graph()

    def as_tuple(self) -> tuple[Any, Any]:
        """How a result is stored: `((id, parent's tuple or None), None)`, of a group
        `((id, parent's tuple or None), [the members' tuples])`."""
        form: Any = None
        line: list[Any] = [self, *ancestors(self)]
        for node in reversed(line):
            members = getattr(node, "results", None)
            form = (node.id, form), None if members is None else [member.as_tuple() for member in members]
        found: tuple[Any, Any] = form
        return found

    def __json__(self) -> Any:
        """How a result is written into a JSON document."""
        return self.as_tuple()


class Graph(dict[Any, list[Any]]):
    """Result -> the results that it leads to."""

    def __init__(self, edges: Iterable[tuple[Any, Any]] = ()) -> None:
        super().__init__()
        for parent, node in edges:
            self.setdefault(node, [])
            if parent is not None:
                self[parent].append(node)

    def edges(self) -> list[tuple[Any, Any]]:
        """All `(parent, node)`."""
        return [(parent, node) for parent, nodes in self.items() for node in nodes]

    def to_dot(self, file: Any) -> None:
        """Write the graph for Graphviz."""
        file.write("digraph results {\n")
        for node in self:
            file.write(f'    "{node}";\n')
        for parent, node in self.edges():
            file.write(f'    "{parent}" -> "{node}";\n')
        file.write("}\n")


def ancestors(result: Any) -> Iterator[Any]:
    """What came before, the nearest first."""
    node = getattr(result, "parent", None)
    while node is not None:
        yield node
        node = getattr(node, "parent", None)


def everything(result: Any) -> Iterator[Any]:
    """A result, its members, what came before, and so on."""
    line = [result]
    while line:
        node = line.pop()
        yield node
        line += getattr(node, "results", None) or ()
        parent = getattr(node, "parent", None)
        if parent is not None:
            line.append(parent)


def result_from_tuple(form: Any, app: Any = None) -> Any:
    """The handle that `as_tuple` gave this form of: an AsyncResult, or a GroupResult. A handle is given back."""
    if isinstance(form, ResultBase):
        return form
    app = registry.app_or_default(app)
    line: list[tuple[str, Any]] = []
    result: Any = None
    while form:
        if isinstance(form, str):
            result = app.AsyncResult(form)
            break
        head, members = form
        task_id, form = head if isinstance(head, list | tuple) else (head, None)
        line.append((task_id, members))
    for task_id, members in reversed(line):
        if members is None:
            result = app.AsyncResult(task_id, parent=result)
        else:
            found = [result_from_tuple(member, app) for member in members]
            result = app.GroupResult(task_id, found, parent=result)
    return result
