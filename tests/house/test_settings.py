"""The table of settings is honest: what nothing reads says so."""

from __future__ import annotations

import ast

from celeriac.model.settings import DIFFERENCES, SETTINGS
from celeriac.model.settings_effects import NEEDLESS, UNBUILT
from tests.house.code import modules

WRITTEN = {"beat_schedule"}
"""Named in the sources only because `app.add_periodic_task` puts entries in, for Celery's beat."""


def read() -> set[str]:
    """The settings that a module beside the tables names: as an attribute, or as a text of its own."""
    found: set[str] = set()
    for name, (_, tree) in modules().items():
        if name.startswith("celeriac.model.settings"):
            continue
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute):
                found.add(node.attr)
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.add(node.value)
    return (found & SETTINGS.keys()) - WRITTEN


def test_every_setting_is_read_or_says_why_not() -> None:
    """A setting that no source reads is marked, and none that is read."""
    marked = {key for key, setting in SETTINGS.items() if setting.effect}
    assert sorted(SETTINGS.keys() - read() - marked) == [], "nothing reads these: mark them in settings_effects"
    assert sorted(read() & marked) == [], "these are read: take their marks away"


def test_marks_are_of_settings() -> None:
    """Every mark is that of a setting, of one kind, and no default is changed of what has no effect."""
    marks = [*NEEDLESS, *UNBUILT]
    assert sorted(set(marks) - SETTINGS.keys()) == []
    assert len(set(marks)) == len(marks)
    assert not {row.key for row in DIFFERENCES} & set(marks)
