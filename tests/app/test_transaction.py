"""What is sent within a transaction of the caller's exists if and only if that commits."""

from __future__ import annotations

import asyncio
import importlib
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import asyncpg
import psycopg
import psycopg2
import psycopg2.extras
import pytest
import sqlalchemy
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import Session, scoped_session, sessionmaker

from celeriac import Celeriac, chain, group
from celeriac.contrib.django.task import DjangoTask
from celeriac.errors import ImproperlyConfigured
from celeriac.ports import Place
from tests.processes import Project
from tests.servers import PostgresServer


@pytest.fixture
def database(postgres_server: PostgresServer) -> str:
    """A database of the test's own."""
    return postgres_server.database()


@pytest.fixture
def app(database: str) -> Iterator[Celeriac]:
    """An app whose broker and results lie there."""
    with Celeriac("within", broker=database, backend=database) as made:

        @made.task(name="add")
        def add(x: int, y: int) -> int:
            return x + y

        yield made


def ready(app: Celeriac, queue: str = "celery") -> int:
    """How many messages can be claimed."""

    async def count() -> int:
        broker = app.broker()
        try:
            return (await broker.count(queue)).ready
        finally:
            await broker.close()

    return asyncio.run(count())


def test_psycopg(app: Celeriac, database: str) -> None:
    """The message is there with the commit, not before, and never after a rollback; the block ends no transaction."""
    add = app.tasks["add"]
    with psycopg.connect(database) as connection:
        with app.transaction(connection):
            result = add.delay(1, 2)
            add.apply_async((3, 4), countdown=1000)
            add.delay_many([(n, n) for n in range(10)])
            app.send_task("other", queue="elsewhere")
        assert ready(app) == 0
        connection.rollback()
        assert ready(app) == 0
        with app.transaction(connection):
            result = add.delay(1, 2)
            (group(add.s(1, n) for n in range(3)) | add.si(1, 1)).apply_async()
            chain(add.s(1, 2), add.s(3)).delay()
        connection.commit()
    assert ready(app) == 5
    assert result.state == "PENDING"
    add.delay(1, 1)
    assert ready(app) == 6


def test_nobody_waits_for_another(app: Celeriac, database: str) -> None:
    """An open transaction keeps nobody from sending to the same queue, though it is new; and it is listed after all."""
    with psycopg.connect(database) as one, psycopg.connect(database) as two:
        two.execute("SET lock_timeout = '2s'")
        for connection in (one, two):
            with app.transaction(connection):
                app.send_task("x", queue="new")
                app.send_task("x", queue="later", countdown=1000)
        before = time.monotonic()
        app.send_task("x", queue="new")
        assert time.monotonic() - before < 2
        two.commit()
        assert ready(app, "new") == 2
        with app.transaction(two):
            app.send_task("x", queue="newer")
        two.commit()

    async def listed() -> list[str]:
        broker = app.broker()
        try:
            return list(await broker.queues())
        finally:
            await broker.close()

    assert asyncio.run(listed()) == ["later", "new", "newer"]


@pytest.mark.parametrize("driver", ["psycopg", "psycopg2"])
def test_sqlalchemy(app: Celeriac, database: str, driver: str) -> None:
    """SQLAlchemy's session, scoped session and connection."""
    add = app.tasks["add"]
    engine = sqlalchemy.create_engine(database.replace("postgresql://", f"postgresql+{driver}://"))
    scoped = scoped_session(sessionmaker(engine))
    with Session(engine) as session:
        for within in (session, scoped):
            with app.transaction(within):
                add.delay(1, 2)
            within.rollback()
            with app.transaction(within):
                add.delay(1, 2)
        assert ready(app) == 0
        session.commit()
        assert ready(app) == 1
        scoped.commit()
    scoped.remove()
    with engine.begin() as connection, app.transaction(connection):
        add.delay(1, 2)
    engine.dispose()
    assert ready(app) == 3


