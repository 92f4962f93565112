"""From a message to a report: what a task returns or raises, and what comes of it."""

from __future__ import annotations

import logging
import os
import traceback
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest

from celeriac import telemetry
from celeriac.errors import EncodeError, Ignore, Reject, Retry
from celeriac.model.message import ACK, RETURN, Dead, Delay, Envelope, Requeue, Store
from celeriac.model.outcome import Report
from celeriac.runtime.context import current
from celeriac.runtime.einfo import ExceptionInfo
from celeriac.runtime.run import Ran, Runner, RunSettings
from celeriac.wire.task import follow_up_id, run_name, unpack
from tests.runtime.fakes import FakeTask, blob, document, plain_pack, runner

JSON = frozenset({"application/json"})


def add(x: int, y: int) -> int:
    return x + y


def boom(*args: Any) -> None:
    raise KeyError(*args)


def link(task: str, *args: Any, immutable: bool = False, **options: Any) -> dict[str, Any]:
    return {
        "task": task, "args": list(args), "kwargs": {}, "options": options, "subtask_type": None,
        "immutable": immutable,
    }  # fmt: skip


def report_of(ran: Ran) -> Report:
    assert isinstance(ran, Report)
    return ran


def run_of(data: bytes) -> str:
    return run_name(unpack(data, JSON))


def messages(report: Report) -> list[Any]:
    return [unpack(e.blob, JSON) for e in report.publish]


# --- success


def test_a_plain_success_is_a_document_and_a_time() -> None:
    """Nothing follows, nobody listens: the document is Celery's, and there is no report."""
    ran = runner(add).run(7, blob("add", 1, 2, id="the-id", parent_id="p", group="g"))
    assert isinstance(ran, tuple)
    found = document(ran)
    assert found.pop("date_done").endswith("+00:00")
    assert found == {
        "status": "SUCCESS", "result": 3, "traceback": None, "children": [], "group_id": "g", "parent_id": "p",
        "task_id": "the-id",
    }  # fmt: skip
    assert 0 < ran[1] < 1


@pytest.mark.parametrize(
    ("by_task", "by_message", "stored"),
    [(False, None, True), (True, None, False), (True, False, True), (False, True, False)],
)
def test_whether_the_result_is_stored(by_task: bool, by_message: bool | None, stored: bool) -> None:
    """The message's word on ignore_result counts more than the task's."""
    made = runner(FakeTask(add, ignore_result=by_task))
    data = blob("add", 1, 2, ignore_result=by_message)
    if by_message is None:
        data = data.replace(b'"ignore_result": false', b'"ignore_result": null')
    ran = made.run(1, data)
    assert isinstance(ran, tuple)
    assert (ran[0] is not None) is stored


def test_without_a_backend_nothing_is_stored() -> None:
    """No result backend, no document, for failures neither."""
    made = runner(add, boom, stores_results=False)
    assert made.run(1, blob("add", 1, 2))[0] is None  # type: ignore[index]
    assert report_of(made.run(2, blob("boom"))).store is None


def test_both_paths_give_the_same_document() -> None:
    """The straight path and the general one (somebody listens) write the same bytes but for the time."""
    made = runner(add)

    def hear(**_: Any) -> None:
        pass

    data = blob("add", 1, 2, id="x", parent_id="p")
    plain = document(made.run(1, data))
    telemetry.task_success.connect(hear)
    try:
        general = document(made.run(1, data))
    finally:
        telemetry.task_success.disconnect(hear)
    assert list(plain) == list(general)
    assert {**plain, "date_done": 0} == {**general, "date_done": 0}


def test_the_request_of_a_run() -> None:
    """`current` is the request while the task runs, in its handlers too, and nothing afterwards."""
    seen: list[Any] = []

    def look(*args: Any, **kwargs: Any) -> None:
        request = current.get()
        assert request is not None
        seen.append((request.id, request.retries, request.hostname, request.task, request.instance.name))

    task = FakeTask(look, on_success=lambda *a: look(), after_return=lambda *a: look())
    runner(task).run(1, blob("look", id="i", retries=2))
    assert seen == [("i", 2, "w@here", "look", "look")] * 3
    assert current.get() is None


def test_children_are_stored() -> None:
    """What the task has sent is told with its result, as tuples."""

    class Handle:
        def as_tuple(self) -> Any:
            return (("child", None), None)

    def sends() -> None:
        request = current.get()
        assert request is not None
        request.children.append(Handle())

    found = document(runner(sends).run(1, blob("sends")))
    assert found["children"] == [[["child", None], None]]


def test_a_returned_result_object_is_stored_as_a_tuple() -> None:
    """As in Celery, a task that returns a handle stores what names it."""

    class Handle:
        id = "other"

        def as_tuple(self) -> Any:
            return (("other", None), None)

    assert document(runner(FakeTask(lambda: Handle(), "t")).run(1, blob("t")))["result"] == [["other", None], None]


