"""What a worker makes of the settings at its start."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from celeriac import Celeriac
from celeriac.app.start import worker_config
from celeriac.model.worker_options import WorkerOptions
from tests.processes import Project

TASKS = """
from celeriac import Celeriac
app = Celeriac("tasks", broker="sqlite:///t.db", backend="sqlite:///t.db", {settings})

@app.task
def add(x, y):
    return x + y
"""


def test_settings_that_are_not_built_yet_are_told_once(tmp_path: Path) -> None:
    """One warning names what was set and switches nothing yet; not what is needless, nor what is at its default."""
    settings = (
        "worker_agent='x:Agent', worker_pool_restarts=True, worker_state_db='state', worker_autoscaler=None, "
        "security_digest='sha256', beat_schedule={'x': {'task': 'y', 'schedule': 1}}"
    )
    project = Project(tmp_path, {"tasks.py": TASKS.format(settings=settings)})
    with project.worker("-c", "1", "-l", "WARNING") as worker:
        worker.terminate()
    lines = [line for line in worker.output.splitlines() if "without effect" in line]
    assert len(lines) == 1
    assert "WARNING" in lines[0]
    assert "worker_agent (agents)" in lines[0]
    for key in ("worker_pool_restarts", "worker_autoscaler", "beat_schedule"):
        assert key in lines[0]
    for key in ("worker_state_db", "security_digest"):
        assert key not in lines[0]


def test_defaults_are_no_reason_for_a_warning(tmp_path: Path) -> None:
    """A worker with nothing set warns of nothing."""
    project = Project(tmp_path, {"tasks.py": TASKS.format(settings="")})
    with project.worker("-c", "1", "-l", "WARNING") as worker:
        worker.terminate()
    assert "without effect" not in worker.output


def test_worker_direct(tmp_path: Path) -> None:
    """With `worker_direct` a worker consumes a queue of its own, whatever -Q says; one reaches it by exchange and
    routing key, as in Celery, or by the name of the queue."""
    project = Project(tmp_path, {"tasks.py": TASKS.format(settings="worker_direct=True")})
    send = (
        "from tasks import add\n"
        "print(add.apply_async((1, 2), exchange='C.dq2', routing_key='w1@here').get(timeout=10))\n"
        "print(add.apply_async((3, 4), queue='w1@here.dq2').get(timeout=10))\n"
    )
    with project.worker("-c", "1", "-n", "w1@here", "-Q", "other"), project.python("-c", send) as sender:
        assert sender.wait(30) == 0
        assert sender.output.split() == ["3", "7"]


def test_the_queue_of_a_worker_is_bound_as_celery_binds_it() -> None:
    """Durable, on the direct exchange C.dq2, by the node name; also after a setting was changed."""
    app = Celeriac("tasks", broker="memory://", set_as_current=False, worker_direct=True)
    config = worker_config(app, WorkerOptions(hostname="w1@here", app_spec="tasks", exclude_queues=("x",)))
    assert config.queues == ("celery", "w1@here.dq2")
    app.conf.task_default_priority = 3
    queue = app.queues["w1@here.dq2"]
    assert queue.exchange is not None
    assert (queue.exchange.name, queue.exchange.type, queue.routing_key, queue.durable) == (
        "C.dq2", "direct", "w1@here", True,
    )  # fmt: skip
    assert app.wiring.broker_options()["queue_bindings"]["w1@here.dq2"] == [("C.dq2", "w1@here", "")]
    assert app.queue_names() == ["celery"]


def test_how_long_a_child_may_take_to_be_ready() -> None:
    """`worker_proc_alive_timeout` is a minute, and Celery's four seconds in its profile."""
    cases: tuple[tuple[dict[str, Any], float], ...] = (
        ({}, 60.0), ({"profile": "celery"}, 4.0), ({"worker_proc_alive_timeout": 9}, 9.0),
    )  # fmt: skip
    for settings, seconds in cases:
        app = Celeriac("tasks", broker="memory://", set_as_current=False, **settings)
        assert worker_config(app, WorkerOptions(app_spec="tasks")).start_limit == seconds
