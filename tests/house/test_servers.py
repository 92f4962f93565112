"""The servers that the tests start behave as the tests rely on."""

from __future__ import annotations

import psycopg
import pytest

from tests.servers import PostgresServer, command, redis_server, valkey_server


def test_restart_keeps_port_and_answered_writes() -> None:
    """A server with an append-only file has every answered write again after a crash."""
    with redis_server(appendonly=True) as server:
        server.command("SET", "kept", "1")
        url, pid = server.url, server.pid
        server.kill9()
        with pytest.raises(OSError, match=r"refused"):
            command(url, "PING")
        server.restart()
        assert (server.url, server.command("GET", "kept")) == (url, b"1")
        assert server.pid != pid


def test_freeze_and_thaw() -> None:
    """A frozen server keeps its connections and answers nothing until it is thawed."""
    with redis_server() as server:
        server.stop_process()
        with pytest.raises(TimeoutError):
            command(server.url, "PING", timeout=0.2)
        server.cont()
        assert server.command("PING") == b"PONG"


def test_valkey_is_valkey() -> None:
    """The second server is a real Valkey, not Redis again."""
    with valkey_server() as server:
        assert b"valkey_version" in server.command("INFO", "server")


def test_postgres_restarts_and_freezes() -> None:
    """It keeps its port and what was committed over a crash; frozen it answers nothing until it is thawed."""
    with PostgresServer() as server:
        server.sql("CREATE TABLE kept AS SELECT 1 AS n")
        url, pid = server.url, server.pid
        server.restart()
        assert (server.url, server.sql("SELECT n FROM kept")) == (url, [(1,)])
        assert server.pid != pid
        server.stop_process()
        with pytest.raises(psycopg.OperationalError, match="timeout"):
            psycopg.connect(server.url, connect_timeout=2)
        server.cont()
        assert server.sql("SELECT 1") == [(1,)]


def test_the_newest_postgres(newest_postgres_server: PostgresServer) -> None:
    """The second PostgreSQL is version 18."""
    [(version,)] = newest_postgres_server.sql("SHOW server_version_num")
    assert int(version) // 10000 == 18


def test_session_servers_answer(clean_redis_url: str, clean_valkey_url: str) -> None:
    """The shared servers answer and are empty."""
    assert command(clean_redis_url, "DBSIZE") == 0
    assert command(clean_valkey_url, "DBSIZE") == 0