def test_a_value_that_cannot_be_stored_is_a_failure() -> None:
    """EncodeError becomes the outcome, with the handlers of a failure."""
    called: list[Any] = []
    task = FakeTask(lambda: object(), "t", on_failure=lambda exc, *a: called.append(exc))
    report = report_of(runner(task).run(1, blob("t")))
    assert report.state == "FAILURE"
    assert document(report)["result"]["exc_module"] == "kombu.exceptions"
    assert [type(c) for c in called] == [EncodeError]


def test_an_ignored_value_may_be_anything() -> None:
    """What is thrown away needs no serializer."""
    assert runner(FakeTask(lambda: object(), "t")).run(1, blob("t", ignore_result=True))[0] is None  # type: ignore[index]


def test_events_make_every_outcome_a_report() -> None:
    """Where somebody listens to events, a success carries its repr."""
    report = report_of(runner(add, tells_results=True).run(1, blob("add", 1, 2)))
    assert (report.state, report.result, report.settlement) == ("SUCCESS", "3", ACK)
    assert report.store is not None


def test_extended_documents() -> None:
    """result_extended adds name, arguments, worker, retries, queue and stamps."""
    made = runner(add, boom, result_extended=True)
    stamps = {"stamps": {"a": 1}, "stamped_headers": ["a"]}
    for name, state in (("add", "SUCCESS"), ("boom", "FAILURE")):
        found = document(made.run(1, blob(name, 1, 2, retries=1, queue="q", **stamps)))
        assert found["status"] == state
        shown = {k: found[k] for k in ("name", "args", "kwargs", "worker", "retries", "queue", "a", "stamped_headers")}
        assert shown == {
            "name": name, "args": [1, 2], "kwargs": {}, "worker": "w@here", "retries": 1, "queue": "q", "a": 1,
            "stamped_headers": ["a"],
        }  # fmt: skip


def test_other_serializers_and_compression() -> None:
    """Documents are written as the settings say."""
    from celeriac.wire import record

    for settings in (
        {"result_serializer": "msgpack"}, {"result_serializer": "yaml"}, {"result_serializer": "pickle"},
        {"result_compression": "gzip"},
    ):  # fmt: skip
        made = runner(add, boom, **settings)
        serializer = settings.get("result_serializer", "json")
        ran = made.run(1, blob("add", 1, 2))
        assert isinstance(ran, tuple)
        assert ran[0] is not None
        assert record.read(ran[0], serializer).result == 3
        store = report_of(made.run(1, blob("boom", 1))).store
        assert store is not None
        assert record.read(store.document, serializer).status == "FAILURE"


def test_the_timezone_of_date_done() -> None:
    """date_done is in the app's timezone."""
    from zoneinfo import ZoneInfo

    found = document(runner(add, timezone=ZoneInfo("Asia/Tokyo")).run(1, blob("add", 1, 2)))
    assert found["date_done"].endswith("+09:00")


# --- failure


def test_a_failure() -> None:
    """Document, repr and traceback; the traceback begins with the user's code."""
    report = report_of(runner(boom).run(3, blob("boom", "nope", 3, id="i")))
    assert (report.seq, report.state, report.settlement, report.publish) == (3, "FAILURE", ACK, ())
    assert report.result == "KeyError('nope', 3)"
    found = document(report)
    assert found["result"] == {"exc_type": "KeyError", "exc_message": ["nope", 3], "exc_module": "builtins"}
    assert found["traceback"] == report.traceback
    assert report.traceback.splitlines()[1].strip().startswith(f'File "{__file__}"')


def test_wrong_arguments_are_a_failure() -> None:
    """A call that does not fit the function fails as in Python."""
    report = report_of(runner(add).run(1, blob("add", 1)))
    assert report.state == "FAILURE"
    assert "missing 1 required positional argument" in report.result


@pytest.mark.parametrize(
    ("on_failure", "late", "settlement"),
    [
        (True, True, ACK),
        (True, False, ACK),
        (False, False, ACK),
        (False, True, Dead("the task failed and acks_on_failure is off: KeyError()")),
    ],
)
def test_how_a_failure_is_settled(on_failure: bool, late: bool, settlement: Any) -> None:
    """acks_on_failure off and late acknowledgement: the message is rejected; otherwise it is done with."""
    task = FakeTask(boom, acks_on_failure=on_failure, acks_late=late)
    assert report_of(runner(task).run(1, blob("boom"))).settlement == settlement


def test_errors_may_be_stored_though_results_are_not() -> None:
    """store_errors_even_if_ignored."""
    task = FakeTask(boom, ignore_result=True, store_errors_even_if_ignored=True)
    assert report_of(runner(task).run(1, blob("boom", ignore_result=True))).store is not None
    task = FakeTask(boom, ignore_result=True)
    assert report_of(runner(task).run(1, blob("boom", ignore_result=True))).store is None


@pytest.mark.parametrize("error", [SystemExit(3), KeyboardInterrupt(), GeneratorExit(), BaseException("odd")])
def test_what_would_end_a_reader_is_stored_as_a_lost_worker(error: BaseException) -> None:
    """SystemExit and the like become WorkerLostError: rebuilt by `get()` they would end the caller."""

    def leaves() -> None:
        raise error

    report = report_of(runner(leaves).run(1, blob("leaves")))
    assert report.state == "FAILURE"
    found = document(report)["result"]
    assert found["exc_type"] == "WorkerLostError"
    assert type(error).__name__ in found["exc_message"][0]


