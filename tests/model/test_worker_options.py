"""Node names and their formats."""

from __future__ import annotations

import pytest

from celeriac.errors import ImproperlyConfigured
from celeriac.model.worker_options import node_name


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("", "celery@a.b.c"),
        ("w1", "celery@w1"),
        ("w1@", "w1@a.b.c"),
        ("@x", "celery@x"),
        ("w1@%h", "w1@a.b.c"),
        ("w1@%n", "w1@a"),
        ("w1.%i@%d", "w1.0@b.c"),
        ("w%I@%h", "w@a.b.c"),
        ("100%%@%h", "100%@a.b.c"),
    ],
)
def test_node_names(given: str, expected: str) -> None:
    """A node name is read and completed as Celery does it."""
    assert node_name(given, "a.b.c") == expected


@pytest.mark.parametrize("given", ["w%z@%h", "50%"])
def test_unknown_formats_are_refused(given: str) -> None:
    """An unknown format is named, with those that there are."""
    with pytest.raises(ImproperlyConfigured, match=r"unknown format %.* use %h"):
        node_name(given, "a.b.c")
