"""Has real Celery write the golden files: `CELERY_PYTHON tests/wire/make_golden.py [FOLDER]`.

Runs with the interpreter of an environment that has celery, redis, msgpack, PyYAML, and needs redis-server. Ids and the
clock are fixed, so that a second run gives the same files.
"""

# mypy: ignore-errors
# pyright: reportMissingImports=false, reportAttributeAccessIssue=false, reportIndexIssue=false
# pyright: reportOptionalMemberAccess=false, reportArgumentType=false
from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import billiard.exceptions
import celery
import celery.app.amqp
import celery.app.base
import celery.canvas
import celery.exceptions
import celery.utils
import golden_cases as cases
import kombu
import kombu.exceptions
import kombu.pidbox
import kombu.transport.virtual.base
import kombu.utils.json
import kombu.utils.uuid
import redis
from celery.app.task import Context
from celery.backends.redis import RedisBackend
from celery.canvas import chord, group
from celery.utils.saferepr import saferepr
from kombu.pidbox import Mailbox

HERE = Path(__file__).resolve().parent
numbers = itertools.count(1)


def fixed_uuid(*_):
    return f"00000000-0000-4000-8000-{next(numbers):012d}"


for module in list(sys.modules.values()):
    name = getattr(module, "__name__", "")
    if name.startswith(("celery", "kombu")) and callable(getattr(module, "uuid", None)):
        module.uuid = fixed_uuid


class Golden:
    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def write(self, kind: str, name: str, data: bytes) -> None:
        folder = self.folder / kind
        folder.mkdir(parents=True, exist_ok=True)
        (folder / (name.replace(" ", "-") + ".bin")).write_bytes(data)

    def write_json(self, name: str, data) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / f"{name}.json").write_text(json.dumps(data, indent=1) + "\n")


def make_app(url: str, **conf):
    app = celery.Celery("golden", broker=url, backend=url, set_as_current=False)
    app.conf.update(
        task_serializer="json",
        accept_content=["json", "pickle", "yaml", "msgpack"],
        result_accept_content=["json", "pickle", "yaml", "msgpack"],
        enable_utc=True,
        timezone="UTC",
        task_default_queue="q",
        broker_connection_retry_on_startup=False,
        **conf,
    )
    app.now = lambda: cases.NOW
    type(app).thread_oid = property(lambda self: "00000000-0000-3000-8000-000000000000")

    @app.task(name="tasks.add", typing=False, shared=False)
    def add(x, y):
        return x + y

    @app.task(name="tasks.fail")
    def fail(x):
        return x

    @app.task(name="tasks.tsum")
    def tsum(xs):
        return sum(xs)

    app.add, app.fail, app.tsum = add, fail, tsum
    return app


def messages(golden: Golden, url: str, client: redis.Redis) -> None:
    def take() -> list[bytes]:
        found = []
        for key in sorted(client.keys("*")):
            if client.type(key) == b"list":
                found += reversed(client.lrange(key, 0, -1))
        client.flushall()
        return found

    celery.app.amqp.anon_nodename = lambda: cases.ORIGIN
    for kind, protocol, names in (("protocol2", 2, cases.MESSAGES), ("protocol1", 1, cases.PROTOCOL_1)):
        app = make_app(url, task_protocol=protocol)
        for name in names:
            case = cases.MESSAGES[name]
            options = {"queue": "q", "task_id": fixed_uuid()} | case.get("options", {})
            if options["queue"] is None:
                exchange = kombu.Exchange(options["exchange"], type="topic")
                options["queue"] = kombu.Queue("named", exchange, routing_key=options["routing_key"])
                options["exchange_type"] = "topic"
            app.add.apply_async(case.get("args"), case.get("kwargs"), **options)
            (blob,) = take()
            golden.write(kind, name, blob)
    app = make_app(url)
    names = {"add": app.add, "fail": app.fail, "tsum": app.tsum, "group": group, "chord": chord}
    for name, call in cases.CANVAS.items():
        eval(call, names)
        for number, blob in enumerate(take()):
            golden.write("canvas", f"{name} {number}", blob)

    # What a worker that ends puts back.
    app.add.apply_async((1, 2), queue="q", task_id=fixed_uuid())
    with app.connection_for_read() as connection:
        channel = connection.channel()
        message = channel.basic_get("q")
        assert message is not None
        channel.close()
    (blob,) = take()
    golden.write("restored", "plain", blob)


