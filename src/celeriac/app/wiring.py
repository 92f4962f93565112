"""From a URL to an adapter. The only file that names adapters; they and their drivers are imported at first use."""

from __future__ import annotations

import logging
import threading
import weakref
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping, Sequence
from importlib import import_module
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from celeriac.errors import ImproperlyConfigured
from celeriac.ports import Broker, Reader, ResultBackend, Sender

if TYPE_CHECKING:
    import asyncio

    from celeriac.wire.notice import Request

log = logging.getLogger("celeriac.app")

DEFAULT_URL = "sqlite://"
"""Broker and result backend where no broker is named: a file in the project."""
CELERY_URL = "amqp://guest@localhost//"
"""Broker where none is named and the profile is Celery's."""


class Wire(NamedTuple):
    """One kind of server."""

    broker: str
    """Module of the broker's adapters; empty: it can't be one."""
    backend: str
    """Module of the result backend's adapters; empty: it can't be one."""
    prefix: str
    """What the names of the adapter classes begin with."""
    peers: bool
    """Celery can stand on the other side: an eta goes into the header, where its workers look."""


_REDIS = Wire("celeriac.brokers.redis", "celeriac.backends.redis", "Redis", peers=True)
_SQLITE = Wire("celeriac.brokers.sqlite", "celeriac.backends.sqlite", "Sqlite", peers=False)
_RABBITMQ = Wire("celeriac.brokers.rabbitmq", "", "Rabbitmq", peers=True)
_RPC = Wire("", "celeriac.backends.rpc", "Rpc", peers=True)
_POSTGRES = Wire("celeriac.brokers.postgres", "celeriac.backends.postgres", "Postgres", peers=False)
_MEMORY = Wire("celeriac.brokers.memory", "celeriac.backends.memory", "Memory", peers=False)
_SQL = Wire("", "celeriac.backends.sql", "Sql", peers=True)
_MEMCACHED = Wire("", "celeriac.backends.memcached", "Memcached", peers=True)
_FILES = Wire("", "celeriac.backends.files", "File", peers=True)

WIRES: Mapping[str, Wire] = {
    "redis": _REDIS, "rediss": _REDIS, "redis+socket": _REDIS, "unix": _REDIS, "valkey": _REDIS, "valkeys": _REDIS,
    "amqp": _RABBITMQ, "amqps": _RABBITMQ, "pyamqp": _RABBITMQ, "librabbitmq": _RABBITMQ,
    "rpc": _RPC,
    "sqlite": _SQLITE,
    "postgresql": _POSTGRES, "postgres": _POSTGRES, "postgresql+psycopg": _POSTGRES,
    "memory": _MEMORY, "cache+memory": _MEMORY, "memory+cache": _MEMORY,
    "file": _FILES,
}  # fmt: skip
"""URL scheme -> kind of server."""

FAMILIES: Mapping[str, Wire] = {"db": _SQL, "database": _SQL, "cache": _MEMCACHED}
"""The same for what stands before the first `+` of a scheme."""
STORES = (_SQL, _MEMCACHED, _FILES)
"""Kinds that are told of results what `Wiring.store_options` says."""

LATER = {
    "amqp": "results over RabbitMQ", "sqs": "SQS",
    "sentinel": "Redis Sentinel", "kafka": "Kafka", "confluentkafka": "Kafka",
    "db": "SQLAlchemy", "database": "SQLAlchemy", "sqla": "SQLAlchemy", "sqlalchemy": "SQLAlchemy",
    "mongodb": "MongoDB", "cache": "memcached",
    "filesystem": "the file transport", "file": "the file backend",
}  # fmt: skip
"""What Celery knows and this version does not, by scheme."""

OFF = frozenset({"disabled", "disabled://"})
"""Values of `result_backend` that mean: none."""

_servers: dict[str, Any] = {}
_servers_lock = threading.Lock()


def memory_server(name: str) -> Any:
    """The server in this process that `memory://name` means; made at first use."""
    with _servers_lock:
        server = _servers.get(name)
        if server is None:
            server = _servers[name] = import_module(_MEMORY.broker).MemoryServer(name)
        return server


