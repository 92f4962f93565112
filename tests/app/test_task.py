"""What `@app.task` makes of a function, and what its calls send."""

from __future__ import annotations

import asyncio
import copy
import json
import pickle
import warnings
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest

from celeriac import telemetry
from celeriac.app import bulk
from celeriac.app.app import Celeriac
from celeriac.app.handle import AsyncResult
from celeriac.app.task import Task
from celeriac.errors import (
    AlwaysEagerIgnored,
    DuplicateTaskNameWarning,
    EncodeError,
    NotRegistered,
    OperationalError,
    QueueNotFound,
)
from celeriac.model.routing import Exchange, Queue
from celeriac.wire.task import unpack
from tests.app.conftest import Broker

# Making


def test_a_task_is_named_after_its_module_and_function(app: Celeriac) -> None:
    """`module.function`, or the name that is given."""

    @app.task
    def add(x: int, y: int) -> int:
        """Add."""
        return x + y

    named = app.task(name="other")(lambda: None)
    assert add.name == "tests.app.test_task.add"
    assert named.name == "other"
    assert app.tasks["other"] is named
    assert (add.__name__, add.__doc__, add.__module__) == ("add", "Add.", "tests.app.test_task")


def test_the_main_module_goes_by_the_name_of_the_app(app: Celeriac) -> None:
    """A script that is run has no module name that a worker could import."""
    assert app.gen_task_name("add", "__main__") == "tests.add"
    assert Celeriac(set_as_current=False).gen_task_name("add", "__main__") == "__main__.add"


def test_a_task_can_be_called_like_its_function(app: Celeriac) -> None:
    """With a request of its own, in which it is called directly."""

    @app.task(bind=True)
    def told(self: Any, x: int) -> tuple[int, bool, Any]:
        return x, self.request.called_directly, self.request.id

    assert told(3) == (3, True, None)
    assert told.request.called_directly


async def _awaited(app: Celeriac) -> None:
    @app.task(bind=True)
    async def told(self: Any, x: int) -> tuple[int, Any]:
        return x, self.request.args

    assert told.is_async
    assert await told(3) == (3, (3,))


def test_a_coroutine_task_can_be_awaited(app: Celeriac) -> None:
    """Calling it gives its coroutine, which sees its own request."""
    import asyncio

    asyncio.run(_awaited(app))


def test_options_are_attributes(app: Celeriac) -> None:
    """What the decorator is told stands at the task; None means what the app says."""
    task = app.task(max_retries=7, acks_late=None, rate_limit="3/m", throws=(KeyError,))(lambda: None)
    assert (task.max_retries, task.acks_late, task.rate_limit, task.throws) == (7, True, "3/m", (KeyError,))


def test_settings_behind_attributes_are_looked_up_late(app: Celeriac) -> None:
    """A setting that is changed after the task was made counts."""
    task = app.task(lambda: None)
    assert task.acks_late is True
    app.conf.task_acks_late = False
    app.conf.task_default_retry_delay = 7
    assert task.acks_late is False
    assert task.default_retry_delay == 7
    assert app.task(acks_late=True, name="late")(lambda: None).acks_late is True


def test_acks_on_failure_follows_the_umbrella(app: Celeriac) -> None:
    """The task's own word, its umbrella, the setting, the setting's umbrella, yes."""

    def resolved(**options: Any) -> tuple[bool, bool]:
        decorate: Any = app.task(name=str(len(app.tasks)), **options)
        traits = decorate(lambda: None).traits()
        return traits.acks_on_failure, traits.acks_on_timeout

    assert resolved() == (True, True)
    assert resolved(acks_on_failure_or_timeout=False) == (False, False)
    assert resolved(acks_on_failure_or_timeout=False, acks_on_failure=True) == (True, False)
    app.conf.task_acks_on_timeout = False
    assert resolved() == (True, False)
    app.conf.task_acks_on_failure_or_timeout = False
    assert resolved(acks_on_timeout=True) == (False, True)


