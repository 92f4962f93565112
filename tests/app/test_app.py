"""The app itself: configuration, signals, lifetimes, doors."""

from __future__ import annotations

import pickle
import sys
import types
from datetime import UTC, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import pytest

import celeriac
from celeriac.app import registry
from celeriac.app.app import Celeriac
from celeriac.errors import ImproperlyConfigured
from celeriac.model.routing import Exchange, Queue
from tests.app.conftest import Broker


def test_making_an_app_reads_no_configuration(monkeypatch: pytest.MonkeyPatch) -> None:
    """The signals come at the first look, in order."""
    monkeypatch.setenv("CELERY_CONFIG_MODULE", "no.such.module")
    app = Celeriac("x", set_as_current=False)
    monkeypatch.delenv("CELERY_CONFIG_MODULE")
    heard: list[Any] = []

    @app.on_configure.connect
    def before(sender: Any, **_: Any) -> None:
        heard.append(("configure", sender is app))
        sender.conf.task_default_queue = "from the signal"

    @app.on_after_configure.connect
    def after(sender: Any, source: Any = None, **_: Any) -> None:
        heard.append(("after", source is app.conf, sender.conf.task_default_queue))

    app.config_from_object({"task_serializer": "msgpack"})
    assert not heard
    assert not app.configured
    assert app.conf.task_serializer == "msgpack"
    assert heard == [("configure", True), ("after", True, "from the signal")]


def test_keywords_are_settings() -> None:
    """They beat the configuration."""
    app = Celeriac(
        "x", broker="memory://a", backend="memory://b", include=["m"], task_serializer="msgpack", set_as_current=False,
        config_source={"broker_url": "memory://c", "task_default_queue": "q"}, changes={"timezone": "Europe/Paris"},
    )  # fmt: skip
    conf = app.conf
    assert (conf.broker_url, conf.result_backend, conf.include, conf.task_default_queue) == (
        "memory://a", "memory://b", ["m"], "q",
    )  # fmt: skip
    assert conf.task_serializer == "msgpack"
    assert app.timezone == ZoneInfo("Europe/Paris")
    assert app.now().utcoffset() in (timedelta(hours=1), timedelta(hours=2))
    for name in ("amqp", "events", "log"):
        with pytest.raises(ImproperlyConfigured, match=name):
            Celeriac("x", set_as_current=False, **{name: object()})  # type: ignore[arg-type]


def test_time_zones() -> None:
    """UTC unless something else is said."""
    app = Celeriac("x", set_as_current=False)
    assert app.uses_utc_timezone()
    assert abs(app.now() - datetime.now(UTC)) < timedelta(seconds=5)
    app.conf.timezone = "Nowhere/Land"
    with pytest.raises(ImproperlyConfigured, match="Nowhere/Land"):
        app.now()
    app.conf.timezone = UTC
    assert app.uses_utc_timezone()
    app.conf.update(timezone=None, enable_utc=False)
    assert app.now().tzinfo is not None


def test_configuration_from_an_environment_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    """A module's name; without it an error, or False."""
    module = types.ModuleType("conf_of_test")
    module.task_default_queue = "q"  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "conf_of_test", module)
    monkeypatch.setenv("MY_CONFIG", "conf_of_test")
    app = Celeriac("x", set_as_current=False)
    assert app.config_from_envvar("MY_CONFIG")
    assert app.conf.task_default_queue == "q"
    with pytest.raises(ImproperlyConfigured, match="NO_CONFIG"):
        app.config_from_envvar("NO_CONFIG")
    assert not app.config_from_envvar("NO_CONFIG", silent=True)
    app.config_from_cmdline(["worker.concurrency=3"])
    assert app.conf.worker_concurrency == 3
    app.add_defaults({"task_default_priority": 4})
    assert app.conf.task_default_priority == 4
    assert app.either("task_default_priority", None, 7) == 7
    assert app.either("task_default_priority") == 4


def test_queues_that_a_worker_consumes() -> None:
    """Those of the settings; those selected; never those that only a call has named."""
    app = Celeriac("x", set_as_current=False, broker="memory://names")
    assert app.queue_names() == ["celery"]
    app.send_task("t", queue="made up")
    assert app.queue_names() == ["celery"]
    app.conf.task_queues = [Queue("a"), Queue("b", Exchange("e", "topic"), "b.#")]
    assert app.queue_names() == ["a", "b"]
    app.select_queues("b")
    assert app.queue_names() == ["b"]


def test_when_the_app_is_finalized() -> None:
    """Once, with a signal."""
    app = Celeriac("x", set_as_current=False)
    heard: list[Any] = []
    app.on_after_finalize.connect(lambda sender, **_: heard.append(sender), weak=False)
    _ = app.tasks, app.tasks
    app.finalize()
    assert heard == [app]