def scheme_of(url: str) -> str:
    """The scheme, in small letters."""
    return url.partition("://")[0].lower() if "://" in url else url.lower()


def find_wire(url: str, setting: str) -> Wire:
    """The kind of server of a URL. Raises ImproperlyConfigured with one line that says what to do."""
    scheme = scheme_of(url)
    wire = WIRES.get(scheme) or FAMILIES.get(scheme.partition("+")[0])
    if wire is not None and (wire.broker if setting == "broker_url" else wire.backend):
        return wire
    known = "redis://, rediss://, redis+socket://, amqp://, amqps://, postgresql://, sqlite:// or memory://"
    if setting == "result_backend":
        known = known.replace("amqp://, amqps://, ", "rpc://, ")
        known = known.replace(" or memory://", ", memory://, db+<SQLAlchemy URL>, cache+memcached:// or file:///")
    later = LATER.get(scheme) or LATER.get(scheme.partition("+")[0])
    if later:
        raise ImproperlyConfigured(f"{setting}: {later} ({scheme}://) is not supported in this version; use {known}")
    if "://" not in url and "." in url:
        raise ImproperlyConfigured(f"{setting}: {url!r} names a class of Celery's; give a URL: {known}")
    raise ImproperlyConfigured(f"{setting}: the scheme {scheme!r} is unknown; use {known}")


T = TypeVar("T")


class _Bindings(Mapping[str, Any]):
    """The bindings as they are when they are asked for: a queue may be made, or set, after the adapter was."""

    def __init__(self, bindings: Callable[[], Mapping[str, Any]]) -> None:
        self._now = bindings

    def __getitem__(self, queue: str) -> Any:
        return self._now()[queue]

    def __iter__(self) -> Iterator[str]:
        return iter(self._now())

    def __len__(self) -> int:
        return len(self._now())


