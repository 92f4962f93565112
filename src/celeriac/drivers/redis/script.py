"""Lua scripts, kept one a file beside the code that runs them, read on first use."""

from __future__ import annotations

import hashlib
from functools import cached_property
from typing import Any

from celeriac.drivers.redis.protocol import Words


class Script:
    """A script made of one or more files, the last of which uses what the others define. A server knows it by its
    digest; one that does not is given the source."""

    def __init__(self, *parts: tuple[str, str]) -> None:
        """`parts` are (package, path of a .lua file in it)."""
        self._parts = parts

    @cached_property
    def source(self) -> str:
        """The whole text."""
        from importlib.resources import files  # who runs no script does not pay for it

        return "\n".join(files(package).joinpath(path).read_text(encoding="utf-8") for package, path in self._parts)

    @cached_property
    def digest(self) -> str:
        """What EVALSHA takes."""
        return hashlib.sha1(self.source.encode(), usedforsecurity=False).hexdigest()

    def by_digest(self, keys: tuple[str | bytes, ...], arguments: tuple[Any, ...]) -> Words:
        """The command that is tried first."""
        return ("EVALSHA", self.digest, len(keys), *keys, *arguments)

    def whole(self, keys: tuple[str | bytes, ...], arguments: tuple[Any, ...]) -> Words:
        """The command for a server that does not know the script; afterwards it does."""
        return ("EVAL", self.source, len(keys), *keys, *arguments)


def unknown(reply: object) -> bool:
    """Is this the reply of a server that does not know the script? Then nothing of it was done."""
    return isinstance(reply, Exception) and str(reply).startswith("NOSCRIPT")