@pytest.mark.parametrize("driver", ["psycopg", "asyncpg"])
def test_asynchronous_sqlalchemy(app: Celeriac, database: str, driver: str) -> None:
    """SQLAlchemy's asynchronous session and connection, and what runs in its `run_sync`."""
    add = app.tasks["add"]

    async def asynchronous() -> None:
        engine = create_async_engine(database.replace("postgresql://", f"postgresql+{driver}://"))
        async with engine.begin() as begun:
            with app.transaction(begun):
                await add.adelay(1, 2)
                with pytest.raises(ImproperlyConfigured, match="adelay"):
                    add.delay(1, 2)
        async with AsyncSession(engine) as session:
            with app.transaction(session):
                await add.adelay(1, 2)
            await session.rollback()

            def inside(within: Session) -> None:
                with app.transaction(within):
                    add.delay(1, 2)

            await session.run_sync(inside)
            await session.commit()
        await engine.dispose()
        await app.aclose()

    asyncio.run(asynchronous())
    assert ready(app) == 2


def test_psycopg2(app: Celeriac, database: str) -> None:
    """psycopg2's connection, with its own cursors."""
    add = app.tasks["add"]
    for factory in (None, psycopg2.extras.RealDictCursor):
        before = ready(app)
        connection = psycopg2.connect(database, cursor_factory=factory)
        with app.transaction(connection):
            add.delay("%s", "ä\\'")
        connection.rollback()
        with connection, app.transaction(connection):
            add.delay("%s", "ä\\'")
            add.apply_async((1, 2), countdown=1000)
        assert ready(app) == before + 1
        connection.close()


def test_asynchronous_drivers(app: Celeriac, database: str) -> None:
    """Connections of asyncpg, also of its pool, and of psycopg."""
    add = app.tasks["add"]

    async def asynchronous() -> None:
        async with await psycopg.AsyncConnection.connect(database) as connection, connection.transaction():
            with app.transaction(connection):
                await add.adelay(1, 2)
        async with asyncpg.create_pool(database, min_size=1) as pool:
            for pooled in (await asyncpg.connect(database), await pool.acquire()):
                with suppress(ZeroDivisionError):
                    async with pooled.transaction():
                        with app.transaction(pooled):
                            await add.adelay(1, 2)
                        raise ZeroDivisionError
                async with pooled.transaction():
                    with app.transaction(pooled):
                        await add.adelay(1, 2)
                        await add.aapply_async((1, 2), countdown=1000)
                        with pytest.raises(ImproperlyConfigured, match="adelay"):
                            add.delay(1, 2)
                if isinstance(pooled, asyncpg.Connection):
                    await pooled.close()
                else:
                    await pool.release(pooled)
        await app.aclose()

    asyncio.run(asynchronous())
    assert ready(app) == 3


def test_what_is_no_connection(app: Celeriac, database: str) -> None:
    """An engine, a URL, nothing: one line says what is taken."""
    engine = sqlalchemy.create_engine(database.replace("postgresql://", "postgresql+psycopg://"))
    for given in (engine, database, None):
        with pytest.raises(ImproperlyConfigured, match=r"takes a connection of psycopg.* not \w+\.\w+"):
            app.transaction(given).__enter__()
    engine.dispose()


def test_two_apps(app: Celeriac, database: str) -> None:
    """A transaction is that of one app: another one sends as ever."""
    with Celeriac("other", broker="memory://two-apps") as other, psycopg.connect(database) as connection:
        with app.transaction(connection):
            other.send_task("x")
            app.tasks["add"].delay(1, 2)
        connection.rollback()
        assert (ready(other), ready(app)) == (1, 0)


def test_another_database(app: Celeriac, postgres_server: PostgresServer) -> None:
    """A connection to a database that is not the broker's is refused, whether it has our tables or not."""
    add = app.tasks["add"]
    with (
        psycopg.connect(postgres_server.database()) as connection,
        app.transaction(connection),
        pytest.raises(ImproperlyConfigured, match="migrate-schema"),
    ):
        add.delay(1, 2)
    elsewhere = postgres_server.database()
    with Celeriac("other", broker=elsewhere, backend=elsewhere) as other:
        other.send_task("x")
    with (
        psycopg.connect(elsewhere) as connection,
        app.transaction(connection),
        pytest.raises(psycopg.Error, match="another database than broker_url"),
    ):
        add.delay(1, 2)


