"""What can be wrong with a PostgreSQL URL, user or database ends in one clear line that says what to do."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import pytest

from celeriac import Celeriac
from celeriac.brokers.postgres import PostgresBroker, PostgresSender
from celeriac.drivers.postgres.migrate import migrate
from celeriac.drivers.postgres.site import parse
from celeriac.errors import CeleryError, ImproperlyConfigured, OperationalError
from celeriac.model.message import Envelope
from celeriac.testing.rigs import envelope
from tests.processes import Project
from tests.servers import PostgresServer, free_port

MESSAGE = Envelope("a", "a", "q", b"{}")


@pytest.fixture(scope="module")
def strict(postgres_server: PostgresServer) -> Iterator[PostgresServer]:
    """The server, which asks the user `locked` for a password and lets `outsider` in nowhere."""
    rules = postgres_server.data / "pg_hba.conf"
    before = rules.read_text()
    rules.write_text(
        "host all locked 127.0.0.1/32 scram-sha-256\nhost all outsider 127.0.0.1/32 reject\n" + before
    )
    for name in ("locked", "outsider", "guest"):
        postgres_server.sql(f"CREATE ROLE {name} LOGIN PASSWORD 'right'")
    postgres_server.sql("SELECT pg_reload_conf()")
    yield postgres_server
    rules.write_text(before)
    postgres_server.sql("SELECT pg_reload_conf()")


def _said(url: str) -> tuple[type[CeleryError], str]:
    """What both kinds of connection say: the same."""

    async def publish() -> None:
        broker = PostgresBroker(url, {})
        try:
            await broker.publish([MESSAGE])
        finally:
            await broker.close()

    with pytest.raises(CeleryError) as slow:
        asyncio.run(publish())
    with pytest.raises(CeleryError) as quick:
        PostgresSender(url, {}).publish([MESSAGE], 5.0)
    assert (type(slow.value), str(slow.value)) == (type(quick.value), str(quick.value))
    text = str(quick.value)
    assert "\n" not in text
    assert "secret" not in text
    return type(quick.value), text


Case = tuple[Callable[[PostgresServer], str], type[CeleryError], str]
CASES: dict[str, Case] = {
    "password": (
        lambda s: f"postgresql://locked:secret@127.0.0.1:{s.port}/postgres", ImproperlyConfigured, "user or password"),
    "no password": (
        lambda s: f"postgresql://locked@127.0.0.1:{s.port}/postgres", ImproperlyConfigured, "user or password"),
    "user": (lambda s: f"postgresql://nobody:secret@127.0.0.1:{s.port}/postgres", ImproperlyConfigured, "createuser"),
    "database": (lambda s: f"postgresql://postgres@127.0.0.1:{s.port}/nowhere", ImproperlyConfigured, "createdb"),
    "rules": (lambda s: f"postgresql://outsider:secret@127.0.0.1:{s.port}/postgres", ImproperlyConfigured, "pg_hba"),
    "tls": (lambda s: f"{s.url}?sslmode=require", ImproperlyConfigured, "sslmode=disable"),
    "sslmode": (lambda s: f"{s.url}?sslmode=maybe", ImproperlyConfigured, "sslmode"),
    "port": (lambda s: f"postgresql://postgres:secret@127.0.0.1:{free_port()}/x", OperationalError, "can't be reached"),
    "host": (lambda s: "postgresql://postgres:secret@nowhere.invalid/x", OperationalError, "can't be reached"),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_a_connection_that_is_refused(strict: PostgresServer, case: str) -> None:
    """One line, the same on both sides, that names the place without its password and says what to do."""
    make, kind, words = CASES[case]
    url = make(strict)
    found, text = _said(url)
    assert found is kind, text
    assert words in text
    assert text.startswith("postgresql://"), text


def test_no_right_to_make_the_tables(strict: PostgresServer) -> None:
    """A user who may not create tables is sent to `migrate-schema`; once they are there and granted, it works."""
    url = strict.database().replace("postgres@", "guest@")
    kind, text = _said(url)
    assert (kind, "migrate-schema --grant" in text) == (ImproperlyConfigured, True), text
    owner = url.replace("guest@", "postgres@")
    assert "layout 0 -> 1" in migrate(owner, {})
    kind, text = _said(url)
    assert (kind, "migrate-schema --grant" in text) == (ImproperlyConfigured, True), text
    assert "guest may use it" in migrate(owner, {}, "guest")
    PostgresSender(url, {}).publish([MESSAGE], 5.0)

    async def count() -> int:
        broker = PostgresBroker(url, {})
        ready = (await broker.count("q")).ready
        await broker.close()
        return ready

    assert asyncio.run(count()) == 1


def test_many_make_the_tables_at_once(postgres_server: PostgresServer) -> None:
    """Workers that start together on an empty database, and an operator beside them, don't get in each other's way."""
    url = postgres_server.database()
    failures: list[BaseException] = []
    start = threading.Barrier(6)

    def work(number: int) -> None:
        try:
            start.wait()
            if number % 2:
                migrate(url, {})
            else:
                PostgresSender(url, {}).publish([envelope()], 10.0)
        except BaseException as failure:
            failures.append(failure)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    with psycopg.connect(url) as link:
        found = link.execute("SELECT (SELECT count(*) FROM celeriac_ready), version FROM celeriac_layout").fetchall()
    assert found == [(3, 1)]


def test_a_standby_is_no_place_to_write(postgres_server: PostgresServer) -> None:
    """A database that only reads says so."""
    url = postgres_server.database()
    PostgresSender(url, {}).publish([MESSAGE], 5.0)
    name = url.rpartition("/")[2]
    postgres_server.sql(f"ALTER DATABASE {name} SET default_transaction_read_only = on")
    kind, text = _said(url)
    assert (kind, "target_session_attrs" in text) == (OperationalError, True), text


def test_without_the_driver() -> None:
    """Where psycopg is missing the line says what to install."""
    script = (
        "import sys; sys.modules['psycopg'] = None\n"
        "from celeriac import Celeriac\n"
        "app = Celeriac('x', broker='postgresql://localhost/x')\n"
        "try:\n    app.send_task('x')\n"
        "except Exception as error:\n    print(type(error).__name__, error)\n"
    )
    said = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True).stdout
    assert said.strip() == "ImproperlyConfigured PostgreSQL needs psycopg: pip install 'celeriac[postgres]'"


@pytest.mark.parametrize(("url", "words"), [
    ("postgresql://u:se/cret@h:54x2/db", "percent-encoded"),
    ("postgresql://u:secret@h:99999/db", "port must be a number"),
    ("postgresql://u:secret@h/db?nonsense=1", "unknown option 'nonsense'"),
    ("postgresql://u:secret@h/db?schema=a-b", "schema is a plain name"),
    ("postgresql://u:secret@h/db?timeout=soon", "timeout must be a number of seconds"),
])  # fmt: skip
def test_a_url_that_is_wrong(url: str, words: str) -> None:
    """It is refused before anything is connected, and the text does not show the password."""
    with pytest.raises(ImproperlyConfigured, match=words) as caught:
        parse(url)
    assert "secret" not in str(caught.value)


def test_urls() -> None:
    """What a URL and options say, and what is shown of it."""
    url = "postgres://me:p%40ss@one:1,two/db?schema=jobs&sslmode=require&socket_connect_timeout=2"
    site = parse(url, {"timeout": 3})
    assert (site.shown, site.schema, site.timeout, site.connect_timeout) == (
        "postgresql://me@one:1,two/db", "jobs", 3.0, 2.0
    )
    assert site.conninfo.startswith("postgresql://me:p%40ss@one:1,two/db?")
    assert "sslmode=require" in site.conninfo
    assert "schema" not in site.conninfo
    secured = parse("postgresql://h/db", {"ssl": {"ssl_cert_reqs": "CERT_NONE", "ssl_ca_certs": "/ca"}}).conninfo
    assert "sslmode=require" in secured
    assert "sslrootcert=%2Fca" in secured
    assert "sslmode=verify-full" in parse("postgresql://h/db", {"ssl": True}).conninfo


def test_a_worker_says_it_and_ends(strict: PostgresServer, tmp_path: Any) -> None:
    """A worker with a wrong password ends with that one line, and no traceback."""
    url = f"postgresql://locked:secret@127.0.0.1:{strict.port}/postgres"
    project = Project(tmp_path, {"tasks.py": f"from celeriac import Celeriac\napp = Celeriac(broker={url!r})\n"})
    with project.worker("-c", "1", ready=None) as worker:
        assert worker.wait(20.0) != 0
        lines = [line for line in worker.output.splitlines() if "refuses this user or password" in line]
        assert len(lines) == 1, worker.output
        assert "Traceback" not in worker.output
        assert "secret" not in worker.output


def test_the_app_knows_the_extra() -> None:
    """The scheme is known without the driver being there."""
    with Celeriac("x", broker="postgresql://h/db", backend="postgres://h/db") as app:
        assert app.wiring.has_peers is False
