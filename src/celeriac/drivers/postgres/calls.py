"""Statements with their parameters, for both kinds of connection: what is published, stored, and said of chords."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import msgspec

from celeriac.drivers.chords import UNOPENED_SECONDS, done_seconds
from celeriac.drivers.postgres.arrays import Byteas, Float8s, Int4s, Int8s, Texts
from celeriac.drivers.postgres.instants import micros
from celeriac.drivers.publish_ids import KNOWN_SECONDS, ONCE_SECONDS, can_come_again
from celeriac.model.message import Chord, Envelope, Fire, Part, Standing, Store

UNOPENED = int(UNOPENED_SECONDS * 1e6)
NOW = "SELECT celeriac_1_now()"
PUBLISH = "SELECT celeriac_1_publish($1, $2, $3, $4, $5, $6, $7, false)"
IDENTITY = """
SELECT value, current_database(), pg_postmaster_start_time()::text FROM celeriac_state WHERE name = 'identity'
"""
"""What no other database has."""
_LOOK = """
SELECT c.id, c.size, c.more, c.holder, c.held_until, c.moved, b.body, b.members, g.document,
    ARRAY(SELECT entry FROM celeriac_chord_parts WHERE chord = c.id ORDER BY position NULLS LAST, member),
    ARRAY(SELECT member FROM celeriac_chord_parts WHERE chord = c.id ORDER BY member),
    ARRAY(SELECT member FROM celeriac_chord_added WHERE chord = c.id ORDER BY member), n.now
FROM celeriac_chords AS c CROSS JOIN (SELECT celeriac_1_now() AS now) AS n
LEFT JOIN celeriac_chord_bodies AS b ON b.id = c.id
LEFT JOIN celeriac_groups AS g ON g.id = c.id AND (g.expires IS NULL OR g.expires > n.now)
WHERE c.id = ANY ($1) AND (c.expires IS NULL OR c.expires > n.now)
"""
_LIVE = "(expires IS NULL OR expires > (SELECT celeriac_1_now()))"


WAIT_SECONDS = 60
"""For so long it stands that somebody waits; it is said anew in half the time."""


class Call(NamedTuple):
    """One statement."""

    statement: str
    parameters: tuple[Any, ...] = ()


def wait(name: str, kind: str, queues: Sequence[str] = ()) -> Call:
    """Say that somebody waits: for messages (w), documents (r) or notices (n)."""
    return Call(
        "SELECT celeriac_1_wait($1::text, $2::text, $3, $4::bigint)",
        (name, kind, Texts(queues), WAIT_SECONDS * 1_000_000),
    )


# Messages


class Published(NamedTuple):
    """Envelopes as columns."""

    queues: list[str]
    priorities: list[int]
    dues: list[int | None]
    blobs: list[bytes]
    publish_ids: list[str | None]
    kept: list[int | None]


def columns(envelopes: Iterable[Envelope], *, remember: bool) -> tuple[Published, list[int]]:
    """Envelopes as columns, and the places of those that are in them: of two that are to come once only the first is.
    `remember`: an id that can come again is remembered. Raises UnicodeEncodeError for one that can't be named."""
    found = Published([], [], [], [], [], [])
    places: list[int] = []
    seen: set[str] = set()
    for place, envelope in enumerate(envelopes):
        envelope.id.encode()  # a message that can't be named can't be run
        name: str | None = None
        kept: int | None = None
        if envelope.once or (remember and can_come_again(envelope.publish_id)):
            name = envelope.publish_id
            kept = int(ONCE_SECONDS if envelope.once else KNOWN_SECONDS)
            if name in seen:
                continue
            seen.add(name)
        found.queues.append(envelope.queue)
        found.priorities.append(envelope.priority)
        found.dues.append(None if envelope.not_before is None else micros(envelope.not_before))
        found.blobs.append(envelope.blob)
        found.publish_ids.append(name)
        found.kept.append(kept)
        places.append(place)
    return found, places


def packed(found: Published) -> tuple[Any, ...]:
    """The parameters of these columns, and of their queues' names."""
    once = any(name is not None for name in found.publish_ids)
    return (
        Texts(found.queues), Int4s(found.priorities), Int8s(found.dues), Byteas(found.blobs),
        Texts(found.publish_ids) if once else None, Int4s(found.kept) if once else None,
        Texts(list(dict.fromkeys(found.queues))),
    )  # fmt: skip


def publish(envelopes: Iterable[Envelope]) -> Call:
    """Take envelopes in."""
    found, _ = columns(envelopes, remember=True)
    return Call(PUBLISH, packed(found))


# Results


def rounds(stores: Sequence[Store]) -> list[list[int]]:
    """The places of documents, in as few rounds as keep two of one id apart."""
    found: list[list[int]] = []
    times: dict[str, int] = {}
    for place, store in enumerate(stores):
        number = times.get(store.id, 0)
        times[store.id] = number + 1
        if number == len(found):
            found.append([])
        found[number].append(place)
    return found


def stored(stores: Sequence[Store]) -> tuple[Any, ...]:
    """The parameters for documents of different ids: ids, states, expiry, documents, those that are guarded."""
    guarded = [store.id for store in stores if store.guard]
    return (
        Texts([store.id for store in stores]), Texts([store.state for store in stores]),
        Float8s([store.expires for store in stores]), Byteas([store.document for store in stores]),
        Texts(guarded) if guarded else None,
    )  # fmt: skip


