"""A real MariaDB and memcached for the tests of result backends, started as those of `servers`."""

from __future__ import annotations

import atexit
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pymysql

from tests.servers import ServerMissing, free_port

START_LIMIT = 60.0
"""Seconds within which a server has to answer: its files may lie on a slow disk."""


def _binary(name: str, *folders: str) -> str:
    found = shutil.which(name) or next(
        (str(path) for folder in folders for path in sorted(Path("/").glob(f"{folder}/{name}"), reverse=True)), None
    )
    if found is None:
        raise ServerMissing(f"{name} is not installed; `make test` installs it")
    return found


@contextmanager
def _running(
    words: Sequence[str], folder: Path, answers: Callable[[], Any], error: type[Exception], end_signal: signal.Signals
) -> Iterator[None]:
    log = folder / "server.log"
    with log.open("ab") as sink:
        process = subprocess.Popen(
            words, stdin=subprocess.DEVNULL, stdout=sink, stderr=subprocess.STDOUT, start_new_session=True
        )

    def stop() -> None:
        process.send_signal(end_signal)  # the data is thrown away: nothing is to be written down
        process.wait(20)
        shutil.rmtree(folder, ignore_errors=True)

    atexit.register(stop)
    try:
        end = time.monotonic() + START_LIMIT
        while True:
            try:
                answers()
                break
            except error as failed:
                if process.poll() is not None or time.monotonic() > end:
                    raise RuntimeError(f"{words[0]} did not start:\n{log.read_text()[-2000:]}") from failed
                time.sleep(0.02)
        yield
    finally:
        atexit.unregister(stop)
        stop()


@contextmanager
def mariadb_server() -> Iterator[str]:
    """A MariaDB; gives the URL of its database `results`, `mysql://...`."""
    install = _binary("mariadb-install-db", "usr/bin", "opt/homebrew/bin")
    server = _binary("mariadbd", "usr/sbin", "opt/homebrew/bin")
    folder = Path(tempfile.mkdtemp(prefix="celeriac-mariadb-"))
    folder.chmod(0o777)
    data = str(folder / "data")
    user = ["--user=mysql"] if os.geteuid() == 0 else []
    made = [
        install, "--no-defaults", *user, f"--datadir={data}", "--auth-root-authentication-method=normal",
        "--skip-test-db",
    ]  # fmt: skip
    subprocess.run(made, check=True, capture_output=True)
    port = free_port()
    words = [
        server, "--no-defaults", *user, f"--datadir={data}", f"--socket={folder}/s.sock", f"--pid-file={folder}/pid",
        "--bind-address=127.0.0.1", f"--port={port}", "--innodb-flush-log-at-trx-commit=0",
        "--innodb-buffer-pool-size=64M", "--character-set-server=utf8mb4",
    ]  # fmt: skip

    def answers() -> None:
        with pymysql.connect(host="127.0.0.1", port=port, user="root", connect_timeout=5) as connection:
            connection.cursor().execute("CREATE DATABASE IF NOT EXISTS results")

    with _running(words, folder, answers, pymysql.Error, signal.SIGKILL):
        yield f"mysql://root@127.0.0.1:{port}/results"


@contextmanager
def memcached_server() -> Iterator[str]:
    """A memcached; gives `host:port`."""
    folder = Path(tempfile.mkdtemp(prefix="celeriac-memcached-"))
    port = free_port()
    user = ["-u", "nobody"] if os.geteuid() == 0 else []
    words = [_binary("memcached", "usr/bin"), "-l", "127.0.0.1", "-p", str(port), *user, "-m", "64", "-I", "8m"]

    def answers() -> None:
        from pymemcache.client.base import Client

        Client(("127.0.0.1", port), connect_timeout=1.0, timeout=1.0).version()

    with _running(words, folder, answers, OSError, signal.SIGKILL):
        yield f"127.0.0.1:{port}"
