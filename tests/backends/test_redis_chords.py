"""Chords on Redis lie where Celery has them, and workers of both may count and end the same one."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from celeriac.backends.redis import RedisBackend
from celeriac.errors import OperationalError
from celeriac.model.message import Fire, Part
from celeriac.testing.contract_chords import BODY, HOLD, chord, part, standing_of
from celeriac.testing.rigs import in_loop
from tests.backends.test_redis_backend import RedisStoreRig
from tests.processes import Project
from tests.servers import command

KEY = "celery-taskset-meta-g"
OWN = "celeriac:1:chord:g"
MOVEMENTS = "celeriac:1:chords"
CELERY = """
import sys
from celery import Celery
from celery.app.task import Context

app = Celery("peer", broker=sys.argv[1], backend=sys.argv[1])
BODY = {"task": "tasks.body", "args": [], "kwargs": {}, "options": {"task_id": "body"}, "subtask_type": None}
for step in sys.argv[2:]:
    what, *words = step.split(",")
    if what == "size":
        app.backend.set_chord_size("g", int(words[0]))
    elif what == "add":
        app.backend.add_to_chord("g", None)
    else:
        request = Context(id=words[0], group="g", group_index=int(words[1]), chord=BODY)
        app.backend.on_chord_part_return(request, "SUCCESS", int(words[2]))
