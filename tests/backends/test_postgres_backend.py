"""PostgreSQL keeps the contract of result backends: Debian's version in every run, the newest in the long form."""

from __future__ import annotations

import pytest

from celeriac.backends.postgres import PostgresBackend, PostgresReader
from celeriac.testing.contract_backend import BackendContract, ReaderContract
from celeriac.testing.rigs import BackendRig
from tests.servers import empty_postgres


class PostgresStoreRig(BackendRig):
    """One database, emptied at the start."""

    def __init__(self, url: str) -> None:
        self.url = url
        empty_postgres(url)

    def backend(self) -> PostgresBackend:
        return PostgresBackend(self.url, {})

    def reader(self) -> PostgresReader:
        return PostgresReader(self.url, {})


class _OnServers:
    @pytest.fixture(params=["debian", pytest.param("newest", marks=pytest.mark.full)])
    def rig(self, request: pytest.FixtureRequest) -> PostgresStoreRig:
        name = "newest_postgres_server" if request.param == "newest" else "postgres_server"
        return PostgresStoreRig(request.getfixturevalue(name).url)


class TestPostgresBackend(_OnServers, BackendContract):
    """The asynchronous side."""


class TestPostgresReader(_OnServers, ReaderContract):
    """The synchronous side."""
