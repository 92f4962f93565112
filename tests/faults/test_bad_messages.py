"""Bad messages beside good ones: the worker stays up, the good ones complete, each bad one is logged once and lies in
the dead letter queue with its reason, and no code of theirs runs."""

from __future__ import annotations

import base64
import json
import os
import pickle
import re
import time
from pathlib import Path
from typing import Any
from uuid import uuid4

import psutil

from celeriac.ports import Place
from tests.faults.conftest import MakeSite
from tests.faults.kit import Site, forms, message, until
from tests.processes import Process


class Burglar:
    """Unpickling it makes a folder."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


def _with_body(key: str, body: bytes, content_type: str = "application/json", **changes: Any) -> bytes:
    envelope = message(key, **changes)
    envelope["body"] = base64.b64encode(body).decode()
    envelope["content-type"] = content_type
    return json.dumps(envelope).encode()


def _bad(loot: Path) -> dict[str, bytes]:
    """name -> blob. Where a blob is a message, its id begins with the name."""
    embed = b'{"callbacks": null, "errbacks": null, "chain": null, "chord": null}'
    good = json.dumps(message("whole")).encode()
    return {
        "garbage": b"\x00\xff garbage \x80",
        "empty": b"",
        "not-a-map": b"[1, 2, 3]",
        "truncated": good[: len(good) // 2],
        "no-headers": json.dumps({"body": "e30=", "properties": {}}).encode(),
        "id-number": json.dumps(message("x", id=7)).encode(),
        "task-list": json.dumps(message("task-list", task=["x"])).encode(),
        "args-text": _with_body("args-text", b'["text", {}, ' + embed + b"]"),
        "kwargs-list": _with_body("kwargs-list", b"[[], [], " + embed + b"]"),
        "body-number": _with_body("body-number", b"7"),
        "retries-text": json.dumps(message("retries-text", retries="many")).encode(),
        "pickle": _with_body("pickle", pickle.dumps(((Burglar(loot),), {}, {})), "application/x-python-serialize"),
        "unknown-type": _with_body("unknown-type", b"x", "application/x-nobody-knows"),
        "big-garbage": _with_body("big-garbage", b"[" + b"9" * 10_000_000),
        "deep": _with_body("deep", b"[[" + b"[" * 10_000 + b"]" * 10_000 + b"], {}, " + embed + b"]"),
        "bad-eta": json.dumps(message("bad-eta", eta="the day after tomorrow")).encode(),
        "bad-expires": json.dumps(message("bad-expires", expires="2026-99-99T00:00:00")).encode(),
        "bad-base64": json.dumps({**message("bad-base64"), "body": "%%% not base64 %%%"}).encode(),
        "future": json.dumps(
            {"protocol": 3, "headers": {"celery": 3, "name": "tasks.work"}, "body": "e30=", "properties": {}}
        ).encode(),
    }


def test_bad_messages_harm_nobody(site: Site, tmp_path: Path) -> None:
    """All kinds of them, between good ones."""
    loot = tmp_path / "loot"
    bad = _bad(loot)
    worker = site.worker("-c", "2")
    good = []
    for blob in bad.values():
        good.append(site.send("work"))
        site.send_blob(blob)
    good.append(site.send("work"))
    site.wait_finished(20.0, good)
    until(lambda: site.counts().dead >= len(bad), 10.0, lambda: f"{len(bad)} dead letters: {site.dead()}")
    dead = site.items(Place.DEAD)
    assert len(dead) == len(bad)
    if not site.broker_url.startswith("amqp"):  # which carries the parts of an envelope, not its bytes
        assert sorted(item.blob for item in dead) == sorted(bad.values()), "each as it came"
    assert all(item.reason for item in dead), "each says why"
    assert not loot.exists(), "the code in a pickle ran"
    assert not any(mark.key in bad for mark in site.ledger.marks())
    assert site.counts().in_flight == site.counts().ready == 0
    assert len(re.findall(r"\bERROR\b", worker.output)) == len(bad), worker.output[-6000:]
    assert worker.terminate() == 0


def test_odd_but_good_messages_run(site: Site) -> None:
    """Two messages with one delivery tag, a header that is called delivery_tag, a 10 MB argument: all good."""
    twins = [str(uuid4()), str(uuid4())]
    site.worker("-c", "2")
    for key in twins:
        envelope = message(key)
        envelope["properties"]["delivery_tag"] = "the-same"
        site.send_blob(json.dumps(envelope).encode())
    named = str(uuid4())
    site.send_blob(json.dumps(message(named, delivery_tag="mine", exchange="x", queue="y")).encode())
    big = site.send("note", "x" * 10_000_000)
    until(lambda: site.ledger.of("note", big), 20.0, "the big one")
    site.wait_finished(20.0, [*twins, named, big])
    assert {key: len(starts) for key, starts in site.ledger.starts().items()} == dict.fromkeys([*twins, named], 1)
    assert not site.dead()


def test_an_unknown_task_goes_round_and_then_fails(broker: str, make_site: MakeSite) -> None:
    """A task name that no worker knows goes back with growing delay, then it is a FAILURE with its errbacks told, and a
    dead letter."""
    site = make_site(broker, lease=1.0, settings={"task_unknown_patience": 3.0})
    site.worker("-c", "1")
    began = time.monotonic()
    task = site.send("nobody_knows", link_error=site.app.signature("tasks.errback"))
    good = site.send("work")
    site.wait_finished(5.0, [good])
    assert not site.finished([task])
    site.wait_finished(10.0, [task])
    assert 1.5 <= time.monotonic() - began <= 6.0
    document = site.documents([task])[task]
    assert document["status"] == "FAILURE"
    assert document["result"]["exc_type"] == "NotRegistered"
    until(lambda: site.ledger.of("errback", task), 5.0, "its errback")
    until(lambda: task in site.dead(), 5.0, "its dead letter")
    assert "nobody_knows" in site.dead()[task]


def test_an_unknown_task_is_run_by_a_newer_worker(site: Site) -> None:
    """A rolling deploy: the old worker does not know the task yet, a newer one does, and it runs there."""
    old = site.worker("-c", "1")
    task = site.send("brand_new")
    until(lambda: "brand_new" in old.output, 10.0, "the old worker met it")
    text = (site.project.folder / "tasks.py").read_text()
    (site.project.folder / "tasks.py").write_text(text.replace("def work(", "def brand_new("))
    site.worker("-c", "1")
    site.wait_finished(15.0)
    assert site.documents([task])[task]["status"] == "SUCCESS"
    assert len(site.ledger.of("start", task)) == 1


def _resident(worker: Process) -> int:
    return sum(p.memory_info().rss for p in [psutil.Process(worker.pid), *worker.children()])


@forms("size,beside", (20_000_000, 200), (200_000_000, 1000), timeout=200)
def test_a_huge_result_beside_small_tasks(
    broker: str, make_site: MakeSite, size: int, beside: int, figures: dict[str, Any]
) -> None:
    """A huge result goes through beside many small tasks: no beat of the lease is missed, and the memory is given back
    afterwards."""
    site = make_site(broker, lease=2.0)
    worker = site.worker("-c", "2")
    for _ in range(50):
        site.send("work")
    site.wait_finished(20.0)
    before = _resident(worker)
    huge = site.send("big", size)
    small = [site.send("work", 0.005) for _ in range(beside)]
    site.wait_finished(60.0, small)
    until(lambda: site.finished([huge]), 60.0, "the huge result", 0.2)
    assert len(json.loads(site.reader.fetch([huge])[huge])["result"]) == size
    assert "lease" not in worker.output.split("ready.", 1)[-1], worker.output[-3000:]
    assert all(len(starts) == 1 for starts in site.ledger.starts().values())
    limit = before + 60_000_000
    until(lambda: _resident(worker) < limit, 15.0, lambda: f"{_resident(worker) / 1e6:.0f} MB after {before / 1e6:.0f}")
    figures.update(before_mb=round(before / 1e6), after_mb=round(_resident(worker) / 1e6))
