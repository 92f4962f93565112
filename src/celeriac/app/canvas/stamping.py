"""Stamps: headers that mark every task of a canvas, to be found and revoked by. They stand among a signature's options,
and `stamped_headers` names them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

STAMPED = "stamped_headers"
Headers = Mapping[str, Any]


class StampingVisitor(ABC):
    """Says what to stamp each part of a canvas with; see `Signature.stamp`.

    Each method gets the part, and by name what has been said so far. It returns headers: all of them are stamps, unless
    `stamped_headers` among them names those that are. What was said before wins, and reaches everything inside.
    """

    @abstractmethod
    def on_signature(self, sig: Any, **headers: Any) -> Headers | None:
        """A single task."""

    def on_group_start(self, group: Any, **headers: Any) -> Headers | None:
        """A group, before its members."""
        return {}

    def on_group_end(self, group: Any, **headers: Any) -> None:
        """A group, after its members."""
        return None

    def on_chain_start(self, chain: Any, **headers: Any) -> Headers | None:
        """A chain, before its steps."""
        return {}

    def on_chain_end(self, chain: Any, **headers: Any) -> None:
        """A chain, after its steps."""
        return None

    def on_chord_header_start(self, sig: Any, **header: Any) -> Headers | None:
        """A chord, before the members of its header. As it stands here, the header is asked for as a group."""
        return self.on_group_start(sig.header_group(), **header)

    def on_chord_header_end(self, sig: Any, **header: Any) -> None:
        """A chord, after the members of its header."""
        self.on_group_end(sig.tasks, **header)

    def on_chord_body(self, sig: Any, **header: Any) -> Headers | None:
        """A chord, before its body."""
        return {}

    def on_callback(self, callback: Any, **header: Any) -> Headers | None:
        """A link, before it is visited as a signature."""
        return {}

    def on_errback(self, errback: Any, **header: Any) -> Headers | None:
        """An error link, before it is visited as a signature."""
        return {}


def named(headers: Headers) -> dict[str, Any]:
    """Headers that name their stamps; without names all are stamps."""
    if STAMPED in headers:
        return {**headers, STAMPED: _listed(headers[STAMPED])}
    return {**headers, STAMPED: list(headers)}


def merged(first: Headers, second: Headers | None, append: bool) -> dict[str, Any]:
    """The headers of both. Where both have one the first counts; with `append` both do, as a list."""
    found = named(first)
    if not second:
        return found
    more = named(second)
    names = [*found.pop(STAMPED), *more.pop(STAMPED)]
    for key, value in more.items():
        if key not in found:
            found[key] = value
        elif append:
            found[key] = [*_listed(found[key]), *_listed(value)]
    found[STAMPED] = list(dict.fromkeys(names))
    return found


def stamps(options: Mapping[str, Any]) -> dict[str, Any]:
    """What a signature is stamped with already."""
    names = _listed(options.get(STAMPED))
    return {STAMPED: names, **{name: options[name] for name in names if name in options}} if names else {}


def _listed(value: Any) -> list[Any]:
    if value is None:
        return []
    return list(value) if isinstance(value, list | tuple | set | frozenset) else [value]
