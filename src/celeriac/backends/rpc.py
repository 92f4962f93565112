"""`rpc://`: a result is a message to the app that sent the task, over the broker. Celery's queues and messages.

Nothing is stored: a result can be read by the app that sent the task, in the process that sent it, and by no one else;
it is lost when that process ends. Groups can't be saved, and there are no chords.
"""

from __future__ import annotations

import asyncio
import logging
import os
import threading
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Collection, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from typing import Any, NoReturn

from celeriac.drivers.amqp import answers, frames
from celeriac.drivers.amqp.aio import Link
from celeriac.drivers.amqp.blocking import Connection, Pool
from celeriac.drivers.amqp.channel import Channel
from celeriac.drivers.amqp.frames import M
from celeriac.drivers.amqp.url import parse_all
from celeriac.errors import CeleryError, OperationalError
from celeriac.model.message import DONE, Chord, Fire, Part, Standing, Store, Verdict

log = logging.getLogger("celeriac.rabbitmq")

KEPT = 10_000
"""Results that a process keeps for whoever may ask; the oldest are forgotten first."""
LOOK = 0.5
"""Seconds after which the thread that reads looks whether it is still wanted."""
NO_CHORDS = (
    "rpc:// can't keep chords or groups: results are messages to the caller. Set a result_backend that stores them, "
    "as redis:// does"
)


class Mailbox:
    """The results that come to one queue, read by one thread of the process."""

    def __init__(self, url: str, options: Mapping[str, Any], queue: str) -> None:
        self._pool = Pool(parse_all(url, options))
        self._expires: float | None = options.get("result_expires")
        self._queue = queue
        self._pid = os.getpid()
        self._changed = threading.Condition()
        self._documents: OrderedDict[str, bytes] = OrderedDict()
        self._listeners: set[Callable[[str, bytes], None]] = set()
        self._thread: threading.Thread | None = None
        self._users = 0
        self._error: CeleryError | None = None

    def describe(self) -> str:
        """The broker's URL without its password."""
        return self._pool.servers[0].describe()

    def open(self) -> None:
        """Read from now on, until as many `close` as there were `open`."""
        with self._changed:
            self._users += 1
            if self._thread is None or not self._thread.is_alive():
                self._thread = threading.Thread(target=self._read, name="celeriac-rpc", daemon=True)
                self._thread.start()

    def close(self) -> None:
        """One reader less."""
        with self._changed:
            self._users = max(0, self._users - 1)

    def _read(self) -> None:
        pause = 0.05
        while self._users:
            connection: Connection | None = None
            try:
                deadline = time.monotonic() + 10
                connection = self._pool.take(deadline)
                connection.many(
                    [
                        answers.declaration(self._queue, self._expires),
                        (M.CONSUME, frames.consume(self._queue, "rpc", no_ack=True), M.CONSUME_OK, "the results"),
                    ],
                    deadline,
                )
                self._error, pause = None, 0.05
                while self._users:
                    event = connection.listen(time.monotonic() + LOOK)
                    if event is not None and event.which == M.DELIVER:
                        self._put(answers.correlation(event.header), event.body)
            except CeleryError as error:
                log.info("results can't be read: %s", error)
                with self._changed:
                    self._error = error
                    self._changed.notify_all()
                time.sleep(pause)
                pause = min(2.0, pause * 2)
            finally:
                if connection is not None:
                    connection.close()

    def _put(self, task_id: str, document: bytes) -> None:
        with self._changed:
            self._documents[task_id] = document
            self._documents.move_to_end(task_id)
            while len(self._documents) > KEPT:
                self._documents.popitem(last=False)
            for tell in tuple(self._listeners):
                tell(task_id, document)
            self._changed.notify_all()

    def fetch(self, ids: Collection[str]) -> dict[str, bytes]:
        """What has come."""
        with self._changed:
            return {name: self._documents[name] for name in ids if name in self._documents}

    def forget(self, ids: Collection[str]) -> None:
        """Keep these no longer."""
        with self._changed:
            for name in ids:
                self._documents.pop(name, None)

    def listen(self, tell: Callable[[str, bytes], None]) -> None:
        """Call `tell` with each result, from the thread that reads."""
        with self._changed:
            self._listeners.add(tell)

    def unlisten(self, tell: Callable[[str, bytes], None]) -> None:
        """No more."""
        with self._changed:
            self._listeners.discard(tell)

    def wait(self, seen: Mapping[str, bytes], ids: Collection[str], seconds: float) -> dict[str, bytes]:
        """Results of `ids` that are not as in `seen`; empty after so many seconds. Raises OperationalError while the
        broker can't be reached."""
        end = time.monotonic() + seconds
        with self._changed:
            while True:
                found = {
                    name: document
                    for name in ids
                    if (document := self._documents.get(name)) is not None and seen.get(name) is not document
                }
                left = end - time.monotonic()
                if found or left <= 0:
                    return found
                self._changed.wait(min(left, 1.0))


