"""Hostile bytes: every reader of the room reads them or refuses them with an error of ours, and runs nothing."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from celeriac.errors import CeleryError, ContentDisallowed, DecodeError, InvalidTaskError
from celeriac.wire import codec, failure, frame, notice, record
from celeriac.wire.task import Head, TaskMessage, pack, read_head, unpack

HERE = Path(__file__).parent
CORPUS = sorted((HERE / "corpus").iterdir())
SEEDS = [file.read_bytes() for folder in ("golden", "corpus") for file in sorted((HERE / folder).rglob("*.bin"))]
SMALL = [seed for seed in SEEDS if len(seed) < 5000 and b"bzip2" not in seed]
"""Seeds of mutations. A bomb takes its time, also when it is refused."""
JSON = codec.accept_set(["json"])
SAFE = codec.accept_set(["json", "msgpack", "yaml"])
ERRORS: dict[str, type[CeleryError]] = {
    "invalid": InvalidTaskError,
    "unreadable": DecodeError,
    "refused": ContentDisallowed,
}


def rebuild(blob: bytes) -> Any:
    with contextlib.suppress(DecodeError):
        return failure.rebuild(record.read(blob).result)
    return None


READERS: list[tuple[Callable[[bytes], Any], tuple[type[CeleryError], ...]]] = [
    (read_head, (InvalidTaskError,)),
    (lambda blob: unpack(blob, SAFE), (InvalidTaskError, DecodeError)),
    (frame.unpack, (DecodeError,)),
    (frame.losses, (DecodeError,)),
    (lambda blob: frame.with_losses(blob, 1, 2), (DecodeError,)),
    (lambda blob: frame.with_headers(blob, x=1), (DecodeError,)),
    (record.read, (DecodeError,)),
    (lambda blob: record.read(blob, "msgpack"), (DecodeError,)),
    (record.read_group, (DecodeError,)),
    (notice.read_events, (DecodeError,)),
    (notice.read_request, (DecodeError,)),
    (notice.read_reply, (DecodeError,)),
    (rebuild, (CeleryError,)),
]


def read_all(blob: bytes) -> None:
    """Have every reader try; anything but the errors it promises fails the test."""
    for reader, errors in READERS:
        with contextlib.suppress(*errors):
            reader(blob)


@pytest.fixture(autouse=True)
def nothing_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """A pickle that runs would run this."""

    def caught(*args: Any) -> None:
        raise AssertionError("code of a message was run")

    monkeypatch.setattr(os, "system", caught)


@pytest.mark.parametrize("file", CORPUS, ids=lambda file: file.stem)
def test_corpus(file: Path) -> None:
    """What `unpack` makes of a file stands in its name; a parent reads all heads but those of invalid envelopes."""
    blob = file.read_bytes()
    started = time.monotonic()
    expected = file.stem.split("-")[0]
    if expected == "ok":
        message = unpack(blob, JSON)
        assert isinstance(message, TaskMessage)
        assert pack(message, queue="q").blob
    else:
        with pytest.raises(ERRORS[expected]) as caught:
            unpack(blob, JSON)
        assert len(str(caught.value)) < 1000
    with contextlib.suppress(InvalidTaskError):
        assert isinstance(read_head(blob), Head)
    read_all(blob)
    assert time.monotonic() - started < 20


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_mutations(data: st.DataObject) -> None:
    """Real messages and the corpus, with bytes changed, cut out, doubled or swapped for those of another."""
    blob = bytearray(data.draw(st.sampled_from(SMALL)))
    for _ in range(data.draw(st.integers(1, 5))):
        at = data.draw(st.integers(0, len(blob)))
        end = min(len(blob), at + data.draw(st.integers(0, 30)))
        how = data.draw(st.sampled_from(["cut", "put", "double", "swap", "bit"]))
        if how == "cut":
            del blob[at:end]
        elif how == "put":
            blob[at:at] = data.draw(
                st.binary(max_size=8) | st.sampled_from([b"[", b"{", b'"', b"null", b"1e999", b"\\ud800"])
            )
        elif how == "double":
            blob[at:at] = blob[at:end]
        elif how == "swap":
            other = data.draw(st.sampled_from(SMALL))
            blob[at:end] = other[at:end]
        elif blob:
            blob[at % len(blob)] ^= 1 << data.draw(st.integers(0, 7))
    read_all(bytes(blob))


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=200))
def test_any_bytes(blob: bytes) -> None:
    """No bytes at all."""
    read_all(blob)


@pytest.mark.full
@pytest.mark.timeout(1200)
@settings(max_examples=5000, deadline=None)
@given(st.randoms(use_true_random=False), st.sampled_from(SMALL))
def test_many_mutations(random: Any, seed: bytes) -> None:
    """The long form: many cheap mutations of each seed."""
    for _ in range(20):
        blob = bytearray(seed)
        for _ in range(random.randrange(1, 8)):
            if not blob:
                break
            at = random.randrange(len(blob))
            how = random.randrange(3)
            if how == 0:
                blob[at] = random.randrange(256)
            elif how == 1:
                del blob[at : at + random.randrange(20)]
            else:
                blob[at:at] = blob[at : at + random.randrange(20)]
        read_all(bytes(blob))
