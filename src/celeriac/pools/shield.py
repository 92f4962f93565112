"""Where an exception from outside may not strike: in the middle of a write to the parent.

A soft time limit is raised in a thread at any bytecode. Code that holds a lock or writes half a frame enters the
shield; what would strike meanwhile is kept and raised when the shield is left, or where the code says that it waits.
"""

from __future__ import annotations

from threading import get_ident


class Shield:
    """One thread's. `depth` above 0: inside, `open`: inside, but only waiting."""

    __slots__ = ("depth", "open", "pending", "sliced")

    def __init__(self, sliced: bool = False) -> None:
        self.depth = 0
        self.open = False
        self.pending: BaseException | None = None
        self.sliced = sliced
        """A wait of this thread can't be interrupted: it has to look up now and then."""

    def strike(self, error: BaseException) -> bool:
        """Say whether `error` may be raised in the thread now; if not, keep it. Called by a signal handler of this
        thread, or from another one."""
        if self.depth and (self.sliced or not self.open):
            self.pending = error
            return False
        return True

    def leave(self) -> None:
        """Leave the shield; raises what was kept, if this was the outermost one."""
        self.depth -= 1
        if not self.depth:
            self.open = False
            self.raise_pending()

    def raise_pending(self) -> None:
        """Raise what was kept."""
        error, self.pending = self.pending, None
        if error is not None:
            raise error


shields: dict[int, Shield] = {}
"""The threads into which exceptions are raised from outside, by identifier."""


def protect(sliced: bool = False) -> Shield:
    """Make a shield for this thread."""
    shield = shields[get_ident()] = Shield(sliced)
    return shield


def unprotect() -> None:
    """This thread ends."""
    shields.pop(get_ident(), None)
