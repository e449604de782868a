"""The noun of a choice that runs, as it crosses the engine's door."""

from __future__ import annotations

from msgspec import Struct


class SlotInfo(Struct, frozen=True, kw_only=True):
    """A choice that runs, in numbers: nothing of its text.

    ``slot`` is its place among those that may run at once, ``task`` tells it apart from whatever had that place before.
    Of the ``n_prompt`` tokens of its prompt ``n_computed`` were computed so far, and ``n_cached`` taken from elsewhere;
    ``n_memory`` tokens are in memory, ``n_generated`` have come and ``n_left`` more may.
    """

    slot: int
    task: int
    n_prompt: int
    n_computed: int
    n_cached: int
    n_memory: int
    n_generated: int
    n_left: int