def test_a_base_class_gives_handlers_and_options(app: Celeriac) -> None:
    """One instance of a class of its own; `overridden` names the handlers that are really there."""

    class Mine(app.Task):  # type: ignore[misc, name-defined]
        max_retries = 9
        serializer = None

        started_as = ""

        def __init__(self) -> None:
            self.started_as = self.name

        def on_failure(self, exc: Any, task_id: Any, args: Any, kwargs: Any, einfo: Any) -> None:
            pass

    task: Any = app.task(base=Mine, name="mine")(lambda: None)
    plain = app.task(name="plain")(lambda: None)
    assert isinstance(task, Task)
    assert isinstance(task, Mine)
    assert (task.max_retries, task.started_as) == (9, "mine")
    assert getattr(task, "serializer") == "json"  # noqa: B009 - the class says None
    assert task.overridden == {"on_failure"}
    assert plain.overridden == frozenset()


def test_a_task_class_can_be_registered(app: Celeriac) -> None:
    """By its class or an instance of it; a name is made from module and class."""

    class Adder(Task[..., Any]):
        def run(self, x: int) -> int:
            return x + 1

    task = app.register_task(Adder())
    assert task.name == "tests.app.test_task.Adder"
    assert task(1) == 2
    assert app.tasks[task.name] is task
    assert task.app is app


def test_the_first_task_of_a_name_stays(app: Celeriac) -> None:
    """A second function under a name is a mistake that is told."""
    first = app.task(name="taken")(lambda: 1)
    with pytest.warns(DuplicateTaskNameWarning, match="taken"):
        second = app.task(name="taken")(lambda: 2)
    assert second is first


def test_a_function_is_decorated_once(app: Celeriac) -> None:
    """A task is no function."""
    task = app.task(lambda: None)
    with pytest.raises(TypeError, match="already"):
        app.task(task)


def test_tasks_are_pickled_by_name(app: Celeriac) -> None:
    """A copy of a task is the task."""
    task = app.task(name="picked")(lambda: None)
    assert pickle.loads(pickle.dumps(task)) is task
    assert copy.deepcopy(task) is task


def test_tasks_are_shared_with_other_apps(app: Celeriac) -> None:
    """Unless they are not to be: `shared=False`."""
    app.task(name="common")(lambda: 1)
    app.task(name="own", shared=False)(lambda: 1)
    other = Celeriac("other", set_as_current=False)
    mine = other.task(name="common2")(lambda: 2)
    assert "common" in other.tasks
    assert "own" not in other.tasks
    assert other.tasks["common"].app is other
    assert mine.app is other


def test_annotations_change_tasks(app: Celeriac) -> None:
    """Attributes by name or for all; `@` wraps a method."""
    heard = []
    app.conf.task_annotations = {
        "*": {"on_failure": lambda self, *args: heard.append((self.name, len(args)))},
        "rated": {"rate_limit": "5/s", "@run": lambda run: lambda *args: run(*args) * 2},
    }
    rated = app.task(name="rated")(lambda x: x)
    app.finalize()
    assert rated.rate_limit == "5/s"
    assert rated.run(4) == 8
    assert "on_failure" in rated.overridden
    rated.on_failure(KeyError(), "id", (), {}, None)
    assert heard == [("rated", 5)]


def test_an_app_that_does_not_finalize_itself_says_so() -> None:
    """`autofinalize=False`."""
    app = Celeriac(set_as_current=False, autofinalize=False)
    with pytest.raises(RuntimeError, match="finalize"):
        _ = app.tasks
    app.finalize()
    assert "nothing" not in app.tasks
    with pytest.raises(NotRegistered):
        app.tasks["nothing"]


# Sending


def test_delay_sends_a_message_of_protocol_2(app: Celeriac, broker: Broker) -> None:
    """The fields that a worker reads, by the direct path and by the long one."""

    @app.task(name="add")
    def add(x: int, y: int = 0) -> int:
        return x + y

    result = add.delay(1, y=2)
    assert add._plan is not None
    assert add._plan.pack is not None
    fast = broker.raw()
    slow_result = add.apply_async((1,), {"y": 2})
    slow = broker.raw()
    for raw, handle in ((fast, result), (slow, slow_result)):
        headers, properties = raw["headers"], raw["properties"]
        assert isinstance(handle, AsyncResult)
        assert headers["id"] == headers["root_id"] == properties["correlation_id"] == handle.id
        assert raw["body"] == [[1], {"y": 2}, {"callbacks": None, "errbacks": None, "chain": None, "chord": None}]
        assert (headers["argsrepr"], headers["kwargsrepr"]) == ("(1,)", "{'y': 2}")
        assert headers["origin"].startswith("gen")
        assert properties["reply_to"] == app.thread_oid
        assert properties["delivery_info"] == {"exchange": "", "routing_key": "celery"}
        for key in ("id", "root_id"):
            headers[key] = "-"
        properties["correlation_id"] = properties["delivery_tag"] = "-"
    assert fast == slow
    assert list(fast["headers"]) == list(slow["headers"])


