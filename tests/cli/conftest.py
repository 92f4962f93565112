"""Runs command lines in this process, without touching its environment, folder or path."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from celeriac.cli.main import run


@dataclass
class Done:
    """What came of a command line."""

    code: int
    out: str
    err: str


Command = Callable[..., Done]


@pytest.fixture
def command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Iterator[Command]:
    """Run `celeriac` with these words in an empty folder."""
    before, modules = dict(os.environ), set(sys.modules)
    for name in [name for name in os.environ if name.startswith(("CELERY_", "CELERIAC_"))]:
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))

    def execute(*words: str) -> Done:
        capsys.readouterr()
        code = run(list(words))
        captured = capsys.readouterr()
        return Done(code, captured.out, captured.err)

    yield execute
    os.environ.clear()
    os.environ.update(before)
    for name in set(sys.modules) - modules:
        if str(getattr(sys.modules[name], "__file__", "")).startswith(str(tmp_path)):
            del sys.modules[name]
