"""Laws of exceptions as data. That they are Celery's is shown by the golden files."""

from __future__ import annotations

import builtins
import importlib
import importlib.util
import pickle
import sys
import types
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from celeriac import errors
from celeriac.errors import DecodeError, SecurityError
from celeriac.wire import failure, values


class Own(Exception):
    """An exception of this module."""

    class Inner(Exception):
        """One whose qualified name has a dot."""

    limit = 5

    @staticmethod
    def run() -> None:
        raise AssertionError("called")


class Picky(Exception):
    """Its arguments are not those of its constructor."""

    def __init__(self, *, code: int) -> None:
        super().__init__(f"code {code}")


class Rude(Exception):
    """Neither its text nor its arguments can be had."""

    def __str__(self) -> str:
        raise RuntimeError("no")

    __repr__ = __str__

    @property
    def args(self) -> Any:  # type: ignore[override]
        raise RuntimeError("no")


@given(st.lists(st.none() | st.booleans() | st.integers(-(2**60), 2**60) | st.text() | st.binary(), max_size=4))
def test_what_is_described_is_rebuilt(args: list[Any]) -> None:
    """Class and arguments, through JSON."""
    for cls in (ValueError, Own, Own.Inner, errors.ChordError, errors.TimeLimitExceeded):
        described = values.loads(values.dumps(failure.describe(cls(*args))).encode())
        rebuilt = failure.rebuild(described)
        assert type(rebuilt) is cls
        assert rebuilt.args == tuple(args)


def test_names_are_those_of_celery() -> None:
    """Every class in the table is written under Celery's name, and found under it."""
    for cls, module in errors.FOREIGN_MODULES.items():
        described = failure.describe(cls("x"))
        assert (described["exc_module"], described["exc_type"]) == (module, cls.__name__)
        assert type(failure.rebuild(described)) is cls


def test_arguments_that_cannot_be_held() -> None:
    """Are shown, each by itself; whatever an exception is like, describing it works."""
    described = failure.describe(ValueError(1, {2}, "a", object, 10**5000))
    assert described["exc_message"][:4] == [1, "{2}", "a", "<class 'object'>"]
    assert "Unrepresentable" in described["exc_message"][4]
    assert failure.describe(ValueError(b"\xff", {2: 3}), "msgpack")["exc_message"] == [b"\xff", {2: 3}]
    assert failure.describe(Rude())["exc_message"] == []
    assert "Unrepresentable" in failure.describe(ValueError(Rude()))["exc_message"][0]
    odd = type("Odd", (Exception,), {"__module__": 5})
    assert failure.describe(odd())["exc_module"] is None
    values.dumps(failure.describe(ValueError("\ud800", "\0")))


def test_nothing_but_exceptions_is_called(monkeypatch: pytest.MonkeyPatch) -> None:
    """Functions, other classes, attributes of classes: SecurityError, and nothing has run."""
    called: list[Any] = []
    trap = types.ModuleType("trap")
    vars(trap)["function"] = called.append
    vars(trap)["Class"] = type("Class", (), {"__init__": lambda self, *args: called.append(args)})
    vars(trap)["number"] = 5
    vars(trap)["none"] = None
    monkeypatch.setitem(sys.modules, "trap", trap)
    here = __name__
    for module, name in (
        ("trap", "function"), ("trap", "Class"), ("trap", "number"), ("trap", "none"), ("os", "system"),
        ("builtins", "eval"), ("builtins", "print"), ("builtins", "dict"), ("subprocess", "Popen"),
        (here, "Own.run"), (here, "Own.limit"), (here, "Own.__init__"), ("builtins", "type"),
    ):  # fmt: skip
        importlib.import_module(module)
        with pytest.raises(SecurityError, match="Expected an exception class"):
            failure.rebuild({"exc_type": name, "exc_module": module, "exc_message": ["print(1)"]})
    assert not called


