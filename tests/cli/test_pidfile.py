"""Pidfiles: one owner at a time, and a dead one never stands in the way."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from celeriac.cli.pidfile import pidfile
from celeriac.errors import CeleryCommandException


def test_it_holds_our_id_and_goes_with_us(tmp_path: Path) -> None:
    """The file says who owns it, in Celery's form, and is gone afterwards."""
    path = tmp_path / "worker.pid"
    with pidfile(str(path)):
        assert path.read_text() == f"{os.getpid()}\n"
    assert not path.exists()


@pytest.mark.parametrize("content", ["", "carrots", str(2**22 + 1)])
def test_a_stale_file_is_replaced(tmp_path: Path, content: str) -> None:
    """A file whose owner is gone, or that says nothing, is taken over."""
    path = tmp_path / "worker.pid"
    path.write_text(content)
    with pidfile(str(path)):
        assert path.read_text() == f"{os.getpid()}\n"


def test_a_living_owner_is_respected(tmp_path: Path) -> None:
    """A file of a living process is left alone: exit code 73."""
    path = tmp_path / "worker.pid"
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as owner:
        path.write_text(f"{owner.pid}\n")
        with pytest.raises(CeleryCommandException, match=rf"process {owner.pid} runs already") as refused, pidfile(
            str(path)
        ):
            pass
        assert refused.value.exit_code == 73
        assert path.read_text() == f"{owner.pid}\n"
        owner.communicate(b"\n")


def test_a_folder_that_can_not_be_written(tmp_path: Path) -> None:
    """A file that can't be made is exit code 73, in one line."""
    with pytest.raises(CeleryCommandException, match="No such file") as refused, pidfile(str(tmp_path / "no" / "pid")):
        pass
    assert refused.value.exit_code == 73


def test_one_of_many_wins(tmp_path: Path) -> None:
    """Of several starters at once exactly one owns the file, over a stale one too."""
    path = tmp_path / "worker.pid"
    path.write_text("999999999\n")
    code = (
        "import sys\n"
        "from celeriac.cli.pidfile import pidfile\n"
        "with pidfile(sys.argv[1]):\n"
        "    print('mine', flush=True)\n"
        "    input()\n"
    )
    starters = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL, text=True,
        )
        for _ in range(6)
    ]  # fmt: skip
    losers = [starter for starter in starters if starter.stdout is not None and starter.stdout.readline() != "mine\n"]
    assert len(losers) == 5
    for starter in starters:
        starter.communicate("\n", timeout=10)
