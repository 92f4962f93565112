"""What tasks print, as lines of the log."""

from __future__ import annotations

import logging
import sys
import threading
from collections.abc import Iterable
from typing import Any

LOGGER = "celery.redirected"
_thread = threading.local()
"""`logs`: a line of this thread is being logged."""


class LogStream:
    """Stands for stdout or stderr: each line is one of the log. What a handler writes there while it logs goes to the
    stream itself, so that nothing goes round in circles."""

    def __init__(self, stream: Any, level: int) -> None:
        self.stream = stream
        self.level = level
        self._line = threading.local()
        """`begun`: what this thread has written of a line that has no end yet."""

    def write(self, text: str) -> int:
        """Take text in; lines that are complete go to the log."""
        if getattr(_thread, "logs", False):
            self.stream.write(text)
            return len(text)
        lines, end, self._line.begun = (getattr(self._line, "begun", "") + text).rpartition("\n")
        if end:
            self._log(lines)
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        """Write each."""
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        """Log what has no end of line yet."""
        begun, self._line.begun = getattr(self._line, "begun", ""), ""
        self._log(begun)
        self.stream.flush()

    def isatty(self) -> bool:
        """False: it is a log."""
        return False

    def _log(self, text: str) -> None:
        text = text.rstrip()
        if not text:
            return
        _thread.logs = True
        try:
            logging.getLogger(LOGGER).log(self.level, "%s", text)
        finally:
            _thread.logs = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


def redirect(level: int) -> None:
    """From now on what is printed in this process goes to the log."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is not None:  # a process without a console may have none
            setattr(sys, name, LogStream(stream.stream if isinstance(stream, LogStream) else stream, level))
