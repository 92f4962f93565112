"""The line that is written for each task that succeeded: as cheap as it can be, and a plain log record otherwise.

Where the engine's own handler is the only one that would see the record, the line is formatted by hand and buffered; it
is written together with the reports. Any other handler, filter or format gets a log record at once.
"""

from __future__ import annotations

import logging
import os
import sys
import time

log = logging.getLogger("celeriac.task")
SUCCEEDED = "Task %(name)s[%(id)s] succeeded in %(runtime)ss: %(return_value)s"
PLAIN_FD = "celeriac_plain_fd"
"""A logging handler that has this attribute writes Celery's standard format, uncoloured, to that descriptor."""


class Lines:
    """Tells of successes. One for each process."""

    __slots__ = ("_buffer", "_fd", "_prefix", "_process", "_second")

    def __init__(self) -> None:
        self._buffer: list[str] = []
        self._fd = -1
        self._second = -1
        self._prefix = ""
        self._process = ""

    def detect(self) -> None:
        """Look at how logging is set up now. To be called once it is, in the process that logs."""
        self._fd = -1
        handlers: list[logging.Handler] = []
        logger: logging.Logger | None = log
        while logger is not None:
            if logger.filters or logger.disabled:
                return
            handlers += logger.handlers
            logger = logger.parent if logger.propagate else None
        if len(handlers) == 1 and not handlers[0].filters and handlers[0].level <= logging.INFO:
            self._fd = getattr(handlers[0], PLAIN_FD, -1)
        module = sys.modules.get("multiprocessing")
        self._process = module.current_process().name if module is not None else "MainProcess"

    def wanted(self) -> bool:
        """Whether anybody reads lines of level INFO."""
        return log.isEnabledFor(logging.INFO)

    def succeeded(self, name: str, task_id: str, runtime: float, shown: str) -> None:
        """A task has succeeded."""
        if self._fd < 0:
            context = {"id": task_id, "name": name, "return_value": shown, "runtime": runtime}
            log.info(SUCCEEDED, context, extra={"data": context})
            return
        now = time.time()
        second = int(now)
        if second != self._second:
            self._second = second
            self._prefix = time.strftime("[%Y-%m-%d %H:%M:%S", time.localtime(second))
        self._buffer.append(
            f"{self._prefix},{int((now - second) * 1000):03d}: INFO/{self._process}] "
            f"Task {name}[{task_id}] succeeded in {runtime}s: {shown}\n"
        )
        if len(self._buffer) >= 256:
            self.flush()

    def flush(self) -> None:
        """Write what is buffered."""
        if self._buffer:
            lines, self._buffer = self._buffer, []
            data = "".join(lines).encode("utf-8", "backslashreplace")
            while data:
                try:
                    data = data[os.write(self._fd, data) :]
                except OSError:
                    return  # nobody reads any more
