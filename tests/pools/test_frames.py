"""Laws of the pipe's frames: any cut of the stream gives the same frames."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from celeriac.pools.frames import SEQ, Down, Splitter, frame, run_frame


@given(st.lists(st.tuples(st.integers(0, 255), st.binary(max_size=300)), max_size=20), st.lists(st.integers(1, 60)))
def test_any_cut_gives_the_same_frames(frames: list[tuple[int, bytes]], cuts: list[int]) -> None:
    """The splitter does not care where the kernel cuts the stream."""
    stream = b"".join(frame(kind, payload) for kind, payload in frames)
    splitter = Splitter()
    found: list[tuple[int, bytes]] = []
    position = 0
    for cut in [*cuts, len(stream)]:
        found += list(splitter.feed(stream[position : position + cut]))
        position += cut
    assert found == frames


def test_run_frame() -> None:
    """A RUN frame is its number and the message."""
    ((kind, payload),) = Splitter().feed(run_frame(7, b"blob"))
    assert kind == Down.RUN
    assert SEQ.unpack(payload[:8]) == (7,)
    assert payload[8:] == b"blob"


@pytest.mark.parametrize("head", [b"\0\0\0\0\0", b"\xff\xff\xff\xff\0"])
def test_impossible_length(head: bytes) -> None:
    """A length that no peer sends is refused instead of waited for."""
    with pytest.raises(ValueError, match="frame of"):
        list(Splitter().feed(head))
