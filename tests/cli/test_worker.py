"""What `celeriac worker` makes of its options."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

import pytest

from celeriac.model.worker_options import WorkerOptions
from tests.cli.conftest import Command

APP = "from celeriac import Celeriac\napp = Celeriac('proj')\n"


@pytest.fixture
def started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[WorkerOptions]:
    """The options with which workers were started, instead of running them."""
    (tmp_path / "proj.py").write_text(APP)
    found: list[WorkerOptions] = []

    def run_worker(app: Any, options: WorkerOptions) -> int:
        assert app.main == "proj"
        found.append(options)
        return 0

    monkeypatch.setattr("celeriac.app.start.run_worker", run_worker)
    return found


def test_nothing_said_means_nothing_set(command: Command, started: list[WorkerOptions], tmp_path: Path) -> None:
    """Without options the app's settings decide."""
    assert command("-A", "proj", "worker").code == 0
    name = f"celery@{socket.gethostname()}"
    assert started == [WorkerOptions(hostname=name, app_spec="proj", workdir=str(tmp_path))]


def test_every_option_arrives(command: Command, started: list[WorkerOptions], tmp_path: Path) -> None:
    """What is said arrives as it was said, with its type."""
    words = (
        "-n w1@%h -c 3 -P threads -Q a,b -X c -I m,n -l debug -f w-%n.log -E --time-limit 20 --soft-time-limit 1.5 "
        "--max-tasks-per-child 100 --max-memory-per-child 200000 --prefetch-multiplier 2 --disable-prefetch --purge "
        "--pool-start-method spawn --in-process --without-heartbeat --heartbeat-interval 5 --lease 10 "
        "worker.send_task_events=1 .concurrency=9"
    )
    done = command("-q", "-C", "-A", "proj:app", "worker", *words.split())
    assert (done.code, done.err) == (0, "")
    assert started == [
        WorkerOptions(
            hostname=f"w1@{socket.gethostname()}", concurrency=3, pool="threads", queues=("a", "b"),
            exclude_queues=("c",), include=("m", "n"), loglevel="DEBUG", logfile="w-w1.log", color=False, quiet=True,
            task_events=True, time_limit=20, soft_time_limit=1.5, max_tasks_per_child=100, max_memory_per_child=200000,
            prefetch_multiplier=2, disable_prefetch=True, start_method="spawn", purge=True, in_process=True,
            heartbeat=False, heartbeat_interval=5, lease=10, app_spec="proj:app", workdir=str(tmp_path),
            settings=("worker.send_task_events=1", ".concurrency=9"),
        )
    ]  # fmt: skip


def test_the_environment_speaks_too(
    command: Command, started: list[WorkerOptions], monkeypatch: pytest.MonkeyPatch
) -> None:
    """CELERY_WORKER_<OPTION> is an option that was not said, CELERY_APP is -A."""
    monkeypatch.setenv("CELERY_APP", "proj")
    monkeypatch.setenv("CELERY_WORKER_CONCURRENCY", "7")
    monkeypatch.setenv("CELERY_WORKER_QUEUES", "x,y")
    assert command("worker").code == 0
    assert command("worker", "-c", "2").code == 0
    assert [(options.concurrency, options.queues) for options in started] == [(7, ("x", "y")), (2, ("x", "y"))]


@pytest.mark.parametrize(
    ("words", "field", "value"),
    [
        (("-c", "auto"), "concurrency", None),
        (("-P", "processes"), "pool", "prefork"),
        (("-l", "fatal"), "loglevel", "CRITICAL"),
        (("-n", "w1"), "hostname", "celery@w1"),
        (("--discard",), "purge", True),
        (("--events",), "task_events", True),
    ],
)
def test_celerys_other_words(
    command: Command, started: list[WorkerOptions], words: tuple[str, ...], field: str, value: Any
) -> None:
    """Celery's second names mean the same."""
    assert command("-A", "proj", "worker", *words).code == 0
    found = getattr(started[0], field)
    assert found == value or (field == "concurrency" and found >= 1)


@pytest.mark.parametrize(
    "words", [("-S", "state.db"), ("-O", "fair"), ("--without-gossip",), ("--without-mingle",)]
)
def test_what_is_not_needed_is_said_once(
    command: Command, started: list[WorkerOptions], words: tuple[str, ...]
) -> None:
    """Options that have nothing to switch here are read, with one line that says why."""
    done = command("-A", "proj", "worker", *words)
    assert done.code == 0
    assert len(started) == 1
    assert done.err.count("\n") == 1
    assert "is not needed" in done.err


def test_a_pidfile_is_held_while_it_runs(
    command: Command, started: list[WorkerOptions], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The pidfile is there while the worker runs, and a second worker is refused with exit code 73."""
    path = tmp_path / "w-w1.pid"

    def nested(app: Any, options: WorkerOptions) -> int:
        assert path.exists()
        done = command("-A", "proj", "worker", "-n", "w1@x", "--pidfile", "w-%n.pid")
        assert done.code == 73
        return 0

    monkeypatch.setattr("celeriac.app.start.run_worker", nested)
    assert command("-A", "proj", "worker", "-n", "w1@x", "--pidfile", "w-%n.pid").code == 0
    assert not path.exists()


def test_root_and_pickle_are_refused(
    command: Command, started: list[WorkerOptions], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker that runs as root does not accept pickle, unless it is forced to."""
    (tmp_path / "proj.py").write_text(APP + "app.conf.accept_content = ['json', 'pickle']\n")
    monkeypatch.setattr("os.getuid", lambda: 0)
    done = command("-A", "proj", "worker")
    assert done.code == 2
    assert "accepts pickle" in done.err
    monkeypatch.setenv("C_FORCE_ROOT", "1")
    assert command("-A", "proj", "worker").code == 0
    assert len(started) == 1


def test_settings_of_the_command_line_reach_the_app(
    command: Command, started: list[WorkerOptions], tmp_path: Path
) -> None:
    """`key=value` words are settings of the app; one that does not exist is refused."""
    done = command("-A", "proj", "worker", "worker_concurency=4")
    assert done.code == 2
    assert "did you mean worker_concurrency?" in done.err
    assert done.err.count("\n") == 1