class Hostile(Exception):
    def __init__(self) -> None:
        super().__init__(self)

    def __repr__(self) -> str:
        raise RuntimeError("no repr")

    __str__ = __repr__


class VeryHostile(BaseException):
    def __repr__(self) -> str:
        raise self

    __str__ = __repr__

    def __getattribute__(self, name: str) -> Any:
        if name in ("args", "__cause__", "__class__"):
            raise RuntimeError(name)
        return super().__getattribute__(name)


class Unpicklable(Exception):
    def __init__(self) -> None:
        super().__init__(lambda: None)


@pytest.mark.parametrize("cls", [Hostile, VeryHostile, Unpicklable])
@pytest.mark.parametrize("serializer", ["json", "pickle", "msgpack"])
def test_hostile_exceptions_are_stored_too(cls: type[BaseException], serializer: str) -> None:
    """Whatever an exception does when it is looked at, the outcome is a stored FAILURE."""

    def raises() -> None:
        raise cls

    report = report_of(runner(raises, result_serializer=serializer).run(1, blob("raises")))
    assert report.state == "FAILURE"
    assert report.store is not None
    assert report.store.document
    msgspec.msgpack.encode(report)


def test_a_return_value_without_a_repr() -> None:
    """A log line never makes a success a failure."""

    class Odd(dict[str, int]):
        def __repr__(self) -> str:
            raise ValueError

    report = report_of(runner(FakeTask(lambda: Odd(a=1), "t"), tells_results=True).run(1, blob("t")))
    assert report.state == "SUCCESS"


def test_expected_errors_are_logged_mildly(caplog: pytest.LogCaptureFixture) -> None:
    """`throws`: INFO without a traceback; anything else is an ERROR with one."""
    caplog.set_level(logging.INFO, "celeriac.task")
    made = runner(FakeTask(boom, "mild", throws=(KeyError,)), boom)
    made.run(1, blob("mild", 1, id="a"))
    made.run(1, blob("boom", 1, id="b"))
    mild, wild = caplog.records
    assert (mild.levelname, mild.getMessage(), mild.exc_info) == (
        "INFO",
        "Task mild[a] raised expected: KeyError(1)",
        None,
    )
    assert (wild.levelname, wild.getMessage()) == ("ERROR", "Task boom[b] raised unexpected: KeyError(1)")
    assert wild.exc_info is not None
    assert traceback.extract_tb(wild.exc_info[2])[0].name == "boom"
    assert wild.data["id"] == "b"  # type: ignore[attr-defined]


def test_successes_are_logged(caplog: pytest.LogCaptureFixture) -> None:
    """Celery's line, with the shadow name where there is one."""
    caplog.set_level(logging.INFO, "celeriac.task")
    runner(add).run(1, blob("add", 1, 2, id="i", shadow="plus"))
    (record,) = caplog.records
    assert record.getMessage().startswith("Task plus[i] succeeded in ")
    assert record.getMessage().endswith("s: 3")


# --- retry, reject, ignore


def retrying(**options: Any) -> Any:
    def task(*args: Any, **kwargs: Any) -> None:
        raise Retry(exc=ValueError("x1"), when=1, sig={"task": "task", "options": options})

    return FakeTask(task, acks_late=options.pop("acks_late", True))


def test_a_retry_waits_in_the_schedule() -> None:
    """With a countdown the same delivery is put off, with the next message in its place."""
    report = report_of(runner(retrying(countdown=100)).run(1, blob("task", 1, id="i")))
    assert (report.state, report.result, report.publish) == ("RETRY", "ValueError('x1')", ())
    assert isinstance(report.settlement, Delay)
    assert report.settlement.blob is not None
    again = unpack(report.settlement.blob, JSON)
    assert (again.id, again.retries, again.args, again.parent_id) == ("i", 1, [1], None)
    assert again.eta is not None
    found = document(report)
    assert found["status"] == "RETRY"
    assert found["result"]["exc_type"] == "ValueError"
    assert found["date_done"] is None
    assert found["traceback"].rstrip().endswith("Retry: Retry in 1s: ValueError('x1')")


def test_a_retry_at_once_goes_to_the_tail() -> None:
    """Without a countdown the next message is put back at the end of the queue."""
    report = report_of(runner(retrying()).run(1, blob("task")))
    assert isinstance(report.settlement, Requeue)
    assert report.settlement.blob is not None


@pytest.mark.parametrize("case", [{"queue": "other"}, {"acks_late": False}])
def test_a_retry_that_has_to_be_published(case: dict[str, Any]) -> None:
    """To another queue, or when nothing is left to settle, the next message is published with the outcome."""
    data = blob("task", id="i", retries=3)
    report = report_of(runner(retrying(countdown=50, **case)).run(1, data))
    assert report.settlement == ACK
    (envelope,) = report.publish
    assert envelope.queue == case.get("queue", "celery")
    assert envelope.not_before is not None
    assert envelope.publish_id == follow_up_id(run_of(data), 3, "publish retry")


