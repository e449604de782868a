"""Prompts of a wanted length for a server whose tokens nobody knows: random words, as many as its own usage says."""

from __future__ import annotations

import random
from typing import Any, NamedTuple

_TEXT = """
the of and to in is you that it he was for on are as with his they at be this have from or one had by word but not
what all were we when your can said there use an each which she do how their if will up other about out many then them
these so some her would make like him into time has look two more write go see number no way could people my than
first water been call who oil its now find long down day did get come made may part over new sound take only little
work know place year live me back give most very after thing our just name good sentence man think say great where
help through much before line right too mean old any same tell boy follow came want show also around form three small
set put end does another well large must big even such because turn here why ask went men read need land different
home us move try kind hand picture again change off play spell air away animal house point page letter mother answer
found study still learn should world high every near add food between own below country plant last school father keep
tree never start city earth eye light thought head under story saw left late run while
"""
# Short and common: in nearly every vocabulary each of them is one token.
WORDS = tuple(_TEXT.split())


class Length(NamedTuple):
    """A prompt of ``n`` words has ``fixed + each * n`` tokens, template included."""

    fixed: float
    each: float

    def words(self, tokens: int) -> int:
        """How many come nearest to ``tokens``; at least one."""
        return max(1, round((tokens - self.fixed) / self.each))


def measured(few: tuple[int, int], many: tuple[int, int]) -> Length:
    """From two prompts, each its words and its tokens."""
    each = max(1e-3, (many[1] - few[1]) / (many[0] - few[0]))
    return Length(few[1] - each * few[0], each)


def words(n: int, name: str) -> str:
    """The same for the same name, and from its first words on unlike those of others."""
    return " ".join(random.Random(name).choices(WORDS, k=n))


def body(path: str, text: str) -> dict[str, Any]:
    """``text`` as the prompt of a request to ``path``."""
    if path.endswith("/chat/completions"):
        return {"messages": [{"role": "user", "content": text}]}
    return {"prompt": text}