_mailboxes: dict[tuple[int, str], Mailbox] = {}
_lock = threading.Lock()


def mailbox(url: str, options: Mapping[str, Any]) -> Mailbox:
    """That of the queue which the option `reply_queue` names now, in this process."""
    name = options.get("reply_queue")
    queue = str(name() if callable(name) else name)
    with _lock:
        key = os.getpid(), queue
        found = _mailboxes.get(key)
        if found is None:
            found = _mailboxes[key] = Mailbox(url, options, queue)
        return found


class RpcReader:
    """See `ports.Reader`."""

    def __init__(self, url: str, options: Mapping[str, Any] | None = None) -> None:
        """`options["reply_queue"]`: the queue that results come to, or what gives its name."""
        self._url = url
        self._options = options or {}
        self._servers = parse_all(url, self._options)
        self._opened: Mailbox | None = None

    def describe(self) -> str:
        """As one names it."""
        return "rpc://"

    @property
    def _mail(self) -> Mailbox:
        mail = mailbox(self._url, self._options)
        if self._opened is not mail:  # the first use in this process
            self._opened = mail
            mail.open()
        return mail

    def fetch(self, ids: Sequence[str]) -> Mapping[str, bytes]:
        """What has come of these."""
        return self._mail.fetch(ids)

    @contextmanager
    def watch(self, ids: Sequence[str], timeout: float | None) -> Iterator[Iterator[tuple[str, bytes]]]:
        """As ResultBackend.watch."""
        end = None if timeout is None else time.monotonic() + timeout
        mail = self._mail

        def changes() -> Iterator[tuple[str, bytes]]:
            seen: dict[str, bytes] = {}
            while True:
                left = 1.0 if end is None else min(1.0, end - time.monotonic())
                found = mail.wait(seen, ids, max(0.0, left))
                seen.update(found)
                yield from found.items()
                if not found and end is not None and time.monotonic() >= end:
                    return

        yield changes()

    def store(self, stores: Sequence[Store]) -> None:
        """Send results; those of nobody are dropped."""
        pool = Pool(self._servers)
        deadline = time.monotonic() + self._servers[0].timeout
        connection = pool.take(deadline)
        try:
            largest = connection.session.frame
            messages = [_message(1, store, largest, self._options) for store in stores if store.reply_to]
            connection.publish(messages, deadline)
        finally:
            connection.close()

    def forget(self, ids: Sequence[str]) -> None:
        """Keep these no longer."""
        self._mail.forget(ids)

    def save_group(self, group_id: str, document: bytes, expires: float | None) -> None:
        """Raises NotImplementedError."""
        raise NotImplementedError(NO_CHORDS)

    def fetch_group(self, group_id: str) -> bytes | None:
        """Raises NotImplementedError."""
        raise NotImplementedError(NO_CHORDS)

    def forget_group(self, group_id: str) -> None:
        """Raises NotImplementedError."""
        raise NotImplementedError(NO_CHORDS)

    def open_chords(self, chords: Sequence[Chord]) -> None:
        """Raises NotImplementedError."""
        raise NotImplementedError(NO_CHORDS)

    def add_to_chord(self, group: str) -> None:
        """Raises NotImplementedError."""
        raise NotImplementedError(NO_CHORDS)

    def close(self) -> None:
        """Read no more."""
        mail, self._opened = self._opened, None
        if mail is not None:
            mail.close()


