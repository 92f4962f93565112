"""The template process."""

from __future__ import annotations

from typing import Any

import msgspec
import psutil
import pytest

from celeriac.model.outcome import Catalogue
from celeriac.pools.frames import Up
from tests.pools.rig import Rig, gone


def test_the_catalogue_comes_first() -> None:
    """After the import the parent is told every task; no thread runs."""
    with Rig() as rig:
        catalogue = rig.catalogue()
        assert {"add", "aadd"} <= {t.name for t in catalogue.tasks}
        assert {t.name: t.is_async for t in catalogue.tasks}["aadd"]
        assert catalogue.threads == ()


@pytest.mark.parametrize(("spec", "reason"), [({"broken": True}, "no such app"), ({"exits": True}, "gone")])
def test_an_app_that_cannot_be_imported(spec: dict[str, Any], reason: str) -> None:
    """One message with reason and traceback, then the template ends."""
    with Rig(**spec) as rig:
        word, index, text = rig.hear("failed")
        assert (word, index) == ("failed", -1)
        first, *rest = text.splitlines()
        assert first.startswith("the app can't be imported: ")
        assert reason in first
        assert "Traceback" in rest[0]
        assert "sample.py" in text
        assert rig.process.wait(5) == 1


def test_threads_make_children_start_afresh() -> None:
    """With a thread in the app, the catalogue names it and children are new processes; they work as forked ones do and
    end with the template."""
    with Rig(thread=True) as rig:
        assert rig.catalogue().threads == ("busybody",)
        child = rig.child()
        assert child.outcome(child.run("add", 1, 2)) == 3
        assert child.outcome(child.run("facts"))["sockets"] == 2
        other = rig.child()
        assert other.stop() == 0
        child.run("nap", 60)
        child.until_running(child.seq)
        rig.process.kill()
        assert gone(child.pid)


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_the_start_method_is_obeyed(method: str) -> None:
    """A forked child is a copy of the template; one that is spawned is a Python of its own that imports the app."""
    with Rig(start_method=method) as rig:
        assert rig.catalogue().threads == ()
        child = rig.child()
        assert child.outcome(child.run("add", 1, 2)) == 3
        assert ("celeriac.pools.template" in psutil.Process(child.pid).cmdline()) is (method == "fork")


def test_children_are_independent() -> None:
    """Several children of one template; one that dies leaves the others alone."""
    with Rig() as rig:
        rig.catalogue()
        children = [rig.child() for _ in range(4)]
        assert len({c.pid for c in children}) == 4
        children[1].run("die", 9)
        assert rig.hear("exited")[1] == 1
        for child in (children[0], children[2], children[3]):
            assert child.outcome(child.run("pid")) == child.pid


def test_children_draw_different_random_numbers() -> None:
    """A fork does not copy the state of random generators or of the pool of ids."""
    with Rig() as rig:
        rig.catalogue()
        children = [rig.child() for _ in range(3)]
        drawn = [c.outcome(c.run("draw")) for c in children]
        assert len({tuple(d) for d in drawn}) == 3
        assert len({d[0] for d in drawn}) == 3
        assert len({d[1] for d in drawn}) == 3


def test_later_tasks_are_told() -> None:
    """Tasks that are registered when a child starts reach the parent."""
    with Rig(late=True) as rig:
        assert "late" not in {t.name for t in rig.catalogue().tasks}
        child = rig.child()
        catalogue = msgspec.msgpack.decode(child.next(Up.CATALOGUE), type=Catalogue)
        assert "late" in {t.name for t in catalogue.tasks}
        assert child.outcome(child.run("late", 1, 2)) == 3


def test_a_child_that_cannot_start() -> None:
    """A child whose start fails ends with code 1 and says why."""
    with Rig(broken_init=True) as rig:
        rig.catalogue()
        rig.child(ready=False)
        assert rig.hear("exited")[3] == 1 << 8
        assert "no init today" in rig.output()
