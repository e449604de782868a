"""At which lengths a sequence that runs is saved, so that others can go on from there."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from llamafast._core.context import UNLIMITED

# Where a sequence can be cut anywhere it is saved in parts of so many tokens. Saving 512 tokens of SmolLM2 takes 10 ms.
PART = 512
# Where it cannot, a state is taken so many tokens before the end of the prompt, at twice that distance and so on; and
# right before the end, because the last few tokens of a prompt often belong to a template and differ in the next turn.
DISTANCE = 64
LAST_DISTANCE = 4
# But never further apart than this, so that copying what lies between delays nobody for long.
LONGEST = 2048
# Fewer tokens are computed as fast as they are found.
MIN_TOKENS = 8


@dataclass(frozen=True)
class SavePoints:
    """Of one kind of memory: whether states ``cuts_anywhere``, and whether they are saved ``in_parts``."""

    cuts_anywhere: bool
    in_parts: bool

    def after(self, n_past: int, n_prompt: int, checkpoints: tuple[int, ...], invoked_at: int) -> int:
        """The next one of a sequence of ``n_past`` tokens, before it ends. At ``invoked_at`` (0: nowhere) its tokens
        become another salt's, and what is before that cannot be saved for its own salt later but in parts."""
        if self.cuts_anywhere:
            if self.in_parts:
                return (n_past // PART + 1) * PART
            return invoked_at if n_past < invoked_at else UNLIMITED
        points = [n for n in checkpoints if MIN_TOKENS <= n < n_prompt]
        points += [n for n in _distances(n_prompt) if all(abs(n - other) >= MIN_TOKENS for other in points)]
        if invoked_at >= MIN_TOKENS:
            points.append(invoked_at)
        return min((n for n in points if n > n_past), default=(n_past // LONGEST + 1) * LONGEST)


def _distances(n_prompt: int) -> Iterator[int]:
    yield n_prompt - LAST_DISTANCE
    distance = DISTANCE
    while distance < n_prompt:
        yield n_prompt - distance
        distance *= 2
    yield from range(LONGEST, n_prompt, LONGEST)
