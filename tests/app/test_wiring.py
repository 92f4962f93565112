"""From a URL to an adapter."""

from __future__ import annotations

import asyncio
import gc
import warnings
from pathlib import Path
from typing import Any

import pytest

from celeriac.app import wiring
from celeriac.app.app import Celeriac
from celeriac.errors import ImproperlyConfigured
from celeriac.model.queues import Exchange, Queue
from tests.app.conftest import Broker


def make(**settings: Any) -> Celeriac:
    """An app that is nobody's current one."""
    return Celeriac("x", set_as_current=False, **settings)


def test_without_any_url(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Messages and results lie in one SQLite file in the project."""
    (tmp_path / "pyproject.toml").write_text("")
    monkeypatch.chdir(tmp_path)
    app = make()
    assert (app.wiring.broker_url, app.wiring.backend_url) == ("sqlite://", "sqlite://")
    result = app.send_task("t", (1,))
    assert (tmp_path / ".celeriac" / "celeriac.db").exists()
    assert result.state == "PENDING"
    assert app.broker().describe() == str(tmp_path / ".celeriac" / "celeriac.db")
    app.close()


def test_a_named_broker_keeps_no_results() -> None:
    """As with Celery; nor does the profile of Celery's defaults."""
    assert make(broker="memory://").wiring.backend_url is None
    assert make(broker="redis://h", backend="disabled://").wiring.backend_url is None
    assert make(profile="celery").wiring.backend_url is None
    assert make(backend="memory://b").wiring.broker_url == "sqlite://"


@pytest.mark.parametrize(
    ("settings", "url"),
    [
        ({"backend": "db", "database_url": "postgresql://h/d"}, "db+postgresql://h/d"),
        ({"backend": "database://", "database_url": "db+sqlite:///x"}, "db+sqlite:///x"),
        ({"database_url": "sqlite:///x"}, "db+sqlite:///x"),
        ({"backend": "cache", "cache_backend": "memcached://a:1;b:2/"}, "cache+memcached://a:1;b:2/"),
        ({"cache_backend": "memory"}, "cache+memory://"),
        ({"backend": "cache+memcached://a:1;b:2/"}, "cache+memcached://a:1;b:2/"),
        ({"backend": "redis://h", "database_url": "sqlite:///x"}, "redis://h"),
        ({"backend": "file:///folder"}, "file:///folder"),
    ],
)
def test_old_ways_to_name_a_store(settings: dict[str, Any], url: str) -> None:
    """A word in `result_backend` and the rest of the URL in a setting beside it, as in old configurations."""
    assert make(broker="memory://", **settings).wiring.backend_url == url


def test_what_stores_are_told() -> None:
    """The settings of each family, and how long results are kept."""
    app = make(
        broker="memory://", backend="file:///", result_expires=60, result_extended=True, result_serializer="yaml",
        database_table_names={"task": "t"}, cache_backend_options={"timeout": 2},
        result_backend_transport_options={"global_keyprefix": "p"},
    )  # fmt: skip
    options = app.wiring.store_options()
    assert options["expires"] == 60.0
    assert (options["extended"], options["serializer"], options["global_keyprefix"]) == (True, "yaml", "p")
    assert (options["table_names"], options["cache_options"]) == ({"task": "t"}, {"timeout": 2})
    assert options["engine_options"] == {"pool_pre_ping": True, "pool_recycle": 3600}
    assert make(broker="memory://", result_expires=0).wiring.store_options()["expires"] is None


def test_the_profile_celery_has_celerys_broker() -> None:
    """Without a URL it is RabbitMQ on this machine; a URL is used as ever."""
    app = make(profile="celery")
    assert (app.wiring.broker_url, app.wiring.broker_read_url) == ("amqp://guest@localhost//",) * 2
    sender: Any = app.sender
    assert sender.describe() == "amqp://guest@localhost:5672//"
    assert make(profile="celery", broker="memory://").wiring.broker_url == "memory://"


def test_the_environment_beats_the_app(monkeypatch: pytest.MonkeyPatch) -> None:
    """Four variables, as Celery has them."""
    monkeypatch.setenv("CELERY_BROKER_URL", "memory://env")
    monkeypatch.setenv("CELERY_RESULT_BACKEND", "memory://env")
    monkeypatch.setenv("CELERY_BROKER_WRITE_URL", "memory://write")
    app = make(broker="redis://h", backend="redis://h")
    assert (app.wiring.broker_read_url, app.wiring.broker_url) == ("memory://env", "memory://write")
    assert app.wiring.backend_url == "memory://env"


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"broker": "sqs://h"}, "broker_url: SQS .* is not supported in this version; use redis://"),
        ({"broker": "amqp://h:notaport"}, "port"),
        ({"broker": "amqp://h;nonsense://h"}, "nonsense is no RabbitMQ URL"),
        ({"broker": "nonsense://h"}, "broker_url: the scheme 'nonsense' is unknown"),
        ({"broker": "memory://", "backend": "rpc://"}, "rpc:// needs RabbitMQ as broker"),
        ({"broker": "db+postgresql://h"}, "broker_url: SQLAlchemy"),
        ({"broker": "memory://", "backend": "db+oracle://h"}, "no results are kept in 'oracle'"),
        ({"broker": "memory://", "backend": "db+sqlite://"}, "can't be shared by processes"),
        ({"broker": "memory://", "backend": "file:///nowhere/at/all"}, "does not exist"),
        ({"broker": "memory://", "backend": "cache+memcached://"}, "no server is named"),
        ({"broker": "memory://", "backend": "my.module.Backend"}, "names a class of Celery's"),
        ({"broker": "redis://h:notaport"}, "port"),
    ],
)
def test_what_can_not_be_wired_is_told_in_one_line(settings: dict[str, Any], words: str) -> None:
    """With what to use instead."""
    app = make(**settings)

    def use() -> None:
        app.send_task("t")
        _ = app.AsyncResult("a").state

    with pytest.raises(ImproperlyConfigured, match=words) as caught:
        use()
    assert "\n" not in str(caught.value)


