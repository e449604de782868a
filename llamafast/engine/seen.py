"""Reads what the engine does at the moment, from another thread than its own and without holding that up."""

from __future__ import annotations

from llamafast._core.runner import Runner
from llamafast._core.sequence import (
    PHASE_DECODING,
    PHASE_ENDED,
    PHASE_FOLLOWING,
    PHASE_PARKED,
    PHASE_PREFILLING,
    PHASE_RESTORING,
    PHASE_WAITING,
    Sequence,
)
from llamafast.engine.activity import Activity, Phase, SeenSequence, SeenStep, StepPart
from llamafast.engine.scheduler import Scheduler

# What is told at once: of steps, of rows of sequences in them, of those who wait.
MOST_STEPS = 64
MOST_PARTS = 1024
MOST_WAITING = 16

_PHASES: dict[int, Phase] = {
    PHASE_WAITING: "waiting",
    PHASE_RESTORING: "restoring",
    PHASE_FOLLOWING: "following",
    PHASE_PREFILLING: "prefilling",
    PHASE_DECODING: "decoding",
    PHASE_PARKED: "parked",
    PHASE_ENDED: "ended",
}


def read_activity(runner: Runner, scheduler: Scheduler[Sequence]) -> Activity:
    """Any thread."""
    n_steps, steps = runner.last_steps(MOST_STEPS, MOST_PARTS)
    return Activity(
        n_steps,
        # there may be a thousand of them: what the core calls kinds is what they are called here
        [SeenStep(seconds, list(map(StepPart._make, parts))) for seconds, parts in steps],
        [SeenSequence._make((id, slot, _PHASES[phase], *n)) for id, slot, phase, *n in runner.sequences()],
        [_waits(sequence) for sequence in scheduler.next_waiting(MOST_WAITING)],
    )


def _waits(sequence: Sequence) -> SeenSequence:
    return SeenSequence(
        id=sequence.tag,
        slot=-1,
        phase="waiting",
        n_prompt=sequence.n_prompt,
        n_tokens=sequence.n_tokens,
        n_past=0,
        n_max=sequence.n_max,
        n_lent=0,
        lender=0,
        n_restored=0,
        n_drafted=sequence.n_drafted,
        n_accepted=sequence.n_accepted,
        age=sequence.age,
    )
