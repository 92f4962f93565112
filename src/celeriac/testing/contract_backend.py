"""The laws of a ResultBackend and a Reader. Subclass the suites; see `celeriac.testing`."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager

import pytest

from celeriac.model.message import Store
from celeriac.ports import ResultBackend
from celeriac.testing.contract_chords import ChordStoreContract
from celeriac.testing.rigs import PATIENCE, BackendRig, in_loop


def _store(
    name: str, document: bytes, state: str = "SUCCESS", expires: float | None = None, guard: bool = False
) -> Store:
    return Store(name, document, state, expires, guard)


def _document(state: str, mark: object = "") -> bytes:
    return f'{{"status": "{state}", "result": "{mark}"}}'.encode()


def _said(rig: BackendRig, documents: Mapping[str, bytes]) -> dict[str, object]:
    """Documents as this store has to give them back."""
    return dict(documents) if rig.exact else {name: _saying(document) for name, document in documents.items()}


def _saying(document: bytes) -> object:
    try:
        found = json.loads(document)
        return found["status"], found["result"]
    except (ValueError, TypeError):
        return document  # any bytes


def _need_forgetting(rig: BackendRig) -> None:
    if not rig.forgets:
        pytest.skip("this store is cleaned up by a task")


@asynccontextmanager
async def _opened(rig: BackendRig) -> AsyncIterator[ResultBackend]:
    backend = rig.backend()
    try:
        yield backend
    finally:
        await backend.close()


class BackendContract(ChordStoreContract):
    """What a worker and async callers may rely on, whatever the store."""

    @pytest.fixture
    def rig(self) -> Iterator[BackendRig]:
        """A fresh rig. To be overridden."""
        raise NotImplementedError

    @in_loop
    async def test_stored_is_fetched(self, rig: BackendRig) -> None:
        """A stored document comes back as it is, any bytes; ids without one are left out."""
        documents = {"a": b"\x00\xff\xfe", "b": _document("SUCCESS"), "Ü ?*'": b"x" * 2_000_000}
        async with _opened(rig) as backend:
            verdicts = await backend.store([_store(name, document) for name, document in documents.items()])
            assert [verdict.ok for verdict in verdicts] == [True] * 3
            assert _said(rig, await backend.fetch([*documents, "nobody"])) == _said(rig, documents)
            assert dict(await backend.fetch([])) == {}
            assert list(await backend.store([])) == []

    @in_loop
    async def test_the_last_one_stands(self, rig: BackendRig) -> None:
        """A later document takes the place of an earlier one, also within one batch."""
        async with _opened(rig) as backend:
            await backend.store([_store("a", b"1", "STARTED"), _store("a", b"2", "RETRY")])
            assert await backend.fetch(["a"]) == {"a": b"2"}
            await backend.store([_store("a", b"3", "FAILURE")])
            assert await backend.fetch(["a"]) == {"a": b"3"}

    @in_loop
    async def test_a_guarded_store_respects_a_success(self, rig: BackendRig) -> None:
        """With the guard a stored SUCCESS is never overwritten, and anything else is; without it everything is."""
        async with _opened(rig) as backend:
            success, failure = _document("SUCCESS", "kept"), _document("FAILURE")
            await backend.store([_store("a", _document("STARTED"), "STARTED"), _store("a", success, guard=True)])
            await backend.store([_store("a", failure, "FAILURE", guard=True)])
            assert _said(rig, await backend.fetch(["a"])) == _said(rig, {"a": success})
            await backend.store([_store("a", _document("SUCCESS", "second run"), guard=True)])
            assert _said(rig, await backend.fetch(["a"])) == _said(rig, {"a": success})
            await backend.store([_store("b", failure, "FAILURE"), _store("b", success, guard=True)])
            assert _said(rig, await backend.fetch(["b"])) == _said(rig, {"b": success})
            await backend.store([_store("a", failure, "FAILURE")])
            assert _said(rig, await backend.fetch(["a"])) == _said(rig, {"a": failure})

    @in_loop
    async def test_nothing_is_stored_after_the_deadline(self, rig: BackendRig) -> None:
        """After the deadline by the store's own clock nothing is stored and the verdict is `lost`; before it, it is."""
        async with _opened(rig) as backend:
            now = await backend.clock()
            verdicts = await backend.store([_store("a", b"1"), _store("b", b"2")], deadline=now - 1)
            assert [(verdict.ok, verdict.lost) for verdict in verdicts] == [(False, True)] * 2
            assert dict(await backend.fetch(["a", "b"])) == {}
            verdicts = await backend.store([_store("a", b"1")], deadline=now + 1000)
            assert [verdict.ok for verdict in verdicts] == [True]
            assert await backend.fetch(["a"]) == {"a": b"1"}

    @in_loop
    async def test_one_bad_store_among_good_ones(self, rig: BackendRig) -> None:
        """A document that can't be stored fails alone, with its error; the others are stored."""
        async with _opened(rig) as backend:
            verdicts = await backend.store([_store("a", b"1"), rig.poison(), _store("b", b"2")])
            assert [verdict.ok for verdict in verdicts] == [True, False, True]
            assert verdicts[1].error
            assert await backend.fetch(["a", "b"]) == {"a": b"1", "b": b"2"}

    @in_loop
    async def test_expired_is_gone(self, rig: BackendRig) -> None:
        """A document is gone when its time is over, not before; a later store sets a new time; without one it stays."""
        _need_forgetting(rig)
        async with _opened(rig) as backend:
            await backend.store([_store("short", b"1", expires=1), _store("long", b"2", expires=1000)])
            await backend.store([_store("ever", b"3")])
            await backend.store([_store("renewed", b"4", "STARTED", expires=1), _store("renewed", b"5", expires=1000)])
            assert len(await backend.fetch(["short", "long", "ever", "renewed"])) == 4
            await rig.elapse(1.2)
            assert set(await backend.fetch(["short", "long", "ever", "renewed"])) == {"long", "ever", "renewed"}

    @in_loop
    async def test_an_expired_success_guards_nothing(self, rig: BackendRig) -> None:
        """A SUCCESS whose time is over does not stand in the way of a guarded store."""
        _need_forgetting(rig)
        async with _opened(rig) as backend:
            await backend.store([_store("a", _document("SUCCESS"), expires=1)])
            await rig.elapse(1.2)
            await backend.store([_store("a", _document("FAILURE"), "FAILURE", guard=True)])
            assert await backend.fetch(["a"]) == {"a": _document("FAILURE")}

    @in_loop
    async def test_forgotten_is_gone(self, rig: BackendRig) -> None:
        """A forgotten document is gone, others stay; to forget nothing is no error."""
        async with _opened(rig) as backend:
            await backend.store([_store("a", b"1"), _store("b", b"2")])
            await backend.forget(["a", "nobody"])
            await backend.forget([])
            assert await backend.fetch(["a", "b"]) == {"b": b"2"}

    @in_loop
    async def test_groups(self, rig: BackendRig) -> None:
        """A group document is saved, overwritten, fetched, forgotten; it expires; it shares no name with a result."""
        async with _opened(rig) as backend:
            assert await backend.fetch_group("g") is None
            await backend.store([_store("g", b"result")])
            await backend.save_group("g", b"\x00old", None)
            await backend.save_group("g", b"\x00group", 1000)
            await backend.save_group("brief", b"x", 1)
            assert await backend.fetch_group("g") == b"\x00group"
            assert await backend.fetch(["g"]) == {"g": b"result"}
            await rig.elapse(1.2)
            assert await backend.fetch_group("brief") is None or not rig.forgets
            await backend.forget_group("g")
            await backend.forget_group("g")
            assert await backend.fetch_group("g") is None
            assert await backend.fetch(["g"]) == {"g": b"result"}

    @in_loop
    async def test_a_watch_begins_with_what_is_there(self, rig: BackendRig) -> None:
        """A watch first gives the documents that stand already."""
        async with _opened(rig) as backend:
            await backend.store([_store("a", b"1"), _store("b", b"2"), _store("c", b"3")])
            async with backend.watch(["a", "c", "nobody"]) as changes:
                assert {await _next(changes), await _next(changes)} == {("a", b"1"), ("c", b"3")}

    @in_loop
    async def test_a_watch_gives_each_last_document(self, rig: BackendRig) -> None:
        """A watch gives changes as they come, of its ids alone; after quick changes it ends with the last one."""
        async with _opened(rig) as backend, _opened(rig) as writer, backend.watch(["a", "b"]) as changes:
            await writer.store([_store("other", b"x"), _store("a", b"1", "STARTED")])
            assert await _next(changes) == ("a", b"1")
            await writer.store([_store("b", b"1", "STARTED")])
            await writer.store([_store("b", b"2", "RETRY")])
            await writer.store([_store("b", b"3")])
            seen = [await _next(changes)]
            while seen[-1][1] != b"3":
                seen.append(await _next(changes))
            assert seen == [("b", b"%d" % n) for n in range(1, 4)][-len(seen) :] or rig.merges
            assert {name for name, _ in seen} == {"b"}
            await writer.store([_store("a", b"9")])
            assert await _next(changes) == ("a", b"9")

    @in_loop
    async def test_no_change_is_missed(self, rig: BackendRig) -> None:
        """A document stored at any moment around the start of a watch is seen."""
        async with _opened(rig) as backend, _opened(rig) as writer:
            for n in range(40):
                storing = asyncio.ensure_future(writer.store([_store(f"a{n}", b"%d" % n)]))
                for _ in range(n % 8):
                    await asyncio.sleep(0)
                async with backend.watch([f"a{n}"]) as changes:
                    assert await _next(changes) == (f"a{n}", b"%d" % n)
                await storing

    @in_loop
    async def test_many_watches_at_once(self, rig: BackendRig) -> None:
        """Many watches of one backend, also of the same id, see what is theirs."""
        async with _opened(rig) as backend, _opened(rig) as writer:

            async def see(name: str) -> bytes:
                async with backend.watch([name]) as changes:
                    seen, document = await _next(changes)
                    assert seen == name
                    return document

            watching = [asyncio.ensure_future(see(f"a{n % 25}")) for n in range(50)]
            await asyncio.sleep(0.05)
            await writer.store([_store(f"a{n}", b"%d" % n) for n in range(25)])
            assert await asyncio.gather(*watching) == [b"%d" % (n % 25) for n in range(50)]

    @in_loop
    async def test_a_watch_of_many_ids(self, rig: BackendRig) -> None:
        """A watch takes many ids."""
        async with _opened(rig) as backend:
            ids = [f"id{n}" for n in range(1500)]
            await backend.store([_store(name, name.encode()) for name in ids[:1000]])
            async with backend.watch(ids) as changes:
                seen = {await _next(changes) for _ in range(1000)}
                await backend.store([_store(name, name.encode()) for name in ids[1000:]])
                seen |= {await _next(changes) for _ in range(500)}
            assert seen == {(name, name.encode()) for name in ids}

    @in_loop
    async def test_a_change_is_seen_quickly(self, rig: BackendRig) -> None:
        """In the middle a watch has a stored document within a quarter of a second."""
        async with _opened(rig) as backend, _opened(rig) as writer:
            delays = []
            for n in range(9):
                async with backend.watch([f"a{n}"]) as changes:
                    seeing = asyncio.ensure_future(_next(changes))
                    await asyncio.sleep(0.01)
                    before = time.monotonic()
                    await writer.store([_store(f"a{n}", b"x")])
                    await seeing
                    delays.append(time.monotonic() - before)
            assert sorted(delays)[4] < 0.25

    @in_loop
    async def test_the_clock_goes_forward(self, rig: BackendRig) -> None:
        """The store's clock tells Unix seconds that go forward."""
        async with _opened(rig) as backend:
            before = await backend.clock()
            await rig.elapse(0.05)
            assert 0.04 < await backend.clock() - before < PATIENCE

    @in_loop
    async def test_a_backend_can_be_closed_twice(self, rig: BackendRig) -> None:
        """Closing is harmless at any time, also twice and before first use."""
        idle = rig.backend()
        await idle.close()
        backend = rig.backend()
        await backend.store([_store("a", b"1")])
        await backend.close()
        await backend.close()

    @in_loop
    async def test_a_description_is_one_line(self, rig: BackendRig) -> None:
        """A backend describes itself in one line."""
        async with _opened(rig) as backend:
            assert backend.describe()
            assert "\n" not in backend.describe()