"""


class TestRedisChords:
    """On both servers."""

    @pytest.fixture(params=["redis", "valkey"])
    def rig(self, request: pytest.FixtureRequest) -> RedisStoreRig:
        return RedisStoreRig(request.getfixturevalue(f"{request.param}_url"), {})

    @in_loop
    async def test_the_keys(self, rig: RedisStoreRig) -> None:
        """Celery's keys hold what Celery puts there; ours beside them what it has no place for; all expire together."""
        backend = rig.backend()

        def ask(*words: str) -> Any:
            return command(rig.url, *words)

        await backend.open_chords([chord(2, structure=b"shape")])
        await backend.add_to_chord("g", ["m2:+inf"])
        parts = [part("m0", 0), part("m1", 7), part("m2", None)]
        assert list(await backend.count(parts, HOLD)) == [False, False, True]
        assert ask("GET", f"{KEY}.s") == b"2"
        assert ask("GET", f"{KEY}.t") == b"1"
        scored = [parts[0].entry, b"0", parts[1].entry, b"7", parts[2].entry, b"inf"]
        assert ask("ZRANGE", f"{KEY}.j", "0", "-1", "WITHSCORES") == scored
        assert set(ask("SMEMBERS", f"{KEY}.d")) == {b"m0:0", b"m1:7", b"m2:+inf"}
        assert ask("GET", f"{KEY}.c") == b"celeriac:m2"
        assert ask("GET", KEY) == b"shape"
        fields = ask("HGETALL", OWN)
        assert dict(zip(fields[::2], fields[1::2], strict=True)) == {
            b"body": BODY, b"size": b"2", b"members": b'["m0","m1"]', b"expires": b"1000",
            b"+m2:+inf": b"",
        }  # fmt: skip
        assert abs(float(ask("ZSCORE", MOVEMENTS, "g")) - float(ask("TIME")[0])) < 5
        for key in (KEY, f"{KEY}.s", f"{KEY}.t", f"{KEY}.j", f"{KEY}.d", OWN):
            assert 990 < ask("TTL", key) <= 1000, key
        assert (HOLD - 5) * 1000 < ask("PTTL", f"{KEY}.c") <= HOLD * 1000
        await backend.fire([Fire("g", "celeriac:m2")], HOLD)
        assert set(ask("KEYS", "*")) == {KEY.encode(), f"{KEY}.c".encode(), OWN.encode()}
        assert ask("GET", f"{KEY}.c") == b"done"
        assert 295 < ask("TTL", f"{KEY}.c") <= 300
        await backend.open_chords([chord(2)])
        assert ask("EXISTS", f"{KEY}.c") == 0
        await backend.close()

    @in_loop
    async def test_without_an_order(self, rig: RedisStoreRig) -> None:
        """Without `result_chord_ordered` entries are a list; what others have begun otherwise goes on as it is."""
        rig.options = {"result_chord_ordered": False}
        backend = rig.backend()
        await backend.open_chords([chord(2)])
        assert list(await backend.count([part("m1", 1), part("m1", 1), part("m0", 0)], HOLD)) == [False, False, True]
        assert command(rig.url, "LRANGE", f"{KEY}.j", "0", "-1") == [part("m1").entry, part("m0").entry]
        assert (await standing_of(backend)).entries == (part("m1").entry, part("m0").entry)
        ordered = RedisBackend(rig.url)
        await ordered.open_chords([chord(2, group="h")])
        await ordered.count([part("m1", 1, group="h")], HOLD)
        assert list(await backend.count([part("m0", 0, group="h")], HOLD)) == [True]
        assert (await standing_of(backend, "h")).entries == (part("m0").entry, part("m1").entry)
        await ordered.close()
        await backend.close()

    @in_loop
    async def test_a_chord_of_a_producer_that_is_not_ours(self, rig: RedisStoreRig) -> None:
        """A chord that has Celery's keys only is counted as any other; its data stays as long as its size does."""
        backend = rig.backend()
        command(rig.url, "SET", f"{KEY}.s", "2", "EX", "500000")
        command(rig.url, "SET", KEY, "shape", "EX", "500000")
        standing = await standing_of(backend)
        assert (standing.size, standing.body, standing.structure, standing.idle) == (2, b"", b"shape", 0.0)
        await backend.count([part("m0", 0)], HOLD)
        assert (await standing_of(backend)).body == BODY
        for key in (KEY, f"{KEY}.s", f"{KEY}.j", f"{KEY}.d", OWN):
            assert 499_990 < command(rig.url, "TTL", key) <= 500_000, key
        command(rig.url, "PERSIST", f"{KEY}.s")
        assert list(await backend.count([part("m1", 1)], HOLD)) == [True]
        assert command(rig.url, "TTL", f"{KEY}.j") == -1
        await backend.close()

    @in_loop
    async def test_a_chord_that_nobody_has_opened(self, rig: RedisStoreRig) -> None:
        """What is counted before the chord is opened stays for a day, then as long as the chord says."""
        backend = rig.backend()
        await backend.count([part("m0", 0)], HOLD)
        for key in (f"{KEY}.j", f"{KEY}.d", OWN):
            assert 86_390 < command(rig.url, "TTL", key) <= 86_400, key
        await backend.open_chords([chord(2, expires=None)])
        for key in (f"{KEY}.j", f"{KEY}.d", f"{KEY}.s", OWN):
            assert command(rig.url, "TTL", key) == -1, key
        await backend.close()

    @in_loop
    async def test_peers_before_57(self, rig: RedisStoreRig) -> None:
        """Older peers count without `.d` and end a chord by deleting it: both are understood."""
        backend = rig.backend()
        await backend.open_chords([chord(3)])
        entry = '[1, "m1", "SUCCESS", 5]'
        command(rig.url, "ZADD", f"{KEY}.j", "1", entry)
        again = part("m1", 1, entry=entry.encode())
        assert list(await backend.count([again, part("m0", 0), again], HOLD)) == [False, False, False]
        assert list(await backend.count([part("m2", 2)], HOLD)) == [True]
        assert (await standing_of(backend)).entries[1] == b'[1, "m1", "SUCCESS", 5]'
        command(rig.url, "DEL", f"{KEY}.c")
        command(rig.url, "DEL", f"{KEY}.j", f"{KEY}.t", f"{KEY}.s")
        assert await backend.chord("g") is None
        assert list(await backend.fire([Fire("g", part("m2").token)], HOLD)) == [False]
        assert list(await backend.count([part("m2", 2)], HOLD)) == [False]
        assert await backend.standing(0.0, 10) == []
        assert command(rig.url, "EXISTS", MOVEMENTS, OWN) == 0
        await backend.close()

    @in_loop
    async def test_a_peer_that_failed_a_chord(self, rig: RedisStoreRig) -> None:
        """A peer that gave a chord up has deleted its size: nobody carries it on."""
        backend = rig.backend()
        await backend.open_chords([chord(2)])
        await backend.count([part("m0", 0), part("m1", 1)], HOLD)
        command(rig.url, "DEL", f"{KEY}.s", f"{KEY}.c")
        assert await backend.hold(Fire("g", "who"), HOLD) is False
        assert list(await backend.count([part("m1", 1)], HOLD)) == [False]
        assert await backend.chord("g") is None
        assert await backend.standing(0.0, 10) == []
        await backend.close()

    @in_loop
    async def test_what_a_peer_holds(self, rig: RedisStoreRig) -> None:
        """A chord that a peer has claimed is the peer's until its claim is over."""
        backend = rig.backend()
        await backend.open_chords([chord(1)])
        command(rig.url, "SET", f"{KEY}.c", "0123456789abcdef", "EX", "100")
        assert list(await backend.count([part("m0", 0)], HOLD)) == [False]
        assert await backend.hold(Fire("g", part("m0").token), HOLD) is False
        assert (await standing_of(backend)).held == "0123456789abcdef"
        command(rig.url, "DEL", f"{KEY}.c")
        assert list(await backend.count([part("m0", 0)], HOLD)) == [True]
        await backend.close()

    @pytest.mark.parametrize("key", [f"{KEY}.j", f"{KEY}.d", f"{KEY}.s", f"{KEY}.t", f"{KEY}.c", OWN, MOVEMENTS])
    def test_a_wrong_key(self, rig: RedisStoreRig, key: str) -> None:
        """Where a key is not as it should be, nothing is done, also not for the other chords of the call."""

        @in_loop
        async def story(self: object, rig: RedisStoreRig) -> None:
            backend = rig.backend()
            await backend.open_chords([chord(1)])
            command(rig.url, "DEL", key)
            command(rig.url, "XADD", key, "*", "f", "v")
            before = _dump(rig.url)
            for call in (
                lambda: backend.count([part("m0", 0, group="h"), part("m0", 0)], HOLD),
                lambda: backend.open_chords([chord(1, group="h"), chord(1)]),
                lambda: backend.fire([Fire("g", "x")], HOLD),
                lambda: backend.hold(Fire("g", "x"), HOLD),
                lambda: backend.add_to_chord("g", ["a:0"]),
            ):
                with pytest.raises(OperationalError, match="WRONGTYPE"):
                    await call()
            assert _dump(rig.url) == before
            if key != MOVEMENTS:
                assert [each.group for each in await backend.standing(0.0, 10)] == []
            await backend.close()

        story(self, rig)

    def test_a_size_that_is_no_number(self, rig: RedisStoreRig) -> None:
        """A size that can't be read is an error, and no chord that never ends."""

        @in_loop
        async def story(self: object, rig: RedisStoreRig) -> None:
            backend = rig.backend()
            command(rig.url, "SET", f"{KEY}.s", "many")
            with pytest.raises(OperationalError, match="no number"):
                await backend.count([part("m0", 0)], HOLD)
            assert command(rig.url, "EXISTS", f"{KEY}.j") == 0
            await backend.close()

        story(self, rig)


