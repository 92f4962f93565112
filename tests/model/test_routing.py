"""Where a task's message goes. The facts are those of protocol 2, as Celery's producer was seen to send."""

from __future__ import annotations

import json
import re
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from celeriac.errors import ImproperlyConfigured, QueueNotFound
from celeriac.model.queues import topic_fits
from celeriac.model.routing import (
    Broadcast,
    Destination,
    Exchange,
    Queue,
    QueueDefaults,
    Queues,
    Router,
)
from celeriac.model.settings import defaults
from tests.processes import celery_says

ADD = "tasks.add"
REAL_KOMBU = """
import json, kombu, kombu.common
from celeriac.model.queues import Queues
queues = Queues([
    kombu.Queue("a"), kombu.Queue("b", kombu.Exchange("be", "topic"), routing_key="b.#"), kombu.common.Broadcast("bc"),
])
print(json.dumps({
    name: [queue.exchange.name, queue.exchange.type, queue.routing_key, queue.is_broadcast, queue.auto_delete]
    for name, queue in ((name, queues[name]) for name in ("a", "b", "bc"))
}))
"""


def router(routes: Any = None, queues: Any = None, resolve: Any = None, **base: Any) -> Router:
    return Router(routes, Queues(queues, QueueDefaults(**base)), resolve)


def shape(queue: Queue) -> tuple[Any, ...]:
    assert queue.exchange is not None
    return (queue.name, queue.exchange.name, queue.exchange.type, queue.routing_key, queue.queue_arguments)


def route(routes: Any, options: dict[str, Any] | None = None, args: Any = (), **more: Any) -> dict[str, Any]:
    found = router(routes, **more).route(options or {}, ADD, args)
    return {key: shape(value)[0] if isinstance(value, Queue) else value for key, value in found.items()}


def send(options: dict[str, Any] | None = None, routes: Any = None, queues: Any = None, **base: Any) -> tuple[Any, ...]:
    target, _ = router(routes, queues, **base).destination(options or {}, ADD)
    return (target.exchange, target.routing_key, *target.queues)


