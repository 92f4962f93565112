"""Who sends and reads results: threads, event loops, forks, patched processes, embeddings."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from tests.faults.conftest import MakeSite
from tests.faults.kit import Site, forms

CALLERS = Path(__file__).parent / "callers"


def call(site: Site, script: str, *words: str, timeout: float = 60.0) -> str:
    """Run a caller in the project, to its end; its output."""
    with site.project.python(str(CALLERS / f"{script}.py"), *words) as process:
        code = process.wait(timeout)
        assert code == 0, process.output[-5000:]
        return process.output


@pytest.fixture
def served(broker: str, make_site: MakeSite) -> Site:
    """A site with a worker of many seats."""
    site = make_site(broker, lease=30.0)
    site.worker("-P", "threads", "-c", "16", "-l", "WARNING")
    return site


@forms("rounds", 3, 50, timeout=400)
def test_threads_and_loops_of_one_process(served: Site, rounds: int) -> None:
    """64 threads and 4 event loops send and get at once: each gets its own results."""
    call(served, "threads_and_loops", str(rounds), timeout=60.0 + rounds * 5)


def test_a_process_that_forks_after_it_has_sent(served: Site) -> None:
    """Parent and children send and get afterwards, also results of what was sent before, also from threads."""
    call(served, "forked")


@pytest.mark.parametrize("kind", ["gevent", "eventlet"])
def test_a_patched_web_process(served: Site, kind: str) -> None:
    """50 green threads in `delay().get()`; the others run meanwhile, also while it
    revokes a task and asks the workers. Under gevent an event loop runs beside them."""
    if importlib.util.find_spec(kind) is None:
        pytest.fail(f"{kind} is not installed; `make test` installs it")
    call(served, f"{kind}_web", timeout=100.0)


@pytest.mark.parametrize("strict", [pytest.param((), id="gil-held"), pytest.param(("strict",), id="no-threads")])
def test_an_embedding_without_threads(served: Site, strict: tuple[str, ...]) -> None:
    """Sending and reading needs no thread of its own."""
    call(served, "embedded", *strict)
