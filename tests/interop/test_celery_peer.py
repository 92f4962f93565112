"""How long a Celery worker gives back what it does not know."""

from __future__ import annotations

from types import SimpleNamespace

from celeriac.contrib.celery_peer import REMEMBERED, Patience, task_id_of


def test_the_delay_doubles_up_to_its_limit_and_ends() -> None:
    """0.1, 0.2, 0.4 ... 5 s, then nothing once the patience is over."""
    patience = Patience(0.1, 5.0, 60.0)
    now, delays = 100.0, []
    while (delay := patience.next_delay("a", now)) is not None:
        delays.append(delay)
        now += delay
    assert delays[:6] == [0.1, 0.2, 0.4, 0.8, 1.6, 3.2]
    assert set(delays[6:]) == {5.0}
    assert 54.0 <= now - 100.0 <= 60.0


def test_each_message_has_its_own_patience_and_memory_is_bounded() -> None:
    """Many messages: the oldest are forgotten."""
    patience = Patience(0.1, 5.0, 60.0)
    assert patience.next_delay("a", 0.0) == 0.1
    assert patience.next_delay("b", 0.0) == 0.1
    assert patience.next_delay("a", 0.1) == 0.2
    for number in range(REMEMBERED):
        patience.next_delay(str(number), 1.0)
    assert patience.next_delay("b", 2.0) == 0.1, "forgotten, so it begins anew"
    assert len(patience._met) == REMEMBERED


def test_the_id_of_a_message() -> None:
    """Of protocol 2, of protocol 1, and of what is neither."""

    class Unreadable:
        headers = None

        @property
        def payload(self) -> object:
            raise ValueError("no serializer")

    assert task_id_of(SimpleNamespace(headers={"id": "two"})) == "two"
    assert task_id_of(SimpleNamespace(headers={}, payload={"id": "one"})) == "one"
    assert task_id_of(Unreadable()) == ""