class TestQueues:
    """What task_queues says."""

    def test_without_any(self) -> None:
        """The default queue stands alone, on an exchange and with a routing key of its name."""
        assert [shape(queue) for queue in Queues().values()] == [("celery", "celery", "direct", "celery", None)]
        assert list(Queues([])) == list(Queues({})) == list(Queues(iter(()))) == ["celery"]

    def test_default_queue_from_settings(self) -> None:
        """The task_default_* settings describe the default queue."""
        base = QueueDefaults(
            queue="dq", exchange="de", exchange_type="topic", routing_key="drk", queue_type="quorum", max_priority=9
        )
        found = Queues(None, base)["dq"]
        assert shape(found) == ("dq", "de", "topic", "drk", {"x-max-priority": 9, "x-queue-type": "quorum"})

    def test_settings_are_read(self) -> None:
        """Defaults are made of the app's settings; what Celery leaves empty is named as the queue."""
        base = QueueDefaults.from_settings(defaults())
        assert base == QueueDefaults()
        assert shape(Queues(None, base)["celery"]) == ("celery", "celery", "direct", "celery", None)

    def test_list(self) -> None:
        """What a Queue does not say is taken from the defaults."""
        found = Queues([
            Queue("a"), Queue("b", routing_key="bk"), Queue("c", Exchange("ce")),
            Queue("d", Exchange("de", "topic"), routing_key="d.#"), Queue("e", "es", "ek"),
        ])  # fmt: skip
        assert [shape(queue) for queue in found.values()] == [
            ("a", "celery", "direct", "celery", None),
            ("b", "celery", "direct", "bk", None),
            ("c", "ce", "direct", "celery", None),
            ("d", "de", "topic", "d.#", None),
            ("e", "es", "direct", "ek", None),
        ]

    def test_dict(self) -> None:
        """The old form: name -> options; binding_key is another word for routing_key."""
        found = Queues({
            "a": {"exchange": "ae", "exchange_type": "topic", "binding_key": "ab"},
            "b": {}, "c": {"exchange": "ce", "routing_key": "ck", "queue_arguments": {"x": 1}}, "d": Queue("d"),
        })  # fmt: skip
        assert [shape(queue) for queue in found.values()] == [
            ("a", "ae", "topic", "ab", None),
            ("b", "celery", "direct", "b", None),
            ("c", "ce", "direct", "ck", {"x": 1}),
            ("d", "celery", "direct", "celery", None),
        ]

    def test_names(self) -> None:
        """A plain name is a queue of its own exchange."""
        assert [shape(queue) for queue in Queues(["a"]).values()] == [("a", "a", "direct", "a", None)]

    def test_max_priority(self) -> None:
        """task_queue_max_priority holds for queues that say nothing of it."""
        found = Queues(
            [Queue("a"), Queue("b", max_priority=3), Queue("c", queue_arguments={"x-max-priority": 2})],
            QueueDefaults(max_priority=9),
        )
        assert [queue.queue_arguments for queue in found.values()] == [
            {"x-max-priority": 9}, None, {"x-max-priority": 2},
        ]  # fmt: skip

    def test_the_users_object_is_not_changed(self) -> None:
        """One Queue object may stand in the settings of two apps."""
        mine = Queue("a")
        assert Queues([mine], QueueDefaults(queue="x"))["a"].routing_key == "x"
        assert mine == Queue("a")

    def test_kombu_objects(self) -> None:
        """Any object with kombu's attributes is read, as those of kombu are."""
        exchange = SimpleNamespace(name="ce", type="topic", durable=False, delivery_mode=1, arguments=None)
        foreign = SimpleNamespace(
            name="c", exchange=exchange, routing_key="c.#", queue_arguments={"x": 1}, alias="other", max_priority=5
        )
        nothing = SimpleNamespace(name="n", exchange=SimpleNamespace(name="", type="direct"), routing_key="")
        found = Queues([foreign, nothing])
        assert shape(found["c"]) == ("c", "ce", "topic", "c.#", {"x": 1})
        assert shape(found["n"]) == ("n", "celery", "direct", "celery", None)
        assert found["other"] is found["c"]
        assert found["c"].exchange is not None
        assert found["c"].exchange.delivery_mode == 1

    def test_real_kombu(self) -> None:
        """kombu's own Queue, Exchange and Broadcast are read."""
        found = json.loads(celery_says(REAL_KOMBU))
        assert found["a"] == ["celery", "direct", "celery", False, False]
        assert found["b"] == ["be", "topic", "b.#", False, False]
        assert found["bc"] == ["bc", "fanout", "celery", True, True]

    def test_what_is_no_queue_is_refused(self) -> None:
        """A wrong entry of task_queues is told."""
        with pytest.raises(ImproperlyConfigured, match="is no queue"):
            Queues([5])
        with pytest.raises(ImproperlyConfigured, match="needs a name"):
            Queues([Queue()])

    def test_missing_queues_are_made(self) -> None:
        """A name that is nowhere is a queue of its own, as the settings want it."""
        assert shape(Queues()["new"]) == ("new", "new", "direct", "new", None)
        base = QueueDefaults(missing_exchange_type="topic", missing_queue_type="quorum", exchange_type="fanout")
        found = Queues([Queue("a")], base)
        assert shape(found["new"]) == ("new", "new", "topic", "new", {"x-queue-type": "quorum"})
        assert "new" in found

    def test_missing_queues_are_refused(self) -> None:
        """With task_create_missing_queues off the error is a QueueNotFound, which is a KeyError."""
        found = Queues([Queue("a")], QueueDefaults(create_missing=False))
        with pytest.raises(QueueNotFound, match="'new'"):
            found["new"]
        assert issubclass(QueueNotFound, KeyError)
        assert "new" not in found

    def test_select(self) -> None:
        """A worker consumes all queues, those selected, or all but some."""
        found = Queues([Queue("a"), Queue("b"), Queue("c", alias="see")])
        assert list(found.consume_from) == ["a", "b", "c"]
        found.deselect(["a", "zz"])
        assert list(found.consume_from) == ["b", "c"]
        found.deselect("see")
        assert list(found.consume_from) == ["b"]
        found.select("a,new")
        assert list(found.consume_from) == ["a", "new"]
        found.select_add("late", routing_key="lk")
        assert list(found.consume_from) == ["a", "new", "late"]
        assert found["late"].routing_key == "lk"
        found.select(None)
        assert list(found.consume_from) == ["a", "new", "late"]

    def test_bindings(self) -> None:
        """As kombu writes them into its binding sets; the pattern is that of a topic exchange alone."""
        more = SimpleNamespace(exchange=SimpleNamespace(name="be", type="topic"), routing_key="#")
        queues = Queues([Queue("a", "ae", "k"), Queue("t", Exchange("te", "topic"), "a-b.*.#", bindings=[more])])
        assert queues.bindings() == {
            "a": [("ae", "k", "")],
            "t": [("te", "a-b.*.#", r"^a\-b\.[^\.]+\..*?$"), ("be", "#", "^.*?$")],
        }
        assert queues.bound("be", "any.key") == ("t",)

    def test_format(self) -> None:
        """Lines for the banner."""
        lines = Queues([Queue("b"), Queue("a", Exchange("ae", "topic"), "k")]).format(indent=2)
        assert lines.splitlines() == [
            "  .> a                exchange=ae(topic) key=k",
            "  .> b                exchange=celery(direct) key=celery",
        ]

    def test_broadcast(self) -> None:
        """Each worker has a queue of its own, found by the name of the exchange."""
        one, two = Broadcast("all"), Broadcast("all")
        assert one.name.startswith("bcast.")
        assert one.name != two.name
        assert one.is_broadcast
        assert one.auto_delete
        found = Queues([one])
        assert found["all"].name == one.name
        assert isinstance(found["all"], Broadcast)
        assert Broadcast("n", queue="mine").name == "mine"
        assert Broadcast("n", queue="mine", unique=True).name.startswith("mine.")

    def test_as_dict_is_what_active_queues_shows(self) -> None:
        """Remote control shows queues with the keys of kombu."""
        shown = Queues([Queue("celery", "celery", "celery")])["celery"].as_dict()
        assert shown == {
            "name": "celery",
            "exchange": {
                "name": "celery", "type": "direct", "arguments": None, "durable": True, "passive": False,
                "auto_delete": False, "delivery_mode": None, "no_declare": False,
            },
            "routing_key": "celery", "queue_arguments": None, "binding_arguments": None, "consumer_arguments": None,
            "durable": True, "exclusive": False, "auto_delete": False, "no_ack": False, "alias": None, "bindings": [],
            "no_declare": None, "expires": None, "message_ttl": None, "max_length": None, "max_length_bytes": None,
            "max_priority": None,
        }  # fmt: skip


