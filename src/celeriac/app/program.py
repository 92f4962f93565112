"""The app as a worker's child runs it: imported in a fresh process, from which the children are forked."""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping
from typing import Any, Protocol

from celeriac import telemetry
from celeriac.app import log
from celeriac.app.app import Celeriac
from celeriac.app.config import cast_setting
from celeriac.app.find import find_app, import_tasks
from celeriac.model.message import Envelope
from celeriac.model.outcome import Catalogue
from celeriac.runtime.context import current
from celeriac.runtime.job import RunSettings
from celeriac.runtime.run import Runner
from celeriac.wire import codec
from celeriac.wire.task import TaskMessage


class Link(Protocol):
    """The line to the worker's parent."""

    def ask(self, op: str, args: Any, timeout: float | None = ...) -> Any:
        """Ask the parent and wait for its answer."""
        ...


def load(spec: Mapping[str, Any]) -> Program:
    """Import the app that `spec` names. Raises ImproperlyConfigured when there is none.

    Keys: `app` (the text of -A), `workdir`, `include` (modules), `settings` (`key=value` words or pairs), `hostname`,
    `time_limit` and `soft_time_limit` of the worker, `events`, `oid` of the app in the parent, `in_process`;
    `loglevel`, `logfile`, `color`."""
    workdir = spec.get("workdir") or os.getcwd()
    app = find_app(spec["app"], workdir=workdir)
    words = spec.get("settings") or ()
    pairs = words.items() if isinstance(words, Mapping) else [_pair(word) for word in words]
    for key, value in pairs:
        app.conf[key] = cast_setting(key, value) if isinstance(value, str) else value
    return Program(app, spec)


def _pair(word: Any) -> tuple[str, Any]:
    if isinstance(word, str):
        key, _, value = word.partition("=")
        return key, value
    key, value = word
    return key, value


class Program:
    """An app, loaded for running its tasks."""

    def __init__(self, app: Celeriac, spec: Mapping[str, Any]) -> None:
        self.app = app
        self.hostname = str(spec.get("hostname") or "")
        self._spec = spec
        _set_up_django()
        app.set_default()
        app.set_current()
        if spec.get("loglevel") is not None:
            redirect = not spec.get("in_process")  # a debugger talks to its user over these streams
            log.setup(app.conf, spec["loglevel"], spec.get("logfile"), spec.get("color"), redirect)
        for module in spec.get("include") or ():
            app.loader.import_module(module)
        app.loader.import_default_modules()
        import_tasks(app)
        app.finalize()
        for task in app.tasks.values():
            app.prepare_task(task)

    def catalogue(self) -> Catalogue:
        """Every task with its options, and the threads that the import has left behind."""
        main = threading.main_thread()
        threads = tuple(thread.name for thread in threading.enumerate() if thread is not main and thread.is_alive())
        return Catalogue(tuple(task.traits() for task in self.app.tasks.values()), threads)

    def runner(self, link: Link) -> Runner:
        """What runs messages. From now on the app reaches broker and result backend through `link` alone."""
        app = self.app
        app.use_parent(link, self._spec.get("oid"))
        for task in app.tasks.values():
            task.freeze_settings()
        return Runner(app.tasks, self.run_settings(), self.pack)

    def run_settings(self) -> RunSettings:
        """What the runtime is told once."""
        app, conf, spec = self.app, self.app.conf, self._spec
        serializer = conf["result_serializer"]
        return RunSettings(
            hostname=self.hostname,
            accept=codec.accept_set(conf["accept_content"]),
            stores_results=app.reader is not None,
            result_serializer=serializer,
            result_compression=conf["result_compression"],
            result_extended=bool(conf["result_extended"]),
            inherit_parent_priority=bool(conf["task_inherit_parent_priority"]),
            timezone=None if app.uses_utc_timezone() else app.timezone,
            time_limit=spec.get("time_limit") or conf["task_time_limit"],
            errors_in_header=bool(conf["task_allow_error_cb_on_chord_header"]),
            accept_results=app.backend.accept,
            tells_results=bool(spec.get("events") or conf["worker_send_task_events"]),
        )

    def pack(
        self, message: TaskMessage, options: Mapping[str, Any], publish_id: str, due: float | None = None
    ) -> Envelope:
        """The envelope of a message that follows from a run. Copies for more queues go out with the outcome as well."""
        first, *more = self.app.pack_follow_up(message, options, due, publish_id)
        if more:
            request = current.get()
            if request is not None:
                request.outbox = [*(request.outbox or ()), *more]
        return first

    def on_process_init(self) -> None:
        """This is a new child."""
        telemetry.worker_process_init.send(self.hostname or None)

    def on_process_shutdown(self) -> None:
        """This child ends in peace."""
        telemetry.worker_process_shutdown.send(self.hostname or None, pid=os.getpid(), exitcode=0)


def _set_up_django() -> None:
    """Django wants to be set up before the modules of its apps are imported."""
    if not os.environ.get("DJANGO_SETTINGS_MODULE"):
        return
    try:
        import django  # type: ignore[import-not-found,import-untyped,unused-ignore]
    except ModuleNotFoundError:
        return
    django.setup()
