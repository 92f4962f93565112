"""A worker's log, line by line as Celery's."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.processes import SOURCE, celery_says

LINES = """
import logging

def write(get_logger, get_task_logger):
    logging.getLogger("proj")
    loggers = [
        get_task_logger("proj.tasks"), get_task_logger("fresh"), get_task_logger("celery.task.named"),
        get_logger("celery.x"), get_logger("other"), get_logger("proj.views"), logging.getLogger("fresh.below"),
        logging.getLogger("celery.taskless"), logging.getLogger("plain"),
    ]
    for logger in loggers:
        logger.info("said")
        logger.debug("not said")
    logging.getLogger("fresh").warning("known", extra={"task_id": "i", "task_name": "n"})
    for name in ("", "celery.task"):
        logger = logging.getLogger(name)
        kinds = [type(handler).__name__ for handler in logger.handlers if type(handler) is not logging.NullHandler]
        print(name, bool(logger.propagate), kinds)

settings = {
    "worker_log_format": "W %(levelname)s %(name)s %(message)s",
    "worker_task_log_format": "T %(levelname)s %(name)s %(task_name)s[%(task_id)s] %(message)s",
}
def told(what):
    def tell(logger, format, loglevel, **_):
        print(what, logger.name, format, loglevel)
    return tell
one, two = told("logger"), told("task logger")
"""
OURS = """
import sys
sys.stderr = sys.stdout
from celeriac import Celeriac
from celeriac.app import log
from celeriac.compat import loggers, signals
signals.after_setup_logger.connect(one)
signals.after_setup_task_logger.connect(two)
log.setup(Celeriac("x", set_as_current=False, **settings).conf, "INFO")
write(loggers.get_logger, loggers.get_task_logger)
"""
THEIRS = """
import sys
sys.stderr = sys.__stderr__ = sys.stdout
from celery import Celery, signals
from celery.utils import log as loggers
signals.after_setup_logger.connect(one)
signals.after_setup_task_logger.connect(two)
app = Celery("x")
app.conf.update(settings)
app.log.setup_logging_subsystem(loglevel="INFO")
write(loggers.get_logger, loggers.get_task_logger)
"""


def we_say(code: str) -> list[str]:
    """What a piece of code prints under this Python."""
    env = {**os.environ, "PYTHONPATH": str(SOURCE)}
    words = [sys.executable, "-c", code]
    return subprocess.run(words, env=env, capture_output=True, text=True, timeout=30, check=True).stdout.splitlines()


def test_lines_are_celerys() -> None:
    """Which logger writes in which format is decided by what it hangs below, not by its name."""
    ours = we_say(LINES + OURS)
    assert "T INFO proj.tasks ???[???] said" in ours
    assert "W INFO celery.taskless said" in ours
    assert ours == celery_says(LINES + THEIRS).splitlines()


def test_the_users_handlers_stay(tmp_path: Path) -> None:
    """Where somebody has set the root logger up, nothing is added to it, and lines of tasks go there too."""
    code = """
import logging, sys
logging.basicConfig(stream=sys.stdout, format="mine %(name)s %(message)s")
from celeriac import Celeriac
from celeriac.app import log
from celeriac.compat.loggers import get_task_logger
log.setup(Celeriac("x", set_as_current=False).conf, "INFO")
get_task_logger("proj.tasks").info("said")
"""
    assert we_say(code) == ["mine proj.tasks said"]
