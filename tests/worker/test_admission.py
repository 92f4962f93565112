"""Laws of admission: what becomes of a message by its head alone."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from celeriac.model.outcome import TaskTraits
from celeriac.wire.task import Head
from celeriac.worker.admission import UNKNOWN_HEADER, End, Limits, Run, Wait, decide

NOW = 1_000_000.0
LIMITS = Limits(child_losses=3, worker_losses=10, unknown_patience=600.0)
TRAITS = TaskTraits("t")


def head(**fields: object) -> Head:
    return Head(id="i", task="t", **fields)  # type: ignore[arg-type]


def test_plain_message_runs() -> None:
    """A message without anything special runs, acknowledged late."""
    assert decide(head(), TRAITS, NOW, frozenset(), LIMITS, (0, 0)) == Run(None, None)


def test_revoked_wins_over_everything() -> None:
    """A cancelled id never runs and never waits."""
    decision = decide(head(eta=NOW + 60, expires=NOW - 1), None, NOW, frozenset({"i"}), LIMITS, (0, 0))
    assert decision == End("revoked")


def test_expired_before_eta() -> None:
    """What has expired is ended even if its eta lies ahead."""
    assert decide(head(eta=NOW + 60, expires=NOW - 1), TRAITS, NOW, frozenset(), LIMITS, (0, 0)) == End("expired")


def test_eta_waits_in_the_schedule() -> None:
    """A future eta goes to the schedule; one that has passed runs."""
    assert decide(head(eta=NOW + 60), TRAITS, NOW, frozenset(), LIMITS, (0, 0)) == Wait(NOW + 60)
    assert isinstance(decide(head(eta=NOW - 1), TRAITS, NOW, frozenset(), LIMITS, (0, 0)), Run)


def test_loss_caps() -> None:
    """Three lost children, or ten lost workers, end a message; fewer make it run alone."""
    assert isinstance(decide(head(losses=(3, 0)), TRAITS, NOW, frozenset(), LIMITS, (0, 0)), End)
    assert isinstance(decide(head(losses=(0, 10)), TRAITS, NOW, frozenset(), LIMITS, (0, 0)), End)
    assert decide(head(losses=(2, 9)), TRAITS, NOW, frozenset(), LIMITS, (0, 0)) == Run(None, None, alone=True)
    assert decide(head(losses=(0, 9)), TRAITS, NOW, frozenset(), LIMITS, (0, 0)) == Run(None, None)


def test_limits_of_the_message_win() -> None:
    """Message over task over worker; 0 means that no limit was given."""
    traits = TaskTraits("t", time_limit=20, soft_time_limit=10)
    worker = Limits(soft=1.0, hard=2.0)
    assert decide(head(timelimit=(8, 4)), traits, NOW, frozenset(), worker, (0, 0)) == Run(4, 8)
    assert decide(head(timelimit=(None, 0)), traits, NOW, frozenset(), worker, (0, 0)) == Run(10, 20)
    assert decide(head(), TRAITS, NOW, frozenset(), worker, (0, 0)) == Run(1.0, 2.0)


def test_early_acknowledgement_is_the_tasks_choice() -> None:
    """acks_late=False of the task makes the run early-acknowledged."""
    decision = decide(head(), TaskTraits("t", acks_late=False), NOW, frozenset(), LIMITS, (0, 0))
    assert decision == Run(None, None, early=True)


@given(patience=st.floats(1, 3600), start=st.floats(1, 2e9))
def test_unknown_tasks_go_round_with_growing_delay_and_end(patience: float, start: float) -> None:
    """An unknown name comes back later each time, is never kept past the patience, and ends."""
    limits = Limits(unknown_patience=patience)
    now, unknown, last = start, (0.0, 0), 0.0
    for _ in range(10_000):
        decision = decide(head(), None, now, frozenset(), limits, unknown)
        if isinstance(decision, End):
            assert decision.why == "unregistered"
            assert now >= start
            return
        assert isinstance(decision, Wait)
        delay = decision.until - now
        if decision.offer:
            assert delay == 0
            delay = last
        assert delay >= last - 1e-3 or delay >= 60 - 1e-3
        assert decision.until <= start + patience + 1e-3
        assert decision.headers is not None
        value = decision.headers[UNKNOWN_HEADER]
        assert isinstance(value, list)
        unknown, last, now = (float(value[0]), int(value[1])), delay, decision.until
    raise AssertionError("an unknown message went round for ever")
