"""What commands print."""

from __future__ import annotations

import pytest

from celeriac.cli.output import counted, duration, show_table


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (None, "-"), (-1, "0.0 s"), (0.42, "0.4 s"), (1, "1 s"), (59.6, "1 min"), (185, "3 min 5 s"),
        (3600, "1 h"), (7800, "2 h 10 min"), (90000, "1 d 1 h"),
    ],
)  # fmt: skip
def test_durations(seconds: float | None, text: str) -> None:
    """A length of time in the two largest units that say something."""
    assert duration(seconds) == text


def test_counted() -> None:
    """A number and its noun agree."""
    assert [counted(n, "task") for n in (0, 1, 2)] == ["0 tasks", "1 task", "2 tasks"]


def test_tables_are_plain_for_scripts(capsys: pytest.CaptureFixture[str]) -> None:
    """Away from a terminal: a header, one line a row, columns two spaces apart, no colour."""
    show_table(("queue", "ready"), [("celery", "5"), ("q", "120")], right=("ready",))
    assert capsys.readouterr().out == "queue   ready\ncelery      5\nq         120\n"
