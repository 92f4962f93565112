"""Results in SQL tables keep the contract, on real databases; what is their own besides."""

from __future__ import annotations

import asyncio
import os
import random
import sys
import threading
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from celeriac.backends import blocking
from celeriac.backends.sql import SqlBackend, SqlReader
from celeriac.backends.sql.engine import parse
from celeriac.backends.sql.tables import Tables
from celeriac.errors import BackendStoreError, ImproperlyConfigured, OperationalError
from celeriac.model.message import Store
from celeriac.testing.contract_backend import BackendContract, ReaderContract
from celeriac.testing.contract_chords import chord, part
from celeriac.testing.rigs import BackendRig
from celeriac.wire import record
from tests.processes import Project

TABLES = ("celery_taskmeta", "celery_tasksetmeta", "celeriac_sql_chords", "celeriac_sql_chord_entries")


class SqlRig(BackendRig):
    """One database. On PostgreSQL time is its own; on the others it jumps instead of going."""

    exact = False
    forgets = False

    def __init__(self, url: str, options: dict[str, Any] | None = None) -> None:
        self.url = url
        self.options = options or {}
        self.ahead = 0.0
        self.jumps = "postgresql" not in url
        reader = self.reader()
        reader.fetch(["make the tables"])
        engine = reader._store._connected()  # type: ignore[attr-defined]
        with engine.begin() as connection:
            for table in TABLES:
                connection.execute(sa.text(f"DELETE FROM {table}"))
        reader.close()

    def clock(self) -> float:
        return time.time() + self.ahead

    def backend(self) -> SqlBackend:
        return SqlBackend(self.url, self.options, self.clock if self.jumps else None)

    def reader(self) -> SqlReader:
        return SqlReader(self.url, self.options, self.clock if self.jumps else None)

    async def elapse(self, seconds: float) -> None:
        if self.jumps:
            self.ahead += seconds
        else:
            await super().elapse(seconds)


class _OnDatabases:
    @pytest.fixture(params=["sqlite", "postgres", "mariadb"])
    def rig(self, request: pytest.FixtureRequest, tmp_path: Path) -> SqlRig:
        if request.param == "sqlite":
            return SqlRig(f"db+sqlite:///{tmp_path}/results.db")
        return SqlRig("db+" + request.getfixturevalue(f"{request.param}_url"))


class TestSqlBackend(_OnDatabases, BackendContract):
    """The asynchronous side."""


class TestSqlReader(_OnDatabases, ReaderContract):
    """The synchronous side."""


