"""Laws of ids."""

from __future__ import annotations

import os
import threading
import uuid

import pytest
from hypothesis import given
from hypothesis import strategies as st

from celeriac.wire.ids import follow_up_id, new_id


def test_new_ids_are_random_uuids() -> None:
    """Version 4, the RFC's variant, no two alike."""
    ids = [new_id() for _ in range(2000)]
    assert len(set(ids)) == 2000
    for text in ids:
        found = uuid.UUID(text)
        assert str(found) == text
        assert (found.version, found.variant) == (4, uuid.RFC_4122)


def test_threads_share_the_pool() -> None:
    """No id is given out twice."""
    found: list[list[str]] = [[] for _ in range(4)]

    def take(mine: list[str]) -> None:
        mine += [new_id() for _ in range(2000)]

    threads = [threading.Thread(target=take, args=(mine,)) for mine in found]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert len({text for mine in found for text in mine}) == 8000


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_fork_does_not_repeat_the_ids() -> None:
    """The child's pool starts empty."""
    new_id()
    reader, writer = os.pipe()
    pid = os.fork()
    if not pid:
        os.write(writer, "\n".join(new_id() for _ in range(50)).encode())
        os._exit(0)
    os.waitpid(pid, 0)
    os.close(writer)
    with open(reader) as file:
        childs = set(file.read().split())
    assert len(childs) == 50
    assert not childs & {new_id() for _ in range(300)}


@given(st.text(), st.integers(), st.text(), st.integers())
def test_follow_up_ids_are_fixed(task_id: str, retries: int, edge: str, index: int) -> None:
    """The same run and edge give the same id, whatever the foreign id looks like; another index gives another."""
    first = follow_up_id(task_id, retries, edge, index)
    assert first == follow_up_id(task_id, retries, edge, index)
    assert uuid.UUID(first).version == 5
    assert first != follow_up_id(task_id, retries, edge, index + 1)


def test_follow_up_ids_stay_what_they_are() -> None:
    """A newer version of the package must give the ids that the older one gave."""
    assert follow_up_id("a7b3241c-0000-4000-8000-000000000001", 2, "link", 1) == "4fb5aa7d-3500-528d-a8c5-8531780e48ec"
