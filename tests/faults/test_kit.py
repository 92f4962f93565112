"""The checker itself: one that never finds anything would make every other test green."""

from __future__ import annotations

from pathlib import Path

from tests.faults.kit import Kill, Ledger, Mark, check


def mark(what: str, key: str, worker: str, time: float) -> Mark:
    return Mark(what, key, worker, 1, 1, time, time, "-")


def test_a_task_without_an_end_is_missing() -> None:
    """Started but never ended, and never started, are both missing."""
    marks = [mark("start", "a", "w0", 1), mark("end", "a", "w0", 2), mark("start", "b", "w0", 1)]
    assert check(["a", "b", "c"], marks, []).missing == ["b", "c"]


def test_a_repeat_without_a_kill_is_unexcused() -> None:
    """Nothing was killed, so nothing may run twice."""
    marks = [mark("start", "a", "w0", 1), mark("start", "a", "w1", 2), mark("end", "a", "w1", 3)]
    assert check(["a"], marks, []).unexcused
    assert check(["a"], marks, [Kill("w1", 1.5, frozenset())]).unexcused, "another worker's death excuses nothing"
    assert check(["a"], marks, [Kill("w0", 2.5, frozenset())]).unexcused, "nor does one after the second start"


def test_a_repeat_after_its_workers_death_is_excused_unless_committed() -> None:
    """The death of the worker that had started it excuses a repeat, but not when the result stood stored."""
    marks = [mark("start", "a", "w0", 1), mark("start", "a", "w1", 2), mark("end", "a", "w1", 3)]
    excused = check(["a"], marks, [Kill("w0", 1.5, frozenset())])
    assert not excused.unexcused
    assert excused.repeats == 1
    assert check(["a"], marks, [Kill("w0", 1.5, frozenset({"a"}))]).unexcused


def test_the_death_of_one_child_excuses_what_it_ran() -> None:
    """A kill that names processes excuses only their tasks."""
    marks = [mark("start", "a", "w0", 1), mark("start", "a", "w0", 2), mark("end", "a", "w0", 3)]
    assert not check(["a"], marks, [Kill("w0", 1.5, frozenset(), frozenset({1}))]).unexcused
    assert check(["a"], marks, [Kill("w0", 1.5, frozenset(), frozenset({7}))]).unexcused


def test_a_line_that_was_cut_off_is_left_out(tmp_path: Path) -> None:
    """A process that was killed while it wrote does not spoil the ledger."""
    ledger = Ledger(tmp_path / "ledger")
    ledger.path.write_text("start a w0 12 11 1500000000 2500000000 -\nend a w0 12 11 17")
    assert ledger.marks() == [Mark("start", "a", "w0", 12, 11, 1.5, 2.5, "-")]
