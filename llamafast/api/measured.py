"""What is told beside a text while it comes: how far its prompt is, and how long what has taken."""

from __future__ import annotations

import time
from collections.abc import Callable

from msgspec import UNSET, UnsetType

from llamafast.api.schema.fragments import GenerationOptions
from llamafast.api.schema.timings import PromptProgress, Timings
from llamafast.api.sse import extended
from llamafast.engine.types import Generation

# A chunk for each hundredth at most: beside running streams a long prompt takes thousands of steps.
_PARTS = 100


class Measured:
    """llama-server's ``timings`` and ``prompt_progress`` of one generation, as far as its request asks for them."""

    def __init__(self, generation: Generation, request: GenerationOptions) -> None:
        self._generation = generation
        self._asked = time.monotonic()
        self._wants_timings = bool(request.timings_per_token)
        self._wants_progress = bool(request.stream and request.return_progress)
        self._told = 0

    def timings(self) -> Timings:
        """Up to now."""
        return Timings.of(self._generation, time.monotonic() - self._asked)

    def wanted(self) -> Timings | UnsetType:
        """The same, where they are asked for."""
        return self.timings() if self._wants_timings else UNSET

    def framed(self, frames: list[bytes], blank: Callable[[], bytes]) -> bytes:
        """``frames``, which are those of one Event: the last of them has the timings. News of the prompt come before
        them, in the frame of a chunk that is ``blank``."""
        if self._wants_timings and frames:
            frames[-1] = extended(frames[-1], "timings", self.timings())
        if self._wants_progress and (progress := self._progress()) is not None:
            frames.insert(0, extended(blank(), "prompt_progress", progress))
        return b"".join(frames)

    def _progress(self) -> PromptProgress | None:
        """None where less than a part is new, and behind the end."""
        generation = self._generation
        total, processed = generation.prompt_tokens, generation.processed_tokens
        if processed == self._told or (processed < total and (processed - self._told) * _PARTS < total):
            return None
        self._told = processed
        self._wants_progress = processed < total
        running = time.monotonic() - self._asked - (generation.queue_seconds or 0.0)
        return PromptProgress(total, generation.cached_tokens, processed, max(0, round(1000 * running)))
