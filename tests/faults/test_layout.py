"""Private layouts carry a version: a worker works on the layout before its own and refuses a newer one in one line."""

from __future__ import annotations

import contextlib
import re
import sqlite3
from pathlib import Path
from typing import Any, cast

import psycopg

from tests.faults.kit import Site
from tests.servers import command

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "internals.md"


LAYOUTS = {"redis": 1, "sqlite": 3, "postgresql": 1}


def _kind(site: Site) -> str:
    return site.broker_url.partition(":")[0]


def _sql(site: Site, statement: str) -> list[Any]:
    if _kind(site) == "postgresql":
        with psycopg.connect(site.broker_url, autocommit=True) as link:
            cursor = link.execute(cast(Any, statement))
            return cursor.fetchall() if cursor.description else []
    with contextlib.closing(sqlite3.connect(site.broker_url.removeprefix("sqlite:///"))) as database, database:
        return database.execute(statement).fetchall()


def _tables(site: Site) -> list[str]:
    if _kind(site) == "postgresql":
        rows = _sql(site, "SELECT tablename FROM pg_tables WHERE schemaname = 'public'")
    else:
        rows = _sql(site, "SELECT name FROM sqlite_master WHERE type = 'table'")
    return [name for (name,) in rows if name.startswith("celeriac_")]


def _make(site: Site) -> None:
    """Let the layout be written as a worker does."""
    worker = site.worker("-c", "1")
    site.send("work")
    site.wait_finished(10.0)
    assert worker.terminate() == 0


def _layout(site: Site) -> int:
    if site.broker_url.startswith("redis"):
        return int(command(site.broker_url, "GET", "celeriac:1:layout"))
    return int(_sql(site, "SELECT version FROM celeriac_layout")[0][0])


def _set(site: Site, version: int) -> None:
    if site.broker_url.startswith("redis"):
        command(site.broker_url, "SET", "celeriac:1:layout", version)
        return
    _sql(site, f"UPDATE celeriac_layout SET version = {version}")


def test_the_layout_is_written(site: Site) -> None:
    """A fresh broker gets the number of this layout."""
    _make(site)
    assert _layout(site) == LAYOUTS[_kind(site)]


def test_a_worker_refuses_a_newer_layout(site: Site) -> None:
    """Layout 99: one clear line that says what to do, no traceback, an exit code that says so, and nothing touched."""
    _make(site)
    _set(site, 99)
    worker = site.worker("-c", "1", ready=None)
    assert worker.wait(20.0) in (1, 2)
    said = [line for line in worker.output.splitlines() if "layout" in line.lower()]
    assert len(said) == 1, worker.output
    assert "99" in said[0]
    assert "Traceback" not in worker.output
    assert _layout(site) == 99


def test_a_producer_refuses_a_newer_layout(site: Site) -> None:
    """What would be written wrong is not written: sending for later, which uses private data, raises."""
    _make(site)
    _set(site, 99)
    script = (
        "import sys\nfrom tasks import app, work\nfrom celeriac.errors import LayoutTooNew\n"
        "try:\n    app.AsyncResult('x').state; work.delay()\n"
        "except LayoutTooNew as error:\n    print(error); sys.exit(3)\n"
    )
    with site.project.python("-c", script) as producer:
        code = producer.wait(20.0)
        if site.broker_url.startswith("redis"):
            assert code == 0, "on Redis plain sending uses kombu's lists only"
        else:
            assert code == 3, producer.output
            assert "99" in producer.output


def test_a_worker_takes_over_the_layout_before(site: Site) -> None:
    """Layout 0 is the one before: in Redis its number, in SQL a database that has none of our tables but may have
    others. The worker carries it over and works."""
    _make(site)
    if site.broker_url.startswith("redis"):
        _set(site, 0)
    else:
        if _kind(site) == "postgresql":
            _sql(site, "DROP SCHEMA public CASCADE")
            _sql(site, "CREATE SCHEMA public")
        else:
            for name in _tables(site):
                _sql(site, f"DROP TABLE {name}")
        _sql(site, "CREATE TABLE mine (note TEXT)")
    site.worker("-c", "1")
    later = site.send("work", countdown=1)
    now = site.send("work")
    site.wait_finished(10.0, [later, now])
    before = 0 if _kind(site) == "redis" else LAYOUTS[_kind(site)]
    assert _layout(site) == before, "workers of layout 0 may still run"


def test_the_layout_is_documented(site: Site) -> None:
    """Every private key and table that a worker makes stands in docs/internals.md."""
    place = {"redis": "Redis", "sqlite": "SQLite", "postgresql": "PostgreSQL"}[_kind(site)]
    text = DOCUMENT.read_text()
    match = re.search(rf"## Layout [0-9] in {place}.*?(?=\n## )", text, re.DOTALL)
    assert match, f"no section about {place}"
    site.worker("-c", "1")
    site.send("work", countdown=100)
    site.send("work", 0.5)
    site.wait_finished(10.0, site.sent[1:])
    if place == "Redis":
        names = {key.decode() for key in command(site.broker_url, "KEYS", "celeriac:1:*")}
        whats = {re.sub(r":[^:]*@.*", "", name.removeprefix("celeriac:1:").removeprefix("{celery}:")) for name in names}
        missing = {what for what in whats if what.split(":")[0] not in match[0]}
    else:
        missing = {name for name in _tables(site) if name not in match[0]}
    assert not missing
