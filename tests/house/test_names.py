"""Every public name says what it is."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Iterator
from importlib import import_module

from tests.house.code import modules
from tests.processes import ROOT

FORBIDDEN = {"base", "utils", "util", "helpers", "helper", "common", "manager", "misc"}


def undocumented(module: str, tree: ast.Module) -> Iterator[str]:
    """Public classes, functions and methods without a docstring. A method is told by the protocol that has its name, or
    by the class from which it is inherited."""
    if not ast.get_docstring(tree):
        yield f"{module}: the module itself"
    for node in tree.body:
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) or node.name.startswith("_"):
            continue
        if not ast.get_docstring(node) and not _is_signature(node):
            yield f"{module}:{node.lineno} {node.name}"
        for method in node.body if isinstance(node, ast.ClassDef) else ():
            if (
                isinstance(method, ast.FunctionDef | ast.AsyncFunctionDef)
                and not method.name.startswith("_")
                and not ast.get_docstring(method)
                and not _is_signature(method)
                and method.name not in TOLD
                and not _inherits_words(module, node.name, method.name)
            ):
                yield f"{module}:{method.lineno} {node.name}.{method.name}"


def _is_signature(node: ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) -> bool:
    """An overload for type checkers, or the setter of a property that its getter has told."""
    names = {ast.unparse(decorator).rpartition(".")[2] for decorator in node.decorator_list}
    return bool(names & {"overload", "setter", "deleter"})


def _inherits_words(module: str, owner: str, method: str) -> bool:
    return bool(inspect.getdoc(getattr(getattr(import_module(module), owner), method)))


def _told() -> Iterator[str]:
    """The methods of all protocols: of `ports` by their names, which speak for themselves, of others by docstrings."""
    for module, (_, tree) in modules().items():
        for node in tree.body:
            if isinstance(node, ast.ClassDef) and any(ast.unparse(base).startswith("Protocol") for base in node.bases):
                for method in node.body:
                    if isinstance(method, ast.FunctionDef | ast.AsyncFunctionDef) and (
                        module == "celeriac.ports" or ast.get_docstring(method)
                    ):
                        yield method.name


TOLD = frozenset(_told())


def test_public_names_are_documented() -> None:
    """Every public module, class, function and method has a docstring."""
    missing = [
        name
        for module, (_, tree) in modules().items()
        if not any(part.startswith("_") for part in module.split(".")[1:] if part != "__main__")
        for name in undocumented(module, tree)
    ]
    assert not missing, "\n".join(missing)


def test_files_are_nouns() -> None:
    """No file is called by a word that says nothing."""
    for module in modules():
        assert not FORBIDDEN & set(module.rpartition(".")[2].split("_")), module


def test_no_marks_are_left() -> None:
    """Nothing is put off in a comment."""
    marks = ("TO" + "DO", "FIX" + "ME", "XX" + "X", "HA" + "CK")
    for module, (path, _) in modules().items():
        for number, line in enumerate(path.read_text().splitlines(), 1):
            assert not any(mark in line.split() or f"# {mark}" in line for mark in marks), f"{module}:{number}"


def test_test_folders_are_packages() -> None:
    """Every folder with tests is a package, so that two files of one name don't stand for each other."""
    for path in (ROOT / "tests").rglob("test_*.py"):
        assert (path.parent / "__init__.py").exists(), path.parent
