"""TLS to a real server: verified, refused, with a certificate of our own."""

from __future__ import annotations

import asyncio
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from celeriac.drivers.redis.aio import AsyncConnection
from celeriac.drivers.redis.blocking import Connection
from celeriac.drivers.redis.url import parse
from celeriac.errors import OperationalError
from tests.servers import free_port, redis_binary


def _openssl(folder: Path, *words: str) -> None:
    subprocess.run(["openssl", *words], cwd=folder, check=True, capture_output=True)


@pytest.fixture(scope="module")
def secure(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[int, Path]]:
    """Port of a server that wants TLS and a client certificate, and the folder of the certificates."""
    folder = tmp_path_factory.mktemp("tls")
    _openssl(
        folder, "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=celeriac test",
        "-addext", "subjectAltName=DNS:localhost", "-keyout", "key.pem", "-out", "cert.pem",
    )  # fmt: skip
    port = free_port()
    process = subprocess.Popen(
        [
            redis_binary(), "--port", "0", "--tls-port", str(port), "--tls-cert-file", f"{folder}/cert.pem",
            "--tls-key-file", f"{folder}/key.pem", "--tls-ca-cert-file", f"{folder}/cert.pem", "--save", "",
            "--dir", str(folder), "--bind", "127.0.0.1",
        ],
        stdout=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        yield port, folder
    finally:
        process.kill()
        process.wait()


def _url(secure: tuple[int, Path], host: str = "localhost") -> str:
    port, folder = secure
    return (
        f"rediss://{host}:{port}/0?ssl_ca_certs={folder}/cert.pem&ssl_certfile={folder}/cert.pem"
        f"&ssl_keyfile={folder}/key.pem"
    )


def test_a_trusted_server(secure: tuple[int, Path]) -> None:
    """Both sides speak over TLS with a server whose certificate is trusted, in large pieces too."""
    server = parse(_url(secure))
    end = time.monotonic() + 10
    while True:
        try:
            connection = Connection(server, time.monotonic() + 5)
            break
        except OperationalError:
            assert time.monotonic() < end
            time.sleep(0.05)
    value = bytes(range(256)) * 20_000
    connection.call("SET", "tls", value, deadline=time.monotonic() + 5)
    assert connection.idle()
    assert connection.call("GET", "tls", deadline=time.monotonic() + 5) == value
    connection.close()

    async def story() -> None:
        connection = await AsyncConnection.open(server)
        assert await connection.call("GET", "tls") == value
        connection.close()

    asyncio.run(story())


def test_a_name_that_is_not_in_the_certificate(secure: tuple[int, Path]) -> None:
    """A certificate for another name is refused, and accepted when the check is off."""
    server = parse(_url(secure, "127.0.0.1"))
    with pytest.raises(OperationalError, match="certificate is not trusted"):
        Connection(server, time.monotonic() + 5)
    with pytest.raises(OperationalError, match="certificate is not trusted"):
        asyncio.run(AsyncConnection.open(server))
    relaxed = parse(_url(secure, "127.0.0.1") + "&ssl_check_hostname=false")
    Connection(relaxed, time.monotonic() + 5).close()


def test_an_unknown_authority(secure: tuple[int, Path]) -> None:
    """A certificate of an unknown authority is refused."""
    with pytest.raises(OperationalError, match="ssl_ca_certs"):
        Connection(parse(f"rediss://localhost:{secure[0]}"), time.monotonic() + 5)


def test_plain_to_a_tls_port(secure: tuple[int, Path]) -> None:
    """A plain connection to a TLS port ends with an OperationalError in time."""
    before = time.monotonic()
    with pytest.raises(OperationalError):
        Connection(parse(f"redis://localhost:{secure[0]}"), time.monotonic() + 3)
    assert time.monotonic() - before < 6
