"""Laws of the short texts of arguments. That they are Celery's is shown by the golden files."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from celeriac.wire import repr as short
from celeriac.wire.repr import safe_repr

ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=30) | st.binary(max_size=30),
    lambda inner: (
        st.lists(inner, max_size=5)
        | st.tuples(inner, inner)
        | st.dictionaries(st.text(max_size=5) | st.integers(), inner, max_size=4)
    ),
    max_leaves=30,
)


@given(ANYTHING, st.integers(1, 300), st.integers(0, 4))
def test_the_fast_way_gives_the_same(value: Any, limit: int, levels: int) -> None:
    """Plain values take a way of their own, to the same text."""
    assert safe_repr(value, limit, levels) == short._long(value, limit, levels)


@given(ANYTHING)
def test_it_is_bounded_and_balanced(value: Any) -> None:
    """The text is about as long as the limit at most."""
    assert len(safe_repr([value], 50)) < 50 + 3 * 50 + 20


class Rude:
    def __repr__(self) -> str:
        raise RuntimeError("no")


class RudeNumber(int):
    def __str__(self) -> str:
        raise RuntimeError("no")


def test_it_never_raises() -> None:
    """Objects that can't be shown, circles, depth, huge numbers."""
    circle: list[Any] = [1]
    circle.append(circle)
    deep: Any = []
    for _ in range(50_000):
        deep = [deep]
    assert "Unrepresentable" in safe_repr((Rude(),))
    assert "Unrepresentable" in safe_repr((RudeNumber(3),))
    assert "Recursion on list" in safe_repr(circle)
    assert safe_repr(deep) == "[[[[...]]]]"
    assert len(safe_repr(deep, None, 0)) == 100_002
    assert safe_repr((10**5000,))
    assert safe_repr({"k": Rude()}, None)
    while deep:
        deep = deep[0]
