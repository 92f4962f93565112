"""`import celery`, served by celeriac."""

from __future__ import annotations

import sys
import types
from collections.abc import Iterator
from importlib import import_module
from typing import Any

import pytest

import celeriac
from celeriac import errors
from celeriac.compat import as_celery


@pytest.fixture
def alias() -> Iterator[None]:
    """The alias, taken back afterwards."""
    as_celery.install()
    as_celery.install()
    yield
    as_celery.uninstall()
    assert "celery" not in sys.modules


PROJECT = """
from celery import Celery, shared_task, signals, states, Task
from celery.exceptions import Ignore, SoftTimeLimitExceeded, MaxRetriesExceededError
from celery.result import AsyncResult, allow_join_result
from celery.signals import task_prerun
from celery.utils.log import get_task_logger
from kombu import Exchange, Queue
from kombu.common import Broadcast
import celery

logger = get_task_logger(__name__)
app = Celery("proj", broker="memory://alias", backend="memory://alias", set_as_current=False)
app.conf.task_queues = (Queue("a", Exchange("a"), routing_key="a"), Broadcast("b"))

@app.task(bind=True, autoretry_for=(KeyError,))
def add(self, x, y):
    return x + y

@shared_task
def common():
    pass
"""


def test_a_project_of_celerys_runs_unchanged(alias: None) -> None:
    """Its imports give celeriac's objects."""
    project: Any = types.ModuleType("proj")
    exec(PROJECT, project.__dict__)
    assert isinstance(project.app, celeriac.Celeriac)
    assert isinstance(project.add, celeriac.Task)
    assert project.add.apply((1, 2)).get() == 3
    assert project.add.delay(1, 2).state == "PENDING"
    assert project.states.SUCCESS == "SUCCESS"
    assert project.Ignore is errors.Ignore
    assert project.celery.__version__ == "5.7.0"
    assert project.celery.VERSION >= (5, 7)
    assert project.app.queue_names()[0] == "a"
    assert project.logger.parent.name == "celery.task"
    assert project.signals.task_prerun is project.task_prerun


def test_every_name_is_there(alias: None) -> None:
    """Each name of each module leads somewhere; `import *` works."""
    modules = {**as_celery.MODULES, **as_celery.KOMBU}
    for name, names in modules.items():
        module = import_module(name)
        for attribute in names:
            assert getattr(module, attribute) is not None
        space: dict[str, Any] = {}
        exec(f"from {name} import *", space)
    assert {"task_prerun", "worker_ready"} <= set(import_module("celery.signals").__all__)
    assert {"SUCCESS", "state"} <= set(import_module("celery.states").__all__)


def test_what_is_not_there_says_so(alias: None) -> None:
    """Modules and names."""
    with pytest.raises(ModuleNotFoundError, match=r"has no module 'celery\.bootsteps'"):
        import_module("celery.bootsteps")
    celery: Any = import_module("celery")
    with pytest.raises(AttributeError, match="no such name"):
        _ = celery.nonsense


def test_real_celery_is_not_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    """When it has been imported, it stays."""
    monkeypatch.setitem(sys.modules, "celery", types.ModuleType("celery"))
    with pytest.raises(errors.ImproperlyConfigured, match="already"):
        as_celery.install()
