"""The line for a task that succeeded."""

from __future__ import annotations

import contextlib
import logging
import os
import re
from collections.abc import Iterator

import pytest

from celeriac.runtime.lines import Lines, log


@contextlib.contextmanager
def plain() -> Iterator[tuple[int, logging.Handler]]:
    """The engine's own handler as the only one, writing to a pipe."""
    reader, writer = os.pipe()
    stream = os.fdopen(writer, "w", buffering=1)
    handler: logging.Handler = logging.StreamHandler(stream)
    handler.celeriac_plain_fd = writer  # type: ignore[attr-defined]
    root = logging.getLogger()
    only: list[logging.Handler] = [handler]
    kept, root.handlers = root.handlers, only
    level = log.level
    log.setLevel(logging.INFO)
    yield reader, handler
    root.handlers = kept
    log.setLevel(level)
    stream.close()
    os.close(reader)


def test_the_plain_form_is_the_records_form() -> None:
    """Where only the engine's own handler listens, lines are written by hand, in its format, and all at once."""
    with plain() as (reader, handler):
        handler.setFormatter(logging.Formatter("[%(asctime)s: %(levelname)s/%(processName)s] %(message)s"))
        lines = Lines()
        lines.detect()
        lines.succeeded("t", "i", 0.5, "'é'")
        lines.succeeded("t", "j", 0.25, "\udc80")
        os.set_blocking(reader, False)
        with pytest.raises(BlockingIOError):
            os.read(reader, 10)
        lines.flush()
        first, second = os.read(reader, 10000).decode().splitlines()
        assert re.fullmatch(
            r"\[\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3}: INFO/\w+\] Task t\[i\] succeeded in 0.5s: 'é'", first
        )
        assert second.endswith(r"Task t[j] succeeded in 0.25s: \udc80")
        other = Lines()
        other.succeeded("t", "i", 0.5, "'é'")
        record = os.read(reader, 10000).decode().rstrip("\n")
        assert re.sub(r"\d", "0", record) == re.sub(r"\d", "0", first)


def test_any_other_listener_gets_records() -> None:
    """A second handler, or a filter, must see every record."""
    with plain() as _:
        records: list[logging.LogRecord] = []

        class Keep(logging.Handler):
            def emit(self, record: logging.LogRecord) -> None:
                records.append(record)

        lines = Lines()
        extra = Keep()
        log.addHandler(extra)
        try:
            lines.detect()
            lines.succeeded("t", "i", 0.5, "3")
        finally:
            log.removeHandler(extra)
        assert [r.getMessage() for r in records] == ["Task t[i] succeeded in 0.5s: 3"]
        assert records[0].data == {"id": "i", "name": "t", "return_value": "3", "runtime": 0.5}  # type: ignore[attr-defined]


def test_many_lines_are_not_kept_for_long() -> None:
    """Without a flush they are written when there are many."""
    with plain() as (reader, _):
        lines = Lines()
        lines.detect()
        for _ in range(300):
            lines.succeeded("t", "i", 0.5, "3")
        assert os.read(reader, 1 << 20).count(b"\n") == 256


def test_level_decides() -> None:
    """Nothing is formatted when nobody reads INFO."""
    level = log.level
    try:
        log.setLevel(logging.WARNING)
        assert not Lines().wanted()
        log.setLevel(logging.INFO)
        assert Lines().wanted()
    finally:
        log.setLevel(level)
