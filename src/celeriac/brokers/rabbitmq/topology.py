"""What stands in the broker, and how it is declared: queues and exchanges as Celery declares them, and ours. Pure."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from celeriac.brokers.dead_letters import limit_of
from celeriac.drivers.amqp import frames
from celeriac.drivers.amqp.frames import M
from celeriac.errors import ImproperlyConfigured
from celeriac.model.queues import Exchange, Queue

Question = tuple[M, bytes, M, str]
"""A method, its arguments, what answers it, and what it is about."""

DEAD = "celeriac.1.dead."
PARKED = "celeriac.1.parked."
NOTES = "celeriac.1.notes"
"""Exchange and queue of what workers have to know of each other: cancelled ids, names of queues."""
HELD_TTL = 5.0
"""Seconds after which a held copy whose owner is gone goes back; from its publishing on."""
BOUNCES = 10
"""Deliveries of a quorum queue after which a message is replaced by a copy: twenty would end it."""
REPLIES = ".pidbox"
CELERY_DELAYED, CELERY_DUE = "celery_delayed_", "celery_delayed_delivery"
DELAYED, OUR_DUE = "celeriac.1.delay.", "celeriac.1.due"
CONSUMER_TIMEOUT = 600.0
"""Seconds that we trust a broker to leave a message with its consumer, unless told: RabbitMQ's own default is 1,800."""