def test_a_schema_of_its_own(postgres_server: PostgresServer) -> None:
    """With ?schema= the tables lie there, whatever search path the caller's connection has."""
    database = postgres_server.database()
    url = f"{database}?schema=jobs"
    with Celeriac("schema", broker=url, backend=url) as app, psycopg.connect(database) as connection:
        connection.execute("SET search_path = pg_catalog")
        with app.transaction(connection):
            app.send_task("x")
        connection.commit()
        assert ready(app) == 1
        names = connection.execute("SELECT DISTINCT schemaname FROM pg_tables WHERE tablename LIKE 'celeriac%'")
        assert names.fetchall() == [("jobs",)]


def test_without_an_outbox(database: str) -> None:
    """A broker elsewhere needs an outbox, and says so."""
    with (
        Celeriac("none", broker="memory://") as app,
        psycopg.connect(database) as connection,
        pytest.raises(ImproperlyConfigured, match="outbox_url"),
    ):
        app.transaction(connection).__enter__()


def test_the_outbox_keeps_the_order(database: str, clean_redis_url: str, tmp_path: Path) -> None:
    """With Redis as broker, what commits is left in the outbox; a worker sends it, in order, once; no other."""
    project = Project(tmp_path, {
        "tasks.py": f"""
from celeriac import Celeriac
app = Celeriac("tasks", broker={clean_redis_url!r}, backend={clean_redis_url!r}, outbox_url={database!r})

@app.task
def add(x, y):
    return x + y
""",
    })  # fmt: skip
    with Celeriac("tasks", broker=clean_redis_url, backend=clean_redis_url, outbox_url=database) as app:
        code, said = project.run("-A", "tasks", "migrate-schema")
        assert (code, "layout 0 -> 1" in said) == (0, True), said
        code, said = project.run("-A", "tasks", "migrate-schema")
        assert (code, "up to date" in said) == (0, True), said
        results: list[Any] = []
        with psycopg.connect(database) as connection:
            for n in range(6):
                with app.transaction(connection):
                    result = app.send_task("tasks.add", (n, n))
                if n % 2:
                    connection.rollback()
                else:
                    results.append(result)
                    connection.commit()
        assert ready(app) == 0
        with project.worker("-c", "1"):
            assert [result.get(timeout=20) for result in results] == [0, 4, 8]
        with psycopg.connect(database) as connection:
            assert connection.execute("SELECT count(*) FROM celeriac_outbox").fetchall() == [(0,)]

        async def nothing_left() -> None:
            broker = app.broker()
            for place in (Place.READY, Place.IN_FLIGHT, Place.DEAD):
                assert not (await broker.browse(place, "celery", 10)).items
            await broker.close()

        asyncio.run(nothing_left())


def test_django(app: Celeriac, database: str) -> None:
    """`transaction.atomic` of Django, and tasks that wait for its commit."""
    django_settings: Any = importlib.import_module("django.conf").settings
    database_of: Any = importlib.import_module("django.db")
    transaction: Any = importlib.import_module("django.db.transaction")
    connection, connections = database_of.connection, database_of.connections

    _, _, rest = database.partition("@")
    host, _, name = rest.partition("/")
    if not django_settings.configured:
        django_settings.configure(DATABASES={})
    base = {"ENGINE": "django.db.backends.postgresql", "USER": "postgres", "NAME": name}
    connections.settings = connections.configure_settings({
        "default": {**base, "HOST": host.partition(":")[0], "PORT": host.partition(":")[2]},
    })  # fmt: skip
    add = app.tasks["add"]
    with suppress(ZeroDivisionError), transaction.atomic(), app.transaction(connection):
        add.delay(1, 2)
        raise ZeroDivisionError
    assert ready(app) == 0
    with transaction.atomic():
        with app.transaction(connection):
            add.delay(1, 2)
        assert ready(app) == 0
    assert ready(app) == 1

    later: Any = app.task(name="later", base=DjangoTask)(lambda x: x)
    with transaction.atomic():
        handle = later.delay_on_commit(1)
        assert handle.id
        assert ready(app) == 1
    assert ready(app) == 2
    with suppress(ZeroDivisionError), transaction.atomic():
        later.apply_async_on_commit((1,))
        raise ZeroDivisionError
    assert ready(app) == 2
    connection.close()
