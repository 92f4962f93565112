"""Private layouts carry a version: a worker works on the layout before its own and refuses a newer one in one line."""

from __future__ import annotations

import contextlib
import re
import sqlite3
from pathlib import Path

from tests.faults.kit import Site
from tests.servers import command

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "internals.md"


def _database(site: Site) -> contextlib.closing[sqlite3.Connection]:
    return contextlib.closing(sqlite3.connect(site.broker_url.removeprefix("sqlite:///")))


def _make(site: Site) -> None:
    """Let the layout be written as a worker does."""
    worker = site.worker("-c", "1")
    site.send("work")
    site.wait_finished(10.0)
    assert worker.terminate() == 0


def _layout(site: Site) -> int:
    if site.broker_url.startswith("redis"):
        return int(command(site.broker_url, "GET", "celeriac:1:layout"))
    with _database(site) as database:
        return int(database.execute("SELECT version FROM celeriac_layout").fetchone()[0])


def _set(site: Site, version: int) -> None:
    if site.broker_url.startswith("redis"):
        command(site.broker_url, "SET", "celeriac:1:layout", version)
        return
    with _database(site) as database:
        database.execute("UPDATE celeriac_layout SET version = ?", (version,))
        database.commit()


def test_the_layout_is_written(site: Site) -> None:
    """A fresh broker gets the number of this layout."""
    _make(site)
    assert _layout(site) == (1 if site.broker_url.startswith("redis") else 2)


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
    """Layout 0 is the one before: in Redis its number, in SQLite a file that has none of our tables but may have
    others. The worker carries it over and works."""
    _make(site)
    if site.broker_url.startswith("redis"):
        _set(site, 0)
    else:
        with _database(site) as database:
            names = [row[0] for row in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
            for name in names:
                if name.startswith("celeriac_"):
                    database.execute(f"DROP TABLE {name}")
            database.execute("CREATE TABLE mine (note TEXT)")
            database.commit()
    site.worker("-c", "1")
    later = site.send("work", countdown=1)
    now = site.send("work")
    site.wait_finished(10.0, [later, now])
    assert _layout(site) == (2 if site.broker_url.startswith("sqlite") else 0), "workers of layout 0 may still run"


def test_the_layout_is_documented(site: Site) -> None:
    """Every private key and table that a worker makes stands in docs/internals.md."""
    place = "Redis" if site.broker_url.startswith("redis") else "SQLite"
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
        with _database(site) as database:
            names = {row[0] for row in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
        missing = {name for name in names if name.startswith("celeriac_") and name not in match[0]}
    assert not missing