@pytest.mark.parametrize("many", ["delay_many", "adelay_many"])
@pytest.mark.parametrize("direct", [True, False])
def test_many_calls_are_sent_together(
    app: Celeriac, broker: Broker, monkeypatch: pytest.MonkeyPatch, many: str, direct: bool
) -> None:
    """Each as `delay` would send it; the direct path and the long one say the same."""

    @app.task(serializer="json" if direct else "yaml")
    def add(x: int, y: int = 2) -> int:
        return x + y

    def send(calls: Any) -> list[Any]:
        sent: Any = getattr(add, many)(calls)
        return list(asyncio.run(sent) if many == "adelay_many" else sent)

    monkeypatch.setattr(bulk, "PIECE", 3)
    results = send([(1, 1), [2], {"x": 3, "y": 3}, (4,)])
    messages = [unpack(blob, frozenset({"application/json", "application/x-yaml"})) for blob in broker.blobs()]
    assert [(m.args, m.kwargs) for m in messages] == [([1, 1], {}), ([2], {}), ([], {"x": 3, "y": 3}), ([4], {})]
    assert [m.id for m in messages] == [result.id for result in results] == list(dict.fromkeys(r.id for r in results))
    assert send(iter(())) == []
    with pytest.raises(TypeError, match="positional argument"):
        send([(1, 2, 3)])
    with pytest.raises(TypeError, match=r"write \(5,\)"):
        send([5])
    assert len(broker.blobs()) == 4


def test_every_option_of_apply_async_reaches_the_message(app: Celeriac, broker: Broker) -> None:
    """And what is no option becomes a property."""
    task = app.task(name="t")(lambda *args: None)
    link = task.si(1)
    task.apply_async(
        (1,), {}, task_id="id", link=link, link_error=[task.s(2)], shadow="shade", queue="q", priority=3,
        headers={"h": 1}, time_limit=20, soft_time_limit=10, ignore_result=True, group_id="g",
        group_index=2, root_id="r", parent_id="p",
        reply_to="me", retries=4, argsrepr="(hidden)", kwargsrepr="{hidden}", origin="here", replaced_task_nesting=1,
        stamped_headers=["s"], s="stamp", MessageGroupId="m", chain=[task.s(3)], delivery_mode="transient",
    )  # fmt: skip
    message = broker.last("q")
    assert (message.id, message.root_id, message.parent_id, message.group, message.group_index) == (
        "id", "r", "p", "g", 2,
    )  # fmt: skip
    assert [link["args"] for link in message.callbacks or ()] == [[1]]
    assert [link["args"] for link in message.errbacks or ()] == [[2]]
    assert [step["args"] for step in message.chain or ()] == [[3]]
    assert (message.shadow, message.priority, message.headers, message.retries) == ("shade", 3, {"h": 1}, 4)
    assert list(message.timelimit) == [20, 10]
    assert message.ignore_result is True
    assert (message.argsrepr, message.kwargsrepr, message.origin) == ("(hidden)", "{hidden}", "here")
    assert (message.stamped_headers, message.stamps) == (["s"], {"s": "stamp"})
    assert message.properties == {"MessageGroupId": "m"}
    assert (message.reply_to, message.delivery_mode, message.replaced_task_nesting) == ("me", 1, 1)


def test_countdown_and_eta(app: Celeriac, broker: Broker) -> None:
    """Where Celery is not on the other side, what is due later goes to the schedule at once."""
    task = app.task(name="t")(lambda: None)
    now = datetime.now(UTC)
    task.apply_async(countdown=60)
    task.apply_async(eta=now + timedelta(minutes=5))
    task.apply_async(eta="2099-01-01T00:00:00")
    task.apply_async(eta=datetime(2099, 1, 1, 12, tzinfo=timezone(timedelta(hours=2))))
    dues = [due for due, _ in broker.scheduled()]
    texts = [message.eta for _, message in broker.scheduled()]
    assert dues[0] == pytest.approx(now.timestamp() + 60, abs=5)
    assert dues[1] == pytest.approx(now.timestamp() + 300, abs=0.001)
    assert texts[2:] == ["2099-01-01T00:00:00+00:00", "2099-01-01T12:00:00+02:00"]
    assert not broker.blobs()


