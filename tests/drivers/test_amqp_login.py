"""Getting in, or being told in one line why not; failover; TLS with a certificate of one's own."""

from __future__ import annotations

import asyncio
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from celeriac.brokers.rabbitmq import RabbitmqBroker, RabbitmqSender
from celeriac.errors import CeleryError, ImproperlyConfigured, OperationalError
from celeriac.testing.rigs import envelope
from tests.rabbit import RabbitServer, rabbit_server
from tests.servers import free_port


def _both(url: str) -> list[CeleryError]:
    """What the blocking and the asyncio side say."""
    found: list[CeleryError] = []
    sender = RabbitmqSender(url, {})
    try:
        sender.publish([envelope("a")], 5.0)
    except CeleryError as error:
        found.append(error)
    sender.close()
    try:
        asyncio.run(_publish(url))
    except CeleryError as error:
        found.append(error)
    return found


async def _publish(url: str) -> None:
    broker = RabbitmqBroker(url, {})
    try:
        await broker.publish([envelope("a")])
    finally:
        await broker.close()


def test_what_is_wrong_is_said(rabbit: RabbitServer, redis_url: str) -> None:
    """Wrong password, missing vhost, no rights, the wrong port: one line each, with what to do."""
    rabbit.api("PUT", "/api/vhosts/closed", {})
    rabbit.api("PUT", "/api/users/poor", {"password": "poor", "tags": ""})
    vhost = rabbit.vhost()
    name = vhost.rpartition("/")[2]
    rabbit.api("PUT", f"/api/permissions/{name}/poor", {"configure": "^$", "write": "^$", "read": "^$"})
    port = rabbit.port
    redis_port = redis_url.rpartition(":")[2].partition("/")[0]
    for url, kind, words in (
        (rabbit.url_of("/", "guest:wrong"), ImproperlyConfigured, "user name or password is wrong"),
        (rabbit.url_of("missing"), ImproperlyConfigured, "no virtual host 'missing'"),
        (rabbit.url_of("closed", "poor:poor"), ImproperlyConfigured, "no rights in the virtual host 'closed'"),
        (rabbit.url_of(name, "poor:poor"), ImproperlyConfigured, "this user may not do that"),
        (f"amqps://guest:guest@127.0.0.1:{port}//", OperationalError, "does this port speak TLS"),
        (f"amqp://guest:guest@127.0.0.1:{free_port()}//", OperationalError, "is the server running"),
        (
            f"amqp://guest:guest@127.0.0.1:{redis_port}//",
            OperationalError,
            "RabbitMQ|closed the connection|no connection",
        ),
    ):
        errors = _both(url)
        assert len(errors) == 2, url
        for error in errors:
            assert isinstance(error, kind), (url, error)
            assert any(part in str(error) for part in words.split("|")), str(error)
            assert "\n" not in str(error)
            assert "wrong@" not in str(error)


def test_another_node_is_tried(rabbit: RabbitServer) -> None:
    """The first of two nodes is down: both sides use the second."""
    assert _both(f"amqp://127.0.0.1:{free_port()};{rabbit.vhost()}") == []


def test_queues_of_other_arguments(rabbit: RabbitServer) -> None:
    """A queue that is there in another form is an error that says so."""
    url = rabbit.vhost()
    rabbit.api("PUT", f"/api/queues/{url.rpartition('/')[2]}/q", {"durable": True, "arguments": {"x-max-priority": 3}})
    for error in _both(url):
        assert "exists with other arguments" in str(error)


def test_no_queue_takes_it(rabbit: RabbitServer) -> None:
    """A message that its exchange gives to no queue is an error, not silence."""
    import msgspec

    lost = msgspec.structs.replace(envelope("a"), exchange="amq.topic", routing_key="nobody")
    sender = RabbitmqSender(rabbit.vhost(), {})
    with pytest.raises(OperationalError, match=r"no queue is bound to the exchange 'amq\.topic'"):
        sender.publish([lost], 5.0)
    sender.publish([envelope("b")], 5.0)
    sender.close()