class Ladder(NamedTuple):
    """Queues of doubling delays, one exchange before each: the routing key says bit by bit in which to wait."""

    prefix: str
    due: str
    """The exchange behind the last."""
    levels: int
    unit: float
    """Seconds of the shortest."""
    quorum: bool = False

    @property
    def longest(self) -> float:
        """Seconds."""
        return ((1 << self.levels) - 1) * self.unit

    def key(self, seconds: float, target: str) -> str:
        """The routing key of a message that is to wait so long, at least."""
        units = min((1 << self.levels) - 1, max(0, -int(-seconds // self.unit)))
        return ".".join(f"{units:0{self.levels}b}") + "." + target

    @property
    def first(self) -> str:
        """The exchange to publish to."""
        return f"{self.prefix}{self.levels - 1}"

    @property
    def queues(self) -> list[str]:
        """Names of all delay queues, the longest first."""
        return [f"{self.prefix}{level}" for level in reversed(range(self.levels))]

    def declaration(self) -> Iterator[Question]:
        """Everything but the ways out."""
        yield _exchange(self.due, "topic")
        for level in range(self.levels):
            name = f"{self.prefix}{level}"
            below = f"{self.prefix}{level - 1}" if level else self.due
            stars = "*." * (self.levels - 1 - level)
            yield _exchange(name, "topic")
            arguments: dict[str, Any] = {
                "x-message-ttl": int((1 << level) * self.unit * 1000), "x-dead-letter-exchange": below,
            }  # fmt: skip
            if self.prefix == CELERY_DELAYED or self.quorum:
                arguments["x-overflow"] = "reject-publish"
            if self.quorum:
                arguments |= {"x-queue-type": "quorum", "x-dead-letter-strategy": "at-least-once"}
            elif self.prefix == CELERY_DELAYED:
                arguments["x-queue-type"] = "classic"
            yield _queue(name, arguments=arguments)
            yield _bind(name, name, f"{stars}1.#")
            yield (
                M.EXCHANGE_BIND,
                frames.bind(below, name, f"{stars}0.#"),
                M.EXCHANGE_BIND_OK,
                f"the exchange {below!r}",
            )


def _exchange(name: str, kind: str, durable: bool = True) -> Question:
    return (
        M.EXCHANGE_DECLARE,
        frames.exchange_declare(name, kind, durable=durable),
        M.EXCHANGE_DECLARE_OK,
        (f"the exchange {name!r}"),
    )


def _queue(name: str, **how: Any) -> Question:
    return M.QUEUE_DECLARE, frames.queue_declare(name, **how), M.QUEUE_DECLARE_OK, f"the queue {name!r}"


def _bind(queue: str, exchange: str, key: str, arguments: Mapping[str, Any] | None = None) -> Question:
    return M.QUEUE_BIND, frames.bind(queue, exchange, key, arguments), M.QUEUE_BIND_OK, f"the queue {queue!r}"


class Topology:
    """Names and declarations, by the options of a broker: `queues` (name -> Queue), `dead_letter_limit`,
    `celery_peers`, `consumer_timeout` (seconds), `delayed_queue_type` (quorum or classic)."""

    def __init__(self, options: Mapping[str, Any]) -> None:
        self._queues: Mapping[str, Queue] = options.get("queues") or {}
        self._reply_queue: Callable[[], str] | None = options.get("reply_queue")
        self.result_expires: float | None = options.get("result_expires")
        self.dead_limit = limit_of(options)
        self.peers = bool(options.get("celery_peers", True))
        value = options.get("consumer_timeout")
        try:
            self.consumer_timeout = CONSUMER_TIMEOUT if value is None else float(value)
        except (TypeError, ValueError):
            self.consumer_timeout = -1.0
        if self.consumer_timeout < 0:
            raise ImproperlyConfigured(f"consumer_timeout must be a number of seconds (0: none), not {value!r}")
        quorum = options.get("delayed_queue_type", "quorum") == "quorum"
        self.celery_ladder = Ladder(CELERY_DELAYED, CELERY_DUE, 28, 1.0, quorum)
        self.ladder = Ladder(DELAYED, OUR_DUE, 24, 0.05, quorum)
        """Ours: shorter steps, for any queue. 9.7 days in one go; longer ones go through it again. Of quorum queues: a
        classic one may lose what it hands on while its node is killed."""

    @property
    def replies(self) -> list[tuple[str, str]]:
        """What has to be declared before anything is sent: the queue that results come to, if they do."""
        return [("replies", self._reply_queue())] if self._reply_queue is not None else []

    def queue(self, name: str) -> Queue:
        """A queue as the app knows it, or as Celery makes one that nobody has described."""
        try:
            return self._queues[name]
        except KeyError:
            return Queue(name, Exchange(name, "direct"), name)

    def known(self) -> list[str]:
        """The queues that the app has described."""
        return list(self._queues)

    def kind(self, name: str, version: tuple[int, ...]) -> str:
        """Type of a queue: classic, quorum or stream."""
        arguments = self.queue(name).queue_arguments or {}
        return str(arguments.get("x-queue-type") or self._default_kind(name, version))

    def _default_kind(self, name: str, version: tuple[int, ...]) -> str:
        """Where no Celery declares the same queue, the server's version decides."""
        queue = self.queue(name)
        plain = queue.durable and not queue.exclusive and not queue.auto_delete and queue.max_priority is None
        with_priority = "x-max-priority" in (queue.queue_arguments or {})
        return "quorum" if not self.peers and version >= (4,) and plain and not with_priority else "classic"

    def declaration(self, name: str, version: tuple[int, ...]) -> list[Question]:
        """A queue with its exchanges and bindings, to the byte as kombu declares them."""
        if name.endswith(REPLIES) and ".reply." in name:
            return self.reply_queue(name)
        queue = self.queue(name)
        found: list[Question] = []
        for bound in (queue, *queue.bindings):
            exchange = getattr(bound, "exchange", None)
            if exchange is not None:
                found += self.exchange(Exchange.of(exchange))
        if not queue.no_declare:
            arguments = queue_arguments(queue)
            if self._default_kind(name, version) == "quorum" and "x-queue-type" not in arguments:
                arguments["x-queue-type"] = "quorum"
            found.append(
                _queue(
                    name,
                    durable=queue.durable,
                    exclusive=queue.exclusive,
                    auto_delete=queue.auto_delete or queue.exclusive,
                    arguments=arguments,
                )
            )
        for bound in (queue, *queue.bindings):
            exchange = getattr(bound, "exchange", None)
            if exchange is not None and (source := Exchange.of(exchange).name):
                own = getattr(bound, "binding_arguments", None) or getattr(bound, "arguments", None)
                found.append(_bind(name, source, getattr(bound, "routing_key", None) or "", own))
        return found

    def exchange(self, exchange: Exchange) -> list[Question]:
        """An exchange as kombu declares it; the broker's own are there already."""
        if not exchange.name or exchange.name.startswith("amq.") or exchange.no_declare:
            return []
        arguments = frames.exchange_declare(
            exchange.name, exchange.type, durable=bool(exchange.durable), auto_delete=bool(exchange.auto_delete),
            passive=bool(exchange.passive), arguments=exchange.arguments,
        )  # fmt: skip
        return [(M.EXCHANGE_DECLARE, arguments, M.EXCHANGE_DECLARE_OK, f"the exchange {exchange.name!r}")]

    def find_exchange(self, name: str) -> Exchange | None:
        """An exchange of one of the app's queues."""
        for queue in self._queues.values():
            for bound in (queue, *queue.bindings):
                exchange = getattr(bound, "exchange", None)
                if exchange is not None and Exchange.of(exchange).name == name:
                    return Exchange.of(exchange)
        return None

    def bus(self, exchange: str) -> Question:
        """An exchange of remote control or events, as kombu declares it."""
        if exchange.endswith(REPLIES):
            return _exchange(exchange, "direct" if exchange.startswith("reply.") else "fanout", durable=False)
        return _exchange(exchange, "topic")

    def reply_queue(self, name: str) -> list[Question]:
        """Where answers to remote control come: `<oid>.reply.celery.pidbox`."""
        oid, _, rest = name.partition(".reply.")
        exchange = f"reply.{rest}"
        arguments = {"x-expires": 10_000, "x-message-ttl": 300_000}
        return [
            self.bus(exchange),
            _queue(name, durable=False, exclusive=True, auto_delete=True, arguments=arguments),
            _bind(name, exchange, oid),
        ]

    # Ours

    def _as_safe_as(self, queue: str, version: tuple[int, ...]) -> dict[str, Any]:
        """Arguments of what is kept beside a queue: a classic one would be away with its node."""
        return {"x-queue-type": "quorum"} if self.kind(queue, version) == "quorum" else {}

    def dead(self, queue: str, version: tuple[int, ...]) -> list[Question]:
        """The dead letters of a queue."""
        arguments: dict[str, Any] = {"x-max-length": self.dead_limit} if self.dead_limit else {}
        return [_queue(fitting(DEAD, queue), arguments=arguments | self._as_safe_as(queue, version))]

    def parked(self, queue: str, key: str, version: tuple[int, ...]) -> list[Question]:
        """What is parked under a limit key."""
        return [_queue(parked(queue, key), arguments=self._as_safe_as(queue, version))]

    def held(self, queue: str, epoch: str, version: tuple[int, ...]) -> list[Question]:
        """What a worker holds of a queue while it runs. When the worker is gone it goes back."""
        arguments: dict[str, Any] = {
            "x-message-ttl": int(HELD_TTL * 1000), "x-dead-letter-exchange": "", "x-dead-letter-routing-key": queue,
            "x-expires": 600_000,
        }  # fmt: skip
        if self.kind(queue, version) == "quorum":
            arguments |= {
                "x-queue-type": "quorum", "x-dead-letter-strategy": "at-least-once", "x-overflow": "reject-publish",
            }  # fmt: skip
        return [_queue(held(queue, epoch), arguments=arguments)]

    def notes(self) -> list[Question]:
        """Where notes are kept, and the exchange by which they also come to who listens."""
        return [_exchange(NOTES, "fanout"), _queue(NOTES), _bind(NOTES, NOTES, "")]

    def hearing(self, name: str) -> list[Question]:
        """A queue of one listener for notes."""
        return [_queue(name, durable=False, exclusive=True, auto_delete=True), _bind(name, NOTES, "")]

    def way_out(self, queue: str) -> list[Question]:
        """From our ladder into a queue."""
        return [_bind(queue, OUR_DUE, "*." * self.ladder.levels + word(queue))]

    def celery_delays(self, names: Sequence[str], version: tuple[int, ...]) -> list[Question]:
        """Celery's ladder of delays and the ways from it to the exchanges of these queues, which Celery's producers use
        as soon as one of them is a quorum queue. Direct exchanges have none, as with Celery."""
        if not any(self.kind(name, version) == "quorum" for name in names):
            return []
        ways: list[Question] = []
        for name in names:
            queue = self.queue(name)
            exchange = queue.exchange
            if exchange is not None and exchange.name and exchange.type != "direct":
                key = f"#.{queue.routing_key}"
                ways.append(
                    (M.EXCHANGE_BIND, frames.bind(exchange.name, CELERY_DUE, key), M.EXCHANGE_BIND_OK, exchange.name)
                )
                ways.append(_bind(name, exchange.name, key))
        return [*self.celery_ladder.declaration(), *ways] if ways else []


def queue_arguments(queue: Queue) -> dict[str, Any]:
    """As kombu makes them of a queue's options."""
    given: dict[str, Any] = dict(queue.queue_arguments or {})
    for name, value, scale in (
        ("x-expires", queue.expires, 1000), ("x-message-ttl", queue.message_ttl, 1000),
        ("x-max-length", queue.max_length, 1), ("x-max-length-bytes", queue.max_length_bytes, 1),
        ("x-max-priority", queue.max_priority, 1),
    ):  # fmt: skip
        if value is not None:
            given[name] = int(value * scale)
    return given


def fitting(prefix: str, name: str) -> str:
    """A name of ours that AMQP takes: 255 bytes."""
    whole = prefix + name
    if len(whole.encode(errors="surrogatepass")) <= 255:
        return whole
    return prefix + hashlib.blake2b(name.encode(errors="surrogatepass"), digest_size=16).hexdigest()


def parked(queue: str, key: str) -> str:
    """The queue of what is parked under a limit key."""
    return fitting(PARKED, f"{queue}.{key}")


def held(queue: str, epoch: str) -> str:
    """The queue of what a worker holds."""
    return fitting("celeriac.1.held.", f"{epoch}.{queue}")


def word(queue: str) -> str:
    """A queue's name as one word of a routing key."""
    return hashlib.blake2b(queue.encode(errors="surrogatepass"), digest_size=12).hexdigest()
