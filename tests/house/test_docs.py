"""The docs are true: generated pages are up to date, snippets come from files that run, what they name exists."""

from __future__ import annotations

import re
import runpy
import subprocess
from functools import cache
from pathlib import Path

import click
import pytest

from celeriac.cli.main import cli
from celeriac.model.settings import SETTINGS
from tests.processes import ROOT

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
LINK = re.compile(r"\]\(([^)#]+)(?:#[^)]*)?\)")


def fences(path: Path, *languages: str) -> list[str]:
    """The fenced blocks of a page in these languages."""
    return [text for language, text in FENCE.findall(path.read_text()) if language in languages]


@cache
def examples() -> str:
    """The texts of all examples, which `test_examples` runs."""
    return "\n\n".join(path.read_text() for path in sorted((ROOT / "examples").rglob("*.py")))


def test_generated_pages_are_up_to_date() -> None:
    """What the docs take from the code is what the code says now (`make docs` writes it anew)."""
    generate = runpy.run_path(str(ROOT / "docs" / "generate.py"))
    for name, text in generate["pages"]().items():
        assert (ROOT / "docs" / name).read_text() == text, name


def test_python_snippets_come_from_examples() -> None:
    """Every Python snippet stands, as it is, in an example that a test runs."""
    for path in PAGES:
        for snippet in fences(path, "python"):
            assert snippet.strip() in examples(), f"{path.name}:\n{snippet}"


def test_fences_say_their_language() -> None:
    """Every fenced block says what it is, so that none escapes these tests."""
    for path in PAGES:
        for language, text in FENCE.findall(path.read_text()):
            assert language in {"python", "sh", "console", "text", "toml", "ini"} or "docs/decisions" in str(path) or (
                path.name == "internals.md"
            ), f"{path.name}: {text}"


def test_the_readme_has_two_commands() -> None:
    """A newcomer runs two commands, and .ci/run runs the same two."""
    assert [line for block in fences(ROOT / "README.md", "sh") for line in block.split("\n") if line] == [
        "make demo",
        "make test",
    ]


def commands() -> list[tuple[str, str]]:
    """Every command line of celeriac that a page names, in blocks and in the running text."""
    found = []
    for path in PAGES:
        if path.name == "cli.md":
            continue
        lines = [line for block in fences(path, "console", "sh") for line in block.split("\n")]
        lines += re.findall(r"`(celeriac [^`]+)`", path.read_text())
        found += [(path.name, line) for line in lines if line.startswith("celeriac ")]
    return found


@pytest.mark.parametrize(("page", "line"), commands())
def test_commands_in_the_docs_exist(page: str, line: str) -> None:
    """Every command line that a page names can be read by the command, options and all."""
    words = line.split()[1:]
    if words == ["demo"] or "--help" in words or "--version" in words:
        return
    context = cli.make_context("celeriac", words, auto_envvar_prefix="")
    _parse(cli, context, [*context._protected_args, *context.args])


def _parse(group: click.Group, context: click.Context, words: list[str]) -> None:
    if not words:
        return
    name, command, rest = group.resolve_command(context, words)
    assert command is not None
    inner = command.make_context(name, rest, parent=context)
    if isinstance(command, click.Group):
        _parse(command, inner, [*inner._protected_args, *inner.args])


def test_links_lead_somewhere() -> None:
    """Every link between pages leads to a file."""
    for path in PAGES:
        for target in LINK.findall(path.read_text()):
            if "://" not in target:
                assert (path.parent / target).exists(), f"{path.name} -> {target}"


def test_named_settings_exist() -> None:
    """What looks like a setting in a page is one."""
    families = r"`((?:task|worker|result|broker|beat|control|event)_[a-z_]+)`"
    for path in PAGES:
        for name in re.findall(families, path.read_text()):
            assert name in SETTINGS or name == "task_id", f"{path.name}: {name}"


def test_named_tests_exist() -> None:
    """A proof that a page names is a test, by its name alone."""
    there = "\n".join(path.read_text() for path in (ROOT / "tests").rglob("test_*.py"))
    for path in PAGES:
        for name in re.findall(r"`(test_\w+)`", path.read_text()):
            assert f"def {name}(" in there, f"{path.name}: {name}"


def test_every_page_is_in_the_index() -> None:
    """The index leads to every page."""
    index = (ROOT / "docs" / "index.md").read_text()
    for path in sorted((ROOT / "docs").glob("*.md")):
        assert path.name == "index.md" or f"({path.name})" in index, path.name


def test_nothing_of_one_machine_is_in_the_repository() -> None:
    """No file names a package registry's host or a path of the machine on which it was written."""
    forbidden = [
        "pypi" + ".org", "python" + "hosted", "npmjs" + ".org", "deb." + "debian", "proxy.golang" + ".org",
        "crates" + ".io", "repo.maven" + ".apache", "/wo" + "rk/", "/fa" + "rm/", "/ro" + "ot/", "/tmp/d" + "ev",
        "/tmp/cel" + "eryenv",
    ]  # fmt: skip
    names = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in filter(None, names.split("\0")):
        path = ROOT / name
        if not path.is_file() or path.suffix in {".rdb", ".db", ".bin"}:
            continue
        text = path.read_text(errors="replace")
        for word in forbidden:
            assert word not in text, f"{name}: {word}"
