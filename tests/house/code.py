"""The package as a graph: its modules, and who imports whom, also lazily and for type checkers only."""

from __future__ import annotations

import ast
from collections import defaultdict
from functools import cache
from pathlib import Path

from tests.processes import SOURCE

PACKAGE = SOURCE / "celeriac"


@cache
def modules() -> dict[str, tuple[Path, ast.Module]]:
    """Dotted name -> file and syntax tree of every module of the package."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(SOURCE).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path, ast.parse(path.read_text())
    return found


@cache
def imports() -> dict[str, dict[str, int]]:
    """Module -> the modules of the package that it imports anywhere in its text, with the line."""
    edges: dict[str, dict[str, int]] = defaultdict(dict)
    for module, (path, tree) in modules().items():
        package = module if path.name == "__init__.py" else module.rpartition(".")[0]
        for node in ast.walk(tree):
            for target in _targets(node, package):
                if target != module:
                    edges[module].setdefault(target, node.lineno)  # type: ignore[attr-defined]
    return edges


def _targets(node: ast.AST, package: str) -> list[str]:
    known = modules()
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names if alias.name in known]
    if not isinstance(node, ast.ImportFrom):
        return []
    stem = node.module or ""
    if node.level:
        above = package.split(".")[: len(package.split(".")) - node.level + 1]
        stem = ".".join([*above, *([node.module] if node.module else [])])
    named = [f"{stem}.{alias.name}" for alias in node.names]
    return [name if name in known else stem for name in named if name in known or stem in known]


def room(module: str) -> str:
    """The room (a folder, or a file that stands alone) in which a module lies."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else "celeriac"


def circles(edges: dict[str, dict[str, int]]) -> list[list[str]]:
    """The sets of modules that reach each other, by Tarjan's algorithm."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []

    def visit(node: str) -> None:
        index[node] = low[node] = len(index)
        stack.append(node)
        for target in edges.get(node, {}):
            if target not in index:
                visit(target)
                low[node] = min(low[node], low[target])
            elif target in stack:
                low[node] = min(low[node], index[target])
        if low[node] == index[node]:
            place = stack.index(node)
            members = stack[place:]
            del stack[place:]
            if len(members) > 1:
                found.append(sorted(members))

    for node in list(edges):
        if node not in index:
            visit(node)
    return found
