"""What every fault test gets: a site on each broker, its seed, and a place for its figures.

The full forms (marked `full`) run only when asked for: `pytest -m full`, which `make prove` does. CELERIAC_SEED repeats
a run; CELERIAC_PROOFS names a file that receives the figures of full runs as a table.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.faults.kit import Site, environment_seed
from tests.rabbit import RabbitServer
from tests.servers import PostgresServer, RedisServer, chosen_postgres, redis_server

SHORT_SEED = 20261124
_figures: list[tuple[str, dict[str, Any]]] = []
_proofs: set[str] = set()
"""Names of the tests whose figures are kept: the long forms."""

MakeSite = Callable[..., Site]
Server = RedisServer | PostgresServer
POSTGRES_IN_SHORT = (
    "test_nothing_lost", "test_long_tasks", "test_schedule", "test_workflows", "test_layout", "test_crash_points",
    "test_transactions",
)  # fmt: skip
"""On PostgreSQL the other files, which have little to do with the broker, belong to the long form; and of tests that
differ by these words only, one is in the short form."""
ALIKE_ON_POSTGRES = frozenset({"threads", "asyncio", "solo", "stamped", "unknown", "limit", "revoked", "two servers"})
RABBITMQ_IN_SHORT = frozenset({"test_a_worker_dies_at_each_point"})
"""On RabbitMQ, whose own faults are in test_rabbitmq, all others belong to the long form."""
NOT_ON_RABBITMQ = frozenset({
    "test_a_message_that_only_waits_is_not_counted", "test_a_stopped_worker_cannot_overwrite_a_result",
    "test_one_poisoned_completion_leaves_the_others_alone",
})  # fmt: skip
"""They look at what is in flight, wait for a lease or break a layout; there is none of these."""


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave the full forms out unless `-m` speaks of them."""
    foreign = [item for item in items if _on_rabbitmq(item) and _name(item) in NOT_ON_RABBITMQ]
    if foreign:
        config.hook.pytest_deselected(items=foreign)
        items[:] = [item for item in items if item not in foreign]
    for item in items:
        words = set(item.name.partition("[")[2].rstrip("]").split("-"))
        if _on_rabbitmq(item) and _name(item) not in RABBITMQ_IN_SHORT:
            item.add_marker(pytest.mark.full)
        if "postgres" in words and (item.path.stem not in POSTGRES_IN_SHORT or words & ALIKE_ON_POSTGRES):
            item.add_marker(pytest.mark.full)
    if "full" in str(config.option.markexpr):
        return
    full = [item for item in items if item.get_closest_marker("full")]
    if full:
        config.hook.pytest_deselected(items=full)
        items[:] = [item for item in items if not item.get_closest_marker("full")]


def _name(item: pytest.Item) -> str:
    return item.name.partition("[")[0]


def _on_rabbitmq(item: pytest.Item) -> bool:
    return "rabbitmq" in item.name.partition("[")[2].rstrip("]").split("-")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Show the figures, and keep those of full runs that have passed."""
    measured = [(name, figures) for name, figures in _figures if len(figures) > 1]
    if not measured:
        return
    terminalreporter.section("figures of the fault tests")
    for name, figures in measured:
        terminalreporter.write_line(f"{name}: " + ", ".join(f"{key} {value}" for key, value in figures.items()))
    passed = {report.nodeid.rpartition("::")[2] for report in terminalreporter.getreports("passed")}
    if path := os.environ.get("CELERIAC_PROOFS"):
        keep(Path(path), [(name, figures) for name, figures in measured if name in passed & _proofs])


def keep(page: Path, measured: list[tuple[str, dict[str, Any]]]) -> None:
    """Put figures into the table of a page; rows of proofs that were not run now stay."""
    before, begin, rest = page.read_text().partition("|---|---|\n")
    old, end, after = rest.partition("<!-- end -->")
    rows = {line.split(" | ")[0]: line for line in old.splitlines()}
    where = " on PostgreSQL 18" if chosen_postgres() else ""
    for name, figures in measured:
        proof = f"| `{name}`{where}"
        rows[proof] = f"{proof} | " + ", ".join(f"{key} {value}" for key, value in figures.items()) + " |"
    page.write_text(before + begin + "\n".join([*rows.values(), ""]) + end + after)


@pytest.fixture
def seed(request: pytest.FixtureRequest) -> int:
    """Fixed in the short forms, random in the full ones; always printed."""
    full = request.node.get_closest_marker("full") is not None
    value = environment_seed(0 if full else SHORT_SEED)
    print(f"seed {value}: repeat with CELERIAC_SEED={value}")
    return value


@pytest.fixture
def figures(request: pytest.FixtureRequest, seed: int) -> dict[str, Any]:
    """A dictionary for what was measured; shown at the end of the run."""
    found: dict[str, Any] = {"seed": seed}
    _figures.append((request.node.name, found))
    if request.node.get_closest_marker("full") is not None and not request.node.name.endswith("short]"):
        _proofs.add(request.node.name)
    return found


@pytest.fixture
def redis() -> Iterator[RedisServer]:
    """A Redis of the test's own, append-only."""
    with redis_server(appendonly=True) as server:
        yield server


@pytest.fixture
def postgres() -> Iterator[PostgresServer]:
    """A PostgreSQL of the test's own."""
    with PostgresServer() as server:
        yield server


@pytest.fixture(params=["redis", "postgres"])
def server(request: pytest.FixtureRequest) -> Server:
    """A server of the test's own, each kind in turn."""
    found: Server = request.getfixturevalue(request.param)
    return found


@pytest.fixture(params=["sqlite", "redis", "postgres", "rabbitmq"])
def broker(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of an empty broker: each kind in turn."""
    if request.param == "postgres":
        server: PostgresServer = request.getfixturevalue("postgres_server")
        return server.database()
    if request.param == "rabbitmq":
        node: RabbitServer = request.getfixturevalue("rabbit")
        return node.vhost()
    if request.param == "redis":
        url: str = request.getfixturevalue("redis").url
        return url
    return f"sqlite:///{tmp_path}/celeriac.db"


_reports = pytest.StashKey[pytest.TestReport]()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Let fixtures know whether the test failed."""
    report = yield
    if report.when == "call":
        item.stash[_reports] = report
    return report


@pytest.fixture
def make_site(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[MakeSite]:
    """Make sites; all their workers are killed in the end, and what they said is shown when the test has failed."""
    sites: list[Site] = []
    with ExitStack() as stack:

        def make(broker: str, *args: Any, **options: Any) -> Site:
            if broker.startswith("amqp") and not (args and args[0]) and not options.get("backend"):
                args, options["backend"] = (), request.getfixturevalue("redis").url  # RabbitMQ keeps no results
            site = stack.enter_context(Site(tmp_path / f"project{len(sites) or ''}", broker, *args, **options))
            sites.append(site)
            return site

        yield make
        report = request.node.stash.get(_reports, None)
        if report is not None and report.failed:
            for site in sites:
                site.show()


@pytest.fixture
def site(broker: str, make_site: MakeSite) -> Site:
    """A site on each broker, with a lease of 2 s."""
    return make_site(broker)