def test_a_missing_driver_is_told_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the command that installs it."""
    import sys

    monkeypatch.setitem(sys.modules, "hiredis", None)
    for name in [name for name in sys.modules if name.startswith("celeriac.drivers.redis")]:
        monkeypatch.delitem(sys.modules, name)
    with pytest.raises(ImproperlyConfigured, match=r"celeriac\[redis\]"):
        make(broker="redis://localhost").send_task("t")


@pytest.mark.parametrize(
    ("driver", "url", "extra"),
    [("sqlalchemy", "db+sqlite:///x", "sql"), ("pymemcache", "cache+memcached://h", "memcached")],
)
def test_a_missing_driver_of_a_store(driver: str, url: str, extra: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same of result backends."""
    import sys

    monkeypatch.setitem(sys.modules, driver, None)
    for name in [name for name in sys.modules if name.startswith(f"celeriac.backends.{extra}")]:
        monkeypatch.delitem(sys.modules, name)
    with pytest.raises(ImproperlyConfigured, match=rf"'{driver}' is missing: pip install 'celeriac\[{extra}\]'"):
        _ = make(broker="memory://", backend=url).AsyncResult("a").state


def test_options_of_the_transport() -> None:
    """Settings beside the options, with the options' own word first."""
    app = make(
        broker="redis://h", broker_transport_options={"visibility_timeout": 5, "socket_connect_timeout": 9},
        broker_connection_timeout=3, broker_use_ssl={"ssl_cert_reqs": "none"}, redis_password="pw",
        redis_socket_timeout=7, result_backend_transport_options={"global_keyprefix": "p_"},
    )  # fmt: skip
    options = app.wiring.broker_options()
    assert options["visibility_timeout"] == 5
    assert options["socket_connect_timeout"] == 9
    assert options["ssl"] == {"ssl_cert_reqs": "none"}
    assert options["queue_bindings"] == {
        "celery": [("celery", "celery", "")],
        f"{app.oid}.reply.celery.pidbox": [("reply.celery.pidbox", app.oid, "")],
    }
    assert options["celery_peers"] is True
    assert app.wiring.backend_options() == {"global_keyprefix": "p_", "password": "pw", "socket_timeout": 7}


