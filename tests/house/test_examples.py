"""The examples run as their folders are, with a worker, on a SQLite file of their own."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

from tests.processes import ROOT, SOURCE, Project
from tests.servers import PostgresServer


def play(tmp_path: Path, example: str, *scripts: tuple[str, ...]) -> str:
    """Start the example's worker and run its scripts; return what they printed."""
    folder = tmp_path / example
    shutil.copytree(ROOT / "examples" / example, folder)
    (folder / "pyproject.toml").touch()  # the folder is a project: its messages lie in it
    project = Project(folder, {})
    printed = ""
    with project.worker("-c", "2") as worker:
        for words in scripts:
            with project.python(*words) as script:
                assert script.wait(60) == 0, script.output + worker.output
                printed += script.output
        assert worker.terminate() == 0, worker.output
    assert (folder / ".celeriac" / "celeriac.db").exists()
    return printed


def test_quickstart(tmp_path: Path) -> None:
    """The first task of the README gives what the quickstart says."""
    assert play(tmp_path, "quickstart", ("send.py",)) == "5\n"


def test_tour(tmp_path: Path) -> None:
    """Each part of the tour does what it shows."""
    lines = play(tmp_path, "tour", ("send.py",), ("send_async.py",)).splitlines()
    assert re.fullmatch(r"[0-9a-f-]{36} 5", lines[0])
    assert lines[1:5] == ["5 5", "[3, 7, 11]", "5", "raised: as asked FAILURE"]
    assert lines[5].split()[0] in ("PENDING", "PROGRESS", "SUCCESS")
    assert lines[6:] == ["100 SUCCESS", "/shoes /hats", "half done", "charged Ada once at most", "10.0"]


def test_canvas(tmp_path: Path) -> None:
    """Each shape of the canvas page gives what the page says."""
    lines = play(tmp_path, "canvas", ("send.py",), ("stamps.py",)).splitlines()
    assert lines == [
        "tasks.add(2, 3) 5", "5", "5", "5", "11 10 5", "45", "[0, 2, 4, 6, 8] 5 True", "[0, 2, 4, 6, 8]", "[2, 4, 6]",
        "[3, 7]", "[[0, 2, 4], [6, 8, 10]]", "raised: 2 as asked", "6",
        "{'customer': 'Ada', 'stamped_headers': ['customer']}", "[4, 4]",
    ]  # fmt: skip


def test_sql_results(tmp_path: Path) -> None:
    """Results lie in Celery's table, for any program that reads SQL."""
    lines = play(tmp_path, "sql_results", ("send.py",)).splitlines()
    assert lines == ["6.0", "[('tasks.convert', 'SUCCESS', 3), ('tasks.total', 'SUCCESS', 1)]"]


def test_chords(tmp_path: Path) -> None:
    """Those of the canvas page do too."""
    lines = play(tmp_path, "canvas", ("chords.py",)).splitlines()
    assert lines == ["6 [2, 4]", "12", "7", "raised: ValueError('2 as asked')"]


def test_demo(tmp_path: Path) -> None:
    """The demo's project counts the words of any text."""
    (tmp_path / "text.md").write_text("carrot celery celeriac celery\n")
    printed = play(tmp_path, "demo", ("run.py", str(tmp_path / "text.md"), str(tmp_path / "text.md")))
    assert [line.split() for line in printed.splitlines()] == [["4", "celery"], ["2", "carrot"], ["2", "celeriac"]]


def test_beside_celery(tmp_path: Path) -> None:
    """The Celery project of the page about mixed queues is a Celery project: real Celery runs it."""
    folder = tmp_path / "beside_celery"
    shutil.copytree(ROOT / "examples" / "beside_celery", folder)
    project = Project(folder, {})
    path = os.pathsep.join((str(folder), str(SOURCE)))
    code = "import proj; print(type(proj.app).__module__, proj.not_moved_yet(), sorted(proj.app.tasks)[-1])"
    with project.celery_python("-c", code, env={"PYTHONPATH": path}) as process:
        assert process.wait(30) == 0, process.output
        assert process.output == "celery.app.base run by Celery proj.not_moved_yet\n"


def test_postgres(tmp_path: Path, postgres_server: PostgresServer) -> None:
    """A task is sent within a transaction, and never was after a rollback."""
    folder = tmp_path / "postgres"
    shutil.copytree(ROOT / "examples" / "postgres", folder)
    project = Project(folder, {}, {"DATABASE_URL": postgres_server.database()})
    with project.worker("-c", "1", app="shop"):
        for words, said in (
            (("order.py",), "order 1 of Ada\nPENDING\n"),
            (("alchemy.py",), "order 3 of Eve\n"),
            (("asynchronous.py",), "order 4 of Cleo\n"),
        ):  # fmt: skip
            with project.python(*words) as script:
                assert script.wait(60) == 0, script.output
                assert script.output == said


def test_history(tmp_path: Path) -> None:
    """The checker of histories says what was broken."""
    project = Project(tmp_path, {})
    with project.python(str(ROOT / "examples" / "history" / "judge.py")) as script:
        assert script.wait(30) == 0, script.output
        assert [line.partition(":")[0] for line in script.output.splitlines()] == ["lost", "started twice"]