def test_a_retry_keeps_what_the_message_carries() -> None:
    """Links, chain, stamps, limits, headers, priority and serializer stay."""
    kept: dict[str, Any] = {
        "callbacks": [link("add", 1)], "errbacks": [link("boom")], "chain": [link("add", 2)], "timelimit": (5, 3),
        "group": "g", "group_index": 2, "root_id": "r", "parent_id": "p", "headers": {"x": "y"}, "shadow": "s",
        "stamps": {"k": "v"}, "stamped_headers": ["k"], "origin": "o", "reply_to": "rt", "kwargs": {"a": 1},
    }  # fmt: skip
    report = report_of(runner(retrying()).run(1, blob("task", 1, **kept)))
    assert isinstance(report.settlement, Requeue)
    assert report.settlement.blob is not None
    again = unpack(report.settlement.blob, JSON)
    for name, value in kept.items():
        found = getattr(again, name)
        assert (list(found) if name == "timelimit" else found) == (list(value) if name == "timelimit" else value), name


def test_a_retry_that_was_sent_already() -> None:
    """A Retry without a signature says only that it is so: nothing is sent a second time."""

    def task() -> None:
        raise Retry("sent")

    report = report_of(runner(task).run(1, blob("task")))
    assert (report.state, report.settlement, report.publish) == ("RETRY", ACK, ())
    assert document(report)["result"] is None


def test_a_retry_that_cannot_be_sent_is_a_failure() -> None:
    """Arguments that can't be packed make the outcome a failure, not a message that is gone."""

    def task() -> None:
        raise Retry(sig={"args": [object()], "options": {}})

    report = report_of(runner(task).run(1, blob("task")))
    assert report.state == "FAILURE"
    assert document(report)["result"]["exc_type"] == "EncodeError"


def test_reject() -> None:
    """requeue=True: to the tail, nothing stored. Otherwise the dead letters, and FAILURE is stored as Celery does."""

    def again() -> None:
        raise Reject("later", requeue=True)

    def never() -> None:
        raise Reject("no", requeue=False)

    made = runner(again, never, FakeTask(never, "early", acks_late=False))
    report = report_of(made.run(1, blob("again")))
    assert (report.state, report.settlement, report.store) == ("REJECTED", Requeue(), None)
    report = report_of(made.run(1, blob("never")))
    assert (report.state, report.settlement) == ("REJECTED", Dead("rejected by the task: no"))
    assert document(report)["result"] == {
        "exc_type": "Reject", "exc_message": ["no", False], "exc_module": "celery.exceptions",
    }  # fmt: skip
    assert document(report)["status"] == "FAILURE"
    assert report_of(made.run(1, blob("early"))).settlement == ACK


def test_ignore() -> None:
    """No state is written; what the task has put into the outbox goes out."""
    envelope = Envelope("id", "pub", "q", b"blob")

    def task() -> None:
        request = current.get()
        assert request is not None
        request.outbox = [envelope]
        raise Ignore

    report = report_of(runner(task).run(1, blob("task")))
    assert (report.state, report.settlement, report.store, report.publish) == ("IGNORED", ACK, None, (envelope,))


# --- what follows


def test_links_and_chain_follow() -> None:
    """Links, then the chain's next step, get the value first; ids are the wire's or follow from the run."""
    chain = [link("add", 30, task_id="last"), link("add", 20, task_id="next", queue="fast", priority=3)]
    data = blob("add", 1, 2, id="i", root_id="r", retries=1, callbacks=[link("add", 10)], chain=chain)
    report = report_of(runner(add).run(1, data))
    first, second = messages(report)
    assert (first.args, first.parent_id, first.root_id) == ([3, 10], "i", "r")
    assert first.id == follow_up_id(run_of(data), 1, "link.0")
    assert (second.args, second.id, second.parent_id) == ([3, 20], "next", "i")
    assert second.chain == [chain[0]]
    assert report.publish[1].queue == "fast"
    assert report.publish[1].priority == 3
    assert document(report)["children"] == [[[first.id, None], None], [["next", None], None]]
    again = report_of(runner(add).run(1, data))
    assert [(e.id, e.publish_id) for e in again.publish] == [(e.id, e.publish_id) for e in report.publish]


def test_an_ignored_result_still_has_followers() -> None:
    """Links are sent though nothing is stored."""
    report = report_of(runner(add).run(1, blob("add", 1, 2, ignore_result=True, callbacks=[link("add", 1)])))
    assert (len(report.publish), report.store) == (1, None)


def test_followers_inherit_the_priority_if_so_set() -> None:
    """task_inherit_parent_priority."""
    data = blob("add", 1, 2, callbacks=[link("add", 1), link("add", 1, priority=9)])
    data = data.replace(b'"priority": 0', b'"priority": 7')
    report = report_of(runner(add, inherit_parent_priority=True).run(1, data))
    assert [e.priority for e in report.publish] == [7, 9]
    assert [e.priority for e in report_of(runner(add).run(1, data)).publish] == [0, 9]