def _dump(url: str) -> dict[bytes, bytes]:
    return {key: command(url, "DUMP", key.decode()) for key in command(url, "KEYS", "*")}


class TestBesideCelery:
    """Celery's own code counts too."""

    @pytest.fixture
    def rig(self, redis_url: str) -> RedisStoreRig:
        return RedisStoreRig(redis_url, {})

    @pytest.fixture
    def project(self, tmp_path: Path) -> Project:
        return Project(tmp_path, {"peer.py": CELERY})

    def _celery(self, project: Project, rig: RedisStoreRig, steps: Sequence[str]) -> None:
        with project.celery_python("peer.py", rig.url, *steps) as process:
            assert process.wait(30.0) == 0, process.output

    def test_celery_begins_and_we_end(self, rig: RedisStoreRig, project: Project) -> None:
        """A chord whose size Celery's producer set and whose first members Celery counted is completed here; members
        that Celery counts late are ignored."""

        @in_loop
        async def story(self: TestBesideCelery, rig: RedisStoreRig) -> None:
            backend = rig.backend()
            self._celery(project, rig, ["size,2", "add", "count,m2,2,7", "count,m0,0,5"])
            assert (await standing_of(backend)).size == 3
            assert list(await backend.count([part("m0", 0, entry=b'[1, "m0", "SUCCESS", 9]')], HOLD)) == [False]
            assert list(await backend.count([_celerys("m1", 1, 6)], HOLD)) == [True]
            entries = (await standing_of(backend)).entries
            assert [json.loads(entry)[3] for entry in entries] == [5, 6, 7]
            assert (await backend.fire([Fire("g", part("m1").token)], HOLD)) == [True]
            self._celery(project, rig, ["count,m1,1,6"])
            assert command(rig.url, "EXISTS", f"{KEY}.j", f"{KEY}.s", "celery") == 0
            await backend.close()

        story(self, rig)

    def test_we_begin_and_celery_ends(self, rig: RedisStoreRig, project: Project) -> None:
        """A chord that was opened and half counted here is completed by a worker of Celery, and is done then."""

        @in_loop
        async def story(self: TestBesideCelery, rig: RedisStoreRig) -> None:
            backend = rig.backend()
            await backend.open_chords([chord(2)])
            await backend.count([_celerys("m1", 1, 6)], HOLD)
            self._celery(project, rig, ["count,m1,1,9", "count,m0,0,5"])
            [blob] = command(rig.url, "LRANGE", "celery", "0", "-1")
            assert json.loads(blob)["headers"]["argsrepr"] == "([5, 6],)"
            assert (await standing_of(backend)).held == "done"
            assert list(await backend.count([_celerys("m1", 1, 6)], HOLD)) == [False]
            assert await backend.hold(Fire("g", "who"), HOLD) is False
            assert await backend.standing(0.0, 10) == []
            assert command(rig.url, "EXISTS", MOVEMENTS, OWN) == 0
            await backend.close()

        story(self, rig)


def _celerys(name: str, index: int, result: int) -> Part:
    return part(name, index, entry=json.dumps([1, name, "SUCCESS", result]).encode())