def test_periodic_tasks_become_entries(app: Celeriac) -> None:
    """For the beat that reads the settings."""
    task = app.task(name="t")(lambda x: x)
    key = app.add_periodic_task(10.0, task.s(1), name="ten", expires=5)
    other = app.add_periodic_task(20.0, task.s(2))
    assert key == "ten"
    assert other == "t(2)"
    assert app.conf.beat_schedule["ten"] == {
        "task": "t", "schedule": 10.0, "args": (1,), "kwargs": {}, "options": {"expires": 5},
    }  # fmt: skip


def test_what_is_missing_says_so(app: Celeriac) -> None:
    """Attributes of Celery's app that are not here."""
    for name in ("connection", "pool", "steps"):
        with pytest.raises(AttributeError, match="celeriac has no"):
            getattr(app, name)
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = app.nonsense
    with pytest.raises(ImproperlyConfigured, match="signing"):
        app.setup_security()
    with pytest.raises(ValueError, match="worker"):
        app.worker_main(["beat"])


module_app = Celeriac("pickled", set_as_current=False)


def test_an_app_is_pickled_by_where_it_stands(app: Celeriac) -> None:
    """An attribute of its module; an app that is none can't be."""
    assert module_app.home == __name__
    assert module_app.spec == f"{__name__}:module_app"
    assert pickle.loads(pickle.dumps(module_app)) is module_app
    with pytest.raises(TypeError, match="attribute"):
        pickle.dumps(app)


class Derived(Celeriac):
    """An app class of a project."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)

    def on_init(self) -> None:
        """Note it."""
        self.noted = True


def test_derived_app_classes() -> None:
    """Their home is where they are made, and `on_init` is called."""
    app = Derived("x", set_as_current=False)
    assert app.home == __name__
    assert app.noted


def test_autodiscovery(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """When a worker starts, or with force at once; what a module fails to import is raised."""
    for package in ("found_a", "found_b", "found_c"):
        (tmp_path / package).mkdir()
        (tmp_path / package / "__init__.py").write_text("")
    (tmp_path / "found_a" / "tasks.py").write_text("seen = 1")
    (tmp_path / "found_c" / "tasks.py").write_text("import no_such_module_anywhere")
    monkeypatch.syspath_prepend(str(tmp_path))
    app = Celeriac("x", set_as_current=False)
    app.autodiscover_tasks(lambda: ["found_a", "found_b"])
    assert "found_a.tasks" not in sys.modules
    app.loader.import_default_modules()
    assert "found_a.tasks" in sys.modules
    with pytest.raises(ModuleNotFoundError, match="no_such_module_anywhere"):
        app.autodiscover_tasks(["found_c"], force=True)
    with pytest.raises(ModuleNotFoundError):
        app.autodiscover_tasks(["found_nothing"], force=True)
    app.autodiscover_tasks(["found_b"], related_name=None, force=True)
    app.autodiscover_tasks(None, force=True)


# Which app


def test_the_current_app(app: Celeriac) -> None:
    """The last that was made current; other threads see it too, unless a default is set."""
    import threading

    assert celeriac.current_app == app
    seen: list[Any] = []

    def look() -> None:
        seen.append(registry.current())

    def in_a_thread() -> Any:
        thread = threading.Thread(target=look)
        thread.start()
        thread.join()
        return seen[-1]

    assert in_a_thread() is app
    quiet = Celeriac("quiet", set_as_current=False)
    assert registry.current() is app
    quiet.set_default()
    assert in_a_thread() is quiet
    quiet.set_current()
    assert registry.current() is quiet
    quiet.close()
    assert registry.current() is app


def test_an_app_that_was_made_because_nobody_else_was_there(app: Celeriac, monkeypatch: pytest.MonkeyPatch) -> None:
    """It stands back when another one is made."""
    for name in ("_default", "_latest", "_made"):
        monkeypatch.setattr(registry, name, None)
    monkeypatch.setattr(registry._thread, "app", None)
    made = registry.current()
    assert made.main == "default"
    assert registry.current() is made
    later = Celeriac("later")
    assert registry.current() is later
    later.close()
    made.close()


def test_two_apps_in_one_process(app: Celeriac, broker: Broker) -> None:
    """Each with its own broker, results and settings."""
    other_broker = Broker("other-app-of-test")
    other = Celeriac("other", broker=other_broker.url, backend=other_broker.url, set_as_current=False)
    mine = app.task(name="t", shared=False)(lambda: 1)
    yours = other.task(name="t", shared=False)(lambda: 2)
    other.conf.task_default_queue = "yours"
    result = yours.delay()
    mine.delay()
    assert (len(broker.blobs()), len(other_broker.blobs("yours"))) == (1, 1)
    other_broker.finish(result.id, 5)
    assert result.get(timeout=1) == 5
    assert app.AsyncResult(result.id).state == "PENDING"


def test_bugreport_masks_passwords() -> None:
    """And opens nothing."""
    url = "redis://:secret@nowhere:1/0"
    app = Celeriac("x", broker=url, backend=url, set_as_current=False)
    text = app.bugreport()
    assert "celeriac:" in text
    assert "secret" not in text
