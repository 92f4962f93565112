"""Loggers by Celery's names."""

from __future__ import annotations

import logging

__all__ = ["get_logger", "get_task_logger", "task_logger"]

task_logger = logging.getLogger("celery.task")
"""The parent of tasks' loggers."""


def get_logger(name: str) -> logging.Logger:
    """A logger whose parent is `celery`, unless it has another one."""
    return _under(name, logging.getLogger("celery"))


def get_task_logger(name: str) -> logging.Logger:
    """The logger for the tasks of a module: its parent is `celery.task`."""
    if name in ("celery", "celery.task"):
        raise RuntimeError(f"the logger name {name!r} is Celery's own: use __name__")
    return _under(name, task_logger)


def _under(name: str, parent: logging.Logger) -> logging.Logger:
    logger = logging.getLogger(name)
    if logger.parent is logging.root and logger is not parent and logger.name != "celery":
        logger.parent = parent
    return logger