def test_the_limit_of_dead_letters() -> None:
    """The setting reaches every broker's adapter, unless the transport's own option says something else."""

    def limits(**settings: Any) -> list[int]:
        redis, sqlite, memory = (
            make(broker=url, **settings).broker() for url in ("redis://h", "sqlite:///x.db", "memory://limits")
        )
        return [redis.layout.dead_limit, sqlite._dead_limit, memory._dead_limit]  # type: ignore[attr-defined]

    assert limits() == [100_000] * 3
    assert limits(dead_letter_limit=7) == [7] * 3
    assert limits(dead_letter_limit=0) == [0] * 3
    assert limits(dead_letter_limit=7, broker_transport_options={"dead_letter_limit": 8}) == [8] * 3
    for wrong in (-1, "many"):
        with pytest.raises(ImproperlyConfigured, match="dead_letter_limit must be a number"):
            limits(dead_letter_limit=wrong)


def test_bindings_follow_the_queues() -> None:
    """Queues that are set or made after the connection are bound as they are configured, on both sides."""
    app = make(broker="redis://h")
    layouts = [app.wiring.sender.layout, app.broker().layout]  # type: ignore[attr-defined]
    app.conf.task_queues = [Queue("q", Exchange("media", "topic"), "video.#")]
    app.conf.task_create_missing_queue_exchange_type = "topic"
    _ = app.queues["new"]
    for layout in layouts:
        keys = [words[1:] for words in layout.declaration(["q", "new"]) if "binding." in str(words[1])]
        assert keys == [
            ("_kombu.binding.media", "video.#\x06\x16^video\\..*?$\x06\x16q"),
            ("_kombu.binding.new", "new\x06\x16^new$\x06\x16new"),
        ]


def test_several_urls(caplog: pytest.LogCaptureFixture) -> None:
    """The first is used, and one warning says that there is no failover."""
    wiring._told.clear()
    app = make(broker="memory://one;memory://two")
    assert app.wiring.broker_url == "memory://one"
    assert make(broker=["memory://three", "memory://two"]).wiring.broker_url == "memory://three"
    assert len(caplog.records) == 1
    assert "failover" in caplog.text


def test_redis_by_parts() -> None:
    """`result_backend = "redis"` with redis_host and its neighbours."""
    app = make(broker="memory://", backend="redis", redis_host="h", redis_port=1234, redis_db=5)
    assert app.wiring.backend_url == "redis://h:1234/5"


def test_changed_urls_are_taken_up(app: Celeriac, broker: Broker) -> None:
    """The next call goes to the new broker."""
    task = app.task(name="t")(lambda: None)
    task.delay()
    other = Broker("changed-url-of-test")
    app.conf.broker_url = other.url
    task.delay()
    assert (len(broker.blobs()), len(other.blobs())) == (1, 1)


def test_adapters_of_a_loop_are_closed_with_it(app: Celeriac, monkeypatch: pytest.MonkeyPatch) -> None:
    """One for each loop, shared by its coroutines; no loop leaves one open."""
    closed: list[Any] = []
    made: list[Any] = []
    task = app.task(name="t")(lambda: None)
    original = app.wiring._make

    def make(kind: str, url: str) -> Any:
        adapter = original(kind, url)
        made.append(adapter)
        close = adapter.close

        async def note() -> None:
            closed.append(adapter)
            await close()

        if kind == "Broker":
            adapter.close = note
        return adapter

    monkeypatch.setattr(app.wiring, "_make", make)

    async def send() -> None:
        await asyncio.gather(*(task.adelay() for _ in range(10)))

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        asyncio.run(send())
        asyncio.run(send())
        gc.collect()
    assert len(made) == 2
    assert closed == made


def test_closing_in_a_loop(app: Celeriac) -> None:
    """`aclose` closes what is open; the app can be used again."""
    task = app.task(name="t")(lambda: None)

    async def run() -> None:
        await task.adelay()
        await app.wiring.aclose()
        await task.adelay()
        await app.aclose()

    asyncio.run(run())


def test_memory_servers_go_by_name() -> None:
    """The same name, the same server."""
    assert wiring.memory_server("n") is wiring.memory_server("n")
    assert wiring.memory_server("n") is not wiring.memory_server("m")
    assert make(broker="memory://n?x=1").wiring.sender.server is wiring.memory_server("n")  # type: ignore[attr-defined]
