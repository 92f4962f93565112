"""Signals and the internal hook."""

from __future__ import annotations

import gc
from typing import Any

import pytest

from celeriac import telemetry
from celeriac.telemetry import Signal


def made() -> Signal:
    return Signal(["a"], name="made")


def test_a_receiver_hears() -> None:
    """It gets signal, sender and the named arguments; its answer comes back."""
    signal = made()
    heard: list[Any] = []

    def hear(signal: Any, sender: Any, **fields: Any) -> str:
        heard.append((signal, sender, fields))
        return "yes"

    assert signal.connect(hear) is hear
    assert signal.send("me", a=1, b=2) == [(hear, "yes")]
    assert heard == [(signal, "me", {"a": 1, "b": 2})]
    assert signal.disconnect(hear)
    assert not signal.disconnect(hear)
    assert signal.send("me") == []


def test_nobody_listens_costs_nothing() -> None:
    """`receivers` is an empty tuple then, also after somebody has gone."""
    signal = made()
    assert signal.receivers == ()

    def hear(**_: Any) -> None: ...

    signal.connect(hear)
    assert signal.receivers
    del hear
    gc.collect()
    assert signal.receivers == ()


def test_as_a_decorator() -> None:
    """With and without arguments, as in Celery."""
    signal = made()
    heard: list[str] = []

    @signal.connect
    def one(**_: Any) -> None:
        heard.append("one")

    @signal.connect(sender="x", weak=False)
    def two(**_: Any) -> None:
        heard.append("two")

    signal.send("x")
    signal.send("y")
    assert heard == ["one", "two", "one"]
    assert signal.has_listeners("y")
    signal.disconnect(one)
    assert not signal.has_listeners("y")
    assert signal.has_listeners("x")


def test_senders_match_by_identity_equality_or_what_they_stand_for() -> None:
    """A proxy of a task is as good as the task."""
    signal = made()

    class Proxy:
        def __init__(self, target: Any) -> None:
            self.target = target

        def _get_current_object(self) -> Any:
            return self.target

        def __eq__(self, other: object) -> bool:
            raise RuntimeError

        __hash__ = None  # type: ignore[assignment]

    task, other = object(), object()
    heard: list[Any] = []

    def hear(sender: Any, **_: Any) -> None:
        heard.append(sender)

    signal.connect(hear, sender=Proxy(task), weak=False)
    signal.send(task)
    signal.send(other)
    assert heard == [task]


def test_methods_and_uids() -> None:
    """Bound methods are held weakly through their object; a dispatch_uid makes a connection unique."""
    signal = made()
    heard: list[int] = []

    class Ear:
        def hear(self, **_: Any) -> None:
            heard.append(1)

    ear = Ear()
    signal.connect(ear.hear)
    signal.connect(ear.hear)
    signal.send(None)
    assert heard == [1]
    signal.connect(Ear().hear)
    gc.collect()
    signal.send(None)
    assert heard == [1, 1]
    del ear
    gc.collect()
    assert signal.receivers == ()

    keep = Ear()
    signal.connect(keep.hear, dispatch_uid="u")
    signal.connect(lambda **_: heard.append(9), dispatch_uid="u", weak=False)
    signal.send(None)
    assert heard[-1] == 1
    assert signal.disconnect(dispatch_uid="u")


def test_an_error_is_an_answer(caplog: pytest.LogCaptureFixture) -> None:
    """It is logged and handed back; the next receiver is called."""
    signal = made()
    error = ValueError("bad")

    def bad(**_: Any) -> None:
        raise error

    def good(**_: Any) -> str:
        return "good"

    signal.connect(bad)
    signal.connect(good)
    assert signal.send_robust(None) == [(bad, error), (good, "good")]
    assert "signal made raised" in caplog.text


def test_receivers_may_come_and_go_while_it_is_sent() -> None:
    """A send goes through those that were there when it began."""
    signal = made()
    heard: list[str] = []

    def first(**_: Any) -> None:
        heard.append("first")
        signal.disconnect(first)
        signal.connect(late, weak=False)

    def second(**_: Any) -> None:
        heard.append("second")

    def late(**_: Any) -> None:
        heard.append("late")

    signal.connect(first)
    signal.connect(second)
    signal.send(None)
    assert heard == ["first", "second"]


def test_what_is_no_receiver() -> None:
    """Only callables can be connected."""
    with pytest.raises(TypeError, match="callable"):
        made().connect(3)  # type: ignore[call-overload]


def test_all_of_celerys_signals_are_there() -> None:
    """By name, each with the arguments that Celery documents."""
    names = """
        before_task_publish after_task_publish task_sent task_received task_prerun task_postrun task_success task_retry
        task_failure task_internal_error task_revoked task_unknown task_rejected import_modules celeryd_init
        celeryd_after_setup worker_init worker_ready worker_shutdown worker_shutting_down worker_before_create_process
        worker_process_init worker_process_shutdown heartbeat_sent setup_logging after_setup_logger
        after_setup_task_logger beat_init beat_embedded_init eventlet_pool_started eventlet_pool_preshutdown
        eventlet_pool_postshutdown eventlet_pool_apply user_preload_options
    """
    assert set(telemetry.SIGNALS) == set(names.split())
    for name in names.split():
        assert getattr(telemetry, name) is telemetry.SIGNALS[name]
        assert telemetry.SIGNALS[name].name == name
    assert {"task_id", "exception", "einfo"} <= telemetry.task_failure.providing_args


def test_the_internal_hook(caplog: pytest.LogCaptureFixture) -> None:
    """`emit` reaches every attached handler until it is detached; a handler's error is only logged."""
    heard: list[Any] = []

    def bad(kind: str, fields: dict[str, Any]) -> None:
        raise ValueError("bad")

    detach_bad = telemetry.attach(bad)
    detach = telemetry.attach(lambda kind, fields: heard.append((kind, fields)))
    telemetry.emit("lost", worker="w")
    detach()
    detach_bad()
    telemetry.emit("lost", worker="x")
    assert heard == [("lost", {"worker": "w"})]
    assert "raised" in caplog.text