def _message(channel: int, store: Store, largest: int, options: Mapping[str, Any]) -> bytes:
    header = answers.header(store, str(options.get("result_serializer") or "json"), bool(options.get("persistent")))
    publish = frames.publish("", store.reply_to, mandatory=False)
    return frames.method(channel, M.PUBLISH, publish) + frames.content(channel, header, store.document, largest)


class RpcBackend:
    """See `ports.ResultBackend`. A worker's results travel with its other messages (`Broker.same_server`)."""

    persistent = False
    sends_results = True

    def __init__(self, url: str, options: Mapping[str, Any] | None = None) -> None:
        """As RpcReader."""
        self._url = url
        self._options = options or {}
        self._link = Link(parse_all(url, self._options))
        self._channel: Channel | None = None
        self._opened: Mailbox | None = None

    def describe(self) -> str:
        """As one names it."""
        return "rpc://"

    @property
    def _mail(self) -> Mailbox:
        mail = mailbox(self._url, self._options)
        if self._opened is not mail:
            self._opened = mail
            mail.open()
        return mail

    async def store(self, stores: Sequence[Store], deadline: float | None = None) -> Sequence[Verdict]:
        """Send results to whoever asked; those of nobody are dropped."""
        meant = [store for store in stores if store.reply_to]
        if meant:
            channel = self._channel
            if channel is None or channel.broken:
                channel = self._channel = await (await self._link.connection()).channel(confirms=True)
            largest = channel.connection.session.frame
            await channel.publish([_message(channel.number, store, largest, self._options) for store in meant])
        return [DONE] * len(stores)

    async def clock(self) -> float:
        """There is no other clock than this process's."""
        return time.time()

    async def fetch(self, ids: Sequence[str]) -> Mapping[str, bytes]:
        """What has come to this process."""
        return self._mail.fetch(ids)

    @asynccontextmanager
    async def watch(self, ids: Sequence[str]) -> AsyncIterator[AsyncIterator[tuple[str, bytes]]]:
        """The documents that have come, then each that comes."""
        loop = asyncio.get_running_loop()
        heard: asyncio.Queue[tuple[str, bytes]] = asyncio.Queue()
        wanted = frozenset(ids)

        def tell(task_id: str, document: bytes) -> None:
            if task_id in wanted:
                with suppress(RuntimeError):  # the loop has ended
                    loop.call_soon_threadsafe(heard.put_nowait, (task_id, document))

        async def changes() -> AsyncIterator[tuple[str, bytes]]:
            for entry in there.items():
                yield entry
            while True:
                yield await heard.get()

        mail = self._mail
        mail.listen(tell)
        there = mail.fetch(ids)
        try:
            yield changes()
        finally:
            mail.unlisten(tell)

    async def forget(self, ids: Sequence[str]) -> None:
        """Keep these no longer."""
        self._mail.forget(ids)

    async def save_group(self, group_id: str, document: bytes, expires: float | None) -> None:
        """Raises NotImplementedError."""
        raise NotImplementedError(NO_CHORDS)

    async def fetch_group(self, group_id: str) -> bytes | None:
        """Raises NotImplementedError."""
        raise NotImplementedError(NO_CHORDS)

    async def forget_group(self, group_id: str) -> None:
        """Raises NotImplementedError."""
        raise NotImplementedError(NO_CHORDS)

    async def open_chords(self, chords: Sequence[Chord]) -> None:
        """Raises OperationalError: what wanted it fails."""
        self._refuse()

    async def add_to_chord(self, group: str) -> None:
        """Raises OperationalError."""
        self._refuse()

    def _refuse(self) -> NoReturn:
        raise OperationalError(NO_CHORDS)

    async def count(self, parts: Sequence[Part], hold: float) -> Sequence[bool]:
        """No chord is ever complete."""
        return [False] * len(parts)

    async def chord(self, group: str) -> Standing | None:
        """Nothing is known of any."""
        return None

    async def fire(self, fires: Sequence[Fire], hold: float) -> Sequence[bool]:
        """Nobody holds any."""
        return [False] * len(fires)

    async def hold(self, fire: Fire, hold: float) -> bool:
        """Nobody holds any."""
        return False

    async def standing(self, idle: float, limit: int) -> Sequence[Standing]:
        """There are none."""
        return ()

    async def close(self) -> None:
        """Close the connection."""
        mail, self._opened = self._opened, None
        if mail is not None:
            mail.close()
        await self._link.close()
