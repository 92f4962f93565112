"""Real Celery on the other side: one project that both interpreters run, and words to start either of them."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

import psutil

from tests.processes import SOURCE, Process, Project
from tests.servers import command

PROJECT = Path(__file__).parent / "project"
PEER_RECIPE = SOURCE / "celeriac" / "contrib" / "celery_peer.py"
Peer = Literal["celery", "celeriac"]


class Peers:
    """The project on one Redis, with or without a key prefix."""

    def __init__(
        self, folder: Path, url: str, *, prefix: str = "", settings: Mapping[str, Any] | None = None,
        transport: Mapping[str, Any] | None = None,
    ) -> None:  # fmt: skip
        options = {**({"global_keyprefix": prefix} if prefix else {}), **(transport or {})}
        merged = {
            "broker_url": url,
            "result_backend": url,
            "accept_content": ["json", "msgpack", "yaml"],
            "task_acks_late": True,
            "broker_connection_retry_on_startup": True,
            "worker_prefetch_multiplier": 4,
            "broker_transport_options": options,
            "result_backend_transport_options": {"global_keyprefix": prefix} if prefix else {},
            **(settings or {}),
        }
        own = {"worker_lease_seconds": 2}
        self.url = url
        self.prefix = prefix
        self.notes_path = folder / "notes"
        folder.mkdir(parents=True, exist_ok=True)
        self.notes_path.touch()
        files = {path.name: path.read_text() for path in PROJECT.glob("[!_]*.py")}
        self.project = Project(folder, files, {"PEER_NOTES": str(self.notes_path)})
        self._env: dict[Peer, dict[str, str]] = {
            "celery": {"PEER": "celery", "PEER_SETTINGS": json.dumps(merged)},
            "celeriac": {"PEER": "celeriac", "PEER_SETTINGS": json.dumps({**merged, **own})},
        }
        self._open = contextlib.ExitStack()
        self.workers: list[Process] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        self._open.close()

    def show(self) -> None:
        """Print what the workers said: for a test that has failed."""
        for worker in self.workers:
            print(f"--- {worker}\n{worker.output[-4000:]}")

    def environment(self, peer: Peer) -> dict[str, str]:
        """What a process of this side needs to know."""
        return dict(self._env[peer])

    def worker(self, peer: Peer, *options: str, env: Mapping[str, str] | None = None) -> Process:
        """Start a worker of either kind and wait until it is ready."""
        merged = {**self._env[peer], **(env or {})}
        name = ("-n", f"{peer}{len(self.workers)}@here")
        if peer == "celery":
            quiet = ("--without-mingle", "--without-gossip")
            process = self.project.celery_worker(*name, *quiet, *options, env=merged)
        else:
            process = self.project.worker(*name, *options, env=merged)
        self._open.enter_context(process)
        self.workers.append(process)
        return process

    def run(self, peer: Peer, script: str, *words: str, timeout: float = 60.0) -> Any:
        """Run a script of the project by either interpreter; its answer."""
        start = self.project.celery_python if peer == "celery" else self.project.python
        with start(f"{script}.py", *words, env=self._env[peer]) as process:
            code = process.wait(timeout)
            assert code == 0, process.output
            return json.loads(process.wait_for(r"^answer (.*)$").group(1))

    def command(self, *words: str) -> tuple[int, str]:
        """Run a command of celeriac in the project."""
        return self.project.run("-A", "tasks", *words, env=self._env["celeriac"])

    def burst(self, peer: Peer, name: str, count: int, args: Sequence[Any] = (), **options: Any) -> list[str]:
        """Send many."""
        ids: list[str] = self.run(peer, "burst", name, str(count), json.dumps(args), json.dumps(options))
        return ids

    def numbered(self, peer: Peer, name: str, count: int, **options: Any) -> list[str]:
        """Send many, each with its number as argument."""
        ids: list[str] = self.run(peer, "burst", name, str(count), "number", json.dumps(options))
        return ids

    def read(self, peer: Peer, ids: Sequence[str], empty: Collection[int] = ()) -> dict[str, dict[str, Any]]:
        """Results as a peer reads them. `empty`: indices for which there will be none."""
        results: dict[str, dict[str, Any]] = self.run(peer, "read", json.dumps(list(ids)), json.dumps(list(empty)))
        return results

    def notes(self, what: str | None = None) -> list[dict[str, Any]]:
        """What the tasks left in their file."""
        text = self.notes_path.read_text()
        lines = [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]
        return [line for line in lines if what is None or line["what"] == what]

    def ended(self) -> set[str]:
        """Ids of `traced` tasks that have ended."""
        return {line["id"] for line in self.notes("end")}

    def key(self, name: str) -> str:
        """A key with the prefix."""
        return self.prefix + name

    def redis(self, *words: Any) -> Any:
        """One command to the server."""
        return command(self.url, *words)


def until(condition: Callable[[], Any], limit: float, what: str | Callable[[], str]) -> None:
    """Wait for a condition. Raises AssertionError after `limit` seconds."""
    end = time.monotonic() + limit
    while not condition():
        if time.monotonic() > end:
            raise AssertionError(f"not within {limit:g} s: {what if isinstance(what, str) else what()}")
        time.sleep(0.05)


def kill_whole(worker: Process) -> None:
    """Kill a worker and its children at once."""
    below = worker.children()
    worker.kill9()
    for child in below:
        with contextlib.suppress(psutil.NoSuchProcess):
            child.kill()
    psutil.wait_procs(below, 10)