class TestRoutes:
    """What task_routes says."""

    @pytest.mark.parametrize(
        ("routes", "expected"),
        [
            (None, {"queue": "celery"}),
            ({}, {"queue": "celery"}),
            ((), {"queue": "celery"}),
            ({ADD: "q1"}, {"queue": "q1"}),
            ({ADD: {"queue": "q1", "priority": 3}}, {"queue": "q1", "priority": 3}),
            ({ADD: {"queue": "q1", "routing_key": "rk"}}, {"queue": "q1", "routing_key": "rk"}),
            ({ADD: {"exchange": "e", "routing_key": "rk"}}, {"exchange": "e", "routing_key": "rk"}),
            ({ADD: {"routing_key": "rk"}}, {"routing_key": "rk"}),
            ({ADD: Queue("qq", "e", "k")}, {"queue": "qq"}),
            ({"tasks.*": "q1", "t*": "q2"}, {"queue": "q1"}),
            ({"tasks.*": "q1", ADD: "q2"}, {"queue": "q2"}),
            ({"tasks.[a]*": "q1"}, {"queue": "q1"}),
            ({"tasks.ad?": "q1"}, {"queue": "celery"}),
            ({"TASKS.*": "q1"}, {"queue": "celery"}),
            ({re.compile("add$"): "q1"}, {"queue": "celery"}),
            ({re.compile("tasks"): "q1"}, {"queue": "q1"}),
            (([("feed.*", {"queue": "f"}), (re.compile(r"tasks\..*"), {"queue": "m"})],), {"queue": "m"}),
            ([("feed.*", {"queue": "f"}), ("tasks.*", {"queue": "m"})], {"queue": "m"}),
            ([{"other": "x"}, {ADD: "second"}], {"queue": "second"}),
            ((lambda *a, **k: None, {ADD: "second"}), {"queue": "second"}),
            (lambda name, args, kwargs, options, task=None, **kw: "str", {"queue": "str"}),
        ],
    )
    def test_forms(self, routes: Any, expected: dict[str, Any]) -> None:
        """Names, globs, regular expressions, pairs, functions and lists of these, as Celery reads them."""
        assert route(routes) == expected

    def test_a_function_sees_the_call(self) -> None:
        """A router function gets name, args, kwargs, the given options, and the task."""
        seen: list[Any] = []

        def choose(name: str, args: Any, kwargs: Any, options: Any, task: Any = None, **kw: Any) -> Any:
            seen.append((name, args, kwargs, options, task))
            return {"queue": "fn", "priority": len(args)}

        found = router((choose,)).route({"countdown": 3, "queue": None}, ADD, (1, 2), {"a": 1}, "the task")
        assert (found["queue"].name, found["priority"], found["countdown"]) == ("fn", 2, 3)
        assert seen == [(ADD, (1, 2), {"a": 1}, {"countdown": 3}, "the task")]

    def test_objects_and_classes(self) -> None:
        """An object with route_for_task, its class, and the name of either."""

        class Chooser:
            def route_for_task(self, task: str, args: Any = None, kwargs: Any = None) -> dict[str, Any]:
                return {"queue": f"for.{task}"}

        for routes in ((Chooser(),), Chooser, [Chooser], "proj.routers.Chooser", ["proj.routers:Chooser"]):
            assert route(routes, resolve=lambda text: Chooser) == {"queue": f"for.{ADD}"}

    def test_a_name_may_lead_to_a_dict(self) -> None:
        """What a text names is read as if it stood there."""
        assert route("proj:routes", resolve=lambda text: {ADD: text}) == {"queue": "proj:routes"}

    @pytest.mark.parametrize("routes", [5, [5], {5: "q"}, "proj.routes"])
    def test_what_is_no_route_is_refused(self, routes: Any) -> None:
        """A wrong entry of task_routes is told when the router is made."""
        with pytest.raises(ImproperlyConfigured):
            router(routes)

    @pytest.mark.parametrize(
        ("options", "expected"),
        [
            ({"priority": 5, "queue": "z"}, {"queue": "z", "priority": 5}),
            ({"queue": None, "priority": None}, {"queue": "q1", "priority": 3}),
            ({"priority": 0}, {"queue": "q1", "priority": 0}),
            (
                {"exchange": "e", "routing_key": "r"},
                {"queue": "q1", "priority": 3, "exchange": "e", "routing_key": "r"},
            ),
        ],
    )
    def test_the_call_wins(self, options: dict[str, Any], expected: dict[str, Any]) -> None:
        """Options of the call go before those of the route; None counts as not given."""
        assert route({ADD: {"queue": "q1", "priority": 3}}, options) == expected

    def test_a_queue_object_of_the_call(self) -> None:
        """A Queue given at the call is taken in."""
        found = router().route({"queue": Queue("zz", Exchange("ee", "topic"), "a.b")}, ADD)
        assert shape(found["queue"]) == ("zz", "ee", "topic", "a.b", None)

    def test_unknown_queues(self) -> None:
        """With task_create_missing_queues off an unknown queue is refused, the default one too."""
        for options, routes in (({"queue": "b"}, None), ({}, {ADD: "b"}), ({}, None)):
            with pytest.raises(QueueNotFound):
                router(routes, [Queue("a")], create_missing=False).route(options, ADD)

    def test_the_rules_are_not_changed(self) -> None:
        """A route's dict belongs to the settings."""
        rule = {"queue": "q1"}
        router({ADD: rule}).destination({"priority": 1}, ADD)
        assert rule == {"queue": "q1"}

    def test_static_routes(self) -> None:
        """Only where no code is asked the answer may be remembered."""
        assert router({ADD: "q", "b.*": "c"}).is_static
        assert router(None).is_static
        assert not router([{ADD: "q"}, lambda *a, **k: None]).is_static

    @given(st.text(min_size=1), st.text())
    def test_any_name_may_be_routed(self, name: str, other: str) -> None:
        """Exactly the name that stands there is routed, whatever its letters are."""
        found = router({name.replace("*", "+"): "mine"}).route({}, other)
        assert (found["queue"].name == "mine") is (other == name.replace("*", "+"))


