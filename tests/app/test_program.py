"""The app as a worker's child runs it."""

from __future__ import annotations

import itertools
import logging
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from celeriac import telemetry
from celeriac.app import program, registry
from celeriac.errors import ImproperlyConfigured, OperationalError
from celeriac.model.message import Delay, Envelope
from celeriac.wire import record
from celeriac.wire.ids import new_id
from celeriac.wire.task import TaskMessage, pack, run_name, unpack

numbers = itertools.count()
JSON = frozenset({"application/json"})
TEXT = """
from celeriac import Celeriac, shared_task

app = Celeriac("main", broker="redis://localhost", backend="redis://localhost")
app.conf.task_default_queue = "own"
app.conf.task_routes = {"routed": {"queue": "r", "priority": 5}}

@app.task(name="add", rate_limit="3/s", time_limit=9)
def add(x, y):
    return x + y

@app.task(name="routed", ignore_result=True, soft_time_limit=4)
def routed(x):
    return x

@app.task(name="sends", bind=True)
def sends(self, x):
    self.update_state(state="PROGRESS", meta=x)
    return add.delay(x, 1).id

@app.task(name="again", bind=True, max_retries=1, default_retry_delay=60)
def again(self):
    raise self.retry(exc=ValueError("x"))

@app.task(name="replaced", bind=True)
def replaced(self, x):
    raise self.replace(add.s(x, x))

@shared_task(name="shared")
def shared():
    return 1
"""


class Line:
    """The parent, as far as a child talks to it."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, Any]] = []
        self.away = False

    def ask(self, op: str, args: Any, timeout: float | None = None) -> Any:
        """Note it."""
        if self.away:
            raise OperationalError("the parent is gone")
        self.asked.append((op, args))
        return {}


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A package with an app, tasks in a module that nobody imports, and a module to be included."""
    state = (registry._thread.app, registry._latest, registry._default, dict(registry._finalizers))
    path, modules = list(sys.path), set(sys.modules)
    name = f"child{next(numbers)}"
    folder = tmp_path / name
    folder.mkdir()
    (folder / "__init__.py").write_text("")
    (folder / "celery.py").write_text(TEXT)
    (folder / "tasks.py").write_text(f"from {name}.celery import app\n@app.task(name='found')\ndef found(): pass\n")
    (folder / "more.py").write_text(f"from {name}.celery import app\n@app.task(name='more')\nasync def more(): pass\n")
    monkeypatch.chdir("/")
    yield f"{tmp_path}\0{name}"
    sys.path[:] = path
    for module in set(sys.modules) - modules:
        if module.startswith(name):
            del sys.modules[module]
    registry._thread.app, registry._latest, registry._default, finalizers = state
    registry._finalizers.clear()
    registry._finalizers.update(finalizers)


def load(project: str, **spec: Any) -> program.Program:
    """As the template does it."""
    workdir, name = project.split("\0")
    return program.load({"app": name, "workdir": workdir, "hostname": "w@h", **spec})


def run(runner: Any, name: str, *args: Any, **fields: Any) -> Any:
    """Let the runner run a message."""
    message = TaskMessage(new_id(), name, args, queue="own", routing_key="own", origin="gen1@h", **fields)
    return runner.run(1, pack(message, queue="own").blob)


def test_the_app_is_loaded(project: str) -> None:
    """By -A from its folder, with what is included and the tasks that nobody has imported; it is the current app."""
    name = project.split("\0")[1]
    found = load(project, include=[f"{name}.more"], settings=["worker_concurrency=3", ["task_time_limit", "7"]])
    assert {"add", "found", "more", "shared"} <= set(found.app.tasks)
    assert found.app.conf.worker_concurrency == 3
    assert found.app.conf.task_time_limit == 7
    assert registry.current() is found.app
    with pytest.raises(ImproperlyConfigured, match="no module"):
        program.load({"app": "nosuchmodule"})


def test_the_catalogue(project: str) -> None:
    """What the parent has to know, settings filled in, and threads that were left behind."""
    found = load(project, settings={"task_time_limit": 7.5, "task_default_rate_limit": "9/m"})
    traits = {task.name: task for task in found.catalogue().tasks}
    assert (traits["add"].rate_limit, traits["add"].time_limit, traits["add"].acks_late) == ("3/s", 9, True)
    assert (traits["routed"].rate_limit, traits["routed"].time_limit) == ("9/m", 7.5)
    assert (traits["routed"].ignore_result, traits["routed"].soft_time_limit) == (True, 4)
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(found.catalogue()), type=type(found.catalogue()))
    stop = threading.Event()
    thread = threading.Thread(target=stop.wait, name="left-behind")
    thread.start()
    try:
        assert "left-behind" in found.catalogue().threads
    finally:
        stop.set()
        thread.join()


def test_tasks_reach_the_broker_through_the_parent(project: str) -> None:
    """delay, update_state; what follows from the outcome travels with the report."""
    found = load(project)
    line = Line()
    runner: Any = found.runner(line)
    document, _ = run(runner, "add", 1, 2)
    assert record.read(document).result == 3
    report = run(runner, "sends", 5, root_id="root")
    document = report.store.document if hasattr(report, "store") else report[0]
    (state, stores), (publish, (envelope,)) = line.asked
    assert (state, publish) == ("store", "publish")
    assert record.read(stores[0].document).status == "PROGRESS"
    assert isinstance(envelope, Envelope)
    message = unpack(envelope.blob, JSON)
    assert (message.task, message.args, message.root_id, envelope.queue) == ("add", [5, 1], "root", "own")
    stored = record.read(document)
    assert stored.result == message.id
    assert stored.children == [[[message.id, None], None]]
    assert message.parent_id == stored.id


