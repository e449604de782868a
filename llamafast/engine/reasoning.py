"""How long a model may reason, as it crosses the engine's door."""

from __future__ import annotations

from typing import NamedTuple


class ThoughtMarks(NamedTuple):
    """The marks around a model's thoughts; for each byte of ``end`` the token of ``forced`` that goes on from there."""

    begin: bytes
    end: bytes
    forced: tuple[int, ...]


class ReasoningBudget(NamedTuple):
    """Behind ``n_tokens`` of thought in a reply its end is written for the model. ``begun``: which of ``marks`` the
    prompt has opened, -1 where none; a mark of ``closers`` ends thoughts too."""

    n_tokens: int
    begun: int
    marks: tuple[ThoughtMarks, ...]
    closers: tuple[bytes, ...] = ()
