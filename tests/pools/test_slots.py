"""Laws of the shared memory: a call is either started or taken back, never both."""

from __future__ import annotations

import mmap
import threading

from celeriac.pools.slots import Slots, block_size


def slots(seats: int = 1, index: int = 0) -> Slots:
    block = Slots(mmap.mmap(-1, block_size(seats) * (index + 1)), index, seats)
    block.reset()
    return block


def test_seat_says_what_runs() -> None:
    """A started call is running until it is stopped; the last started number stays."""
    block = slots(2)
    assert block.running() == []
    assert block.start(0, 5, 100)
    assert block.start(1, 6, 200)
    assert block.running() == [(5, 100), (6, 200)]
    block.stop(0)
    assert block.running() == [(6, 200)]
    assert block.last_started() == 6


def test_recalled_call_is_not_started() -> None:
    """Calls in the recalled range are refused, later ones are not."""
    block = slots()
    block.recall(3, 5)
    assert block.start(0, 2, 1)
    assert not block.start(0, 3, 1)
    assert not block.start(0, 5, 1)
    assert block.running() == []
    assert block.start(0, 6, 1)


def test_neighbours_do_not_touch() -> None:
    """A block writes only inside its own bytes."""
    memory = mmap.mmap(-1, block_size(1) * 3)
    left, middle, right = (Slots(memory, i, 1) for i in range(3))
    for block in (left, middle, right):
        block.reset()
    middle.start(0, 9, 9)
    middle.recall(10, 20)
    middle.aim(9)
    assert left.running() == right.running() == []
    assert left.start(0, 15, 1)
    assert right.start(0, 15, 1)
    assert middle.aimed() == 9


def test_recall_races_with_starts() -> None:
    """While one side starts calls in order and the other recalls, each call is started or taken back exactly once."""
    import time

    for _ in range(200):
        block = slots()
        started: list[int] = []
        skipped: list[int] = []
        begin = threading.Barrier(2)

        def child(
            begin: threading.Barrier = begin,
            block: Slots = block,
            started: list[int] = started,
            skipped: list[int] = skipped,
        ) -> None:
            begin.wait()
            for seq in range(1, 60):
                (started if block.start(0, seq, 1) else skipped).append(seq)

        thread = threading.Thread(target=child)
        thread.start()
        begin.wait()
        block.recall(block.last_started() + 1, 59)
        time.sleep(0.002)
        seen = block.last_started()
        thread.join()
        taken_back = [seq for seq in range(1, 60) if seq > seen]
        assert not set(taken_back) & set(started)
        assert sorted(started + skipped) == list(range(1, 60))