def test_what_follows_is_routed_and_filled_in(project: str) -> None:
    """A link gets its task's queue, priority and limits, and this process as its origin; a retry keeps what it had."""
    found = load(project)
    runner: Any = found.runner(Line())
    links = [{"task": "routed", "args": [], "kwargs": {}, "options": {}}, {"task": "far", "options": {"queue": "f"}}]
    report = run(runner, "add", 1, 2, callbacks=links, root_id="root")
    first, second = report.publish
    message = unpack(first.blob, JSON)
    assert (first.queue, first.priority, message.args, message.parent_id) == ("r", 5, [3], message.parent_id)
    assert (list(message.timelimit), message.ignore_result, message.root_id) == ([None, 4], True, "root")
    assert message.origin == found.app.origin
    assert (second.queue, unpack(second.blob, JSON).task) == ("f", "far")
    report = run(runner, "again", headers={"h": 1}, timelimit=(3, 2))
    assert isinstance(report.settlement, Delay)
    message = unpack(report.settlement.blob or b"", JSON)
    assert (message.retries, message.headers, message.origin) == (1, {"h": 1}, "gen1@h")
    assert list(message.timelimit) == [3, 2]
    assert message.eta
    report = run(runner, "again", retries=1)
    assert report.state == "FAILURE"


def test_a_replaced_run(project: str) -> None:
    """The other call goes out in the same commit, and nothing is stored."""
    found = load(project)
    line = Line()
    runner: Any = found.runner(line)
    report = run(runner, "replaced", 4)
    assert (report.state, report.store, line.asked) == ("IGNORED", None, [])
    message = unpack(report.publish[0].blob, JSON)
    assert (message.task, message.args, message.replaced_task_nesting) == ("add", [4, 4], 1)


def test_what_takes_the_place_of_a_run_goes_on_as_that(project: str) -> None:
    """A repeat of the run publishes the same; links and later steps are named as the run itself would have."""
    found = load(project)
    runner: Any = found.runner(Line())
    old = TaskMessage(
        "i", "replaced", [4], {}, callbacks=[{"task": "add", "args": [1], "options": {}}], queue="own",
        routing_key="own", origin="gen1@h",
    )  # fmt: skip
    sent = pack(old, queue="own")
    (first,), (again,) = (runner.run(1, sent.blob).publish for _ in range(2))
    assert (first.id, first.publish_id) == ("i", again.publish_id)
    replacement = unpack(first.blob, JSON)
    assert run_name(replacement) == run_name(unpack(sent.blob, JSON))
    assert replacement.delivery_tag != sent.publish_id
    (link,) = runner.run(1, first.blob).publish
    (of_old,) = runner.replay(1, sent.blob, b'{"status": "SUCCESS", "result": 8}').publish
    assert (link.id, link.publish_id) == (of_old.id, of_old.publish_id)


def test_attributes_are_read_once_in_a_child(project: str) -> None:
    """Runs ask for them, and settings don't change there."""
    found = load(project, settings={"task_acks_on_failure": False})
    found.runner(Line())
    task = found.app.tasks["add"]
    assert task.__dict__["ignore_result"] is False
    assert (task.acks_late, task.acks_on_failure, task.acks_on_timeout) == (True, False, True)


def test_settings_of_the_runtime(project: str) -> None:
    """As the app has them."""
    settings = {"accept_content": ["json", "msgpack"], "result_extended": True, "timezone": "Europe/Paris"}
    found = load(project, settings=settings, events=True, time_limit=8)
    told = found.run_settings()
    assert told.accept == {"application/json", "application/x-msgpack"}
    assert (told.hostname, told.result_extended, told.tells_results, told.time_limit) == ("w@h", True, True, 8)
    assert str(told.timezone) == "Europe/Paris"
    assert told.stores_results


def test_signals_of_a_process(project: str) -> None:
    """When a child is made and when it ends."""
    found = load(project)
    heard: list[Any] = []

    def hear(signal: Any = None, sender: Any = None, **named: Any) -> None:
        heard.append((signal.name, sender, sorted(named)))

    telemetry.worker_process_init.connect(hear)
    telemetry.worker_process_shutdown.connect(hear)
    try:
        found.on_process_init()
        found.on_process_shutdown()
    finally:
        telemetry.worker_process_init.disconnect(hear)
        telemetry.worker_process_shutdown.disconnect(hear)
    assert heard == [("worker_process_init", "w@h", []), ("worker_process_shutdown", "w@h", ["exitcode", "pid"])]


def test_logging_is_set_up_when_a_level_is_given(project: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As the worker's."""
    seen: list[Any] = []
    monkeypatch.setattr("celeriac.app.log.setup", lambda conf, *how: seen.append(how))
    load(project)
    assert not seen
    load(project, loglevel=logging.INFO, logfile=None, color=False)
    load(project, loglevel=logging.INFO, in_process=True)
    assert seen == [(logging.INFO, None, False, True), (logging.INFO, None, None, False)]


def test_a_log_file_that_was_moved_away_is_made_anew(tmp_path: Path) -> None:
    """As after logrotate: nobody has to send the worker a signal."""
    code = (
        "import logging, os\n"
        "from celeriac import Celeriac\n"
        "from celeriac.app import log\n"
        "log.setup(Celeriac('a', broker='memory://').conf, logging.INFO, 'w.log', False)\n"
        "logging.getLogger('x').info('one')\n"
        "os.rename('w.log', 'w.log.1')\n"
        "logging.getLogger('x').info('two')\n"
    )
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True)
    assert [(tmp_path / name).read_text().split()[-1] for name in ("w.log.1", "w.log")] == ["one", "two"]
