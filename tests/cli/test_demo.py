"""`celeriac demo`, as the README's first command runs it."""

from __future__ import annotations

import re
from pathlib import Path

from tests.processes import ROOT, Project


def test_the_demo_is_as_expected(tmp_path: Path) -> None:
    """The demo runs to its end, every outcome is as expected, and nothing is left behind."""
    code, output = Project(tmp_path, {}).run("demo", timeout=90)
    assert code == 0, output
    assert "BAD" not in output
    assert "every outcome as expected; the worker stopped warmly" in output
    folder = re.search(r"^folder: (.+)$", output, re.MULTILINE)
    assert folder
    assert not Path(folder[1]).exists()
    assert list(tmp_path.iterdir()) == []


def test_the_demo_runs_on_redis(tmp_path: Path, clean_redis_url: str) -> None:
    """The demo runs on the broker that -b names."""
    code, output = Project(tmp_path, {}).run("-b", clean_redis_url, "demo", timeout=90)
    assert code == 0, output


def test_the_demo_is_deaf_to_the_environment(tmp_path: Path) -> None:
    """A broker that stands in the environment is none of the demo's business."""
    env = {"CELERY_BROKER_URL": "redis://127.0.0.1:1/0", "CELERY_WORKER_CONCURRENCY": "carrots"}
    code, output = Project(tmp_path, {}, env=env).run("demo", timeout=90)
    assert code == 0, output


def test_a_demo_that_goes_wrong_says_so(tmp_path: Path) -> None:
    """Without a broker the demo is not green."""
    code, _ = Project(tmp_path, {}).run("-b", "redis://127.0.0.1:1/0", "demo", timeout=90)
    assert code == 69


def test_the_example_is_the_demo() -> None:
    """The project in `examples/demo` has the same tasks as the command."""
    ours = (ROOT / "src" / "celeriac" / "cli" / "demo_tasks.py").read_text()
    assert (ROOT / "examples" / "demo" / "tasks.py").read_text() == ours
