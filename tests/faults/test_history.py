"""The checker of histories (`celeriac.testing.history`): one that never finds anything would make others green."""

from __future__ import annotations

from dataclasses import replace

import pytest

from celeriac.testing.history import Event, What, judge

HEADER = ("m0", "m1")


def of(what: What, id: str, worker: str = "w0", **more: object) -> Event:
    return replace(Event(what, id, worker), **more)  # type: ignore[arg-type]


def run(id: str, value: object = 1, worker: str = "w0", given: object = None) -> list[Event]:
    """A message that is claimed, run and settled."""
    return [
        of(What.CLAIMED, id, worker), of(What.STARTED, id, worker, value=given),
        of(What.ENDED, id, worker, value=("SUCCESS", value)), of(What.SETTLED, id, worker),
    ]  # fmt: skip


def begun() -> list[Event]:
    """A chord of two has been sent."""
    return [Event(What.OPENED, "body", members=HEADER), *(Event(What.PUBLISHED, member) for member in HEADER)]


def good() -> list[Event]:
    """A chord from its beginning to its end."""
    return [*begun(), *run("m0", 1), *run("m1", 2), of(What.PUBLISHED, "body"), *run("body", 3, given=[1, 2])]


def killed(worker: str = "w0") -> Event:
    return Event(What.KILLED, worker=worker)


def failed() -> list[Event]:
    """A task with an error link has failed, and the link was called."""
    return [
        of(What.PUBLISHED, "a"), of(What.STARTED, "a"), of(What.ENDED, "a", value=("FAILURE", "why")),
        of(What.STARTED, "e", about="a"), of(What.ENDED, "e", value=("SUCCESS", None)),
    ]  # fmt: skip


def reasons(events: list[Event], links: tuple[str, ...] = ()) -> list[str]:
    """The kinds of what the checker finds."""
    return [reason.partition(":")[0] for reason in judge(events, links).reasons]


def test_good_histories_are_clean() -> None:
    """A whole chord; a member that runs again after a kill; one that is given back; a failure that is told of."""
    assert judge(good()).clean
    again = [*begun(), *run("m0", 1)[:2], killed(), *run("m0", 1, "w1"), *run("m1", 2, "w1")]
    assert judge([*again, *run("body", 3, "w1", [1, 2])]).clean
    late = [*begun(), killed(), of(What.CLAIMED, "m0"), *run("m0", 1, "w1"), *run("m1", 2, "w1")]
    assert judge([*late, *run("body", 3, "w1", [1, 2])]).clean, "what the dead had asked for came behind its death"
    back = [of(What.CLAIMED, "m0"), of(What.GIVEN_BACK, "m0"), *run("m0", 1, "w1")]
    assert judge([*begun(), *back, *run("m1", 2), *run("body", 3, given=[1, 2])]).clean
    assert judge(failed(), ["a"]).clean
    repeated = [*good()[:-4], of(What.PUBLISHED, "body", "w1"), *good()[-4:]]
    assert judge(repeated).clean, "a repeat that the broker drops is none"
    replacing = [of(What.CLAIMED, "body", turn="swap"), of(What.SETTLED, "body", turn="swap")]
    assert judge([*begun(), *replacing, *good()[3:]]).clean, "the body has the id of the task that it replaces"
    turns = [*run("a"), of(What.CLAIMED, "a", turn="1"), of(What.STARTED, "a", turn="1")]
    assert judge(turns).clean, "a retry is another message"


@pytest.mark.parametrize("missing", ["m0", "m1", "body"])
def test_what_has_not_ended_is_lost(missing: str) -> None:
    """A member, or a body that was never sent."""
    assert "lost" in reasons([event for event in good() if (event.what, event.id) != (What.ENDED, missing)])
    assert reasons([of(What.PUBLISHED, "a")]) == ["lost"]