@pytest.mark.parametrize(
    "bad",
    [
        {"callbacks": [{"no": "signature"}]},
        {"callbacks": [link("add", 1, countdown="soon")]},
        {"chain": [{"no": "signature"}]},
        {"callbacks": [{**link("x"), "subtask_type": "chord"}]},
    ],
)
def test_followers_that_cannot_be_sent_make_a_failure(bad: dict[str, Any]) -> None:
    """A signature that can't be understood fails the task with InvalidTaskError; its error links hear of it."""
    report = report_of(runner(add).run(1, blob("add", 1, 2, errbacks=[link("notify")], **bad)))
    assert report.state == "FAILURE"
    assert document(report)["result"]["exc_type"] == "InvalidTaskError"
    assert [e.blob.count(b'"notify"') for e in report.publish] == [1]


def test_later_steps_of_a_chain_fail_too() -> None:
    """Each later step gets the same FAILURE, guarded against a SUCCESS that stands."""
    chain = [link("add", 3, task_id="c"), link("add", 2, task_id="b", group_id="g"), link("add", 1)]
    report = report_of(runner(boom).run(1, blob("boom", 1, chain=chain)))
    assert [(s.id, s.state, s.guard) for s in report.more] == [("b", "FAILURE", True), ("c", "FAILURE", True)]
    found = msgspec.json.decode(report.more[0].document)
    assert (found["task_id"], found["group_id"], found["result"]) == ("b", "g", document(report)["result"])
    assert report.publish == ()


def test_new_style_error_links_are_called_here() -> None:
    """More than one argument: `(request, exc, traceback)`, then what the signature has stored."""
    heard: list[Any] = []

    def errback(request: Any, exc: BaseException, trace: str, extra: Any) -> None:
        heard.append((request.id, repr(exc), "KeyError" in trace, extra))

    report = report_of(runner(boom, errback).run(1, blob("boom", 1, id="i", errbacks=[link("errback", "more")])))
    assert heard == [("i", "KeyError(1)", True, "more")]
    assert report.publish == ()


def test_old_style_error_links_are_sent() -> None:
    """One argument, a bound task, an unknown one: a message with the id of the failed task first."""

    def one(task_id: str) -> None: ...

    def bound(self: Any, a: Any, b: Any) -> None: ...

    made = runner(boom, one, FakeTask(bound, bind=True))
    links = [link("one"), link("bound", "b"), link("elsewhere", immutable=True)]
    report = report_of(made.run(1, blob("boom", id="i", root_id="r", errbacks=links)))
    found = messages(report)
    assert [(m.task, m.args, m.parent_id, m.root_id) for m in found] == [
        ("one", ["i"], "i", "r"), ("bound", ["i", "b"], "i", "r"), ("elsewhere", [], "i", "r"),
    ]  # fmt: skip
    assert len({e.publish_id for e in report.publish}) == 3


def test_a_broken_error_link_is_only_logged(caplog: pytest.LogCaptureFixture) -> None:
    """The others still hear; the outcome stays."""

    def bad(request: Any, exc: Any, trace: Any) -> None:
        raise SystemExit(1)

    links = [link("bad"), {"no": "signature"}, link("other")]
    report = report_of(runner(boom, bad).run(1, blob("boom", errbacks=links)))
    assert report.state == "FAILURE"
    assert [m.task for m in messages(report)] == ["other"]
    assert sum("raised an exception" in r.getMessage() for r in caplog.records) == 2


# --- handlers and signals


@pytest.fixture
def signals() -> Iterator[list[tuple[str, Any, dict[str, Any]]]]:
    heard: list[tuple[str, Any, dict[str, Any]]] = []
    made = []
    names = (
        "task_prerun task_postrun task_success task_failure task_retry task_revoked task_rejected task_internal_error"
    )
    for name in names.split():

        def hear(sender: Any, signal: Any = None, name: str = name, **fields: Any) -> None:
            heard.append((name, sender, fields))

        telemetry.SIGNALS[name].connect(hear, weak=False)
        made.append((name, hear))
    yield heard
    for name, hear in made:
        telemetry.SIGNALS[name].disconnect(hear)


def recorder(calls: list[Any], function: Any, **options: Any) -> FakeTask:
    def note(name: str) -> Any:
        return lambda *args: calls.append((name, *args))

    handlers = {h: note(h) for h in ("before_start", "on_success", "on_retry", "on_failure", "after_return")}
    return FakeTask(function, "task", **handlers, **options)


def test_order_and_arguments_of_a_success(signals: list[Any]) -> None:
    """prerun, before_start, run, on_success, task_success, after_return, postrun: with Celery's arguments."""
    calls: list[Any] = signals
    task = recorder(calls, add)
    runner(task).run(1, blob("task", 1, id="i", kwargs={"y": 2}))
    names = [c[0] for c in calls]
    assert names == [
        "task_prerun", "before_start", "on_success", "task_success", "after_return", "task_postrun",
    ]  # fmt: skip
    assert calls[0][1:] == (task, {"task_id": "i", "task": task, "args": [1], "kwargs": {"y": 2}})
    assert calls[1][1:] == ("i", [1], {"y": 2})
    assert calls[2][1:] == (3, "i", [1], {"y": 2})
    assert calls[3][1] is task
    assert calls[3][2]["result"] == 3
    assert calls[4][1:] == ("SUCCESS", 3, "i", [1], {"y": 2}, None)
    assert calls[5][2] == {
        "task_id": "i", "task": task, "args": [1], "kwargs": {"y": 2}, "retval": 3, "state": "SUCCESS",
    }  # fmt: skip