def test_expires(app: Celeriac, broker: Broker) -> None:
    """Seconds, a date or a text; also as the property that RabbitMQ reads, in milliseconds as text."""
    task = app.task(name="t", expires=60)(lambda: None)
    task.delay()
    message = broker.last()
    assert message.properties == {"expiration": "60000"}
    left = datetime.fromisoformat(message.expires or "") - datetime.now(UTC)
    assert 55 < left.total_seconds() <= 60
    task.apply_async(expires=datetime(2000, 1, 1))
    assert broker.last().expires == "2000-01-01T00:00:00+00:00"
    assert broker.last().properties == {"expiration": "0"}
    task.apply_async(expires=None)
    assert broker.last().expires is None


def test_arguments_are_checked_when_the_task_is_called(app: Celeriac, broker: Broker) -> None:
    """In Python's words; not with `typing=False`."""

    @app.task(name="add")
    def add(x: int, y: int = 0, *, z: int = 0) -> int:
        return x + y + z

    @app.task(bind=True, name="bound")
    def bound(self: Any, x: int) -> int:
        return x

    loose: Any = app.task(name="loose", typing=False)(lambda x: x)
    some: Any = bound
    wrong: list[Any] = [
        lambda: add.delay(),  # type: ignore[call-arg]
        lambda: add.delay(1, 2, 3),  # type: ignore[call-arg]
        lambda: add.delay(1, w=2),  # type: ignore[call-arg]
        lambda: some.delay(),
        lambda: some.delay(1, 2),
        lambda: bound.apply_async((1, 2)),
        lambda: add.apply_async("ab"),
        lambda: add.apply_async((1,), [2]),  # type: ignore[arg-type]
    ]
    for call in wrong:
        with pytest.raises(TypeError):
            call()
    assert not broker.blobs()
    add.delay(1, z=3)
    bound.delay(1)
    loose.delay(1, 2, 3)
    assert len(broker.blobs()) == 3


def test_limits_that_can_not_be(app: Celeriac) -> None:
    """A soft limit after the hard one; a countdown of no length that exists."""
    task = app.task(name="t")(lambda: None)
    with pytest.raises(ValueError, match="soft_time_limit"):
        task.apply_async(soft_time_limit=10, time_limit=5)
    with pytest.raises(ValueError, match="countdown"):
        task.apply_async(countdown=1e30)


def test_what_can_not_be_serialized_is_told_to_the_caller(app: Celeriac, broker: Broker) -> None:
    """And nothing is sent."""
    task = app.task(name="t")(lambda x: x)
    with pytest.raises(EncodeError):
        task.delay(object())
    with pytest.raises(EncodeError):
        task.apply_async((object(),))
    assert not broker.blobs()


def test_changed_settings_count_for_the_next_delay(app: Celeriac, broker: Broker) -> None:
    """The direct path is worked out anew."""
    task = app.task(name="t")(lambda: None)
    task.delay()
    app.conf.task_default_queue = "second"
    task.delay()
    task.queue = "third"
    task.delay()
    app.conf.task_routes = {"t": {"queue": "fourth"}}
    task.queue = None
    task.delay()
    assert [len(broker.blobs(queue)) for queue in ("celery", "second", "third", "fourth")] == [1, 1, 1, 1]


def test_routes_and_queues(app: Celeriac, broker: Broker) -> None:
    """Call, then task, then route; a queue may be an object; copies go to every queue that is bound."""
    app.conf.task_routes = [{"t.*": {"queue": "routed", "priority": 5}}]
    app.conf.task_queues = (
        Queue("celery"), Queue("fan1", Exchange("fan", "fanout")), Queue("fan2", Exchange("fan", "fanout")),
    )  # fmt: skip
    task = app.task(name="t.a")(lambda: None)
    task.delay()
    assert broker.last("routed").priority == 5
    task.apply_async(queue="direct", priority=1)
    assert broker.last("direct").priority == 1
    task.apply_async(queue=Queue("object"))
    assert broker.last("object").task == "t.a"
    plain = app.task(name="u")(lambda: None)
    plain.apply_async(exchange="fan", exchange_type="fanout")
    assert broker.last("fan1").id == broker.last("fan2").id
    with pytest.raises(QueueNotFound, match="nowhere"):
        plain.apply_async(exchange="nowhere", routing_key="x")


