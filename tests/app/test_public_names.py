"""`import celeriac` and what it gives."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version

import pytest

import celeriac
from tests.processes import SOURCE


def test_every_public_name_is_there() -> None:
    """Imported when it is touched."""
    for name in celeriac.__all__:
        assert getattr(celeriac, name) is not None
    assert set(celeriac.__all__) <= set(dir(celeriac))
    assert celeriac.Celery is celeriac.Celeriac
    assert celeriac.subtask is celeriac.signature
    assert celeriac.states.SUCCESS == "SUCCESS"
    assert len(celeriac.uuid()) == 36


def test_what_is_not_there_says_so() -> None:
    """As any module says it."""
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        celeriac.__getattr__("nonsense")


def test_the_version() -> None:
    """That of the distribution, where it is installed."""
    assert ".".join(str(part) for part in celeriac.VERSION) == celeriac.__version__
    try:
        assert version("celeriac") == celeriac.__version__
    except PackageNotFoundError:
        pyproject = (SOURCE.parent / "pyproject.toml").read_text()
        assert f'version = "{celeriac.__version__}"' in pyproject


def test_names_in_any_order() -> None:
    """Whatever is touched first, a default app can be made."""
    for first in ("signature('t').app", "AsyncResult('x').app", "current_app.main", "shared_task(len)"):
        code = f"from celeriac import *; import celeriac; print(celeriac.{first})"
        subprocess.run([sys.executable, "-c", code], env={"PYTHONPATH": str(SOURCE)}, check=True, timeout=30)
