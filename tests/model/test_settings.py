"""The table of settings: complete, spelled as Celery spells it, and honest about where it differs."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from celeriac.errors import ImproperlyConfigured
from celeriac.model.settings import (
    DIFFERENCES,
    OLD_NAMES,
    SETTINGS,
    canonical,
    cast,
    defaults,
    find,
    known,
    nearest,
    seconds,
)
from tests.processes import celery_says

KINDS = {"bool", "int", "float", "string", "bytes", "list", "tuple", "dict", "any"}
PYTHON = {
    "bool": bool, "int": int, "float": int | float | timedelta, "string": str, "bytes": bytes, "list": list | tuple,
    "tuple": tuple, "dict": dict,
}  # fmt: skip


def test_the_table_is_whole() -> None:
    """All 207 keys of Celery 5.7 are there, and celeriac's own beside them."""
    assert sum(not setting.own for setting in SETTINGS.values()) == 207
    assert {setting.key for setting in SETTINGS.values() if setting.own} >= {
        "celery_peers", "profile", "task_publish_timeout", "task_unknown_patience", "worker_lease_seconds",
    }  # fmt: skip


@pytest.mark.parametrize("key", SETTINGS)
def test_every_row_says_what_it_is(key: str) -> None:
    """A key is lower case, its type is one of the known ones, its default has it, its prose is one sentence or two."""
    setting = SETTINGS[key]
    assert key == key.lower() == setting.key
    assert setting.kind in KINDS
    assert setting.old == setting.old.upper()
    assert setting.doc.endswith(".")
    assert "\n" not in setting.doc
    if setting.default is not None and setting.kind != "any":
        assert isinstance(setting.default, PYTHON[setting.kind])


def test_old_names_are_unique() -> None:
    """An old name stands for one key."""
    assert len(OLD_NAMES) == sum(bool(setting.old) for setting in SETTINGS.values())


def test_defaults_are_celerys() -> None:
    """The same keys, old names and defaults as in Celery itself."""
    code = "import celery.app.defaults as d, pickle; print(pickle.dumps((d.DEFAULTS, d._TO_NEW_KEY)).hex())"
    theirs, old_names = pickle.loads(bytes.fromhex(celery_says(code)))
    assert set(theirs) == {key for key, setting in SETTINGS.items() if not setting.own}
    assert old_names == OLD_NAMES
    for key, default in theirs.items():
        assert SETTINGS[key].default == default, key
        assert defaults("celery")[key] == default, key


def test_profiles_differ_in_what_is_listed() -> None:
    """Profile safe differs from profile celery in the rows of DIFFERENCES, and in nothing else."""
    ours, theirs = defaults("safe"), defaults("celery")
    differ = {key for key in ours if ours[key] != theirs[key]} - {"profile"}
    listed = {row.key: row for row in DIFFERENCES}
    assert differ == set(listed) - {"broker_url", "result_backend"}
    for key in differ:
        assert (listed[key].ours, listed[key].celery) == (ours[key], theirs[key])
    assert ours["task_acks_late"] is True
    assert ours["task_reject_on_worker_lost"] is True


def test_an_unknown_profile_is_refused() -> None:
    """A misspelled profile is told, with those that there are."""
    with pytest.raises(ImproperlyConfigured, match="'safe' or 'celery'"):
        defaults("save")
    with pytest.raises(ImproperlyConfigured):
        defaults([])  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("task_acks_late", "task_acks_late"),
        ("TASK_ACKS_LATE", "task_acks_late"),
        ("CELERY_ACKS_LATE", "task_acks_late"),
        ("CELERYD_CONCURRENCY", "worker_concurrency"),
        ("BROKER_URL", "broker_url"),
        ("CASSANDRA_SECURE_BUNDLE_PATH", "cassandra_secure_bundle_path"),
        ("My_Own", "My_Own"),
    ],
)
def test_names_lead_to_the_key(name: str, key: str) -> None:
    """A key is found by its new, old and capital name; a strange name stays as it is."""
    assert canonical(name) == key


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("task_seralizer", "task_serializer"),
        ("TASK_SERIALISER", "task_serializer"),
        ("acept_content", "accept_content"),
        ("CELERY_ACK_LATE", "task_acks_late"),
        ("zzz", None),
    ],
)
def test_a_misspelled_name_has_a_nearest_one(name: str, key: str | None) -> None:
    """The hint of a misspelled name is the key that was meant."""
    assert nearest(name) == key


def test_keys_without_default_are_known() -> None:
    """Keys that are only read where they are set don't count as mistakes."""
    assert known("worker_pidfile")
    assert known("redis_client_name")
    assert not known("worker_pidfiles")


def test_short_names_are_found() -> None:
    """A setting is found by the part behind its family, in a family first."""
    assert find("always_eager").key == "task_always_eager"
    assert find("url", "broker").key == "broker_url"
    assert find("url", "database").key == "database_url"
    assert find("CELERY_ALWAYS_EAGER").key == "task_always_eager"
    with pytest.raises(KeyError):
        find("zzz")


@pytest.mark.parametrize(
    ("kind", "text", "value"),
    [
        ("bool", "yes", True), ("bool", "TRUE", True), ("bool", "1", True), ("bool", "off", False),
        ("int", "3", 3), ("float", "3", 3.0), ("string", "3", "3"), ("bytes", "ab", b"ab"),
        ("list", "a, b", ["a", "b"]), ("list", '["a,b"]', ["a,b"]), ("tuple", "a,b", ("a", "b")), ("list", "", []),
        ("dict", '{"a": 1}', {"a": 1}),
        ("any", "3", 3), ("any", "auto", "auto"), ("any", "[1]", [1]), ("any", "null", None),
    ],
)  # fmt: skip
def test_texts_are_cast(kind: str, text: str, value: Any) -> None:
    """A text of the command line becomes a value of the setting's type."""
    found = cast(kind, text)
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(
    ("kind", "text"),
    [("bool", "maybe"), ("bool", ""), ("int", "x"), ("dict", "a=1"), ("dict", "[1]"), ("list", "[1"), ("foo", "1")],
)
def test_what_can_not_be_cast_is_refused(kind: str, text: str) -> None:
    """A text that is no value of the type is an error of the two kinds that Celery raises."""
    with pytest.raises((TypeError, ValueError)):
        cast(kind, text)


@given(st.one_of(st.integers(-(10**9), 10**9), st.floats(-1e9, 1e9)))
def test_durations_are_seconds(value: float) -> None:
    """A number is seconds already, a timedelta is counted, None stays None."""
    assert seconds(value) == float(value)
    assert seconds(timedelta(seconds=3, milliseconds=500)) == 3.5
    assert seconds(None) is None


def test_importing_is_light() -> None:
    """The table and its code import neither asyncio nor inspect nor logging."""
    code = "import sys, celeriac.model.settings; print(*{'asyncio', 'inspect', 'logging'} & set(sys.modules))"
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2] / "src")}
    words = [sys.executable, "-S", "-c", code]
    found = subprocess.run(words, capture_output=True, text=True, check=True, timeout=20, env=env)
    assert found.stdout.strip() == ""