def test_a_router_that_looks_at_arguments_is_asked_each_time(app: Celeriac, broker: Broker) -> None:
    """No template for those."""
    app.conf.task_routes = (lambda name, args, kwargs, options, task=None, **_: {"queue": args[0]},)
    task = app.task(name="t")(lambda x: None)
    task.delay("one")
    task.delay("two")
    assert (len(broker.blobs("one")), len(broker.blobs("two"))) == (1, 1)


def test_other_serializers_compression_and_protocol_1(app: Celeriac, broker: Broker) -> None:
    """By the task, by the call or by the settings."""
    task = app.task(name="t", serializer="msgpack")(lambda x: x)
    task.delay(b"\xff")
    assert broker.last().content_type == "application/x-msgpack"
    assert broker.last().args == [b"\xff"]
    task.apply_async((1,), serializer="json", compression="zlib")
    assert broker.last().compression == "application/x-gzip"
    app.conf.task_protocol = 1
    task.apply_async((2,), serializer="json")
    assert broker.last().protocol == 1
    assert broker.last().args == [2]


def test_links_of_a_task_itself(app: Celeriac, broker: Broker) -> None:
    """They follow each of its calls, before those of the call, also when it is sent by its name."""
    note = app.task(name="note")(lambda *args: None)
    task = app.task(name="t", link=note.s(1), link_error=[note.s(2)])(lambda: None)
    task.delay()
    assert [link["args"] for link in broker.last().callbacks or ()] == [[1]]
    assert [link["args"] for link in broker.last().errbacks or ()] == [[2]]
    task.apply_async(link=note.s(3))
    assert [link["args"] for link in broker.last().callbacks or ()] == [[1], [3]]
    app.send_task("t")
    assert [link["args"] for link in broker.last().callbacks or ()] == [[1]]


def test_shadow_names(app: Celeriac, broker: Broker) -> None:
    """A task may compute the name that logs show."""

    class Shady(app.Task):  # type: ignore[misc, name-defined]
        def shadow_name(self, args: Any, kwargs: Any, options: Any) -> str:
            return f"shade-{args[0]}"

    app.task(base=Shady, name="t")(lambda x: x).delay(7)
    assert broker.last().shadow == "shade-7"


def test_ignored_results_are_told(app: Celeriac, broker: Broker) -> None:
    """By the call, the task or the setting; `get` does not wait then."""
    task = app.task(name="t")(lambda: None)
    ignoring = app.task(name="i", ignore_result=True)(lambda: None)
    assert task.apply_async(ignore_result=True).get() is None
    result = ignoring.delay()
    assert result.ignored
    assert broker.last().ignore_result is True
    assert not ignoring.apply_async(ignore_result=False).ignored
    assert broker.last().ignore_result is False


def test_send_task_by_name(app: Celeriac, broker: Broker) -> None:
    """The task need not be known; if it is, its options count."""
    result = app.send_task("far.away", (1,), {"a": 2}, queue="q", countdown=None)
    message = broker.last("q")
    assert (message.id, message.task, message.args, message.kwargs) == (result.id, "far.away", [1], {"a": 2})
    assert message.ignore_result is None
    app.task(name="near", queue="near", time_limit=9)(lambda: None)
    app.send_task("near")
    assert list(broker.last("near").timelimit) == [9, None]
    app.send_task("near", time_limit=None)
    assert list(broker.last("near").timelimit) == [None, None]


def test_send_task_knows_no_eager_mode(app: Celeriac, broker: Broker) -> None:
    """It sends, and says so."""
    app.conf.task_always_eager = True
    with pytest.warns(AlwaysEagerIgnored):
        app.send_task("t")
    assert broker.last().task == "t"