def test_order_and_arguments_of_a_failure(signals: list[Any]) -> None:
    """before_start, on_failure, task_failure, after_return, postrun; the einfo has the traceback."""
    task = recorder(signals, boom)
    runner(task).run(1, blob("task", 1, id="i"))
    assert [c[0] for c in signals] == [
        "task_prerun", "before_start", "on_failure", "task_failure", "after_return", "task_postrun",
    ]  # fmt: skip
    _, exc, task_id, args, kwargs, einfo = signals[2]
    assert (repr(exc), task_id, args, kwargs) == ("KeyError(1)", "i", [1], {})
    assert isinstance(einfo, ExceptionInfo)
    assert str(einfo).startswith("Traceback")
    assert einfo.exc_info[1] is exc
    assert signals[3][2]["exception"] is exc
    assert signals[4][1:4] == ("FAILURE", exc, "i")
    assert (signals[5][2]["state"], signals[5][2]["retval"]) == ("FAILURE", exc)


def test_handlers_of_a_retry_a_reject_and_an_ignore(signals: list[Any]) -> None:
    """A retry has its own handler and signal; none of the three calls after_return."""
    for error, state, names in (
        (Retry("r", exc=ValueError(1), sig={}), "RETRY", ["on_retry", "task_retry"]),
        (Reject("no"), "REJECTED", []),
        (Ignore(), "IGNORED", []),
    ):
        signals.clear()

        def raises(error: BaseException = error) -> None:
            raise error

        runner(recorder(signals, raises)).run(1, blob("task", id="i"))
        assert [c[0] for c in signals] == ["task_prerun", "before_start", *names, "task_postrun"]
        assert signals[-1][2]["state"] == state


def test_before_start_can_fail_the_task() -> None:
    """What before_start raises is the task's outcome; the function is not called."""
    called: list[int] = []

    def refuse(*args: Any) -> None:
        raise ValueError("not today")

    task = FakeTask(lambda: called.append(1), "t", before_start=refuse)
    report = report_of(runner(task).run(1, blob("t")))
    assert (report.state, report.result, called) == ("FAILURE", "ValueError('not today')", [])


@pytest.mark.parametrize("handler", ["on_success", "after_return", "on_failure"])
def test_a_handler_that_raises_is_only_logged(handler: str, caplog: pytest.LogCaptureFixture) -> None:
    """The outcome is known by then."""

    def bad(*args: Any) -> None:
        raise SystemExit("handler")

    handlers: dict[str, Any] = {handler: bad}
    made = runner(FakeTask(add, **handlers), FakeTask(boom, **handlers))
    assert document(made.run(1, blob("add", 1, 2)))["status"] == "SUCCESS"
    assert document(made.run(1, blob("boom", 1)))["status"] == "FAILURE"
    assert any(f"{handler} handler raised" in r.getMessage() for r in caplog.records)


def test_a_listener_that_raises_harms_nobody(caplog: pytest.LogCaptureFixture) -> None:
    """Signals are not the task's business."""

    def bad(**_: Any) -> None:
        raise ValueError("listener")

    for name in ("task_prerun", "task_postrun", "task_success"):
        telemetry.SIGNALS[name].connect(bad, weak=False)
    try:
        assert document(runner(add).run(1, blob("add", 1, 2)))["result"] == 3
    finally:
        for name in ("task_prerun", "task_postrun", "task_success"):
            telemetry.SIGNALS[name].disconnect(bad)
    assert len([r for r in caplog.records if r.name == "celeriac.signals"]) == 3


def test_a_listener_that_exits_is_an_internal_error(signals: list[Any], caplog: pytest.LogCaptureFixture) -> None:
    """SystemExit out of a listener goes through everything: the task fails, the child lives, the signal tells."""

    def bad(**_: Any) -> None:
        raise SystemExit(1)

    telemetry.task_prerun.connect(bad, weak=False)
    try:
        report = report_of(runner(add).run(1, blob("add", 1, 2)))
    finally:
        telemetry.task_prerun.disconnect(bad)
    assert report.state == "FAILURE"
    assert document(report)["result"]["exc_type"] == "WorkerLostError"
    assert "task_internal_error" in [c[0] for c in signals]
    assert "INTERNAL ERROR" in caplog.text


def test_coroutine_handlers_are_awaited() -> None:
    """Handlers and error links of a plain task may be coroutine functions."""
    heard: list[str] = []

    async def handler(*args: Any) -> None:
        heard.append("handler")

    async def errback(request: Any, exc: Any, trace: Any) -> None:
        heard.append("errback")

    made = runner(FakeTask(add, on_success=handler), boom, errback)
    made.run(1, blob("add", 1, 2))
    made.run(1, blob("boom", errbacks=[link("errback")]))
    made.close()
    assert heard == ["handler", "errback"]


