"""The processes that the tests start behave as the tests rely on."""

from __future__ import annotations

import signal
from pathlib import Path

import psutil
import pytest

from tests.processes import Project, celery_python


def test_output_is_collected_and_nothing_outlives(tmp_path: Path) -> None:
    """Closing a process ends what it started too, also what has left its group and lost its parent."""
    text = (
        "import subprocess, sys, time\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'], start_new_session=True)\n"
        "print('child', child.pid, flush=True)\n"
        "time.sleep(60)\n"
    )
    project = Project(tmp_path, {"parent.py": text})
    with project.python("parent.py") as process:
        child = int(process.wait_for(r"^child (\d+)$").group(1))
        assert psutil.pid_exists(child)
        process.send(signal.SIGUSR1)
        assert process.wait() == -signal.SIGUSR1
        assert psutil.pid_exists(child)
    assert not psutil.pid_exists(child) or psutil.Process(child).status() == psutil.STATUS_ZOMBIE


def test_a_process_that_ends_early_says_why(tmp_path: Path) -> None:
    """Waiting for a line of a process that has ended fails at once and shows its output."""
    project = Project(tmp_path, {})
    with project.python("-c", "raise SystemExit('the reason')") as process, pytest.raises(AssertionError) as failure:
        process.wait_for("ready")
    assert "the reason" in str(failure.value)


def test_real_celery_is_there(tmp_path: Path) -> None:
    """The other side of the interop tests is real Celery 5.7, in a Python without celeriac."""
    project = Project(tmp_path, {})
    assert Path(celery_python()).exists()
    code = "import celery, importlib.util as u; print(celery.__version__, u.find_spec('celeriac'))"
    with project.celery_python("-c", code) as process:
        assert process.wait_for(r"^5\.7\.\d+ None$")
