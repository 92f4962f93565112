"""A real RabbitMQ for the tests: a node of its own on free ports, with the management API to look into it.

CELERIAC_RABBITMQ_ROOT names a folder with another Debian (made by debootstrap) whose RabbitMQ is run instead.
"""

from __future__ import annotations

import atexit
import base64
import contextlib
import http.client
import json
import os
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import quote
from uuid import uuid4

import psutil

from tests.servers import ServerMissing, free_port

START_LIMIT = 60.0
SCRIPT = "/usr/lib/rabbitmq/bin/rabbitmq-server"


class RabbitServer:
    """One RabbitMQ node. Entering starts it; leaving kills it and removes its data."""

    def __init__(self, *, root: str | None = None, settings: str = "", beside: RabbitServer | None = None) -> None:
        """`root`: a folder with another system. `settings`: more lines of rabbitmq.conf. `beside`: a node whose cluster
        this one joins; it has to be left last."""
        self.root = os.environ.get("CELERIAC_RABBITMQ_ROOT", "") if root is None else root
        self._settings = settings
        self._beside = beside
        self._inside = Path()
        """The data folder as the node sees it."""
        self.folder = Path()
        self.port = self.api_port = self._dist = self._epmd = 0
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        if not Path(self.root + SCRIPT).exists():
            raise ServerMissing(f"RabbitMQ is not installed ({self.root + SCRIPT}); `make test` installs it")
        temporary = Path(self.root + "/tmp") if self.root else None
        self.folder = Path(tempfile.mkdtemp(prefix="celeriac-rabbit-", dir=temporary))
        self._inside = Path("/tmp") / self.folder.name if self.root else self.folder
        self.port, self.api_port, self._dist, self._epmd = (free_port() for _ in range(4))
        settings = self._settings
        if self._beside is not None:
            self._epmd = self._beside._epmd
            shutil.copy2(self._beside.folder / ".erlang.cookie", self.folder)
            settings += "\ncluster_formation.peer_discovery_backend = classic_config"
            for number, port in enumerate((self._beside.port, self.port)):
                settings += f"\ncluster_formation.classic_config.nodes.{number + 1} = test{port}@localhost"
        if self.root:
            shutil.copy("/etc/hosts", self.root + "/etc/hosts")
        (self.folder / "enabled_plugins").write_text("[rabbitmq_management].\n")
        (self.folder / "rabbitmq.conf").write_text(
            f"listeners.tcp.1 = 127.0.0.1:{self.port}\nloopback_users.guest = true\n"
            f"management.tcp.ip = 127.0.0.1\nmanagement.tcp.port = {self.api_port}\n"
            "vm_memory_calculation_strategy = allocated\n"  # a chroot may have no /proc
            f"vm_memory_high_watermark.absolute = 1GB\ndisk_free_limit.absolute = 50MB\n{settings}\n"
        )
        atexit.register(self.close)
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        self.close()

    @property
    def url(self) -> str:
        """The URL of the virtual host `/`. Stays the same over a restart."""
        return self.url_of("/")

    def url_of(self, vhost: str, user: str = "guest:guest") -> str:
        """The URL of a virtual host."""
        return f"amqp://{user}@127.0.0.1:{self.port}/{quote(vhost, safe='')}"

    def start(self) -> None:
        """Start the node and wait until one can log in."""
        data = self._inside
        environment = {
            "PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "HOME": str(data), "LANG": "C.UTF-8",
            "RABBITMQ_NODENAME": f"test{self.port}@localhost", "RABBITMQ_NODE_IP_ADDRESS": "127.0.0.1",
            "RABBITMQ_NODE_PORT": str(self.port), "RABBITMQ_DIST_PORT": str(self._dist),
            "ERL_EPMD_PORT": str(self._epmd), "ERL_EPMD_ADDRESS": "127.0.0.1",
            "RABBITMQ_MNESIA_BASE": f"{data}/mnesia", "RABBITMQ_LOG_BASE": f"{data}/log",
            "RABBITMQ_CONFIG_FILE": f"{data}/rabbitmq.conf", "RABBITMQ_ENABLED_PLUGINS_FILE": f"{data}/enabled_plugins",
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "-kernel inet_dist_use_interface {127,0,0,1} +S 2:2",
        }  # fmt: skip
        command = ["chroot", self.root, SCRIPT] if self.root else [SCRIPT]
        with (self.folder / "output.log").open("ab") as sink:
            self._process = subprocess.Popen(
                command, env=environment, stdin=subprocess.DEVNULL, stdout=sink, stderr=subprocess.STDOUT,
                start_new_session=True,
            )  # fmt: skip
        end = time.monotonic() + START_LIMIT
        while time.monotonic() < end and self._process.poll() is None:
            try:
                if self.api("GET", "/api/aliveness-test/%2F")["status"] == "ok":
                    return
            except (OSError, http.client.HTTPException, KeyError, TypeError, ValueError):
                time.sleep(0.1)
        raise RuntimeError(f"RabbitMQ did not start:\n{(self.folder / 'output.log').read_text()[-3000:]}")

    def api(self, method: str, path: str, body: Any = None, timeout: float = 10.0) -> Any:
        """Ask the management API; the answer as JSON, None where there is none."""
        link = http.client.HTTPConnection("127.0.0.1", self.api_port, timeout=timeout)
        try:
            login = base64.b64encode(b"guest:guest").decode()
            link.request(
                method, path, None if body is None else json.dumps(body),
                {"Authorization": f"Basic {login}", "Content-Type": "application/json"},
            )  # fmt: skip
            answer = link.getresponse()
            text = answer.read()
            if answer.status >= 400:
                raise ValueError(f"{method} {path}: {answer.status} {text[:300]!r}")
            return json.loads(text) if text else None
        finally:
            link.close()

    def vhost(self) -> str:
        """The URL of a new, empty virtual host."""
        name = f"v{uuid4().hex[:10]}"
        self.api("PUT", f"/api/vhosts/{name}", {})
        self.api("PUT", f"/api/permissions/{name}/guest", {"configure": ".*", "write": ".*", "read": ".*"})
        return self.url_of(name)

    def queues(self, vhost: str) -> dict[str, Any]:
        """Name -> what the API says of each queue."""
        found = self.api("GET", f"/api/queues/{quote(vhost, safe='')}?disable_stats=true&enable_queue_totals=true")
        return {queue["name"]: queue for queue in found}

    def ctl(self, *words: str) -> str:
        """Run rabbitmqctl against this node."""
        command = ["chroot", self.root] if self.root else []
        environment = {
            "PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "HOME": str(self._inside), "LANG": "C.UTF-8",
            "ERL_EPMD_PORT": str(self._epmd),
        }  # fmt: skip
        done = subprocess.run(
            [*command, "/usr/lib/rabbitmq/bin/rabbitmqctl", "-n", f"test{self.port}@localhost", *words],
            env=environment, capture_output=True, text=True, timeout=60, check=True,
        )  # fmt: skip
        return done.stdout

    @property
    def beam(self) -> psutil.Process:
        """The node's process."""
        assert self._process is not None
        for process in psutil.Process(self._process.pid).children(recursive=True):
            if process.name().startswith("beam"):
                return process
        return psutil.Process(self._process.pid)

    def kill9(self) -> None:
        """Kill the node as a crash does. Returns when it is gone."""
        process, self._process = self._process, None
        if process is None:
            return
        try:
            tree = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
        except psutil.NoSuchProcess:
            tree = []
        for each in tree:
            with contextlib.suppress(psutil.NoSuchProcess):
                each.kill()
        process.wait(10)
        psutil.wait_procs(tree, 10)

    def restart(self) -> None:
        """Start it again on the same ports and data, after killing it if it still runs."""
        self.kill9()
        self.start()

    def freeze(self) -> None:
        """Stop the node's process: connections stay open and nothing answers."""
        os.kill(self.beam.pid, signal.SIGSTOP)

    def thaw(self) -> None:
        """Let it go on."""
        os.kill(self.beam.pid, signal.SIGCONT)

    def close(self) -> None:
        """Kill the node and its epmd, and remove its data. Safe to call twice."""
        atexit.unregister(self.close)
        self.kill9()
        for process in psutil.process_iter(["name"]):
            if process.info["name"] == "epmd" and self._beside is None:
                try:
                    if process.environ().get("ERL_EPMD_PORT") == str(self._epmd):
                        process.kill()
                except psutil.Error:
                    pass
        if self.folder.name:
            shutil.rmtree(self.folder, ignore_errors=True)


def rabbit_server(*, root: str | None = None, settings: str = "", beside: RabbitServer | None = None) -> RabbitServer:
    """A RabbitMQ node, to be entered with `with`."""
    return RabbitServer(root=root, settings=settings, beside=beside)
