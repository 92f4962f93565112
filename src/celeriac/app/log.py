"""Logging of a worker. Celery's loggers and formats, but the root logger is left alone when somebody has set it up."""

from __future__ import annotations

import logging
import sys
from typing import Any

from celeriac import telemetry
from celeriac.errors import ImproperlyConfigured
from celeriac.runtime import context
from celeriac.runtime.lines import PLAIN_FD

WORKER_FORMAT = "[%(asctime)s: %(levelname)s/%(processName)s] %(message)s"
TASK_FORMAT = "[%(asctime)s: %(levelname)s/%(processName)s] %(task_name)s[%(task_id)s]: %(message)s"
COLORS = {"DEBUG": 34, "WARNING": 33, "ERROR": 31, "CRITICAL": 35}


class TaskFormatter(logging.Formatter):
    """Fills `task_id` and `task_name`; outside a task both are `???`, as in Celery."""

    def format(self, record: logging.LogRecord) -> str:
        request = context.current.get()
        record.__dict__.setdefault("task_id", getattr(request, "id", None) or "???")
        record.__dict__.setdefault("task_name", getattr(request, "task", None) or "???")
        return super().format(record)


class _Router(logging.Formatter):
    """One handler for all: lines of `celery.task` loggers in the task format, others in the worker's."""

    def __init__(self, plain: logging.Formatter, task: logging.Formatter, color: bool) -> None:
        super().__init__()
        self._plain, self._task, self._color = plain, task, color

    def format(self, record: logging.LogRecord) -> str:
        text = (self._task if record.name.startswith("celery.task") else self._plain).format(record)
        number = COLORS.get(record.levelname) if self._color else None
        return f"\x1b[{number}m{text}\x1b[0m" if number else text


def level_number(name: str | int) -> int:
    """The number of a level's name in any case. Raises ImproperlyConfigured for an unknown one."""
    if isinstance(name, int):
        return name
    number = logging.getLevelName(name.upper().replace("FATAL", "CRITICAL"))
    if not isinstance(number, int):
        raise ImproperlyConfigured(f"unknown log level {name!r}: use DEBUG, INFO, WARNING, ERROR or CRITICAL")
    return number


def setup(conf: Any, loglevel: str | int, logfile: str | None = None, color: bool | None = None) -> None:
    """Set logging up for a worker's process. Does nothing when the `setup_logging` signal has a receiver; sets only the
    level of celeriac's and Celery's loggers when the root logger has handlers already."""
    level = level_number(loglevel)
    answers = telemetry.setup_logging.send(None, loglevel=level, logfile=logfile, format=WORKER_FORMAT, colorize=color)
    if answers:
        return
    for name in ("celeriac", "celery", "celery.task"):
        logging.getLogger(name).setLevel(level)
    root = logging.getLogger()
    if not root.handlers:
        handler: logging.Handler = logging.FileHandler(logfile) if logfile else logging.StreamHandler(sys.stderr)
        if color is None:
            color = conf.worker_log_color
        if color is None:
            color = not logfile and sys.stderr.isatty()
        handler.setFormatter(
            _Router(
                logging.Formatter(conf.worker_log_format or WORKER_FORMAT, conf.worker_log_datefmt),
                TaskFormatter(conf.worker_task_log_format or TASK_FORMAT, conf.worker_task_log_datefmt),
                bool(color),
            )
        )
        standard = conf.worker_log_format in (None, WORKER_FORMAT) and not conf.worker_log_datefmt
        if standard and not logfile and not color:
            setattr(handler, PLAIN_FD, 2)  # children may write their own lines without a log record for each
        root.addHandler(handler)
        root.setLevel(level)
    telemetry.after_setup_logger.send(
        None, logger=root, loglevel=level, logfile=logfile, format=WORKER_FORMAT, colorize=color
    )
    telemetry.after_setup_task_logger.send(
        None,
        logger=logging.getLogger("celery.task"),
        loglevel=level,
        logfile=logfile,
        format=TASK_FORMAT,
        colorize=color,
    )
