"""Where the database file lies, and where it may not."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from celeriac.drivers.sqlite import default_path, locate, network_filesystem
from celeriac.errors import ImproperlyConfigured


@pytest.mark.parametrize("mark", ["pyproject.toml", "manage.py", ".git"])
def test_the_default_stands_in_the_project(tmp_path: Path, mark: str) -> None:
    """Without a path the file stands in `.celeriac` of the nearest folder upwards that holds a project."""
    (tmp_path / "outer" / "inner" / "deep").mkdir(parents=True)
    (tmp_path / "pyproject.toml").touch()
    (tmp_path / "outer" / mark).touch()
    found = default_path(str(tmp_path / "outer" / "inner" / "deep"))
    assert found == str(tmp_path / "outer" / ".celeriac" / "celeriac.db")


def test_without_a_project_it_stands_here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Without a project the file stands in `.celeriac` of the current folder."""
    monkeypatch.setattr(Path, "exists", lambda self: False)
    assert default_path(str(tmp_path)) == str(tmp_path / ".celeriac" / "celeriac.db")


def test_urls(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Three slashes are relative to the current folder, four are absolute, none but two is the default path."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "manage.py").touch()
    assert locate("sqlite:////var/x.db", {}).path == "/var/x.db"
    assert locate("sqlite:///sub/x.db", {}).path == str(tmp_path / "sub" / "x.db")
    assert locate("sqlite:///with%20space.db", {}).path == str(tmp_path / "with space.db")
    for url in ("sqlite://", "sqlite:///", "sqlite:"):
        assert locate(url, {}).path == str(tmp_path / ".celeriac" / "celeriac.db")


def test_options() -> None:
    """Durable unless it is asked otherwise; the URL's query goes before the options; foreign options are ignored."""
    assert locate("sqlite:////x.db", {"visibility_timeout": 3}).synchronous == "FULL"
    assert locate("sqlite:////x.db?synchronous=normal", {"synchronous": "full"}).synchronous == "NORMAL"
    assert locate("sqlite:////x.db?timeout=2.5", {}).timeout == 2.5
    assert locate("sqlite:////x.db", {"timeout": 3}).timeout == 3.0


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("sqlite://localhost/x.db", "no host"),
        ("sqlite:///:memory:", "memory://"),
        ("sqlite:////x.db?synchronous=off", "full or normal"),
        ("sqlite:////x.db?timeout=soon", "number of seconds"),
        ("sqlite:////x.db?timeout=-1", "number of seconds"),
        ("sqlite:////x.db?timeout=nan", "number of seconds"),
    ],
)
def test_bad_urls(url: str, words: str) -> None:
    """A URL that can't be used is refused in one line that says what to write."""
    with pytest.raises(ImproperlyConfigured, match=words) as caught:
        locate(url, {})
    assert "\n" not in str(caught.value)


MOUNTS = """\
22 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw
30 22 0:40 / /mnt/net rw - nfs4 server:/x rw
31 30 0:41 / /mnt/net/local rw - tmpfs tmpfs rw
32 22 0:42 / /mnt/with\\040space rw - cifs //server/x rw
33 22 0:43 / /mnt/fuse rw - fuse.sshfs me@host: rw
34 22 0:44 / /mnt/ntfs rw - fuseblk /dev/sdb1 rw
35 22 0:45 / /mnt/covered rw - nfs server:/y rw
36 35 0:46 / /mnt/covered rw - ext4 /dev/sdc rw
broken line
"""


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/home/x.db", None),
        ("/mnt/net/x.db", "nfs4"),
        ("/mnt/network/x.db", None),
        ("/mnt/net/local/x.db", None),
        ("/mnt/with space/x.db", "cifs"),
        ("/mnt/fuse/a/b/x.db", "fuse.sshfs"),
        ("/mnt/ntfs/x.db", None),
        ("/mnt/covered/x.db", None),
    ],
)
def test_network_file_systems_are_known(path: str, kind: str | None) -> None:
    """The file system of a path is that of the innermost mount, the last one where several cover each other."""
    assert network_filesystem(path, MOUNTS) == kind


def test_this_machine_can_be_asked(tmp_path: Path) -> None:
    """Asking about a local path of this machine raises nothing."""
    assert network_filesystem(str(tmp_path)) is None
    assert network_filesystem(os.sep) is None