def test_before_task_publish_may_change_the_message(app: Celeriac, broker: Broker) -> None:
    """Headers, properties and body; `after_task_publish` hears what was sent."""
    task: Any = app.task(name="t")(lambda *args, **kwargs: None)
    heard: list[Any] = []

    def before(sender: Any = None, headers: Any = None, body: Any = None, properties: Any = None, **more: Any) -> None:
        heard.append((sender, more["exchange"], more["routing_key"], [q.name for q in more["declare"]]))
        headers["trace"] = "abc"
        properties["extra"] = 1
        body[1]["more"] = True

    def after(sender: Any = None, headers: Any = None, body: Any = None, **more: Any) -> None:
        heard.append((sender, headers["trace"], body[1]))

    task.delay(1)
    telemetry.before_task_publish.connect(before)
    telemetry.after_task_publish.connect(after)
    try:
        task.delay(1)
    finally:
        telemetry.before_task_publish.disconnect(before)
        telemetry.after_task_publish.disconnect(after)
    message = broker.last()
    assert message.headers == {"trace": "abc"}
    assert message.properties == {"extra": 1}
    assert message.kwargs == {"more": True}
    assert heard == [("t", "", "celery", ["celery"]), ("t", "abc", {"more": True})]
    assert json.loads(broker.blobs()[-1])["properties"]["delivery_tag"]


def test_a_replaced_apply_async_is_called_by_delay(app: Celeriac, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever patches it, at the class, at the task or at the app's send_task, hears every call."""
    task = app.task(name="t")(lambda *args: None)
    task.delay()
    calls = []
    with monkeypatch.context() as patch:
        patch.setattr(Task, "apply_async", lambda self, args, kwargs: calls.append(("class", args)))
        task.delay(1)
    with monkeypatch.context() as patch:
        patch.setattr(task, "apply_async", lambda args, kwargs: calls.append(("task", args)))
        task.delay(2)
    with monkeypatch.context() as patch:
        patch.setattr(app, "send_task", lambda name, **how: calls.append(("app", how["args"])))
        task.delay(3)
    with monkeypatch.context() as patch:
        patch.setattr(Celeriac, "send_task", lambda self, name, **how: calls.append(("app class", how["args"])))
        task.delay(4)
    assert calls == [("class", (1,)), ("task", (2,)), ("app", (3,)), ("app class", (4,))]


class Flaky:
    """A sender that fails so many times."""

    def __init__(self, failures: int, sender: Any) -> None:
        self.failures = failures
        self.sender = sender
        self.tries: list[tuple[Any, float]] = []

    def publish(self, envelopes: Any, timeout: float) -> None:
        """Fail, or hand on."""
        self.tries.append((envelopes[0].publish_id, timeout))
        if len(self.tries) <= self.failures:
            raise OperationalError("the broker is away")
        self.sender.publish(envelopes, timeout)

    def close(self) -> None:
        """Nothing."""


@pytest.mark.parametrize("direct", [True, False])
def test_sending_is_tried_again(app: Celeriac, broker: Broker, direct: bool) -> None:
    """By the retry policy, with the same publish id, within the deadline."""
    app.conf.task_publish_retry_policy = {"max_retries": 2, "interval_start": 0, "interval_step": 0.001}
    task = app.task(name="t")(lambda: None)

    def call(**options: Any) -> None:
        if direct and not options:
            task.delay()
        else:
            task.apply_async(**options)

    flaky = app.wiring._sender = Flaky(2, app.sender)
    app._restamp()
    call()
    assert len(broker.blobs()) == 1
    assert len({publish_id for publish_id, _ in flaky.tries}) == 1
    assert [timeout <= 5 for _, timeout in flaky.tries] == [True] * 3
    flaky.failures, flaky.tries = 9, []
    with pytest.raises(OperationalError):
        call()
    assert len(flaky.tries) == 3
    flaky.tries = []
    with pytest.raises(OperationalError):
        call(retry=False)
    assert len(flaky.tries) == 1
    flaky.tries = []
    with pytest.raises(OperationalError):
        call(retry_policy={"max_retries": None, "interval_start": 0.2, "interval_step": 0}, timeout=0.5)
    assert len(flaky.tries) in (2, 3)


def test_pydantic_is_refused(app: Celeriac) -> None:
    """And not passed over."""
    with pytest.raises(NotImplementedError, match="pydantic"):
        app.task(pydantic=True)(lambda x: x)


def test_no_warnings_by_the_way(app: Celeriac) -> None:
    """Plain use says nothing."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        task = app.task(name="quiet")(lambda x: x)
        task.delay(1)
        task.apply((1,))
