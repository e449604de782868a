"""Distributions over requests, which the core does not know: it counts sequences."""

from __future__ import annotations

import time
from bisect import bisect_left
from collections.abc import Callable, Sequence

from llamafast.engine.generation import Generation
from llamafast.engine.types import Histogram

CHOICES = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0)
SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0)
TOKENS = tuple(float(1 << n) for n in range(18))


class RequestSizes:
    """Told when requests come, and when they have ended well, which is then told ``on_finished``."""

    def __init__(self, on_finished: Callable[[Generation], None]) -> None:
        self._on_finished = on_finished
        self._choices, self._token_seconds, self._computed = _Counts(CHOICES), _Counts(SECONDS), _Counts(TOKENS)

    def asked(self, n: int) -> None:
        """A request for so many choices of each prompt."""
        self._choices.add(n)

    def finished(self, generation: Generation) -> None:
        """Every choice has ended by itself; of several the mean counts."""
        self._computed.add(generation.prompt_tokens - generation.cached_tokens)
        first = generation.first_token_seconds
        further = generation.completion_tokens / generation.n_choices - 1
        if first is not None and further > 0:
            self._token_seconds.add((time.monotonic() - generation.submitted - first) / further)
        self._on_finished(generation)

    def histograms(self) -> dict[str, Histogram]:
        """Any thread."""
        return {
            "request_choices": self._choices.histogram,
            "request_token_seconds": self._token_seconds.histogram,
            "request_computed_tokens": self._computed.histogram,
        }


class _Counts:
    def __init__(self, bounds: Sequence[float]) -> None:
        self._bounds = tuple(bounds)
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0.0

    def add(self, value: float) -> None:
        self._counts[bisect_left(self._bounds, value)] += 1
        self._sum += value

    @property
    def histogram(self) -> Histogram:
        return self._bounds, list(self._counts), self._sum
