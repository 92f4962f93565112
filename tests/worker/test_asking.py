"""A task that asks workers something: the question and the answers go through its worker's parent."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.processes import Project

TASKS = """
from celeriac import Celeriac

app = Celeriac("tasks")


@app.task
def ask():
    seen = []
    nodes = sorted(name for answer in app.control.ping(timeout=5, limit=2) for name in answer)
    told = app.control.revoke("other", reply=True, timeout=5, limit=2, callback=seen.append)
    alone = app.control.inspect(["one@h"], timeout=5).revoked()
    return nodes, sorted(node for answer in told for node in answer), len(seen), alone, app.control.ping(["no@h"], 0.3)
"""


@pytest.mark.parametrize("broker", ["sqlite", "redis", "rabbitmq", "postgres"])
@pytest.mark.parametrize("how", ["--concurrency=3", "--in-process"])
def test_answers_come_into_a_task(broker: str, how: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    """Its own worker answers as well, also while several tasks ask at once, and with one task at a time."""
    match broker:
        case "sqlite":
            url = f"sqlite:///{tmp_path}/celeriac.db"
        case "redis":
            url = request.getfixturevalue("clean_redis_url")
        case "rabbitmq":
            url = request.getfixturevalue("rabbit").vhost()
        case _:
            url = request.getfixturevalue("postgres_server").database()
    results = f"sqlite:///{tmp_path}/results.db"
    project = Project(tmp_path, {"tasks.py": TASKS}, {"CELERY_BROKER_URL": url, "CELERY_RESULT_BACKEND": results})
    script = (
        "import json, tasks; found = [tasks.ask.delay() for _ in range(4)];"
        " print(json.dumps([one.get(timeout=60) for one in found]))"
    )
    with project.worker("-n", "one@h", how) as one, project.worker("-n", "two@h", "--concurrency=1") as two:
        with project.python("-c", script) as asking:
            assert asking.wait(90) == 0, asking.output + one.output + two.output
            answers = json.loads(asking.output)
        assert one.terminate() == 0, one.output
    assert answers == [[["one@h", "two@h"], ["one@h", "two@h"], 2, {"one@h": ["other"]}, []]] * 4
