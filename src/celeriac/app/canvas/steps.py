"""The steps of a chain that `|` or `clone` has made: a chain that grows step by step does not copy all of them each
time."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from threading import RLock
from typing import Any, Self

from celeriac.app.canvas.signatures import maybe_signature

_lock = RLock()


def _after_fork() -> None:
    global _lock
    _lock = RLock()  # another thread of the parent may have held it


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


class Steps(list[Any]):
    """A list whose first `hidden` signatures may stand in other chains too. Nobody has got hold of those: whoever asks
    for one gets copies, made here and now, so what is changed in one chain changes in that one only.

    What only reads, as comparing does, and what only adds at the end, sees a list."""

    __slots__ = ("hidden",)

    def __init__(self, tasks: Iterable[Any] = ()) -> None:
        super().__init__(tasks)
        self.hidden = 0

    @classmethod
    def copied(cls, tasks: Iterable[Any]) -> Self:
        """The same steps for another chain. Those that somebody may have got hold of are copied here and now."""
        with _lock:
            if isinstance(tasks, Steps):
                found, hidden = list.__getitem__(tasks, slice(None)), tasks.hidden
            else:
                found, hidden = list(tasks), 0
            made = cls([*found[:hidden], *(maybe_signature(task, clone=True) for task in found[hidden:])])
            made.hidden = max(0, len(made) - 1)  # the last one may be changed by what comes after it
        return made

    def reveal(self) -> None:
        """Make the hidden ones this list's own."""
        with _lock:
            own = [maybe_signature(task, clone=True) for task in list.__getitem__(self, slice(self.hidden))]
            list.__setitem__(self, slice(self.hidden), own)
            self.hidden = 0

    def __getitem__(self, index: Any) -> Any:
        if not isinstance(index, int) or -len(self) <= index < self.hidden - len(self) or 0 <= index < self.hidden:
            self.reveal()
        return super().__getitem__(index)

    def __radd__(self, other: list[Any]) -> list[Any]:
        self.reveal()
        return other.__add__(list(self))

    def __reduce_ex__(self, protocol: Any) -> Any:
        return list, (list(self),)  # a peer that reads pickles has no such class


def _revealing(name: str) -> Callable[..., Any]:
    plain = getattr(list, name)

    def method(self: Steps, *args: Any, **kwargs: Any) -> Any:
        self.reveal()
        return plain(self, *args, **kwargs)

    return method


for _name in (
    "__iter__", "__reversed__", "__setitem__", "__delitem__", "__add__", "__mul__", "__rmul__", "__imul__", "copy",
    "insert", "pop", "remove", "reverse", "sort", "clear",
):  # fmt: skip
    setattr(Steps, _name, _revealing(_name))