def test_nothing_is_imported(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A module that isn't there stays away, a lazy one stays asleep; the class is made up instead."""
    (tmp_path / "sleeper.py").write_text("raise SystemExit('imported')\nclass Bad(Exception): pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    rebuilt = failure.rebuild({"exc_type": "Bad", "exc_module": "sleeper", "exc_message": ["a", 1]})
    assert (type(rebuilt).__name__, type(rebuilt).__module__, rebuilt.args) == ("Bad", "sleeper", ("a", 1))
    assert type(rebuilt).__bases__ == (Exception,)
    assert "sleeper" not in sys.modules

    def touched(name: str) -> Any:
        raise AssertionError(f"asked for {name}")

    lazy = types.ModuleType("lazy")
    vars(lazy)["__getattr__"] = touched
    monkeypatch.setitem(sys.modules, "lazy", lazy)
    assert type(failure.rebuild({"exc_type": "Bad", "exc_module": "lazy"})).__name__ == "Bad"

    spec = importlib.util.find_spec("sleeper")
    assert spec is not None
    assert spec.loader is not None
    asleep = importlib.util.module_from_spec(spec)
    importlib.util.LazyLoader(spec.loader).exec_module(asleep)
    monkeypatch.setitem(sys.modules, "sleeper", asleep)
    assert type(failure.rebuild({"exc_type": "Bad", "exc_module": "sleeper"})).__name__ == "Bad"

    monkeypatch.setitem(sys.modules, "object", object())
    assert type(failure.rebuild({"exc_type": "Bad", "exc_module": "object"})).__name__ == "Bad"


def test_only_the_given_modules_are_looked_into() -> None:
    """`modules` takes the place of what is imported."""
    described = failure.describe(Own("x"))
    assert type(failure.rebuild(described)) is Own
    made_up = failure.rebuild(described, {})
    assert type(made_up) is not Own
    assert type(made_up) is type(failure.rebuild(described, {}))
    assert type(failure.rebuild(described, {__name__: sys.modules[__name__]})) is Own


def test_classes_that_refuse_their_arguments() -> None:
    """Become a plain Exception that says so."""
    rebuilt = failure.rebuild(failure.describe(Picky(code=5)))
    assert type(rebuilt) is Exception
    assert "Picky" in str(rebuilt)
    assert "code 5" in str(rebuilt)
    assert type(failure.rebuild({"exc_type": "UnicodeDecodeError", "exc_module": "builtins"})) is Exception


def test_old_and_odd_maps() -> None:
    """A text as message, no module, no message, an exception itself, names that no class can have."""
    assert failure.rebuild({"exc_type": "KeyError", "exc_module": "builtins", "exc_message": "a"}).args == ("a",)
    assert failure.rebuild({"exc_type": "KeyError", "exc_message": ["a"]}).args == ("a",)
    assert failure.rebuild({"exc_type": "KeyError", "exc_module": None, "exc_message": None}).args == (None,)
    exc = KeyError("a")
    assert failure.rebuild(exc) is exc
    for name in ("", ".", "a.b", "\0", "\ud800", "x" * 100_000, "__class__", "KeyError."):
        assert isinstance(failure.rebuild({"exc_type": name, "exc_module": "builtins"}), Exception)
    for module in ("", "\0", "\ud800", ".", "builtins.KeyError"):
        assert isinstance(failure.rebuild({"exc_type": "KeyError", "exc_module": module}), Exception)


@pytest.mark.parametrize(
    "data",
    [None, 5, "x", [], {}, {"exc_type": 5}, {"exc_type": None}, {"exc_type": ["a"]}, {"exc_module": "builtins"},
     {"exc_type": "KeyError", "exc_module": 5}, {"exc_type": "KeyError", "exc_module": []}],
)  # fmt: skip
def test_what_is_no_exception_is_refused(data: Any) -> None:
    """DecodeError."""
    with pytest.raises(DecodeError):
        failure.rebuild(data)


JSON = st.recursive(
    st.none() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)
NAMES = st.sampled_from([name for name in vars(builtins) if name.isidentifier()]) | st.text()


@given(NAMES | JSON, st.sampled_from(["builtins", "os", "celery.exceptions", __name__]) | JSON, JSON)
def test_any_map_is_rebuilt_or_refused(name: Any, module: Any, message: Any) -> None:
    """An exception comes out, or SecurityError, or DecodeError."""
    try:
        rebuilt = failure.rebuild({"exc_type": name, "exc_module": module, "exc_message": message})
    except (SecurityError, DecodeError):
        return
    assert isinstance(rebuilt, BaseException)


def test_tracebacks() -> None:
    """As Python prints them, without the frames of the runtime, and whatever the exception."""

    def inner() -> None:
        raise KeyError("a") from ValueError("cause")

    def outer() -> None:
        inner()

    with pytest.raises(KeyError) as caught:
        outer()
    exc = caught.value
    text, short, least = failure.traceback_text(exc), failure.traceback_text(exc, 2), failure.traceback_text(exc, 99)
    assert text.startswith("ValueError: cause")
    assert text.endswith("KeyError: 'a'\n")
    assert "in outer" in text
    assert "in outer" not in short
    assert "in inner" in short
    assert "in inner" in least
    assert "Rude" in failure.traceback_text(Rude())
    assert failure.traceback_text(KeyError("a")) == "KeyError: 'a'\n"


class Carried(ValueError):
    """Pickle carries it."""


class Blocked(Carried):
    """Pickle does not carry it."""

    def __reduce__(self) -> Any:
        raise TypeError("no")


def test_what_pickle_carries() -> None:
    """The exception, its nearest base, or one that shows it."""
    carried = Carried("a")
    assert failure.picklable(carried) is carried
    near = failure.picklable(Blocked("a"))
    assert (type(near), near.args) == (Carried, ("a",))
    assert type(failure.picklable(Rude())) is Rude
    shown = failure.picklable(ValueError(lambda: 0))
    assert type(shown) is Exception
    assert "lambda" in str(shown)
    for exc in (near, shown):
        pickle.dumps(exc)
