"""What can be seen of the engine at work: its last steps, who runs and who waits. Numbers only."""

from __future__ import annotations

from typing import Literal, NamedTuple, Protocol

from llamafast.engine.slot_info import SlotInfo

Phase = Literal["waiting", "restoring", "following", "prefilling", "decoding", "parked", "ended"]
# What the rows of a StepPart were of.
DECODE, PROMPT, MEDIA = range(3)


class StepPart(NamedTuple):
    """The ``n_rows`` that sequence ``id`` had in a step, the last ``n_drafted`` of them of drafted tokens. ``slot`` is
    its llama_seq_id then, which others have before and after it; ``kind`` is DECODE, PROMPT or MEDIA."""

    slot: int
    id: int
    kind: int
    n_rows: int
    n_drafted: int


class SeenStep(NamedTuple):
    seconds: float
    parts: list[StepPart]


class SeenSequence(NamedTuple):
    """One choice of one prompt; ``id`` is its own for as long as the server runs.

    In tokens: ``n_prompt`` of its prompt, ``n_tokens`` it has, ``n_past`` in memory, ``n_max`` it may have; ``n_lent``
    it took from running sequences, the last of which was ``lender`` (also whom it waits for; 0: nobody), ``n_restored``
    from RAM or disk. Of drafted tokens ``n_drafted`` were decoded for it and ``n_accepted`` came. ``age`` is in seconds
    since it was submitted, ``slot`` -1 while it waits.
    """

    id: int
    slot: int
    phase: Phase
    n_prompt: int
    n_tokens: int
    n_past: int
    n_max: int
    n_lent: int
    lender: int
    n_restored: int
    n_drafted: int
    n_accepted: int
    age: float


class Activity(NamedTuple):
    """``steps`` are the last ones of ``n_steps`` since the start, oldest first; ``running`` is by admission,
    ``waiting`` the first of those who wait, by rank."""

    n_steps: int
    steps: list[SeenStep]
    running: list[SeenSequence]
    waiting: list[SeenSequence]


class Observed(Protocol):
    """What whoever looks on may ask of the engine; nothing of it ever waits for a step."""

    def stalled(self) -> float:
        """Seconds since the engine last stepped, or came further in a step, while work was waiting; 0 when it is
        idle."""

    def counters(self) -> dict[str, float]:
        """The current value of every counter and gauge of ``llamafast.series``, by series key."""

    def slots(self) -> list[SlotInfo]:
        """The choices that run now."""

    def activity(self) -> Activity:
        """What it does at the moment."""
