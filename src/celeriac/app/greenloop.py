"""An event loop for a thread of its own inside a process that gevent or eventlet has patched.

Its selector is the unpatched `poll`, and names are resolved in the loop's thread: the patched ways would hand the work
to a hub that does not run there.
"""

from __future__ import annotations

import asyncio
import selectors
import socket
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

_READ, _WRITE = 0x001, 0x004  # POLLIN, POLLOUT: the patched select module may have lost them


class PollSelector(selectors.BaseSelector):
    """The standard poll selector, on a poll object that was made unpatched."""

    def __init__(self, poll: Any) -> None:
        self._poll = poll
        self._keys: dict[int, selectors.SelectorKey] = {}

    def register(self, fileobj: Any, events: int, data: Any = None) -> selectors.SelectorKey:
        """Watch a file object."""
        number = fileobj if isinstance(fileobj, int) else fileobj.fileno()
        if number in self._keys:
            raise KeyError(f"{fileobj!r} is already registered")
        key = selectors.SelectorKey(fileobj, number, events, data)
        self._poll.register(number, _mask(events))
        self._keys[number] = key
        return key

    def unregister(self, fileobj: Any) -> selectors.SelectorKey:
        """Stop watching."""
        number = self._number(fileobj)
        key = self._keys.pop(number)
        with suppress(KeyError, OSError):  # closed before it was unregistered
            self._poll.unregister(number)
        return key

    def modify(self, fileobj: Any, events: int, data: Any = None) -> selectors.SelectorKey:
        """Watch for something else."""
        number = self._number(fileobj)
        key = self._keys[number]._replace(events=events, data=data)
        self._poll.modify(number, _mask(events))
        self._keys[number] = key
        return key

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        """Wait up to `timeout` seconds for what is ready."""
        wait = None if timeout is None else max(0, int(timeout * 1000 + 0.999))
        ready = []
        for number, mask in self._poll.poll(wait):
            key = self._keys.get(number)
            if key is None:
                continue
            events = (selectors.EVENT_READ if mask & ~_WRITE else 0) | (selectors.EVENT_WRITE if mask & ~_READ else 0)
            if events & key.events:
                ready.append((key, events & key.events))
        return ready

    def close(self) -> None:
        """Forget everything."""
        self._keys.clear()

    def get_map(self) -> Mapping[Any, selectors.SelectorKey]:
        """File descriptor -> key."""
        return self._keys

    def get_key(self, fileobj: Any) -> selectors.SelectorKey:
        """The key of a watched file object. Raises KeyError."""
        return self._keys[self._number(fileobj)]

    def _number(self, fileobj: Any) -> int:
        if isinstance(fileobj, int):
            return fileobj
        number: int = fileobj.fileno()
        if number >= 0:
            return number
        for known, key in self._keys.items():  # closed meanwhile
            if key.fileobj is fileobj:
                return known
        raise KeyError(f"{fileobj!r} is not registered")


def _mask(events: int) -> int:
    return (_READ if events & selectors.EVENT_READ else 0) | (_WRITE if events & selectors.EVENT_WRITE else 0)


class GreenProofLoop(asyncio.SelectorEventLoop):
    """A selector loop that touches nothing patched."""

    def __init__(self, poll: Any) -> None:
        super().__init__(PollSelector(poll))

    async def getaddrinfo(self, host: Any, port: Any, **options: Any) -> Any:
        """Resolve in this thread: it serves few callers, and an executor thread would be a greenlet."""
        import _socket

        return [
            (socket.AddressFamily(family), socket.SocketKind(kind), protocol, name, address)
            for family, kind, protocol, name, address in _socket.getaddrinfo(host, port, **_numbers(options))
        ]


def _numbers(options: dict[str, Any]) -> dict[str, int]:
    return {key: int(value) for key, value in options.items()}
