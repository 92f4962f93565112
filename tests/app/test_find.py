"""How `-A` finds the app."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from celeriac.app.find import find_app, import_tasks
from celeriac.errors import ImproperlyConfigured

numbers = itertools.count()
APP = "from celeriac import Celeriac\n{name} = Celeriac('{main}', set_as_current=False)\n"
Write = Callable[..., str]


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Write]:
    """Writes files of a package with a name of its own; returns that name."""
    monkeypatch.chdir(tmp_path)
    path, before = list(sys.path), set(sys.modules)
    sys.path.remove(str(tmp_path)) if str(tmp_path) in sys.path else None

    def write(**files: str) -> str:
        name = f"proj{next(numbers)}"
        folder = tmp_path / name
        folder.mkdir()
        (folder / "__init__.py").write_text("")
        for file, text in files.items():
            (folder / f"{file}.py").write_text(text)
        return name

    yield write
    sys.path[:] = path
    for name in set(sys.modules) - before:
        if name.startswith("proj"):
            del sys.modules[name]


def app(name: str = "app", main: str = "found") -> str:
    """Text of a module with an app."""
    return APP.format(name=name, main=main)


def test_every_way_to_name_an_app(project: Write) -> None:
    """Attribute, module, package, file."""
    name = project(celery=app(), other=app("thing"), plain=app("queue"))
    for spelled in (
        f"{name}", f"{name}.celery", f"{name}.celery:app", f"{name}.celery.app", f"{name}.other:thing",
        f"{name}.other.thing", f"{name}.plain", f"{name}/celery.py", f"./{name}/other.py", f"{name}:celery",
    ):  # fmt: skip
        assert find_app(spelled).main == "found", spelled


def test_the_order_in_a_module(project: Write) -> None:
    """`app`, then `celery`, then any; what is no app does not count."""
    both = app("first", "first") + app("celery", "celery") + app("app", "app")
    name = project(
        a=both, b=app("first", "first") + app("celery", "celery"), c=app("first", "first"),
        d="app = object()\n" + app("celery", "celery"), __init__=app("app", "package"), celery=app("app", "celery"),
    )  # fmt: skip
    assert [find_app(f"{name}.{module}").main for module in "abcd"] == ["app", "celery", "first", "celery"]
    assert find_app(name).main == "package"


def test_a_package_that_imports_its_app(project: Write) -> None:
    """`proj/__init__.py` with `from .celery import app as celery_app`, as Celery's own guide has it."""
    name = project(__init__="from .celery import app as celery_app\n", celery=app())
    assert find_app(name).main == "found"


@pytest.mark.parametrize(
    ("spelled", "words"),
    [
        ("nosuchmodule", "there is no module 'nosuchmodule'"),
        ("{name}.missing", "there is no module '{name}.missing'"),
        ("{name}.celery:missing", "module '{name}.celery' has no attribute 'missing'; it has {name}.celery:app"),
        ("{name}.empty", "module '{name}.empty' has no app; make one"),
        ("{name}.empty:x", "it has no app at all"),
        ("{name}.celery:number", "that is a int, not an app"),
        ("{name}.celery.number", "that is a int, not an app"),
        ("", "no app is named"),
        ("..", "not a module name"),
    ],
)
def test_a_wrong_one_is_told_in_one_line(project: Write, spelled: str, words: str) -> None:
    """What is wrong, and what there is instead."""
    name = project(celery=app() + "number = 1\n", empty="")
    with pytest.raises(ImproperlyConfigured) as caught:
        find_app(spelled.format(name=name))
    assert words.format(name=name) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_errors_of_the_project_are_its_own(project: Write) -> None:
    """What its code raises while it is imported is raised as it is."""
    name = project(celery="import missing_dependency_of_test", broken="1 / 0")
    with pytest.raises(ModuleNotFoundError, match="missing_dependency_of_test"):
        find_app(f"{name}.celery")
    with pytest.raises(ZeroDivisionError):
        find_app(f"{name}.broken")
    with pytest.raises(ModuleNotFoundError, match="missing_dependency_of_test"):
        find_app(name)


def test_another_working_directory(project: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Modules are looked for there."""
    name = project(celery=app())
    monkeypatch.chdir("/")
    assert find_app(name, workdir=str(tmp_path)).main == "found"


def test_the_module_tasks_is_imported(project: Write) -> None:
    """`pkg.tasks` of the app's package, when nothing else has imported it."""
    name = project(celery=app(), tasks="seen = 1\n")
    found = find_app(name)
    assert import_tasks(found) == f"{name}.tasks"
    assert import_tasks(found) is None
    lone = find_app(project(celery=app()))
    assert import_tasks(lone) is None
