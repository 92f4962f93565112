"""Routing keys and patterns of topic exchanges, as AMQP defines them. Pure."""

from __future__ import annotations

from collections.abc import Sequence


def hears(pattern: str, routing_key: str) -> bool:
    """Does a listener of `pattern` hear this routing key? `*` is one word, `#` any number of words. The empty pattern
    hears everything, as a queue that is bound to a fanout exchange does."""
    if not pattern or pattern == "#" or pattern == routing_key:
        return True
    return _match(pattern.split("."), routing_key.split("."))


def _match(pattern: Sequence[str], words: Sequence[str]) -> bool:
    if not pattern:
        return not words
    first, rest = pattern[0], pattern[1:]
    if first == "#":
        return any(_match(rest, words[n:]) for n in range(len(words) + 1))
    return bool(words) and first in ("*", words[0]) and _match(rest, words[1:])
