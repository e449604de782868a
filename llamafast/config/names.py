"""Names that clients may call a model by, exact ones and patterns in which ``*`` stands for any characters."""

from __future__ import annotations

from collections.abc import Iterable

ANY = "*"
# Characters. Longer ones are asked for by nobody who means a model.
MAX_NAME = 256


def is_pattern(name: str) -> bool:
    return ANY in name


def answers_to(name: str, names: Iterable[str]) -> bool:
    """Whether ``name`` is one of ``names``, or has at most MAX_NAME characters and is like one of its patterns."""
    return any(name == known or (is_pattern(known) and _is_like(name, known)) for known in names)


def strictness(pattern: str) -> int:
    """Of the patterns that a name is like, the one with most characters of its own is meant."""
    return len(pattern) - pattern.count(ANY)


def _is_like(name: str, pattern: str) -> bool:
    """In time linear in the name, whatever the pattern: each part is where it is found first."""
    if len(name) > MAX_NAME:
        return False
    first, *middle, last = pattern.split(ANY)
    end = len(name) - len(last)
    if not name.startswith(first) or not name.endswith(last):
        return False
    at = len(first)
    for part in middle:
        if (found := name.find(part, at, end)) < 0:
            return False
        at = found + len(part)
    return at <= end
