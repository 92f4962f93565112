"""Doorbells ring whoever waits, and never hold up or fail whoever rings."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from celeriac.drivers.alarm import Alarm
from celeriac.drivers.doorbell import Bells, folder_of
from celeriac.drivers.listener import Listener


def test_a_ring_reaches_its_kind(tmp_path: Path) -> None:
    """A ring reaches all bells of its kinds, except one's own, and no others."""
    bells = Bells(str(tmp_path / "x.db"))
    work, other, result = bells.bell("w"), bells.bell("w"), bells.bell("r")
    assert work is not None and other is not None and result is not None  # noqa: PT018
    bells.ring("w", own=work.path)
    assert not work.wait(0)
    assert other.wait(1)
    assert not result.wait(0)
    bells.ring("wr")
    assert work.wait(1) and result.wait(1)  # noqa: PT018
    for bell in (work, other, result):
        bell.close()
    assert os.listdir(bells.folder() or "") == []
    bells.ring("w")
    bells.close()
    bells.close()


def test_a_full_bell_holds_nobody_up(tmp_path: Path) -> None:
    """A bell that nobody answers takes any number of rings at once; they count as one."""
    bells = Bells(str(tmp_path / "x.db"))
    bell = bells.bell("w")
    assert bell is not None
    before = time.monotonic()
    for _ in range(2000):
        bells.ring("w")
    assert time.monotonic() - before < 2
    assert bell.drain()
    assert not bell.drain()
    bell.close()


def test_the_bells_of_killed_processes_are_taken_away(tmp_path: Path) -> None:
    """A bell whose process was killed is removed by whoever rings it."""
    code = (
        "import os, signal, sys; from celeriac.drivers.doorbell import Bells; "
        "bell = Bells(sys.argv[1]).bell('w'); os.kill(os.getpid(), signal.SIGKILL)"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "x.db")], check=False, timeout=30)
    bells = Bells(str(tmp_path / "x.db"))
    folder = bells.folder()
    assert folder is not None
    assert len(os.listdir(folder)) == 1
    bells.ring("w")
    assert os.listdir(folder) == []


def test_a_new_bell_is_heard_of_at_once(tmp_path: Path) -> None:
    """Bells that come and go between rings are all heard of."""
    bells = Bells(str(tmp_path / "x.db"))
    for _ in range(50):
        bell = bells.bell("w")
        assert bell is not None
        bells.ring("w")
        assert bell.wait(1)
        bell.close()


def test_long_paths_have_their_bells_elsewhere(tmp_path: Path) -> None:
    """Where the path is too long for a socket, the bells stand in a folder of our own in the temporary folder."""
    long = tmp_path / ("x" * 90)
    long.mkdir()
    bells, others = Bells(str(long / "x.db")), Bells(str(long / "y.db"))
    folder = bells.folder()
    assert folder is not None
    assert not folder.startswith(str(tmp_path))
    assert os.stat(folder).st_mode & 0o777 == 0o700
    assert folder != others.folder()
    bell = bells.bell("w")
    assert bell is not None
    Bells(str(long / "x.db")).ring("w")
    assert bell.wait(1)
    bell.close()
    for made in (bells.folder(), others.folder()):
        os.rmdir(made or "")


def test_a_foreign_folder_is_not_trusted(tmp_path: Path) -> None:
    """A link in the temporary folder that someone laid where ours should be is not used."""
    long = "/nowhere/" + tmp_path.name + "x" * 90
    folder = folder_of(long)
    assert folder is not None
    os.rmdir(folder)
    os.symlink(tmp_path, folder)
    try:
        assert folder_of(long) is None
    finally:
        os.unlink(folder)


def test_without_sockets_nothing_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a system without Unix sockets there are no bells; to ring is still no error, and a listener lets time pass."""
    monkeypatch.setattr("celeriac.drivers.doorbell.socket", SimpleNamespace())
    bells = Bells(str(tmp_path / "x.db"))
    assert bells.bell("w") is None
    bells.ring("w")

    async def listen() -> None:
        listener = Listener(bells, "w")
        assert listener.path == ""
        assert await listener.wait(0.01) is False
        assert listener.look < 0.1
        listener.close()

    asyncio.run(listen())


def test_a_child_rings_after_a_fork(tmp_path: Path) -> None:
    """After a fork the child rings through a socket of its own."""
    bells = Bells(str(tmp_path / "x.db"))
    bell = bells.bell("w")
    assert bell is not None
    bells.ring("w")
    assert bell.wait(1)
    pid = os.fork()
    if pid == 0:
        bells.ring("w")
        os._exit(0)
    assert os.waitpid(pid, 0)[1] == 0
    assert bell.wait(1)
    bell.close()


def test_a_listener_hears_on_its_loop(tmp_path: Path) -> None:
    """A listener wakes on a ring of another thread, and forgets it when told to."""

    async def listen() -> None:
        bells = Bells(str(tmp_path / "x.db"))
        listener = Listener(bells, "w")
        assert await listener.wait(0.01) is False
        threading.Timer(0.02, bells.ring, ("w",)).start()
        assert await listener.wait(5) is True
        assert await listener.wait(5) is True
        listener.clear()
        assert await listener.wait(0.01) is False
        listener.close()
        listener.close()

    asyncio.run(listen())


def test_an_alarm_does_not_swallow_a_cancellation() -> None:
    """A task that is cancelled at the moment of the alarm ends."""

    async def story() -> None:
        alarm = Alarm()

        async def circle() -> None:
            while True:
                await alarm.wait(10)
                alarm.clear()
                await asyncio.sleep(0)

        waiting = asyncio.ensure_future(circle())
        await asyncio.sleep(0.01)
        alarm.set()
        waiting.cancel()
        ended, _ = await asyncio.wait([waiting], timeout=5)
        assert ended

    asyncio.run(story())