class Wiring:
    """The adapters of one app, made from its settings at first use. Safe for threads, forks and several loops."""

    def __init__(
        self,
        conf: Any,
        bindings: Callable[[], Mapping[str, Any]] = dict,
        queues: Callable[[], Mapping[str, Any]] = dict,
        reply_queue: Callable[[], str] = str,
    ) -> None:
        """`bindings`: queue -> [(exchange, routing key, pattern)], for brokers that keep them as kombu does. `queues`:
        the app's queues by name, for brokers that declare them. `reply_queue`: where results come to that are sent to
        this process."""
        self._conf = conf
        self._bindings = bindings
        self._queues = queues
        self._reply_queue = reply_queue
        self._lock = threading.RLock()
        self._sender: Sender | None = None
        self._reader: Reader | None = None
        self._reader_made = False
        self._link: Any = None
        self._parent: tuple[Any, Any, Any] | None = None
        self._identity: int | None = None
        self._here: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, dict[str, tuple[Any, Any]]]
        self._here = weakref.WeakKeyDictionary()

    # URLs

    @property
    def broker_url(self) -> str:
        """Where messages are sent."""
        return self._broker("broker_write_url") or self._default_url

    @property
    def broker_read_url(self) -> str:
        """Where a worker gets messages from."""
        return self._broker("broker_read_url") or self._default_url

    def _broker(self, setting: str) -> str:
        value = self._conf[setting]
        urls = _all(value)
        if urls and WIRES.get(scheme_of(urls[0])) is _RABBITMQ:
            return ";".join(urls)  # its adapters know failover
        return _one(value, "broker_url")

    @property
    def _default_url(self) -> str:
        return CELERY_URL if self._conf["profile"] == "celery" else DEFAULT_URL

    @property
    def backend_url(self) -> str | None:
        """Where results are kept; None: nowhere. SQLite only where no broker is named either."""
        conf = self._conf
        url = _one(conf["result_backend"], "result_backend")
        family = url.removesuffix("://") or ("cache" if conf["cache_backend"] else "db")
        inner = conf["cache_backend" if family == "cache" else "database_url"] if family in FAMILIES else None
        if inner:
            url = inner if scheme_of(inner).partition("+")[0] in FAMILIES else f"{family}+{inner}"
        if not url:
            named = conf["broker_url"] or conf["profile"] == "celery"
            return None if named else DEFAULT_URL
        if url in OFF or url.startswith("disabled:"):
            return None
        if url in ("redis", "redis://", "rediss://") and conf["redis_host"]:
            port, database = conf["redis_port"] or 6379, conf["redis_db"] or 0
            return f"{scheme_of(url)}://{conf['redis_host']}:{port}/{database}"
        return f"{url}://" if url in WIRES else str(url)

    @property
    def answers_to_process(self) -> bool:
        """Results are sent to the process that sent the task."""
        return WIRES.get(scheme_of(self.backend_url or "")) is _RPC

    @property
    def has_peers(self) -> bool:
        """Celery can stand on the other side of the broker."""
        return find_wire(self.broker_url, "broker_url").peers

    # Sync side

    def use_parent(self, link: Any) -> None:
        """From now on everything goes through the worker's parent: this is one of its children."""
        module = import_module("celeriac.brokers.parent")
        with self._lock:
            self._link = link
            self._parent = (module.ParentSender(link), module.ParentReader(link), module.ParentBackend(link))
            self._sender = self._reader = None
            self._reader_made = False

    @property
    def sender(self) -> Sender:
        """The synchronous side of the broker."""
        sender = self._sender
        if sender is None:
            with self._lock:
                sender = self._sender
                if sender is None:
                    sender = self._sender = self._parent[0] if self._parent else self._make_sender()
        return sender

    @property
    def reader(self) -> Reader | None:
        """The synchronous side of the result backend; None where results are not kept."""
        if not self._reader_made:
            with self._lock:
                if not self._reader_made:
                    self._reader = self._make_reader()
                    self._reader_made = True
        return self._reader

    def _make_sender(self) -> Sender:
        sender: Sender = self._make("Sender", self.broker_url)
        return sender

    def _make_reader(self) -> Reader | None:
        url = self.backend_url
        if url is None:
            return None
        reader: Reader = self._parent[1] if self._parent else self._make("Reader", url)
        return reader

    def _make(self, kind: str, url: str) -> Any:
        of_broker = kind in ("Broker", "Sender")
        wire = find_wire(url, "broker_url" if of_broker else "result_backend")
        made = _adapter(wire.broker if of_broker else wire.backend, wire.prefix + kind)
        if wire is _MEMORY:
            server = memory_server(_name(url))
            return made(server, self.broker_options()) if kind == "Broker" else made(server)
        if wire is _RPC:
            if find_wire(self.broker_url, "broker_url") is not _RABBITMQ:
                raise ImproperlyConfigured("result_backend: rpc:// needs RabbitMQ as broker (amqp://)")
            return made(self.broker_url, self.broker_options())
        if wire in STORES:
            return made(url, self.store_options())
        return made(url, self.broker_options() if of_broker else self.backend_options())

    def within(self, connection: Any) -> Any:
        """A sender over a connection of the user's, for its transaction."""
        module = import_module("celeriac.drivers.postgres.within")
        parse = import_module("celeriac.drivers.postgres.site").parse
        url = self.broker_url
        if WIRES.get(scheme_of(url)) is _POSTGRES:
            return module.Within(connection, parse(url, self.broker_options()), self._broker_identity())
        if not self._conf["outbox_url"]:
            raise ImproperlyConfigured(
                "the broker is no PostgreSQL database: set outbox_url to the database of this connection, so that "
                "workers send from there what transactions leave"
            )
        return module.Within(connection, parse(self._conf["outbox_url"]), None)

    def _broker_identity(self) -> int:
        with self._lock:
            identity = self._identity
            if identity is None:
                # of its own: in a child the sender is the parent's
                sender: Any = self._make_sender()
                identity = self._identity = int(sender.identity())
                sender.close()
            return identity

    # Async side

    def make_relay(self) -> Any:
        """What sends from the outbox; None where there is none."""
        url = self._conf["outbox_url"]
        return _adapter(_POSTGRES.broker, "PostgresRelay")(url, {}) if url else None

    def migrate(self, urls: Sequence[str], grant: str = "") -> list[str]:
        """Bring databases up to date; without `urls` those of the settings. Returns a line for each."""
        named = [self.broker_url, self.broker_read_url, self.backend_url or "", self._conf["outbox_url"] or ""]
        wanted = urls or [url for url in dict.fromkeys(named) if WIRES.get(scheme_of(url)) is _POSTGRES]
        migrate = _adapter("celeriac.drivers.postgres.migrate", "migrate") if wanted else None
        return [migrate(url, {}, grant) for url in wanted] if migrate is not None else []

    def make_broker(self) -> Broker:
        """A new asynchronous adapter of the broker. Whoever takes it closes it."""
        broker: Broker = self._make("Broker", self.broker_read_url)
        return broker

    def make_backend(self) -> ResultBackend | None:
        """A new asynchronous adapter of the result backend, or None. Whoever takes it closes it."""
        url = self.backend_url
        if url is None:
            return None
        backend: ResultBackend = self._make("Backend", url)
        return backend

    @property
    def in_child(self) -> bool:
        """This is a child of a worker: there are no adapters but the parent's."""
        return self._parent is not None

    def broadcast(self, exchange: str, routing_key: str, payload: bytes) -> None:
        """Send to a fanout exchange, from a child."""
        self._link.ask("broadcast", [exchange, routing_key, payload])

    def inquire(
        self, request: Request, exchange: str, serializer: str, timeout: float, limit: int | None, patience: float
    ) -> list[tuple[dict[str, Any], int]]:
        """Ask workers from a child; the answers, each with its clock, come to the parent. `patience` bounds it all, in
        seconds."""
        found: list[Any] = self._link.ask("inquire", [request, exchange, serializer, timeout, limit], patience)
        return [(answers, clock) for answers, clock in found]

    def cancel(self, entries: Sequence[str], seconds: float) -> None:
        """Have the broker keep entries of its cancel list for so long, from a child."""
        self._link.ask("cancel", [list(entries), seconds])

    async def broker_here(self) -> Broker:
        """The adapter of the loop that runs, closed when the loop ends."""
        broker: Broker = await self._of_loop("broker", lambda: self._make("Broker", self.broker_url))
        return broker

    async def backend_here(self) -> ResultBackend | None:
        """The adapter of the loop that runs, closed when the loop ends; None where results are not kept."""
        if self.backend_url is None:
            return None
        backend: ResultBackend = self._parent[2] if self._parent else await self._of_loop("backend", self.make_backend)
        return backend

    async def _of_loop(self, what: str, make: Callable[[], Any]) -> Any:
        import asyncio

        held = self._here.setdefault(asyncio.get_running_loop(), {})
        if what not in held:
            keeper = _keep(make)
            held[what] = (await keeper.__anext__(), keeper)
        return held[what][0]

    # Options

    def broker_options(self) -> dict[str, Any]:
        """`broker_transport_options`, with the settings beside it that say how to connect."""
        conf = self._conf
        options = dict(conf["broker_transport_options"] or {})
        if conf["broker_use_ssl"]:
            options.setdefault("ssl", conf["broker_use_ssl"])
        if conf.value_set_for("broker_connection_timeout"):
            options.setdefault("socket_connect_timeout", conf["broker_connection_timeout"])
        options.setdefault("celery_peers", conf["celery_peers"])
        options.setdefault("dead_letter_limit", conf["dead_letter_limit"])
        options.setdefault("queue_bindings", _Bindings(self._bindings))
        options.setdefault("queues", _Bindings(self._queues))
        options.setdefault("heartbeat", conf["broker_heartbeat"] or 0)
        if conf["broker_login_method"]:
            options.setdefault("login_method", conf["broker_login_method"])
        options.setdefault("failover_strategy", conf["broker_failover_strategy"])
        if self.answers_to_process:
            options.setdefault("reply_queue", self._reply_queue)
            options.setdefault("result_expires", conf.seconds("result_expires") or None)
            options.setdefault("result_serializer", conf["result_serializer"])
            options.setdefault("persistent", conf["result_persistent"])
        options.setdefault("delayed_queue_type", conf["broker_native_delayed_delivery_queue_type"])
        return options

    def backend_options(self) -> dict[str, Any]:
        """`result_backend_transport_options`, with the settings beside it that say how to connect."""
        conf = self._conf
        options = dict(conf["result_backend_transport_options"] or {})
        if conf["redis_backend_use_ssl"]:
            options.setdefault("ssl", conf["redis_backend_use_ssl"])
        for setting, option in _REDIS_OPTIONS.items():
            if conf.value_set_for(setting) and conf[setting] is not None:
                options.setdefault(option, conf[setting])
        return options

    def store_options(self) -> dict[str, Any]:
        """What stores of documents in another form than Redis's need: how results are written, how long they are kept,
        and the settings of the family without its name."""
        conf = self._conf
        options = dict(conf["result_backend_transport_options"] or {})
        options["serializer"] = conf["result_serializer"]
        options["extended"] = conf["result_extended"]
        options["expires"] = conf.seconds("result_expires") or None
        for setting in _DATABASE_SETTINGS:
            options[setting.removeprefix("database_")] = conf[setting]
        options["cache_options"] = conf["cache_backend_options"]
        return options

    # The end

    def after_fork(self) -> None:
        """This is a forked child: another thread may have held the lock."""
        self._lock = threading.RLock()

    def forget(self) -> None:
        """Close what is open on the sync side; the next use makes it anew, from the settings as they are then."""
        with self._lock:
            sender, reader = self._sender, self._reader
            self._sender = self._reader = self._identity = None
            self._reader_made = False
            if self._parent is None:
                for adapter in (sender, reader):
                    if adapter is not None:
                        adapter.close()

    async def aclose(self) -> None:
        """Close what is open for the loop that runs."""
        import asyncio

        for _, keeper in self._here.pop(asyncio.get_running_loop(), {}).values():
            await keeper.aclose()


