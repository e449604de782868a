"""Names that clients may call a model by, exact ones and patterns in which ``*`` stands for any characters."""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import lru_cache

ANY = "*"


def is_pattern(name: str) -> bool:
    return ANY in name


def answers_to(name: str, names: Iterable[str]) -> bool:
    """Whether ``name`` is one of ``names``, or like one of its patterns."""
    return any(name == known or (is_pattern(known) and _expression(known).fullmatch(name)) for known in names)


def strictness(pattern: str) -> int:
    """Of the patterns that a name is like, the one with most characters of its own is meant."""
    return len(pattern) - pattern.count(ANY)


@lru_cache(maxsize=256)
def _expression(pattern: str) -> re.Pattern[str]:
    return re.compile(".*".join(map(re.escape, re.split(r"\*+", pattern))), re.DOTALL)
