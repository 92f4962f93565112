"""A worker's log, line by line as Celery's."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.processes import SOURCE, Project, celery_says

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


FORMAT = 'worker_log_format="W %(levelname)s %(name)s %(message)s"'
PRINT = """
print("one line")
print("to stderr", file=sys.stderr)
print()
sys.stdout.writelines(["two\\nlines\\n", "third\\n"])
print(sys.stdout.isatty())
"""


@pytest.mark.parametrize("level", ["WARNING", "ERROR"])
def test_printed_lines_are_celerys(level: str) -> None:
    """What is printed is logged as Celery logs it, at the level that the settings name."""
    ours = we_say(
        "import sys; sys.stderr = sys.stdout\nfrom celeriac import Celeriac\nfrom celeriac.app import log\n"
        f"app = Celeriac('x', set_as_current=False, {FORMAT}, worker_redirect_stdouts_level={level!r})\n"
        "log.setup(app.conf, 'INFO', redirect=True)\n" + PRINT
    )
    theirs = celery_says(
        "import sys; sys.stderr = sys.__stderr__ = sys.stdout\nfrom celery import Celery\napp = Celery('x')\n"
        f"app.conf.update({FORMAT})\napp.log.setup('INFO', redirect_stdouts=True, redirect_level={level!r})\n" + PRINT
    )
    assert ours[0] == f"W {level} celery.redirected one line"
    assert ours == theirs.splitlines()


def test_pieces_make_a_line() -> None:
    """What is written in pieces is one line; a flush ends it. A handler that writes there itself is no circle."""
    code = """
import logging, sys
from celeriac import Celeriac
from celeriac.app import log
class Handler(logging.Handler):
    def emit(self, record):
        print("logged", record.getMessage())
logging.getLogger().addHandler(Handler())
log.setup(Celeriac("x", set_as_current=False).conf, "INFO", redirect=True)
log.setup(Celeriac("x", set_as_current=False).conf, "INFO", redirect=True)
print("a", 1, "b")
print("no end", end="", flush=True)
print("later")
print(sys.stdout.fileno(), file=sys.stderr)
"""
    assert we_say(code) == ["logged a 1 b", "logged no end", "logged later", "logged 1"]


@pytest.mark.parametrize("hijack", [True, False])
def test_hijacking_is_celerys(hijack: bool) -> None:
    """Handlers of the root logger are replaced, or stay, as the setting says; nobody is asked twice for one line."""
    code = """
import logging, sys
sys.stderr = sys.__stderr__ = sys.stdout
logging.basicConfig(stream=sys.stdout, format="mine %(message)s", level="ERROR")
"""
    said = "logging.getLogger('plain').info('said')\nlogging.getLogger('celery').info('said')\n"
    settings = f"{FORMAT}, worker_hijack_root_logger={hijack}"
    ours = we_say(
        f"{code}from celeriac import Celeriac\nfrom celeriac.app import log\n"
        f"log.setup(Celeriac('x', set_as_current=False, {settings}).conf, 'INFO')\n{said}"
    )
    theirs = celery_says(
        f"{code}from celery import Celery\napp = Celery('x')\napp.conf.update({settings})\n"
        f"app.log.setup('INFO')\n{said}"
    )
    if hijack:
        assert ours == ["W INFO plain said", "W INFO celery said"] == theirs.splitlines()
    else:  # the level of the root logger is the user's as well, which Celery sets all the same
        assert ours == ["mine said"]
        assert theirs.splitlines() == ["mine said", "mine said"]


def test_a_worker_logs_what_tasks_print(tmp_path: Path) -> None:
    """It is in the log file too; `worker_redirect_stdouts = False` leaves it where it was."""
    project = Project(tmp_path, {"tasks.py": """
from celeriac import Celeriac
app = Celeriac("tasks")
@app.task
def say(text):
    print("said", text)
"""})  # fmt: skip
    (tmp_path / "pyproject.toml").touch()
    for flag in ("True", "False"):
        log = tmp_path / f"{flag}.log"
        with project.worker("-c", "1", "-f", str(log), f"worker_redirect_stdouts={flag}", app="tasks") as worker:
            with project.python("-c", "import tasks; tasks.say.delay('it').get(timeout=20)") as script:
                assert script.wait(30) == 0, script.output + worker.output
            assert worker.terminate() == 0
        lines = [line for line in log.read_text().splitlines() if line.endswith("said it")]
        assert [line.partition(": ")[2].partition("/")[0] for line in lines] == (["WARNING"] if flag == "True" else [])
        assert ("said it" in worker.output) is (flag == "False")