def test_started_is_told_before_the_task() -> None:
    """track_started: a document with pid and hostname, but not where the result is ignored."""
    told: list[Store] = []
    made = runner(FakeTask(add, track_started=True))
    made.on_started = told.append
    made.run(1, blob("add", 1, 2, id="i"))
    made.run(1, blob("add", 1, 2, ignore_result=True))
    (store,) = told
    found = msgspec.json.decode(store.document)
    assert (store.id, store.state, found["status"]) == ("i", "STARTED", "STARTED")
    assert found["result"] == {"pid": os.getpid(), "hostname": "w@here"}
    assert found["date_done"] is None


def test_an_overridden_call_is_called() -> None:
    """A task class with its own __call__ runs through it."""

    class Own(FakeTask):
        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            return "own", self.run(*args, **kwargs)

    task = Own(add)
    task.overridden = frozenset({"__call__"})
    assert document(runner(task).run(1, blob("add", 1, 2)))["result"] == ["own", 3]


# --- what can't be run


def test_an_unknown_task_goes_back() -> None:
    """The parent believed that the task is registered here: it decides."""
    report = report_of(runner(add).run(5, blob("nope")))
    assert (report.seq, report.state, report.settlement) == (5, "REJECTED", RETURN)


@pytest.mark.parametrize("serializer", ["pickle", "yaml"])
def test_content_that_is_not_accepted(serializer: str, signals: list[Any]) -> None:
    """A refused content type goes to the dead letters with the reason, and task_rejected tells."""
    report = report_of(runner(add).run(1, blob("add", 1, 2, serializer=serializer)))
    assert report.state == "REJECTED"
    assert isinstance(report.settlement, Dead)
    assert "ContentDisallowed" in report.settlement.reason
    assert serializer in report.settlement.reason
    assert [c[0] for c in signals] == ["task_rejected"]


@pytest.mark.parametrize("damage", [b"", b"\xff\x00", b"[]", b"{}", b'{"body": 1}'])
def test_bytes_that_are_no_message(damage: bytes, caplog: pytest.LogCaptureFixture) -> None:
    """Garbage goes to the dead letters and is logged once, however it came."""
    made = runner(add)
    for report in (made.run(1, damage), made.end(1, damage, "revoked", ""), made.replay(1, damage, b"{}")):
        assert report_of(report).state == "REJECTED"
        assert isinstance(report_of(report).settlement, Dead)
    assert len(caplog.records) == 3


# --- END


@pytest.mark.parametrize(
    ("why", "detail", "state", "result", "settlement"),
    [
        ("revoked", "", "REVOKED", ("TaskRevokedError", ["revoked"], "celery.exceptions"), ACK),
        ("terminated", "SIGTERM", "REVOKED", ("TaskRevokedError", ["terminated"], "celery.exceptions"), ACK),
        ("expired", "", "REVOKED", ("TaskRevokedError", ["expired"], "celery.exceptions"), ACK),
        ("lost", "gone 9", "FAILURE", ("WorkerLostError", ["gone 9"], "billiard.exceptions"), Dead("gone 9")),
        ("timeout", "1", "FAILURE", ("TimeLimitExceeded", [1], "billiard.exceptions"), ACK),
        ("timeout", "1.5", "FAILURE", ("TimeLimitExceeded", [1.5], "billiard.exceptions"), ACK),
        ("rejected", "bad", "REJECTED", ("Reject", ["bad", False], "celery.exceptions"), Dead("bad")),
    ],
)
def test_ends(why: str, detail: str, state: str, result: Any, settlement: Any) -> None:
    """Each END has its document and its settlement."""
    report = runner(add).end(4, blob("add", 1, 2), why, detail)
    assert (report.seq, report.state, report.settlement) == (4, state, settlement)
    found = document(report)
    assert (found["result"]["exc_type"], found["result"]["exc_message"], found["result"]["exc_module"]) == result
    assert found["traceback"] is None


def test_the_end_of_an_unregistered_task() -> None:
    """NotRegistered is stored and error links are sent, though nobody knows the task here."""
    report = runner(add).end(1, blob("no.such", errbacks=[link("one")]), "unregistered", "")
    assert document(report)["result"] == {
        "exc_type": "NotRegistered", "exc_message": ["no.such"], "exc_module": "celery.exceptions",
    }  # fmt: skip
    assert isinstance(report.settlement, Dead)
    assert [m.task for m in messages(report)] == ["one"]


def test_ends_that_are_failures_call_handlers(signals: list[Any]) -> None:
    """lost and timeout: on_failure, task_failure, after_return; revoked: task_revoked."""
    task = recorder(signals, add)
    made = runner(task)
    for why in ("lost", "timeout"):
        signals.clear()
        made.end(1, blob("task", 1, 2), why, "1")
        assert [c[0] for c in signals] == ["on_failure", "task_failure", "after_return"]
    for why, expired, terminated in (("revoked", False, False), ("expired", True, False), ("terminated", False, True)):
        signals.clear()
        made.end(1, blob("task", 1, 2, id="i"), why, "SIGTERM" if terminated else "")
        ((name, sender, fields),) = signals
        assert (name, sender, fields["request"].id) == ("task_revoked", task, "i")
        assert (fields["expired"], fields["terminated"]) == (expired, terminated)