@pytest.fixture(params=["sqlite", "postgres", "mariadb"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty database of each kind."""
    if request.param == "sqlite":
        return f"db+sqlite:///{tmp_path}/results.db"
    server = str(request.getfixturevalue(f"{request.param}_url"))
    name = f"t{uuid.uuid4().hex}"
    engine = sa.create_engine(parse("db+" + server), isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.execute(sa.text(f"CREATE DATABASE {name}"))
    engine.dispose()
    return f"db+{server.rpartition('/')[0]}/{name}"


def rows(url: str, table: str = "celery_taskmeta") -> list[dict[str, Any]]:
    """What is in a table, as anybody sees it."""
    engine = sa.create_engine(parse(url))
    with engine.connect() as connection:
        found = [dict(each._mapping) for each in connection.execute(sa.text(f"SELECT * FROM {table} ORDER BY id"))]
    engine.dispose()
    return found


def run(url: str, *statements: str) -> None:
    """Do something to a database."""
    engine = sa.create_engine(parse(url))
    with engine.begin() as connection:
        for statement in statements:
            connection.execute(sa.text(statement))
    engine.dispose()


def success(name: str, **more: Any) -> Store:
    """A document of a task that has just ended."""
    extended = record.extended_fields("tasks.t", [1], {}, "w@h", 0, "q", ["s"], {"s": 1})
    return Store(name, record.document(
        name, "SUCCESS", {"a": "ä"}, date_done=datetime.now(UTC).isoformat(), extended=extended, **more
    ), "SUCCESS", guard=True)  # fmt: skip


def test_the_clock_is_the_databases(url: str) -> None:
    """Seconds since 1970, with their fractions."""

    async def story() -> None:
        backend = SqlBackend(url, {})
        first, second = await backend.clock(), await backend.clock()
        assert abs(first - time.time()) < 5
        assert 0 < second - first < 5
        verdicts = await backend.store([success("late")], deadline=first)
        assert [verdict.lost for verdict in verdicts] == [True]
        assert await backend.fetch(["late"]) == {}
        await backend.close()

    asyncio.run(story())


def test_names_schemas_and_extended_columns(url: str) -> None:
    """Tables have the names of the settings; columns are there if `result_extended` is; dates are UTC."""
    plain = SqlReader(url, {})
    plain.store([success("a")])
    [found] = rows(url)
    assert "name" not in found
    assert (found["status"], bytes(found["result"]), found["children"]) == ("SUCCESS", b'{"a": "\\u00e4"}', None)
    names = {"task": "my_tasks", "group": "my_groups"}
    named = SqlReader(url, {"table_names": names, "extended": True})
    named.store([success("b", children=[[["c", None], None]])])
    named.save_group("g", record.group_document((("g", None), [])), None)
    [found] = rows(url, "my_tasks")
    assert (found["name"], found["worker"], found["queue"], found["retries"]) == ("tasks.t", "w@h", "q", 0)
    assert [bytes(found[name]) for name in ("args", "children")] == [b"[1]", b'[[["c", null], null]]']
    assert bytes(found["stamps"]) == b'{"stamped_headers": ["s"], "stamps": {"s": 1}}'
    assert bytes(rows(url, "my_groups")[0]["result"]) == b'[["g", null], []]'
    done = found["date_done"]
    done = datetime.fromisoformat(done) if isinstance(done, str) else done
    assert abs(done.replace(tzinfo=UTC).timestamp() - time.time()) < 60
    plain.close()
    named.close()


def test_a_schema_of_its_own(postgres_url: str) -> None:
    """`database_table_schemas` says where the tables are."""
    run("db+" + postgres_url, "DROP SCHEMA IF EXISTS elsewhere CASCADE", "CREATE SCHEMA elsewhere")
    reader = SqlReader("db+" + postgres_url, {"table_schemas": {"task": "elsewhere", "group": "elsewhere"}})
    reader.store([success("a")])
    assert set(reader.fetch(["a"])) == {"a"}
    assert len(rows("db+" + postgres_url, "elsewhere.celery_taskmeta")) == 1
    reader.close()


def test_tables_of_an_older_celery(url: str) -> None:
    """Columns that are missing are added, as Celery 5.7 does, and what is there is read."""
    SqlReader(url, {}).fetch(["made"])
    run(
        url, "ALTER TABLE celery_taskmeta DROP COLUMN children",
        "INSERT INTO celery_taskmeta (id, task_id, status) VALUES (1000000, 'old', 'STARTED')",
    )  # fmt: skip
    reader = SqlReader(url, {"extended": True})
    assert record.read(reader.fetch(["old"])["old"]).status == "STARTED"
    reader.store([success("new", children=[[["c", None], None]])])
    assert record.read(reader.fetch(["new"])["new"]).children == [[["c", None], None]]
    assert record.read(reader.fetch(["new"])["new"]).name == "tasks.t"
    reader.close()


def test_a_table_that_numbers_its_rows_itself(mariadb_url: str) -> None:
    """As MySQL's do, and those that were made before MariaDB had sequences: the table's own numbers are used."""
    url = f"db+{mariadb_url}"
    names = {"task": f"t{uuid.uuid4().hex}", "group": f"g{uuid.uuid4().hex}"}
    run(
        url, f"CREATE TABLE {names['task']} (id INTEGER NOT NULL AUTO_INCREMENT PRIMARY KEY, "
        "task_id VARCHAR(155) UNIQUE, status VARCHAR(50), result LONGBLOB, date_done DATETIME, traceback TEXT)",
        f"INSERT INTO {names['task']} (id, task_id, status) VALUES (1, 'a', 'STARTED'), (2, 'b', 'STARTED')",
    )  # fmt: skip
    reader = SqlReader(url, {"table_names": names})
    reader.store([success(f"id{n}") for n in range(250)])
    found = reader.fetch(["a", "b", *(f"id{n}" for n in range(250))])
    assert [record.read(found[name]).status for name in ("a", "b", "id0", "id249")] == ["STARTED"] * 2 + ["SUCCESS"] * 2
    assert len(found) == 252
    reader.close()


def test_who_may_not_add_columns_goes_on_without(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the right to alter the table the other columns are written and read."""
    SqlReader(url, {}).fetch(["made"])
    monkeypatch.setattr(Tables, "_add", lambda *_: False)
    reader = SqlReader(url, {"extended": True})
    reader.store([success("a")])
    found = record.read(reader.fetch(["a"])["a"])
    assert (found.result, found.name) == ({"a": "ä"}, None)
    reader.close()


def test_many_wait_at_once(url: str) -> None:
    """More threads of one process wait than its pool has connections: each is answered, and the database is not filled
    with connections."""
    reader, names = SqlReader(url, {}), [f"n{number}" for number in range(40)]

    def wait(name: str) -> list[str]:
        with reader.watch([name], 20.0) as changes:
            return [next(changes)[0]]

    with ThreadPoolExecutor(len(names)) as threads:
        waiting = [threads.submit(wait, name) for name in names]
        time.sleep(0.5)
        if "postgresql" in url:
            sessions = "SELECT count(*) AS id FROM pg_stat_activity WHERE datname = current_database()"
            engine = sa.create_engine(parse(url))
            with engine.connect() as connection:
                assert connection.execute(sa.text(sessions)).scalar_one() <= 25
            engine.dispose()
        reader.store([success(name) for name in names])
        assert [each.result(15.0) for each in waiting] == [[name] for name in names]
    with reader.watch(names, 5.0) as changes:
        assert {next(changes)[0] for _ in names} == set(names)
    reader.close()


def test_clean_up(url: str) -> None:
    """Results and groups that ended longer ago than `result_expires` go, and chords whose time is over."""
    reader = SqlReader(url, {"expires": 3600})
    old = datetime.now(UTC) - timedelta(hours=2)
    started = record.document("started", "STARTED", None)
    reader.store([
        Store(f"old{n}", record.document("a", "SUCCESS", 1, date_done=old.isoformat()), "SUCCESS") for n in range(3)
    ])  # fmt: skip
    reader.store([success("young"), Store("started", started, "STARTED")])
    reader.save_group("g", record.group_document((("g", None), [])), None)
    reader.save_group("young", record.group_document((("g", None), [])), None)
    run(url, "UPDATE celery_tasksetmeta SET date_done = '2020-01-01' WHERE taskset_id = 'g'")
    reader.open_chords([chord(1, group="brief", expires=-5), chord(1, group="stays", expires=None)])
    reader.clean_up()
    assert set(reader.fetch(["old0", "old1", "old2", "young", "started"])) == {"young", "started"}
    assert (reader.fetch_group("g"), reader.fetch_group("young") is not None) == (None, True)
    assert [found["id"] for found in rows(url, "celeriac_sql_chords")] == ["stays"]
    reader.close()


@pytest.mark.parametrize("early", [True, False])
def test_tables_are_made_at_the_start_of_a_worker(tmp_path: Path, early: bool) -> None:
    """With `database_create_tables_at_setup`, the default; without it at the first use."""
    text = f"""
from celeriac import Celeriac
app = Celeriac("tasks", broker="sqlite:///broker.db", backend="db+sqlite:///results.db")
app.conf.database_create_tables_at_setup = {early}

@app.task
def add(x, y):
    return x + y
"""
    project = Project(tmp_path, {"tasks.py": text})
    with project.worker("-c", "1"):
        end = time.monotonic() + (10.0 if early else 1.0)
        while not (tmp_path / "results.db").exists() and time.monotonic() < end:
            time.sleep(0.05)
        assert (tmp_path / "results.db").exists() is early
        with project.python("-c", "from tasks import add; print(add.delay(1, 2).get(timeout=10))") as script:
            assert script.wait(30) == 0, script.output
            assert script.output == "3\n"


def test_who_stores_cleans_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker deletes what has expired now and then by itself: no beat is needed."""
    monkeypatch.setattr(blocking, "CLEAN_SECONDS", 0.0)
    url = f"db+sqlite:///{tmp_path}/results.db"
    old = record.document("old", "SUCCESS", 1, date_done="2020-01-01T00:00:00+00:00")

    async def story() -> None:
        backend = SqlBackend(url, {"expires": 3600})
        await backend.store([Store("old", old, "SUCCESS")])
        assert await backend.fetch(["old"]) == {}
        await backend.clean_up()
        await backend.close()

    asyncio.run(story())


def test_many_writers_at_once(url: str) -> None:
    """Processes that store the same rows at the same time wait for each other; none ends in a deadlock, and a SUCCESS
    stays."""
    readers = [SqlReader(url, {}) for _ in range(4)]
    readers[0].fetch(["made"])
    failures: list[BaseException] = []

    def work(reader: SqlReader, number: int) -> None:
        try:
            names = [f"id{n}" for n in range(30)]
            random.Random(number).shuffle(names)
            for _ in range(5):
                state = "SUCCESS" if number == 0 else "FAILURE"
                reader.store([
                    Store(name, record.document(name, state, number), state, guard=True) for name in names
                ])  # fmt: skip
        except BaseException as failure:
            failures.append(failure)

    threads = [threading.Thread(target=work, args=(reader, number)) for number, reader in enumerate(readers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    found = readers[0].fetch([f"id{n}" for n in range(30)])
    assert {record.read(document).status for document in found.values()} == {"SUCCESS"}
    for reader in readers:
        reader.close()


def test_several_processes_make_the_tables_at_once(url: str) -> None:
    """Whoever is second finds them there."""
    failures: list[BaseException] = []

    def work() -> None:
        try:
            reader = SqlReader(url, {"extended": True})
            reader.store([success(uuid.uuid4().hex)])
            reader.close()
        except BaseException as failure:
            failures.append(failure)

    threads = [threading.Thread(target=work) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert len(rows(url)) == 5


def test_postgres_tells_who_waits(postgres_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With PostgreSQL a waiter hears of a result at once, and does not have to look."""
    monkeypatch.setattr(blocking, "LOOK_FIRST", 5.0)
    monkeypatch.setattr(blocking, "LOOK_LAST", 5.0)
    reader, writer = SqlReader("db+" + postgres_url, {}), SqlReader("db+" + postgres_url, {})
    writer.fetch(["made"])
    threading.Timer(0.3, lambda: writer.store([success(f"x{n}") for n in range(2000)] + [success("a")])).start()
    before = time.monotonic()
    with reader.watch(["a"], 10.0) as changes:
        assert next(changes)[0] == "a"
    assert time.monotonic() - before < 4.5

    async def story() -> float:
        backend = SqlBackend("db+" + postgres_url, {})
        async with backend.watch(["b"]) as found:
            await asyncio.sleep(0.3)
            before = time.monotonic()
            await asyncio.to_thread(writer.store, [success("b")])
            await asyncio.wait_for(anext(found), 10)
            waited = time.monotonic() - before
        await backend.close()
        return waited

    assert asyncio.run(story()) < 4.5
    reader.close()
    writer.close()


def test_a_connection_that_was_cut_is_made_anew(postgres_url: str) -> None:
    """Who holds a connection that the server has ended gets another one, and who waits still hears."""
    reader = SqlReader("db+" + postgres_url, {})
    reader.store([success("a")])
    mine = "pid <> pg_backend_pid() AND datname = 'postgres'"
    cut = f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE {mine}"
    with reader.watch(["b"], 10.0) as changes:
        run("db+" + postgres_url, cut)
        reader.store([success("b")])
        assert next(changes)[0] == "b"
    assert set(reader.fetch(["a", "b"])) == {"a", "b"}
    reader.close()


def test_short_lived_sessions_hold_nothing(postgres_url: str) -> None:
    """With `database_short_lived_sessions` no connection stays open between two uses."""
    options = {"short_lived_sessions": True, "engine_options": {"pool_size": 3, "pool_pre_ping": True}}
    reader = SqlReader("db+" + postgres_url, options | {"engine_callback": "tests.backends.test_sql_backend.seen"})
    reader.store([success("a")])
    assert SEEN[-1].dialect.name == "postgresql"
    assert SEEN[-1].pool.status() == "NullPool"
    reader.close()


SEEN: list[sa.Engine] = []
"""What `database_engine_callback` was given."""
seen = SEEN.append


@pytest.mark.parametrize(
    ("url", "options", "error", "told"),
    [
        ("db+postgresql://h:notaport/d", {}, ImproperlyConfigured, "result_backend: .*write db"),
        ("db+nonsense", {}, ImproperlyConfigured, "result_backend: .*write db"),
        ("db+oracle://h/d", {}, ImproperlyConfigured, "'oracle'; use db"),
        ("db+sqlite://", {}, ImproperlyConfigured, "can't be shared by processes"),
        ("db+postgresql+nodriver://h/d", {}, ImproperlyConfigured, r"missing .*pip install 'celeriac\[sql,postgres\]'"),
        ("db+sqlite:///x", {"engine_options": {"nonsense": 1}}, ImproperlyConfigured, "database_engine_options: "),
        ("db+sqlite:///x", {"engine_callback": "no.such"}, ImproperlyConfigured, "database_engine_callback: "),
        ("db+sqlite:///x", {"engine_callback": 5}, ImproperlyConfigured, "must be callable"),
        ("db+sqlite:////nowhere/at/all", {}, OperationalError, "unable to open database file"),
        ("db+postgresql://u:secret@127.0.0.1:1/d", {}, OperationalError, "refused"),
        ("db+mysql://u:secret@127.0.0.1:1/d", {}, OperationalError, "refused"),
    ],
)
def test_errors_are_one_line(url: str, options: dict[str, Any], error: type[Exception], told: str) -> None:
    """What is wrong with a URL, an option or a server is told in one line, without the password."""
    with pytest.raises(error, match=told) as raised:
        SqlReader(url, options).fetch(["a"])
    assert "\n" not in str(raised.value)
    assert "secret" not in str(raised.value)


def test_a_missing_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    """It says what to install."""
    monkeypatch.setitem(sys.modules, "pymysql", None)
    with pytest.raises(ImproperlyConfigured, match=r"pip install 'celeriac\[sql,mysql\]'"):
        SqlReader("db+mysql+pymysql://h/d", {})


@pytest.mark.parametrize("kind", ["postgres", "mariadb"])
def test_what_a_server_refuses_is_one_line(kind: str, request: pytest.FixtureRequest) -> None:
    """A missing database, wrong credentials and missing rights: one line each, with what to do where it is known."""
    server = str(request.getfixturevalue(f"{kind}_url"))
    user, name = f"u{uuid.uuid4().hex[:8]}", f"d{uuid.uuid4().hex[:8]}"
    run("db+" + server, *(
        [f"CREATE ROLE {user} LOGIN", f"CREATE SCHEMA {name}"] if kind == "postgres"
        else [f"CREATE USER {user} IDENTIFIED BY 'pw'", f"GRANT SELECT ON results.* TO {user}"]
    ))  # fmt: skip
    host = server.rpartition("@")[2].partition("/")[0]
    scheme = server.partition("://")[0]
    password = ":pw" if kind == "mariadb" else ""
    database = "postgres" if kind == "postgres" else "results"
    cases = [
        (f"db+{server.rpartition('/')[0]}/nowhere", {}, "nowhere"),
        (f"db+{scheme}://nobody:secret@{host}/{database}", {}, "nobody"),
        (f"db+{scheme}://{user}{password}@{host}/{database}", {"table_names": {"task": f"t{name}"}}, "grant the user"),
    ]
    for url, options, told in cases:
        if kind == "postgres":
            options = {**options, "table_schemas": {"task": name}} if options else options
        with pytest.raises(OperationalError, match=told) as raised:
            SqlReader(url, options).fetch(["a"])
        assert "\n" not in str(raised.value)
        assert "secret" not in str(raised.value)


def test_odd_names(url: str) -> None:
    """Names that no row can have are stored nowhere, found nowhere, and stop nobody; the same of groups and chords."""
    reader = SqlReader(url, {})
    odd = ["\ud800", "a\0b", "x" * 2000]
    assert reader.fetch(odd) == {}
    reader.forget(odd)
    for name in odd:
        assert reader.fetch_group(name) is None
        reader.forget_group(name)
        with pytest.raises(BackendStoreError):
            reader.store([success(name)])

    async def story() -> None:
        backend = SqlBackend(url, {})
        for name in odd:
            assert list(await backend.count([part(name, 0, group=name)], 30)) == [False]
            standing = await backend.chord(name)
            assert standing is not None
            assert (standing.group, len(standing.entries)) == (name, 1)
        await backend.close()

    asyncio.run(story())
    reader.close()


def test_a_forked_child_has_connections_of_its_own(url: str) -> None:
    """A child goes on with a reader of its parent, and the parent's connections stay whole."""
    reader = SqlReader(url, {})
    reader.store([success("a")])
    child = os.fork()
    if not child:
        try:
            os._exit(0 if set(reader.fetch(["a"])) == {"a"} else 1)
        finally:
            os._exit(2)
    assert os.waitpid(child, 0)[1] == 0
    assert set(reader.fetch(["a"])) == {"a"}
    reader.close()
