"""Two apps and two workers in one process: each has its own tasks, settings, broker and results."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from celeriac import Celeriac
from celeriac.app.start import worker_config
from celeriac.model.worker_options import WorkerOptions
from celeriac.worker.worker import Worker

APP = """
import os
from celeriac import Celeriac

app = Celeriac({name!r}, broker={url!r}, backend={url!r})
app.conf.worker_lease_seconds = {lease}
app.conf.task_default_queue = {queue!r}

@app.task(name="shared.name")
def shared(value):
    return [{name!r}, value, os.getpid()]

@app.task(name="only.{name}", shared=False)
def only():
    return {name!r}
"""


def _load(folder: Path, name: str) -> Celeriac:
    namespace: dict[str, object] = {"__name__": name}
    exec(compile((folder / f"{name}.py").read_text(), f"{name}.py", "exec"), namespace)
    app = namespace["app"]
    assert isinstance(app, Celeriac)
    return app


@pytest.mark.parametrize("brokers", ["one", "two"])
def test_two_apps_and_two_workers_in_one_process(broker: str, tmp_path: Path, brokers: str) -> None:
    """The same task name in two apps means two functions. Each worker runs its own, on one broker or on two, with its
    own lease, and each is stopped by itself."""
    urls = {"left": broker, "right": broker if brokers == "one" else f"sqlite:///{tmp_path}/other.db"}
    for number, (name, url) in enumerate(urls.items()):
        text = APP.format(name=name, url=url, lease=5 + number, queue=f"queue-{name}")
        (tmp_path / f"{name}.py").write_text(text)
    apps = {name: _load(tmp_path, name) for name in urls}
    assert apps["left"].conf.worker_lease_seconds == 5
    assert apps["right"].conf.worker_lease_seconds == 6
    assert "only.left" in apps["left"].tasks
    assert "only.left" not in apps["right"].tasks

    async def run() -> None:
        options = {
            name: WorkerOptions(app_spec=name, workdir=str(tmp_path), concurrency=1, hostname=f"{name}@here")
            for name in apps
        }
        workers = {name: Worker(worker_config(app, options[name])) for name, app in apps.items()}
        ready = {name: asyncio.Event() for name in apps}
        runs = {name: asyncio.create_task(worker.run(ready[name].set)) for name, worker in workers.items()}
        async with asyncio.timeout(30):
            for name in apps:
                await ready[name].wait()
        sent = {name: [app.send_task("shared.name", (number,)) for number in range(20)] for name, app in apps.items()}
        own = {name: app.send_task(f"only.{name}") for name, app in apps.items()}
        for name in apps:
            answers = [await asyncio.to_thread(result.get, timeout=20) for result in sent[name]]
            assert [answer[:2] for answer in answers] == [[name, number] for number in range(20)]
            assert await asyncio.to_thread(own[name].get, timeout=20) == name
        workers["left"].stop("Warm", None)
        async with asyncio.timeout(20):
            assert await runs["left"] == 0
        last = apps["right"].send_task("shared.name", ("still here",))
        answer = await asyncio.to_thread(last.get, timeout=20)
        assert answer[:2] == ["right", "still here"]
        workers["right"].stop("Warm", None)
        async with asyncio.timeout(20):
            assert await runs["right"] == 0

    asyncio.run(run())


def test_settings_of_one_app_are_not_the_other_s() -> None:
    """Nothing is global."""
    left = Celeriac("left", broker="redis://left.invalid:1/0")
    right = Celeriac("right", broker="redis://right.invalid:1/0")
    left.conf.task_serializer = "msgpack"
    left.conf.task_ignore_result = True

    @left.task(name="a.task")
    def task() -> str:
        return "left"

    @right.task(name="a.task")
    def other() -> str:
        return "right"

    assert right.conf.task_serializer == "json"
    assert not right.conf.task_ignore_result
    assert left.tasks["a.task"]() == "left"
    assert right.tasks["a.task"]() == "right"
    assert left.conf.broker_url != right.conf.broker_url