@pytest.mark.parametrize("what", [What.PUBLISHED, What.CLAIMED, What.STARTED, What.ENDED])
def test_a_body_before_its_last_member_is_early(what: What) -> None:
    """Whatever is seen of it first, also when the member has started already."""
    history = good()
    at = next(n for n, event in enumerate(history) if (event.what, event.id) == (What.ENDED, "m1"))
    early = of(what, "body", value=("SUCCESS", 3) if what is What.ENDED else None)
    found = reasons([*history[:at], early, *history[at:]])
    assert "early" in found


def test_a_second_entry_is_found() -> None:
    """Of a body, claimed after the first was settled, or while another worker holds it; a kill excuses the claims of
    the worker that died, and no others."""
    assert reasons([*good(), of(What.CLAIMED, "body", "w1")]) == ["published twice"]
    assert reasons([*good(), killed(), of(What.CLAIMED, "body", "w1")]) == ["published twice"], "it was settled"
    twice = [*good()[:-1], of(What.CLAIMED, "body", "w1"), of(What.SETTLED, "body")]
    assert reasons(twice) == ["published twice"]
    assert reasons([*good()[:-1], killed("w2"), of(What.CLAIMED, "body", "w1")]) == ["published twice"]
    assert reasons([*good()[:-1], killed("w0"), of(What.CLAIMED, "body", "w1")]) == []
    assert judge([*good(), *run("m1", 2, "w1")], repeats=True).clean, "a broker that drops nothing"
    assert not judge([*good(), *run("m1", 3, "w1")], repeats=True).clean, "the result has changed"


def test_a_second_start_needs_a_kill() -> None:
    """Of the worker that had started it, between the two."""
    again = of(What.STARTED, "m0", "w1")
    assert reasons([*good(), again]) == ["started twice"]
    assert reasons([*good(), killed("w1"), again]) == ["started twice"]
    assert reasons([killed("w0"), *good(), again]) == ["started twice"]
    assert reasons([*good(), again, killed("w0")]) == ["started twice"]
    assert reasons([*good(), killed("w0"), again]) == []
    assert reasons([*good(), killed("w0"), again, again]) == ["started twice"]


def test_a_result_that_changes_is_found() -> None:
    """Another value or another state; to store the same again is no change."""
    assert reasons([*good(), of(What.ENDED, "m0", value=("SUCCESS", 9))]) == ["changed"]
    assert reasons([*good(), of(What.ENDED, "m0", value=("FAILURE", 1))]) == ["changed"]
    assert reasons([*good(), of(What.ENDED, "m0", value=("SUCCESS", 1))]) == []


@pytest.mark.parametrize("given", [[1], [1, 1, 2], [1, 1], [2, 1], []])
def test_a_member_that_counts_twice_or_not_is_found(given: list[int]) -> None:
    """Too many results, too few, those of a run whose result does not stand, or in another order."""
    history = [*good()[:-4], *run("body", 3, given=given)]
    assert set(reasons(history)) == {"counted wrongly"}


def test_error_links_are_called_once_for_a_failure() -> None:
    """Not twice, not never, not for a success, not for what nobody knows."""
    history = failed()
    more = [of(What.STARTED, "e2", about="a"), of(What.ENDED, "e2", value=("SUCCESS", None))]
    assert reasons([*history, *more], ("a",)) == ["error links"]
    assert reasons(history[:3], ("a",)) == ["error links"]
    assert reasons(history) == ["error links"], "no link hangs on it"
    assert reasons([*history, *more], ("a", "a")) == [], "two links"
    assert reasons([*good(), of(What.STARTED, "e", about="m0")], ("m0",)) == ["error links"]
    assert reasons([*good(), of(What.STARTED, "e", about="nobody")]) == ["error links"]


def test_reasons_are_said() -> None:
    """The error has all of them, behind what was tested."""
    with pytest.raises(AssertionError, match=r"point 7\nlost: a has not ended"):
        judge([of(What.PUBLISHED, "a")]).assert_clean("point 7")
