"""Logging of a worker. Celery's loggers and formats, but the root logger is left alone when somebody has set it up.

As in Celery a line has the format of tasks when its logger hangs below `celery.task`, whatever the logger's name.
"""

from __future__ import annotations

import logging
import sys
from typing import Any

from celeriac import telemetry
from celeriac.app import printed
from celeriac.errors import ImproperlyConfigured
from celeriac.runtime import context
from celeriac.runtime.lines import PLAIN_FD

WORKER_FORMAT = "[%(asctime)s: %(levelname)s/%(processName)s] %(message)s"
TASK_FORMAT = "[%(asctime)s: %(levelname)s/%(processName)s] %(task_name)s[%(task_id)s]: %(message)s"
COLORS = {"DEBUG": 34, "WARNING": 33, "ERROR": 31, "CRITICAL": 35}


class ColorFormatter(logging.Formatter):
    """Colours a line by its level."""

    def __init__(self, fmt: str | None = None, use_color: bool = True, datefmt: str | None = None) -> None:
        super().__init__(fmt, datefmt)
        self.use_color = use_color

    def format(self, record: logging.LogRecord) -> str:
        text = super().format(record)
        number = COLORS.get(record.levelname) if self.use_color else None
        return f"\x1b[{number}m{text}\x1b[0m" if number else text


class TaskFormatter(ColorFormatter):
    """Fills `task_id` and `task_name`; outside a task both are `???` unless the record has them, as in Celery."""

    def format(self, record: logging.LogRecord) -> str:
        request = context.current.get()
        task_id, task_name = getattr(request, "id", None), getattr(request, "task", None)
        if task_id and task_name:
            record.__dict__.update(task_id=task_id, task_name=task_name)
        else:
            record.__dict__.setdefault("task_id", "???")
            record.__dict__.setdefault("task_name", "???")
        return super().format(record)


def level_number(name: str | int) -> int:
    """The number of a level's name in any case. Raises ImproperlyConfigured for an unknown one."""
    if isinstance(name, int):
        return name
    number = logging.getLevelName(name.upper().replace("FATAL", "CRITICAL"))
    if not isinstance(number, int):
        raise ImproperlyConfigured(f"unknown log level {name!r}: use DEBUG, INFO, WARNING, ERROR or CRITICAL")
    return number


def setup(
    conf: Any, loglevel: str | int, logfile: str | None = None, color: bool | None = None, redirect: bool = False
) -> None:
    """Set logging up for a worker's process. Does nothing when the `setup_logging` signal has a receiver; sets only the
    level of celeriac's and Celery's loggers when the root logger has handlers already, unless
    `worker_hijack_root_logger` says to take them away. `redirect`: what is printed here goes to the log, as far as
    `worker_redirect_stdouts` says so."""
    level = level_number(loglevel)
    plain, own = conf.worker_log_format or WORKER_FORMAT, conf.worker_task_log_format or TASK_FORMAT
    answers = telemetry.setup_logging.send(None, loglevel=level, logfile=logfile, format=plain, colorize=color)
    if answers:
        return
    if conf.worker_hijack_root_logger:
        for name in (None, "celery", "celery.task", printed.LOGGER):
            logging.getLogger(name).handlers.clear()
    for name in ("celeriac", "celery", "celery.task"):
        logging.getLogger(name).setLevel(level)
    root, tasks = logging.getLogger(), logging.getLogger("celery.task")
    if not root.handlers:
        if color is None:
            color = conf.worker_log_color
        if color is None:
            color = not logfile and sys.stderr.isatty()
        handler = _handler(logfile, ColorFormatter(plain, bool(color), conf.worker_log_datefmt))
        if plain == WORKER_FORMAT and not conf.worker_log_datefmt and not logfile and not color:
            setattr(handler, PLAIN_FD, 2)  # children may write their own lines without a log record for each
        root.addHandler(handler)
        root.setLevel(level)
        if all(isinstance(handler, logging.NullHandler) for handler in tasks.handlers):
            tasks.addHandler(_handler(logfile, TaskFormatter(own, bool(color), conf.worker_task_log_datefmt)))
        tasks.propagate = False  # its lines have a handler, and so a format, of their own
    for signal, logger, format_ in (
        (telemetry.after_setup_logger, root, plain),
        (telemetry.after_setup_task_logger, tasks, own),
    ):
        signal.send(None, logger=logger, loglevel=level, logfile=logfile, format=format_, colorize=color)
    if redirect and conf.worker_redirect_stdouts:
        printed.redirect(level_number(conf.worker_redirect_stdouts_level))


def _handler(logfile: str | None, formatter: logging.Formatter) -> logging.Handler:
    handler: logging.Handler
    if logfile:
        from logging.handlers import WatchedFileHandler  # only here: it costs as much as half of an app

        handler = WatchedFileHandler(logfile)  # what rotates the file may move it away
    else:
        stream = sys.stderr
        handler = logging.StreamHandler(stream.stream if isinstance(stream, printed.LogStream) else stream)
    handler.setFormatter(formatter)
    return handler