def store(stores: Sequence[Store], deadline: float | None) -> Call:
    """Store documents of different ids. The row says whether it was in time."""
    return Call(
        "SELECT celeriac_1_store($1, $2, $3, $4, $5, $6::bigint)",
        (*stored(stores), None if deadline is None else int(deadline * 1e6)),
    )


def fetch(ids: Iterable[str]) -> Call:
    """Rows of id and document."""
    return Call(f"SELECT id, document FROM celeriac_results WHERE id = ANY ($1) AND {_LIVE}", (_names(ids),))


def news(known: Mapping[str, str]) -> Call:
    """Rows of id, stamp and document of those ids whose document has changed since its stamp (empty: none is known)."""
    names = [name for name in known if _is_text(name)]
    return Call(
        f"""SELECT r.id, r.xmin::text || r.ctid::text, r.document FROM unnest($1, $2) AS u (id, stamp)
            JOIN celeriac_results AS r ON r.id = u.id WHERE r.xmin::text || r.ctid::text <> u.stamp AND {_LIVE}""",
        (Texts(names), Texts([known[name] for name in names])),
    )


def _names(ids: Iterable[str]) -> Texts:
    """Ids to look for; what can't be an id here is not there."""
    return Texts([name for name in ids if _is_text(name)])


def _is_text(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return "\x00" not in name


def forget(ids: Iterable[str]) -> Call:
    """Delete documents."""
    return Call("DELETE FROM celeriac_results WHERE id = ANY ($1)", (_names(ids),))


def save_group(group_id: str, document: bytes, expires: float | None) -> Call:
    """Keep a group's document."""
    return Call(
        """INSERT INTO celeriac_groups VALUES ($1, celeriac_1_now() + ($2::double precision * 1000000)::bigint, $3)
           ON CONFLICT (id) DO UPDATE SET expires = excluded.expires, document = excluded.document""",
        (group_id, expires, document),
    )


def fetch_group(group_id: str) -> Call:
    """One row of the document, or none."""
    return Call(f"SELECT document FROM celeriac_groups WHERE id = ANY ($1) AND {_LIVE}", (_names([group_id]),))


def forget_group(group_id: str) -> Call:
    """Delete a group's document."""
    return Call("DELETE FROM celeriac_groups WHERE id = ANY ($1)", (_names([group_id]),))


# Chords


def open_chords(chords: Sequence[Chord]) -> Call:
    """Make chords known."""
    return Call(
        "SELECT celeriac_1_chord_open($1, $2, $3, $4, $5, $6, $7::bigint)",
        (
            Texts([chord.group for chord in chords]), Int8s([chord.size for chord in chords]),
            Byteas([chord.body for chord in chords]), Byteas([msgspec.json.encode(chord.members) for chord in chords]),
            Byteas([chord.structure for chord in chords]),
            Int8s([None if chord.expires is None else int(chord.expires * 1e6) for chord in chords]), UNOPENED,
        ),
    )  # fmt: skip


def add_to_chord(group: str, members: Sequence[str]) -> Call:
    """More members, each once."""
    return Call("SELECT celeriac_1_chord_add($1::text, $2, $3::bigint)", (group, Texts(members), UNOPENED))


def count(parts: Sequence[Part], hold: float) -> Call:
    """Count members. The row holds a list: is its chord complete and held by the part's token?"""
    for part in parts:
        part.id.encode()
    return Call(
        "SELECT celeriac_1_chord_count($1, $2, $3, $4, $5, $6, $7::bigint, $8::bigint)",
        (
            Texts([part.group for part in parts]), Texts([part.member for part in parts]),
            Int8s([part.index for part in parts]), Byteas([part.entry for part in parts]),
            Byteas([part.body for part in parts]), Texts([part.token for part in parts]), int(hold * 1e6), UNOPENED,
        ),
    )  # fmt: skip


def fire(fires: Sequence[Fire], hold: float) -> Call:
    """End chords. The row holds a list: was it the token's to end?"""
    return Call(
        "SELECT celeriac_1_chord_fire($1, $2, $3::bigint)",
        (Texts([each.group for each in fires]), Texts([each.token for each in fires]), int(done_seconds(hold) * 1e6)),
    )


def hold(wanted: Fire, seconds: float) -> Call:
    """Take or keep a chord that is complete."""
    return Call(
        "SELECT celeriac_1_chord_hold($1::text, $2::text, $3::bigint)",
        (wanted.group, wanted.token, int(seconds * 1e6)),
    )


def standing(idle: float, limit: int) -> Call:
    """The row holds a list of the groups that have not moved for long, the oldest first."""
    return Call("SELECT celeriac_1_chord_standing($1::bigint, $2::integer)", (int(idle * 1e6), max(limit, 0)))


def look(groups: Sequence[str]) -> Call:
    """Rows for `seen`."""
    return Call(_LOOK, (_names(groups),))


def seen(rows: Iterable[tuple[Any, ...]]) -> Mapping[str, Standing]:
    """Chords as they stand, by group."""
    found: dict[str, Standing] = {}
    for group, size, more, holder, held_until, moved, body, names, structure, entries, counted, added, now in rows:
        members = (*msgspec.json.decode(names or b"[]", type=tuple[str, ...]), *added)
        if holder == "done":
            found[group] = Standing(group, 0, body or b"", (), (), b"", members, 0.0, holder)
            continue
        found[group] = Standing(
            group, 0 if size is None else size + more, body or b"", tuple(entries), tuple(counted), structure or b"",
            members, max(0.0, (now - moved) / 1e6), holder if held_until > now else "",
        )  # fmt: skip
    return found