async def _next(changes: AsyncIterator[tuple[str, bytes]]) -> tuple[str, bytes]:
    return await asyncio.wait_for(anext(changes), PATIENCE)


class ReaderContract:
    """What `AsyncResult.get` may rely on."""

    @pytest.fixture
    def rig(self) -> Iterator[BackendRig]:
        """A fresh rig. To be overridden."""
        raise NotImplementedError

    def test_stored_is_fetched_and_forgotten(self, rig: BackendRig) -> None:
        """What a Reader stores it can fetch and forget; the async side sees the same."""
        reader = rig.reader()
        assert dict(reader.fetch(["a"])) == {}
        reader.store([_store("a", b"\x00\xff"), _store("b", b"2", expires=1000)])
        reader.store([])
        assert dict(reader.fetch(["a", "b", "nobody"])) == {"a": b"\x00\xff", "b": b"2"}
        assert dict(reader.fetch([])) == {}

        async def look() -> None:
            async with _opened(rig) as backend:
                assert await backend.fetch(["a"]) == {"a": b"\x00\xff"}

        asyncio.run(look())
        reader.forget(["a"])
        reader.forget([])
        assert dict(reader.fetch(["a", "b"])) == {"b": b"2"}
        reader.close()
        reader.close()

    def test_expired_is_gone(self, rig: BackendRig) -> None:
        """A document is gone when its time is over."""
        _need_forgetting(rig)
        reader = rig.reader()
        reader.store([_store("a", b"1", expires=1)])
        assert set(reader.fetch(["a"])) == {"a"}
        rig.elapse_sync(1.2)
        assert dict(reader.fetch(["a"])) == {}
        reader.close()

    def test_groups(self, rig: BackendRig) -> None:
        """A group document is saved, fetched and forgotten."""
        reader = rig.reader()
        assert reader.fetch_group("g") is None
        reader.save_group("g", b"\x00group", 1000)
        assert reader.fetch_group("g") == b"\x00group"
        reader.forget_group("g")
        assert reader.fetch_group("g") is None
        reader.close()

    def test_a_watch_begins_with_what_is_there(self, rig: BackendRig) -> None:
        """A watch first gives the documents that stand already."""
        reader = rig.reader()
        reader.store([_store("a", b"1"), _store("b", b"2")])
        with reader.watch(["a", "b"], PATIENCE) as changes:
            assert {next(changes), next(changes)} == {("a", b"1"), ("b", b"2")}
        reader.close()

    def test_a_watch_sees_changes_of_others(self, rig: BackendRig) -> None:
        """A watch sees what another thread stores, quickly in the middle."""
        reader, writer = rig.reader(), rig.reader()
        delays = []
        for n in range(9):
            stored: list[float] = []

            def work(name: str = f"a{n}", stored: list[float] = stored) -> None:
                time.sleep(0.01)
                stored.append(time.monotonic())
                writer.store([_store(name, b"x")])

            thread = threading.Thread(target=work)
            with reader.watch([f"a{n}"], PATIENCE) as changes:
                thread.start()
                assert next(changes) == (f"a{n}", b"x")
                delays.append(time.monotonic() - stored[0])
            thread.join()
        assert sorted(delays)[4] < 0.25
        reader.close()
        writer.close()

    def test_no_change_is_missed(self, rig: BackendRig) -> None:
        """A document stored by another thread at any moment around the start of a watch is seen."""
        reader, writer = rig.reader(), rig.reader()
        for n in range(30):
            thread = threading.Thread(target=writer.store, args=([_store(f"a{n}", b"%d" % n)],))
            thread.start()
            with reader.watch([f"a{n}"], PATIENCE) as changes:
                assert next(changes) == (f"a{n}", b"%d" % n)
            thread.join()
        reader.close()
        writer.close()

    def test_a_watch_ends_in_time(self, rig: BackendRig) -> None:
        """A watch ends when its timeout has passed since entering; the documents that stand come first, even at 0."""
        reader = rig.reader()
        reader.store([_store("a", b"1")])
        before = time.monotonic()
        with reader.watch(["a", "b"], 0.3) as changes:
            assert list(changes) == [("a", b"1")]
        assert 0.25 < time.monotonic() - before < 0.3 + 2
        with reader.watch(["a", "b"], 0) as changes:
            assert list(changes) == [("a", b"1")]
        reader.close()

    def test_threads_share_a_reader(self, rig: BackendRig) -> None:
        """Many threads may use one Reader at a time, each with watches of its own."""
        reader = rig.reader()
        failures: list[BaseException] = []

        def work(number: int) -> None:
            try:
                for n in range(5):
                    name = f"{number}.{n}"
                    with reader.watch([name], PATIENCE) as changes:
                        reader.store([_store(name, name.encode())])
                        assert next(changes) == (name, name.encode())
                    assert dict(reader.fetch([name])) == {name: name.encode()}
            except BaseException as failure:
                failures.append(failure)

        threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        reader.close()
        assert not failures
