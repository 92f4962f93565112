"""`celeriac call` and `celeriac result`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from celeriac.app.app import Celeriac
from tests.cli.conftest import Command


@pytest.fixture
def url(tmp_path: Path) -> str:
    """A SQLite file for messages and results."""
    return f"sqlite:///{tmp_path}/celeriac.db"


def test_a_call_prints_its_id(command: Command, url: str) -> None:
    """The task is sent as it was said, and its id is printed."""
    done = command("-b", url, "call", "proj.add", "-a", "[1, 2]", "-k", '{"z": 3}', "--queue", "q", "--expires", "60")
    assert done.code == 0
    (entry,) = json.loads(command("-b", url, "queues", "show", "q", "--json").out)
    assert entry["task_id"] == done.out.strip()
    assert (entry["task"], entry["args"], entry["kwargs"]) == ("proj.add", "[1, 2]", "{'z': 3}")


def test_a_result_is_printed(command: Command, url: str) -> None:
    """A value that is there is printed; JSON says the state too."""
    app = Celeriac("writer", broker=url, result_backend=url, set_as_current=False)
    id = command("-b", url, "call", "proj.add").out.strip()
    app.AsyncResult(id).backend.store_result(id, {"sum": 3}, "SUCCESS")
    done = command("-b", url, "--result-backend", url, "result", id)
    assert (done.code, done.out) == (0, "{'sum': 3}\n")
    shown = json.loads(command("-b", url, "--result-backend", url, "result", id, "--json").out)
    assert (shown["state"], shown["result"]) == ("SUCCESS", {"sum": 3})


def test_a_failed_task_is_exit_code_1(command: Command, url: str) -> None:
    """A failed task says its exception and its traceback on stderr."""
    app = Celeriac("writer", broker=url, result_backend=url, set_as_current=False)
    id = "failed-1"
    app.AsyncResult(id).backend.store_result(id, ValueError("no"), "FAILURE", traceback="Traceback: here")
    done = command("-b", url, "--result-backend", url, "result", id)
    assert (done.code, done.out) == (1, "")
    assert "FAILURE: ValueError: no" in done.err
    assert "Traceback: here" in done.err
    assert command("-b", url, "--result-backend", url, "result", id, "--traceback").out == "Traceback: here\n"


def test_a_result_that_does_not_come(command: Command, url: str) -> None:
    """With --timeout it gives up: exit code 1, one line."""
    done = command("-b", url, "--result-backend", url, "result", "nobody", "--timeout", "0.2")
    assert done.code == 1
    assert done.err == "celeriac: no result of nobody within 0.2 s (state PENDING)\n"
