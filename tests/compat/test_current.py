"""`current_app`, `current_task` and `@shared_task`."""

from __future__ import annotations

import copy
import logging
import pickle
import threading
from typing import Any

import pytest

import celeriac
from celeriac import shared_task
from celeriac.app.app import Celeriac
from celeriac.compat.current import app_or_default, current_app, current_task, get_current_task
from celeriac.compat.loggers import get_logger, get_task_logger
from celeriac.compat.proxy import Proxy
from tests.app.conftest import Broker


@shared_task(name="shared.double")
def double(x: int) -> int:
    """Twice."""
    return x * 2


@shared_task(bind=True, name="shared.told")
def told(self: Any) -> Any:
    """Who it is."""
    return current_task.name, self.app.main


def test_the_current_app_is_looked_up_each_time(app: Celeriac) -> None:
    """It is as good as the app itself."""
    assert current_app == app
    assert isinstance(current_app, Celeriac)
    assert current_app.main == "tests"
    current_app.conf.task_default_queue = "q"
    assert app.conf.task_default_queue == "q"
    assert app_or_default() is app
    other = Celeriac("other", set_as_current=False)
    assert app_or_default(other) is other


def test_a_shared_task_belongs_to_every_app(app: Celeriac, broker: Broker) -> None:
    """Those that are made later, too; it is sent by the current one."""
    assert app.tasks["shared.double"].app is app
    double.delay(4)
    assert broker.last().task == "shared.double"
    assert double(4) == 8
    assert double.apply((4,)).get() == 8
    assert isinstance(double, celeriac.Task)
    assert double.name == "shared.double"
    assert double.s(1).type is app.tasks["shared.double"]
    other = Celeriac("other", set_as_current=False)
    assert other.tasks["shared.double"].app is other


def test_a_shared_task_made_after_an_app_is_finalized(app: Celeriac) -> None:
    """It comes into that app at once."""
    app.finalize()

    @shared_task(name="shared.late")
    def late() -> None:
        pass

    assert "shared.late" in app.tasks


def test_sharing_twice(app: Celeriac) -> None:
    """Is refused, and so is what is no function."""
    with pytest.raises(TypeError, match="once"):
        shared_task(double)
    with pytest.raises(TypeError, match="once"):
        shared_task(app.task(name="t")(lambda: None))
    with pytest.raises(TypeError, match="by name"):
        shared_task("name")  # type: ignore[call-overload]


def test_the_current_task(app: Celeriac) -> None:
    """Inside a task, the task; elsewhere none."""
    assert get_current_task() is None
    assert not current_task
    assert told.apply().get() == ("shared.told", "tests")
    assert app.current_task is None
    seen: list[Any] = []

    @app.task(name="outer")
    def outer() -> None:
        seen.append((app.current_task.name, app.current_worker_task.name))
        inner()

    @app.task(name="inner")
    def inner() -> None:
        seen.append((app.current_task.name, app.current_worker_task.name))

    outer.apply()
    assert seen == [("outer", "outer"), ("inner", "outer")]


def test_a_shared_task_in_many_threads(app: Celeriac, broker: Broker) -> None:
    """They all see the app that was made in the main thread."""
    threads = [threading.Thread(target=double.delay, args=(number,)) for number in range(64)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(message.args[0] for message in broker.messages()) == list(range(64))


def test_copies_of_stand_ins(app: Celeriac) -> None:
    """A pickled shared task is found again."""
    assert pickle.loads(pickle.dumps(double)) is app.tasks["shared.double"]
    assert copy.copy(double) is app.tasks["shared.double"]
    assert copy.deepcopy(double) is app.tasks["shared.double"]


def test_a_stand_in_does_what_it_stands_for() -> None:
    """Operators, attributes, iteration."""
    held: list[Any] = [[1, 2]]
    proxy: Any = Proxy(lambda: held[0])
    assert (len(proxy), list(proxy), proxy[1], 2 in proxy, bool(proxy)) == (2, [1, 2], 2, True, True)
    assert proxy == [1, 2]
    assert proxy == Proxy(lambda: [1, 2])
    assert (repr(proxy), str(proxy)) == ("[1, 2]", "[1, 2]")
    assert issubclass(proxy.__class__, list)
    proxy.append(3)
    assert held[0] == [1, 2, 3]
    held[0] = Celeriac("x", set_as_current=False)
    proxy.main = "y"
    assert held[0].main == "y"
    del proxy.main
    assert "conf" in dir(proxy)
    with proxy as same:
        assert same is held[0]
    held[0] = {1} | {2}
    assert proxy | {3} == {1, 2, 3}


def test_loggers() -> None:
    """Tasks' loggers hang below `celery.task`."""
    assert get_task_logger("some.module").parent is get_task_logger("other.module").parent
    assert get_task_logger("some.module").parent.name == "celery.task"  # type: ignore[union-attr]
    assert get_task_logger("some.module.below").parent is get_task_logger("some.module")
    assert get_logger("third.module").parent is logging.root
    get_logger("third")
    assert get_logger("third.module").parent.name == "celery"  # type: ignore[union-attr]
    assert get_task_logger("third.module").parent.name == "celery.task"  # type: ignore[union-attr]
    with pytest.raises(RuntimeError, match="__name__"):
        get_task_logger("celery.task")
