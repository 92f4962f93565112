"""Results in files keep the contract; what is their own besides."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from celeriac.backends.files import FileBackend, FileReader
from celeriac.errors import BackendStoreError, ImproperlyConfigured
from celeriac.model.message import Store
from celeriac.testing.contract_backend import BackendContract, ReaderContract
from celeriac.testing.contract_chords import chord
from celeriac.testing.rigs import BackendRig


class FileRig(BackendRig):
    """A folder of its own, and a clock that jumps instead of going."""

    forgets = False

    def __init__(self, folder: Path) -> None:
        self.ahead = 0.0
        self.url = f"file://{folder}"

    def clock(self) -> float:
        return time.time() + self.ahead

    def backend(self) -> FileBackend:
        return FileBackend(self.url, {"expires": 100}, self.clock)

    def reader(self) -> FileReader:
        return FileReader(self.url, {"expires": 100}, self.clock)

    async def elapse(self, seconds: float) -> None:
        self.ahead += seconds


class TestFileBackend(BackendContract):
    @pytest.fixture
    def rig(self, tmp_path: Path) -> FileRig:
        return FileRig(tmp_path)


class TestFileReader(ReaderContract):
    @pytest.fixture
    def rig(self, tmp_path: Path) -> FileRig:
        return FileRig(tmp_path)


def test_what_is_over_is_cleaned_up(tmp_path: Path) -> None:
    """Documents older than `result_expires` go, and chords whose time is over; the others and strange files stay."""
    rig = FileRig(tmp_path)
    reader = rig.reader()
    (tmp_path / "somebody's").write_text("file")
    reader.store([Store("old", b"{}", "SUCCESS"), Store("young", b"{}", "SUCCESS")])
    reader.save_group("old", b"{}", None)
    for name in ("celery-task-meta-old", "celery-taskset-meta-old", "somebody's"):
        os.utime(tmp_path / name, (1, 1))
    reader.open_chords([chord(1, group="brief", expires=1), chord(1, group="stays", expires=None)])
    rig.elapse_sync(2)
    reader.clean_up()
    assert set(reader.fetch(["old", "young"])) == {"young"}
    assert reader.fetch_group("old") is None
    assert (tmp_path / "somebody's").exists()
    assert [path.name for path in (tmp_path / "celeriac-chords" / "documents").iterdir()] == ["cstays"]


def test_a_name_never_leads_out_of_the_folder(tmp_path: Path) -> None:
    """An id with a slash is refused, whoever thought of it."""
    inside = tmp_path / "results"
    inside.mkdir()
    (tmp_path / "secret").write_text("{}")
    reader = FileRig(inside).reader()
    (inside / "celery-task-meta-x").mkdir()
    assert reader.fetch(["x/../../secret"]) == {}
    reader.forget(["x/../../secret", "too long" * 100, "\ud800"])
    assert reader.fetch(["too long" * 100, "\ud800"]) == {}
    with pytest.raises(BackendStoreError, match="name of a file"):
        reader.store([Store("x/../../secret", b"{}", "SUCCESS")])
    assert (tmp_path / "secret").exists()


@pytest.mark.parametrize(
    ("url", "told"),
    [
        ("file://", "names no folder"),
        ("file://relative/path", "names no folder"),
        ("file:///nowhere/at/all", "does not exist: make it"),
    ],
)
def test_wrong_folders(url: str, told: str) -> None:
    """One line says what is wrong with a URL."""
    with pytest.raises(ImproperlyConfigured, match=told) as raised:
        FileReader(url, {})
    assert "\n" not in str(raised.value)
