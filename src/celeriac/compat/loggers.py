"""Loggers by Celery's names."""

from __future__ import annotations

import logging

__all__ = ["get_logger", "get_task_logger", "task_logger"]

task_logger = logging.getLogger("celery.task")
"""The parent of tasks' loggers."""


def get_logger(name: str) -> logging.Logger:
    """The logger of this name. One that has a logger above it hangs below `celery`, as Celery has it."""
    logger = logging.getLogger(name)
    return logger if logger.parent in (None, logging.root) else _under(logger, logging.getLogger("celery"))


def get_task_logger(name: str) -> logging.Logger:
    """The logger for the tasks of a module: it hangs below `celery.task`."""
    if name in ("celery", "celery.task"):
        raise RuntimeError(f"the logger name {name!r} is Celery's own: use __name__")
    return _under(get_logger(name), task_logger)


def _under(logger: logging.Logger, above: logging.Logger) -> logging.Logger:
    found: logging.Logger | None = logger
    while found is not None:
        if found is above:
            return logger
        found = found.parent
    logger.parent = above
    return logger
