"""A connection that neither answers nor closes: the worker notices, says so once, and works on by a new one."""

from __future__ import annotations

import contextlib
import re
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from uuid import uuid4

import pytest

from celeriac import Celeriac
from celeriac.errors import OperationalError
from tests.faults.conftest import MakeSite, Server
from tests.faults.kit import forms, until
from tests.proxy import FreezeProxy
from tests.servers import RedisServer


@forms("freezes", 1, 10, timeout=900)
def test_a_frozen_worker_consumes_again_within_twenty_seconds(
    server: Server, make_site: MakeSite, freezes: int, figures: dict[str, Any]
) -> None:
    """Connections freeze under load: consuming again in 20 s, one WARNING for each freeze, nothing lost or repeated
    without need."""
    with FreezeProxy(server.port) as proxy:
        site = make_site(server.url, lease=30.0, through=proxy.instead_of(server.url))
        worker = site.worker("-c", "2")
        slowest = 0.0
        for number in range(freezes):
            for _ in range(100):
                site.send("work", 0.01)
            until(lambda: len(site.ledger.starts()) > len(site.sent) - 90, 20.0, "it works")
            proxy.freeze()
            frozen = time.monotonic()
            late = site.send("work")
            slowest = max(slowest, site.wait_started(late, 20.0).time - frozen)
            site.wait_finished(20.0)
            warnings = re.findall(r"WARNING.*(?:frozen|not answer|no answer|silent).*", worker.output)
            assert len(warnings) == number + 1, f"{warnings}\n{worker.output}"
        figures.update(freezes=freezes, slowest=round(slowest, 1))
        site.check().assert_clean()
        assert not site.dead()


def test_an_idle_worker_notices_a_freeze(server: Server, make_site: MakeSite) -> None:
    """Nothing was under way when the connections froze: what is sent later is found within 20 s all the same."""
    with FreezeProxy(server.port) as proxy:
        site = make_site(server.url, lease=30.0, through=proxy.instead_of(server.url))
        worker = site.worker("-c", "1")
        site.send("work")
        site.wait_finished(10.0)
        proxy.freeze()
        late = site.send("work")
        site.wait_started(late, 20.0)
        site.wait_finished(5.0)
        assert worker.terminate() == 0


def test_a_long_task_survives_a_freeze(server: Server, make_site: MakeSite) -> None:
    """A task that runs through the freeze is completed once, by its own worker, with another one standing by."""
    with FreezeProxy(server.port) as proxy:
        site = make_site(server.url, lease=30.0, through=proxy.instead_of(server.url))
        site.worker("-c", "1")
        task = site.send("work", 8.0)
        site.wait_started(task)
        site.worker("-c", "1")
        proxy.freeze()
        site.wait_finished(30.0)
        assert len(site.ledger.of("start", task)) == 1
        assert site.documents([task])[task]["status"] == "SUCCESS"


def test_delay_raises_within_its_deadline(server: Server) -> None:
    """A server that accepts and never answers: `delay()` raises after 5 s at the latest, on a warm connection and on a
    new one, and works again afterwards."""
    app = Celeriac("frozen", broker=server.url, backend=server.url)
    new = Celeriac("frozen", broker=server.url, backend=server.url)
    app.send_task("tasks.work")
    server.stop_process()
    try:
        with ThreadPoolExecutor(2) as threads:
            began = time.monotonic()
            for sending in [threads.submit(sender.send_task, "tasks.work") for sender in (app, new)]:
                with pytest.raises(OperationalError):
                    sending.result(10.0)
                assert time.monotonic() - began < 5.5
    finally:
        server.cont()
    app.send_task("tasks.work", task_id=str(uuid4()))


def test_delay_through_a_frozen_connection(redis: RedisServer) -> None:
    """The connection is frozen but new ones pass: `delay()` answers within its deadline, by an error or by success, and
    the next one succeeds."""
    with FreezeProxy(redis.port) as proxy:
        app = Celeriac("frozen", broker=proxy.url, backend=proxy.url)
        app.send_task("tasks.work")
        proxy.freeze()
        began = time.monotonic()
        with contextlib.suppress(OperationalError):
            app.send_task("tasks.work")
        assert time.monotonic() - began < 5.5
        app.send_task("tasks.work")
        assert int(redis.command("LLEN", "celery")) in (2, 3)
