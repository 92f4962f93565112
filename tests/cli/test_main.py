"""The door of the command: what is wrong ends in one line and Celery's exit code."""

from __future__ import annotations

from importlib.metadata import EntryPoint
from pathlib import Path

import click
import pytest

from tests.cli.conftest import Command


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["wroker"], "no such command 'wroker'; did you mean 'worker'?"),
        (["zzz"], "no such command 'zzz'; see celeriac --help"),
        (["beat"], "there is no 'beat': periodic tasks are not part of this version"),
        (["--frob"], "no such option"),
        (["worker", "--frob"], "(see celeriac worker --help)"),
        (["worker", "-A", "x"], "-A stands before the command: celeriac -A MODULE worker"),
        (["worker", "-b", "x"], "-b stands before the command: celeriac -b URL worker"),
        (["worker"], "which app? Say celeriac -A MODULE COMMAND"),
        (["worker", "--autoscale", "3,1"], "there is no --autoscale: autoscaling is not part of this version"),
        (["worker", "-B"], "there is no --beat"),
        (["worker", "-D"], "there is no --detach: let a supervisor"),
        (["worker", "-c", "none"], "'none' is neither a number above 0 nor `auto`"),
        (["worker", "-c", "0"], "'0' is neither a number above 0"),
        (["worker", "-P", "carrots"], "'carrots' is not one of"),
        (["worker", "-l", "LOUD"], "'LOUD' is not one of"),
        (["worker", "-n", "w%z"], "unknown format %z"),
        (["worker", "--time-limit", "1", "--soft-time-limit", "2"], "must not be longer than --time-limit"),
        (["worker", "-Q", "a,b", "-X", "b"], "queue 'b' is both in -Q and in -X"),
        (["worker", "word"], "'word' is neither an option nor a setting"),
        (["call", "t", "-a", "{"], "is not JSON"),
        (["call", "t", "-a", "{}"], "'{}' is not a JSON list"),
        (["call", "t", "-k", "[]"], "'[]' is not a JSON object"),
        (["call", "t", "--eta", "soon"], "'soon' is not an ISO 8601 time"),
        (["call", "t", "--eta", "2030-01-01T00:00", "--countdown", "1"], "say --eta or --countdown, not both"),
        (["call"], "missing argument 'NAME'"),
        (["queues", "retry", "q"], "say which: one or more ids, or --all"),
        (["queues", "remove", "q", "id", "--all", "-f"], "say which"),
        (["control", "revoke"], "missing argument"),
        (["inspect", "activ"], "no such command"),
        (["--workdir", "nowhere", "queues"], "--workdir nowhere: No such file or directory"),
        (["-A", "nowhere", "worker"], "there is no module 'nowhere'"),
        (["-A", "nowhere:app", "queues"], "there is no module 'nowhere'"),
        (["-b", "carrot://x", "queues"], "carrot"),
    ],
)
def test_what_is_wrong_is_one_line(command: Command, words: list[str], said: str) -> None:
    """A wrong word, URL or app: one line on stderr that says what to do, nothing on stdout, exit code 2."""
    done = command(*words)
    assert done.code == 2
    assert said in done.err
    assert done.err.count("\n") == 1
    assert done.err.startswith("celeriac: ")
    assert done.out == ""


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("def broken(:\n", "SyntaxError"),
        ("import nothing_like_it\n", "ModuleNotFoundError: No module named 'nothing_like_it' (project.py, line 1)"),
        ("x = 1\n1 / 0\n", "ZeroDivisionError: division by zero (project.py, line 2)"),
        ("x = 1\n", "has no app"),
    ],
)
def test_a_project_that_can_not_be_imported_is_one_line(
    command: Command, tmp_path: Path, text: str, said: str
) -> None:
    """An error of the project's own code is named with its file and line, without a traceback."""
    (tmp_path / "project.py").write_text(text)
    done = command("-A", "project", "worker")
    assert done.code == 2
    assert said in done.err
    assert done.err.count("\n") == 1


def test_no_broker_is_one_line(command: Command) -> None:
    """A broker that refuses: one line, exit code 69."""
    done = command("-b", "redis://127.0.0.1:1/0", "queues")
    assert done.code == 69
    assert done.err.count("\n") == 1
    assert "127.0.0.1:1" in done.err


def test_help_is_help(command: Command) -> None:
    """`--help`, and no word at all, print the help and exit 0."""
    done = command("--help")
    assert (done.code, done.err) == (0, "")
    assert "worker" in done.out
    assert command().out == done.out


def test_version(command: Command) -> None:
    """`--version` says which celeriac and which Python."""
    done = command("--version")
    assert done.code == 0
    assert done.out.startswith("celeriac 0.")


def test_commands_of_other_packages(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands of the entry point group `celery.commands` are found, and see the session as Celery's context."""
    point = EntryPoint("carrot", "tests.cli.test_main:carrot", "celery.commands")
    monkeypatch.setattr("importlib.metadata.entry_points", lambda group: [point])
    done = command("-q", "carrot", "--size", "3")
    assert (done.code, done.out) == (0, "3 True\n")
    assert "carrot From tests.cli.test_main." in " ".join(command("--help").out.split())


def test_a_broken_command_of_another_package(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    """A command of another package that can't be imported is named when it is called, and harms no other."""
    point = EntryPoint("carrot", "tests.cli.nowhere:carrot", "celery.commands")
    monkeypatch.setattr("importlib.metadata.entry_points", lambda group: [point])
    done = command("carrot")
    assert done.code == 1
    assert "command 'carrot' of tests.cli.nowhere:carrot can't be loaded" in done.err
    assert command("--help").code == 0


@click.command()
@click.option("--size", type=int)
@click.pass_context
def carrot(ctx: click.Context, size: int) -> None:
    """A command of another package."""
    ctx.obj.echo(f"{size} {ctx.obj.quiet}")
