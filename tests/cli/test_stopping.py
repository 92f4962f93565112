"""A worker that is told to stop: what runs is finished, or given back, and nothing is lost or counted."""

from __future__ import annotations

import json
import signal
import time
from pathlib import Path

import pytest

from tests.processes import Project

TASKS = """
import pathlib, time
from celeriac import Celeriac

app = Celeriac("tasks")
app.conf.task_track_started = True


@app.task
def work(name, seconds):
    pathlib.Path(f"{name}.began").touch()
    time.sleep(seconds)
    pathlib.Path(f"{name}.ended").touch()
    return name
"""


@pytest.fixture(params=["sqlite", "redis"])
def project(request: pytest.FixtureRequest, tmp_path: Path) -> Project:
    """A project on each broker in turn."""
    url = f"sqlite:///{tmp_path}/celeriac.db"
    if request.param == "redis":
        url = request.getfixturevalue("clean_redis_url")
    env = {"CELERY_BROKER_URL": url, "CELERY_RESULT_BACKEND": url}
    return Project(tmp_path, {"tasks.py": TASKS}, env)


def send(project: Project, name: str, seconds: float) -> str:
    """Send a task from the command line; its id."""
    code, output = project.run("call", "tasks.work", "-a", json.dumps([name, seconds]))
    assert code == 0, output
    return output.strip()


def ready(project: Project) -> int:
    """How many messages wait."""
    code, output = project.run("queues", "-Q", "celery", "--json")
    assert code == 0, output
    (row,) = json.loads(output)["queues"]
    assert row["in_flight"] == row["dead"] == 0
    count: int = row["ready"]
    return count


def began(project: Project, name: str) -> None:
    """Wait until a task has begun."""
    end = time.monotonic() + 15
    while not (project.folder / f"{name}.began").exists():
        assert time.monotonic() < end, f"{name} did not begin"
        time.sleep(0.02)


def test_term_lets_the_running_task_finish(project: Project) -> None:
    """TERM: the task that runs is finished, what has not begun stays in the queue, exit code 0."""
    first, second = send(project, "first", 1.5), send(project, "second", 0)
    with project.worker("-c", "1") as worker:
        began(project, "first")
        assert worker.terminate() == 0, worker.output
    assert project.run("result", first, "--timeout", "1") == (0, "first\n")
    assert not (project.folder / "second.began").exists()
    assert ready(project) == 1
    with project.worker("-c", "1"):
        assert project.run("result", second, "--timeout", "10") == (0, "second\n")


@pytest.mark.parametrize("signals", [(signal.SIGQUIT,), (signal.SIGINT, signal.SIGINT)])
def test_quit_gives_back_what_runs(project: Project, signals: tuple[int, ...]) -> None:
    """QUIT, or the second Ctrl-C: the task is ended at once and its message is in the queue again, first in line."""
    first, second = send(project, "first", 60), send(project, "second", 0)
    with project.worker("-c", "1") as worker:
        began(project, "first")
        for number in signals:  # one after the other: two of a kind that are pending count as one
            worker.send(number)
            worker.wait_for(rf"shutdown \({signal.Signals(number).name}\)")
        worker.wait(15)
        assert not worker.children()
    assert not (project.folder / "first.ended").exists()
    assert ready(project) == 2
    code, output = project.run("queues", "show", "celery", "--json")
    assert code == 0, output
    assert [entry["task_id"] for entry in json.loads(output)] == [first, second]