class TestDestination:
    """Exchange and routing key on the wire, and the queues that are reached."""

    TOPIC = (
        Queue("t", Exchange("te", "topic"), routing_key="a.#"), Queue("f", Exchange("fe", "fanout")),
        Queue("g", Exchange("fe", "fanout")), Queue("d", Exchange("de"), routing_key="dk"), Queue("n"),
    )  # fmt: skip

    @pytest.mark.parametrize(
        ("options", "expected"),
        [
            ({}, ("", "celery", "celery")),
            ({"queue": "q"}, ("", "q", "q")),
            ({"exchange": "e"}, ("", "celery", "celery")),
            ({"routing_key": "r"}, ("", "celery", "celery")),
            ({"exchange": "e", "routing_key": "r"}, ("e", "r")),
            ({"exchange": Exchange("ee", "topic"), "routing_key": "r"}, ("ee", "r")),
            ({"queue": "q", "routing_key": "r"}, ("", "q", "q")),
            ({"queue": "q", "exchange": "e"}, ("", "q", "q")),
            ({"queue": "q", "exchange": "e", "routing_key": "r"}, ("e", "r", "q")),
            ({"queue": "zz", "exchange_type": "topic"}, ("zz", "zz", "zz")),
        ],
    )
    def test_without_queues(self, options: dict[str, Any], expected: tuple[str, ...]) -> None:
        """A direct exchange is passed by, unless exchange and routing key are both given."""
        assert send(options) == expected

    @pytest.mark.parametrize(
        ("options", "expected"),
        [
            ({"queue": "t"}, ("te", "a.#", "t")),
            ({"queue": "t", "routing_key": "a.b"}, ("te", "a.b", "t")),
            ({"exchange": "te", "routing_key": "a.b.c"}, ("te", "a.b.c", "t")),
            ({"exchange": "te", "routing_key": "b"}, ("te", "b")),
            ({"queue": "f"}, ("fe", "celery", "f", "g")),
            ({"queue": "d"}, ("", "d", "d")),
            ({"queue": "d", "routing_key": "x"}, ("", "d", "d")),
            ({"exchange": "de", "routing_key": "dk"}, ("de", "dk", "d")),
            ({"queue": "n"}, ("", "n", "n")),
            ({"exchange": "C.dq2", "routing_key": "w1@h"}, ("C.dq2", "w1@h", "w1@h.dq2")),
        ],
    )
    def test_with_exchanges(self, options: dict[str, Any], expected: tuple[str, ...]) -> None:
        """Topic and fanout exchanges get their own name; every queue that is bound is reached."""
        assert send(options, queues=self.TOPIC) == expected

    def test_default_exchange_of_another_type(self) -> None:
        """A topic exchange as default is used by the default queue, not by queues made on demand."""
        base: dict[str, Any] = {"exchange": "de", "exchange_type": "topic", "routing_key": "drk"}
        assert send(**base) == ("de", "drk", "celery")
        assert send({"queue": "zz"}, **base) == ("", "zz", "zz")

    def test_topic_routes(self) -> None:
        """A route of the documentation's kind: a queue and a routing key, on a topic exchange."""
        queues = [Queue("default", routing_key="task.#"), Queue("feeds", routing_key="feed.#")]
        routes = {ADD: {"queue": "feeds", "routing_key": "feed.import"}}
        base: dict[str, Any] = {
            "queue": "default",
            "exchange": "tasks",
            "exchange_type": "topic",
            "routing_key": "task.default",
        }
        assert send(routes=routes, queues=queues, **base) == ("tasks", "feed.import", "feeds")

    def test_broadcast(self) -> None:
        """A message for a Broadcast goes to its fanout exchange."""
        mine = Broadcast("all")
        assert send({"queue": "all"}, queues=[mine]) == ("all", "celery", mine.name)

    def test_delivery_mode_of_the_exchange(self) -> None:
        """What an exchange says of the delivery mode comes along; the other options are left."""
        queues = [Queue("k", Exchange("k", delivery_mode=1))]
        target, rest = router(None, queues).destination({"queue": "k", "priority": 2, "x": None}, ADD)
        assert target.delivery_mode == 1
        assert rest == {"priority": 2}
        assert target == Destination(("k",), "", "k", target.queue, 1)


words = st.lists(st.sampled_from(["a", "b", "c", ""]), min_size=1, max_size=6)
parts = st.lists(st.sampled_from(["a", "b", "*", "#"]), min_size=1, max_size=6)


@given(parts, words)
def test_topics(pattern: list[str], key: list[str]) -> None:
    """`*` is one word and `#` any number of them: the same as the regular expression that says so."""

    def fits(at: int, to: int) -> bool:
        if at == len(pattern):
            return to == len(key)
        if pattern[at] == "#":
            return any(fits(at + 1, end) for end in range(to, len(key) + 1))
        return to < len(key) and pattern[at] in ("*", key[to]) and fits(at + 1, to + 1)

    same = pattern == key  # kombu sends to a topic queue with the pattern itself as key
    assert topic_fits(".".join(pattern), ".".join(key)) is (fits(0, 0) or same)


def test_a_pattern_fits_itself() -> None:
    """A message that is sent with the queue's own binding reaches it."""
    assert topic_fits("a.*.#", "a.*.#")