@pytest.mark.parametrize(
    ("acks", "late", "settlement"), [(True, True, ACK), (False, True, Requeue()), (False, False, ACK)]
)
def test_how_a_timeout_is_settled(acks: bool, late: bool, settlement: Any) -> None:
    """acks_on_timeout off: back to the queue."""
    task = FakeTask(add, acks_on_timeout=acks, acks_late=late)
    assert runner(task).end(1, blob("add"), "timeout", "1").settlement == settlement


def test_an_end_of_an_ignored_task_stores_nothing() -> None:
    """ignore_result counts for REVOKED too."""
    assert runner(add).end(1, blob("add", ignore_result=True), "revoked", "").store is None


def test_the_end_of_a_chains_step_ends_the_later_ones() -> None:
    """Who waits for the last step of a chain hears that an earlier one was revoked."""
    report = runner(add).end(1, blob("add", chain=[link("add", task_id="last")]), "revoked", "")
    assert [(s.id, s.state) for s in report.more] == [("last", "REVOKED")]


# --- REPLAY


def test_a_replay_says_what_follows() -> None:
    """SUCCESS stands: the same follow-ups with the same ids, nothing stored, the function not called."""
    called: list[int] = []

    def task() -> int:
        called.append(1)
        return 5

    made = runner(task)
    data = blob("task", id="i", callbacks=[link("add", 1)])
    first = report_of(made.run(1, data))
    assert first.store is not None
    again = made.replay(2, data, first.store.document)
    assert (again.seq, again.state, again.settlement, again.store) == (2, "SUCCESS", ACK, None)
    assert again.publish == first.publish
    assert called == [1]


@pytest.mark.parametrize("late", [True, False])
def test_a_replay_of_a_failure_only_counts(late: bool) -> None:
    """Its links don't follow, its error links were sent before; it counts as it ended, and so do the steps behind it.
    The message is settled as that of a failure."""
    task = FakeTask(add, "task", acks_on_failure=late)
    body = link("body", task_id="body")
    step = link("add", task_id="step", group_id="g", group_index=1, chord=body)
    data = blob(
        "task", "no", 1, id="i", group="g", group_index=0, chord=body, callbacks=[link("add")],
        errbacks=[link("one")], chain=[step],
    )  # fmt: skip
    first = report_of(runner(task).run(1, data))
    assert first.store is not None
    again = runner(task).replay(2, data, first.store.document)
    assert (again.state, again.store, again.publish, again.chords) == ("FAILURE", None, (), ())
    assert again.parts == first.parts
    assert [(part.id, b"FAILURE" in part.entry) for part in again.parts] == [("i", True), ("step", True)]
    assert again.settlement == first.settlement
    assert isinstance(again.settlement, Dead) is not late


def test_what_completes_a_chord_does_not_change_what_follows() -> None:
    """Whichever member it was, and where a sweeper takes it over: ids and publish ids are those of the chord."""
    body = b'{"task": "add", "args": [], "kwargs": {}, "options": {}}'
    entries = [b'[1, "a", "SUCCESS", 1]']
    reports = [
        runner(add).end(1, data, "joined", [body, entries, b"", "g", "m"]) for data in (blob("add"), blob("add"), b"")
    ]
    assert len({(report.publish[0].id, report.publish[0].publish_id) for report in reports}) == 1
    other = runner(add).end(1, blob("add"), "joined", [body, entries, b"", "h", "m"])
    assert other.publish[0].id != reports[0].publish[0].id


def test_a_message_that_is_sent_again_is_another_run() -> None:
    """Under the same task id; one that is delivered again is the same."""
    data = blob("add", 1, 2, id="i", callbacks=[link("add", 1)])
    again = blob("add", 1, 2, id="i", callbacks=[link("add", 1)])
    made = runner(add)
    (one,), (same,), (other,) = (report_of(made.run(1, each)).publish for each in (data, data, again))
    assert one == same
    assert one.id != other.id
    assert one.publish_id != other.publish_id


def test_a_replay_that_cannot_be_read() -> None:
    """A document that can't be read, or a follow-up that can't be sent: the dead letters keep the message."""
    made = runner(add)
    assert isinstance(made.replay(1, blob("add"), b"garbage").settlement, Dead)
    done = b'{"status": "SUCCESS", "result": 3}'
    assert isinstance(made.replay(1, blob("add", callbacks=[{"no": 1}]), done).settlement, Dead)


def test_twins_share_plans() -> None:
    """A runner for another thread knows the same tasks and tells the same."""
    made = runner(add)
    other = made.twin()
    assert document(other.run(1, blob("add", 1, 2)))["result"] == 3
    made_later = Runner({"later": FakeTask(add, "later")}, RunSettings(), plain_pack)
    assert document(made_later.run(1, blob("later", 1, 2)))["result"] == 3
