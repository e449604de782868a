"""How time is divided: every constant of pace, which the core and the engine are given when they are made."""

from __future__ import annotations

from msgspec import Struct

from llamafast.config import SchedulerConfig


class Pace(Struct, frozen=True, kw_only=True):
    """Seconds, rows, or shares of a step's time. The core takes its part of them by name (``_core/pace.pxd``)."""

    # -- the gap between two tokens of those who decode --
    # Prompts, and whatever else is computed or copied, lengthen it to so many times what it would be, or to so many
    # seconds, and no further, whoever waits: a reader sees no pause. The aim is a 99th percentile of three times the
    # median without prompts, or 0.1 s; without prompts it is half as long again as the median.
    gap_stretch: float = 1.6
    gap_seconds: float = 0.06
    # Rows of a picture or of a sound lengthen it to so many times what it would be and no further: there are hundreds
    # of them, so theirs is the gap that readers have for as long as somebody looks.
    media_stretch: float = 1.8
    # What a step that decodes may take instead, as far as its prompt rows decide that; 0: the two above.
    target_itl: float = 0.0
    # Most prompt rows of such a step, whatever they take; 0: as many as the time allows.
    prefill_chunk: int = 0
    # Others get this share of a step's time at least.
    least_spare: float = 0.1

    # -- rows of a step --
    # Rows of prompt in a step, however slow rows are: prefill always advances.
    min_prefill: int = 4
    # The same before the first step was measured, where nobody decodes.
    first_prefill: int = 64
    # llama.cpp keeps the logits of all rows of a step that ask for them, and never gives the memory back: bytes.
    scored_bytes: int = 1 << 26
    # A step that only prefills: long enough to be efficient, short enough to hear a cancel or a new request.
    prefill_seconds: float = 0.5
    # Weight of the past after each step in what a row is taken to cost: about the last 50 steps count.
    cost_decay: float = 0.98
    # How much longer than that the last steps with rows of prompts took: weight of the newest one, and the most that is
    # believed.
    excess_weight: float = 0.5
    excess_most: float = 2.0
    # Drafts that have saved nothing yet make a step so much longer at most: others wait for it too.
    draft_stretch: float = 1.2

    # -- masks of grammars --
    # How long a step waits for masks that are late: while others could go on, as a share of llama_decode's time, and
    # where everybody waits for a mask, in seconds.
    mask_patience: float = 0.1
    mask_seconds: float = 0.05
    # CPU time of a masker's thread: from when on a grammar is slow, how long tokens that alone may follow are looked
    # for, and what one token of an ambiguous grammar may take at most. It grows with the text.
    slow_mask_seconds: float = 0.001
    forcing_seconds: float = 0.02
    mask_limit_seconds: float = 0.1

    # -- those who share the engine thread with generation, embeddings for one --
    # What one computes at one go: long enough to be efficient, short enough to hear a cancel.
    alone_seconds: float = 0.5
    # Beside generation it is also a pause of every stream, as long as its last step has to spare, and better none than
    # many short ones.
    beside_seconds: float = 0.1
    least_beside_seconds: float = 0.02
    # Rows of a step that embeds, however slow rows are: every step advances; and before the first one was measured.
    min_embed: int = 8
    first_embed: int = 64

    # -- copies and the event loop --
    # Between two steps states are saved and restored for about this long, and always at least one part of each.
    copy_seconds: float = 0.005
    # Where nobody has a step to take, states are saved only after the event loop has had so long to send the last
    # tokens: it needs the GIL, as saving does.
    sending_seconds: float = 0.001
    # A turn of the event loop makes the sequences of a request's choices for so long.
    making_seconds: float = 0.004


def pace_of(config: SchedulerConfig) -> Pace:
    """What the config means. At most one of its two bounds is set."""
    return Pace(target_itl=(config.target_itl_ms or 0.0) / 1e3, prefill_chunk=config.prefill_chunk or 0)