def test_a_deleted_queue_is_declared_again(rabbit: RabbitServer) -> None:
    """Somebody deletes a queue between two publishes: nothing is lost."""
    url = rabbit.vhost()
    sender = RabbitmqSender(url, {})
    sender.publish([envelope("a")], 5.0)
    rabbit.api("DELETE", f"/api/queues/{url.rpartition('/')[2]}/q")
    sender.publish([envelope("b")], 5.0)
    sender.close()

    async def count() -> int:
        broker = RabbitmqBroker(url, {})
        try:
            return (await broker.count("q")).ready
        finally:
            await broker.close()

    assert asyncio.run(count()) == 1


def test_a_frozen_node_costs_the_deadline(rabbit: RabbitServer) -> None:
    """A node that accepts and does not answer: an error within the deadline, and work afterwards."""
    sender = RabbitmqSender(rabbit.vhost(), {})
    sender.publish([envelope("a")], 5.0)
    rabbit.freeze()
    try:
        began = time.monotonic()
        with pytest.raises(OperationalError, match="no answer in time"):
            sender.publish([envelope("b")], 1.0)
        assert time.monotonic() - began < 1.5
    finally:
        rabbit.thaw()
    sender.publish([envelope("c")], 5.0)
    sender.close()


def _openssl(folder: Path, *words: str) -> None:
    subprocess.run(["openssl", *words], cwd=folder, check=True, capture_output=True)


@pytest.fixture(scope="module")
def secure(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[int, Path]]:
    """Port of a node that wants TLS and a client certificate, and the folder of the certificates."""
    folder = tmp_path_factory.mktemp("tls")
    folder.parent.chmod(0o755)
    _openssl(
        folder, "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=authority",
        "-keyout", "ca.key", "-out", "ca.pem",
    )  # fmt: skip
    (folder / "names").write_text("subjectAltName=DNS:localhost")
    _openssl(
        folder, "req", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=localhost", "-keyout", "key.pem", "-out", "asked"
    )
    _openssl(
        folder, "x509", "-req", "-in", "asked", "-CA", "ca.pem", "-CAkey", "ca.key", "-set_serial", "1", "-days", "2",
        "-extfile", "names", "-out", "cert.pem",
    )  # fmt: skip
    port = free_port()
    settings = "\n".join([
        f"listeners.ssl.1 = 127.0.0.1:{port}", f"ssl_options.cacertfile = {folder}/ca.pem",
        f"ssl_options.certfile = {folder}/cert.pem", f"ssl_options.keyfile = {folder}/key.pem",
        "ssl_options.verify = verify_peer", "ssl_options.fail_if_no_peer_cert = true",
    ])  # fmt: skip
    with rabbit_server(root="", settings=settings):
        yield port, folder


def test_tls_with_a_certificate(secure: tuple[int, Path]) -> None:
    """Both sides come in with a client certificate; without one, with an unknown authority or under another name they
    are told why not."""
    port, folder = secure
    pem = f"certfile={folder}/cert.pem&keyfile={folder}/key.pem"
    known = f"cacertfile={folder}/ca.pem"
    assert _both(f"amqps://guest:guest@localhost:{port}//?{known}&{pem}") == []
    for url, words in (
        (f"amqps://guest:guest@localhost:{port}//?{pem}", "not trusted"),
        (f"amqps://guest:guest@127.0.0.1:{port}//?{known}&{pem}", "not trusted"),
        (f"amqps://guest:guest@localhost:{port}//?{known}", "TLS|closed the connection|reset"),
        (f"amqp://guest:guest@localhost:{port}//", "amqps://|closed the connection|reset"),
    ):
        errors = _both(url)
        assert len(errors) == 2, url
        for error in errors:
            assert any(word in str(error) for word in words.split("|")), f"{url}: {error}"