_REDIS_OPTIONS = {
    "redis_username": "username", "redis_password": "password", "redis_socket_timeout": "socket_timeout",
    "redis_socket_connect_timeout": "socket_connect_timeout", "redis_client_name": "client_name",
}  # fmt: skip
_DATABASE_SETTINGS = (
    "database_create_tables_at_setup", "database_engine_options", "database_engine_callback",
    "database_short_lived_sessions", "database_table_names", "database_table_schemas",
)  # fmt: skip


async def _keep(make: Callable[[], T]) -> AsyncGenerator[T, None]:
    """Hold an adapter open. A loop that ends closes its asynchronous generators, and so the adapter."""
    adapter: Any = make()
    try:
        yield adapter
    finally:
        await adapter.close()


def _adapter(module: str, name: str) -> Any:
    try:
        return getattr(import_module(module), name)
    except ModuleNotFoundError as error:
        if error.name and error.name.startswith("celeriac"):
            raise
        raise ImproperlyConfigured(
            f"the module {error.name!r} is missing: pip install 'celeriac[{module.rpartition('.')[2]}]'"
        ) from error


def _name(url: str) -> str:
    return url.partition("://")[2].partition("?")[0].strip("/")


_told: set[str] = set()


def _all(value: Any) -> list[str]:
    """The URLs of a setting that may hold several."""
    if not value:
        return []
    urls = [str(url) for url in value] if isinstance(value, list | tuple) else str(value).split(";")
    return [url.strip() for url in urls]


def _one(value: Any, setting: str) -> str:
    """The URL of a setting that may hold several, for failover: the first one."""
    if not value:
        return ""
    if isinstance(value, str) and value.partition("+")[0] == "cache":
        return value  # several servers that share one cache
    urls = _all(value)
    if len(urls) > 1 and setting not in _told:
        _told.add(setting)
        log.warning("%s names %d servers, but there is no failover yet: the first one is used", setting, len(urls))
    return urls[0].strip()
