"""A file with our process id, so that a supervisor finds us and a second start is refused."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from celeriac.cli import exits
from celeriac.errors import CeleryCommandException


@contextmanager
def pidfile(path: str) -> Iterator[None]:
    """Own the file while inside, by its content and by a lock on it. Replaces one whose owner is gone or that can't be
    read. Raises CeleryCommandException (73) when its owner runs, or when the file can't be written."""
    try:
        descriptor = _claim(path)
    except OSError as error:
        raise CeleryCommandException(f"--pidfile {path}: {error.strerror}", exits.CANNOT_CREATE) from error
    try:
        yield
    finally:
        with suppress(OSError):
            os.unlink(path)
        os.close(descriptor)


def _claim(path: str) -> int:
    import fcntl

    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            raise _taken(path, _owner(path)) from None
        if not _is_at(descriptor, path):  # its owner removed it between our open and our lock
            os.close(descriptor)
            continue
        owner = _owner(path)
        if owner is not None and owner != os.getpid() and _runs(owner):  # an owner that takes no lock
            os.close(descriptor)
            raise _taken(path, owner)
        os.ftruncate(descriptor, 0)
        os.write(descriptor, b"%d\n" % os.getpid())
        return descriptor


def _taken(path: str, owner: int | None) -> CeleryCommandException:
    who = f"process {owner}" if owner else "its owner"
    return CeleryCommandException(f"--pidfile {path}: {who} runs already", exits.CANNOT_CREATE)


def _is_at(descriptor: int, path: str) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    except FileNotFoundError:
        return False


def _owner(path: str) -> int | None:
    try:
        with open(path) as file:
            return int(file.read())
    except (OSError, ValueError):
        return None


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
