"""Fixtures that every room may use: real servers, shared by a session."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, settings

from tests.rabbit import RabbitServer, rabbit_server
from tests.servers import (
    PostgresServer,
    ServerMissing,
    command,
    empty_postgres,
    newest_postgres_binaries,
    redis_server,
    valkey_server,
)
from tests.sql_servers import mariadb_server, memcached_server

# A busy machine must not fail a property: neither one example has a limit, nor the making of them. What a fixture gives
# may serve all examples.
settings.register_profile(
    "patient", deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture]
)
settings.load_profile("patient")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave the full forms of fault tests out unless `-m` speaks of them."""
    if "full" in str(config.option.markexpr):
        return
    full = [item for item in items if item.get_closest_marker("full")]
    if full:
        config.hook.pytest_deselected(items=full)
        items[:] = [item for item in items if not item.get_closest_marker("full")]


@pytest.fixture(scope="session")
def redis_url() -> Iterator[str]:
    """The URL of a real Redis, shared by the session: use names of your own, or `clean_redis_url`.

    CELERIAC_TEST_REDIS_URL names a server that runs already, instead of starting one.
    """
    if given := os.environ.get("CELERIAC_TEST_REDIS_URL"):
        yield given
        return
    try:
        with redis_server() as server:
            yield server.url
    except ServerMissing as missing:
        pytest.fail(str(missing))


@pytest.fixture(scope="session")
def valkey_url() -> Iterator[str]:
    """The URL of a real Valkey, shared by the session. CELERIAC_TEST_VALKEY_URL names one that runs already."""
    if given := os.environ.get("CELERIAC_TEST_VALKEY_URL"):
        yield given
        return
    try:
        with valkey_server() as server:
            yield server.url
    except ServerMissing as missing:
        pytest.fail(str(missing))


@pytest.fixture(scope="session")
def rabbit() -> Iterator[RabbitServer]:
    """A real RabbitMQ, shared by the session: take a virtual host of your own (`rabbit.vhost()`)."""
    try:
        with rabbit_server() as server:
            yield server
    except ServerMissing as missing:
        pytest.fail(str(missing))


@pytest.fixture
def clean_redis_url(redis_url: str) -> str:
    """`redis_url`, with its database emptied before the test (all databases when the tests started the server)."""
    command(redis_url, "FLUSHDB" if os.environ.get("CELERIAC_TEST_REDIS_URL") else "FLUSHALL")
    return redis_url


@pytest.fixture
def clean_valkey_url(valkey_url: str) -> str:
    """`valkey_url`, emptied before the test as `clean_redis_url` is."""
    command(valkey_url, "FLUSHDB" if os.environ.get("CELERIAC_TEST_VALKEY_URL") else "FLUSHALL")
    return valkey_url


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[PostgresServer]:
    """A real PostgreSQL, shared by the session: Debian's."""
    try:
        with PostgresServer() as server:
            yield server
    except ServerMissing as missing:
        pytest.fail(str(missing))


@pytest.fixture(scope="session")
def newest_postgres_server() -> Iterator[PostgresServer]:
    """A real PostgreSQL 18, shared by the session."""
    try:
        with PostgresServer(binaries=newest_postgres_binaries()) as server:
            yield server
    except ServerMissing as missing:
        pytest.fail(str(missing))


@pytest.fixture
def postgres_url(postgres_server: PostgresServer) -> str:
    """The URL of a real PostgreSQL, with celeriac's tables emptied before the test."""
    empty_postgres(postgres_server.url)
    return postgres_server.url


@pytest.fixture(scope="session")
def mariadb_url() -> Iterator[str]:
    """The URL of a real MariaDB, `mysql://...`, shared by the session."""
    try:
        with mariadb_server() as url:
            yield url
    except ServerMissing as missing:
        pytest.fail(str(missing))


@pytest.fixture(scope="session")
def memcached_address() -> Iterator[str]:
    """`host:port` of a real memcached, shared by the session: use key prefixes of your own."""
    try:
        with memcached_server() as address:
            yield address
    except ServerMissing as missing:
        pytest.fail(str(missing))