def notices(golden: Golden, url: str, client: redis.Redis) -> None:
    app = make_app(url)
    listener = client.pubsub()
    listener.psubscribe("*")
    listener.get_message(timeout=5)

    def heard() -> bytes:
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline:
            found = listener.get_message(timeout=1)
            if found and found["type"] == "pmessage":
                return found["data"]
        raise TimeoutError

    real, time.time = time.time, lambda: 1700000000.25
    kombu.pidbox.time = time.time
    dispatcher = app.events.Dispatcher(app.connection_for_write(), hostname="w@host")
    dispatcher.pid = 12
    dispatcher.send(
        "worker-heartbeat", freq=2.0, active=0, processed=3, loadavg=[0.5, 0.25, 0.125], timestamp=1700000000.25
    )
    golden.write("events", "one", heard())
    dispatcher.buffer_group = {"task"}
    for kind in ("task-received", "task-started"):
        dispatcher.send(kind, uuid="id", name="tasks.add", timestamp=1700000000.25)
    dispatcher.flush()
    golden.write("events", "many", heard())

    mailbox = Mailbox(
        "celery", type="fanout", connection=app.connection_for_write(), producer_pool=app.amqp.producer_pool
    )
    mailbox = mailbox(app.connection_for_write())
    type(mailbox).oid = "00000000-0000-3000-8000-000000000000"
    mailbox._broadcast("shutdown", {"a": 1}, destination=["w@host"], reply=False)
    golden.write("control", "cast", heard())
    # A direct exchange delivers to bound queues only. Before `call`, which leaves a client that pops replies.
    channel = app.connection_for_write().default_channel
    queue = mailbox.get_reply_queue()(channel)
    queue.declare()
    producer = kombu.Producer(channel, auto_declare=False)
    mailbox._publish_reply(
        {"w@host": {"ok": "pong"}}, queue.exchange.name, queue.routing_key, "ticket", channel=channel, producer=producer
    )
    (key,) = [key for key in client.keys("*") if client.type(key) == b"list"]
    golden.write("control", "reply", client.lindex(key, 0))
    mailbox._broadcast("ping", reply=True, timeout=0.01, pattern="w*", matcher="glob")
    golden.write("control", "call", heard())
    time.time = real
    client.flushall()


def results(golden: Golden, url: str, client: redis.Redis) -> None:
    def store(kind: str, name: str, case: dict) -> None:
        app = make_app(
            url,
            result_extended=case.get("extended", False),
            result_compression=case.get("compression"),
            result_serializer=case.get("serializer", "json"),
        )
        backend = RedisBackend(app=app, url=url.removeprefix("redis+"), serializer=case.get("serializer", "json"))
        request = case.get("request", {})
        if request is not None:
            request = Context(**{"id": "tid", **request})
            request.children.extend(app.AsyncResult(child) for child in case.get("children", ()))
        backend.store_result("tid", case["result"], case["state"], traceback=case.get("traceback"), request=request)
        golden.write(kind, name, client.get("celery-task-meta-tid"))
        client.flushall()

    for name, case in cases.RESULTS.items():
        store("results", name, case)
    names = vars(cases) | {
        name: getattr(module, name)
        for module in (kombu.exceptions, billiard.exceptions, celery.exceptions)
        for name in dir(module)
        if isinstance(getattr(module, name), type) and issubclass(getattr(module, name), BaseException)
    }
    for name, text in (cases.EXCEPTIONS | cases.CELERY_EXCEPTIONS).items():
        store("failures", name, {"state": "FAILURE", "result": eval(text, dict(names))})

    app = make_app(url)
    backend = RedisBackend(app=app, url=url.removeprefix("redis+"))
    parent = app.AsyncResult("parent")
    members = [app.AsyncResult("one", parent=parent), app.GroupResult("inner", [app.AsyncResult("two")])]
    backend.save_group("gid", app.GroupResult("gid", members, parent=parent))
    golden.write("groups", "nested", client.get("celery-taskset-meta-gid"))
    client.flushall()


def texts(golden: Golden) -> None:
    golden.write_json("values", {name: kombu.utils.json.dumps(value) for name, value in cases.VALUES.items()})
    golden.write_json(
        "reprs", [[text, limit, levels, saferepr(eval(text, dict(vars(cases))), limit, levels)]
                  for text, limit, levels in cases.REPRS],
    )  # fmt: skip
    golden.write_json("versions", {"celery": celery.__version__, "kombu": kombu.__version__})


def main() -> None:
    golden = Golden(Path(sys.argv[1]) if len(sys.argv) > 1 else HERE / "golden")
    texts(golden)
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "redis.sock")
        command = ["redis-server", "--port", "0", "--unixsocket", path, "--save", "", "--dir", folder]
        server = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        try:
            client = redis.Redis(unix_socket_path=path)
            deadline = time.monotonic() + 20
            while True:
                try:
                    client.ping()
                    break
                except redis.ConnectionError:
                    if time.monotonic() > deadline:
                        raise
                    time.sleep(0.05)
            url = f"redis+socket://{path}"
            messages(golden, url, client)
            results(golden, url, client)
            notices(golden, url, client)
        finally:
            server.terminate()
            server.wait(20)


if __name__ == "__main__":
    main()
