"""How long what took, as llama-server tells it."""

from __future__ import annotations

from msgspec import UNSET, Struct, UnsetType

from llamafast.engine.types import Generation


class Timings(Struct):
    """Times in milliseconds; ``prompt_n`` are those tokens of the prompt that had to be computed, which began after
    ``queue_ms`` (that is ours). ``draft_n`` drafted tokens were decoded, where there were any, and
    ``draft_n_accepted`` of them came."""

    cache_n: int
    prompt_n: int
    prompt_ms: float
    prompt_per_token_ms: float
    prompt_per_second: float
    predicted_n: int
    predicted_ms: float
    predicted_per_token_ms: float
    predicted_per_second: float
    queue_ms: float = 0.0
    draft_n: int | UnsetType = UNSET
    draft_n_accepted: int | UnsetType = UNSET

    @classmethod
    def of(cls, generation: Generation, seconds: float) -> Timings:
        """``seconds``: since it was asked for."""
        queued = generation.queue_seconds or 0.0
        first = generation.first_token_seconds
        prompt_ms = 1000 * max(0.0, (seconds if first is None else first) - queued)
        predicted_ms = 0.0 if first is None else 1000 * max(0.0, seconds - first)
        cached, predicted = generation.cached_tokens, generation.completion_tokens
        prompt = generation.prompt_tokens - cached
        drafted, accepted = generation.drafted_tokens
        return cls(
            cached, prompt, prompt_ms, prompt_ms / max(1, prompt), _rate(prompt, prompt_ms),
            predicted, predicted_ms, predicted_ms / max(1, predicted), _rate(predicted, predicted_ms),
            1000 * queued, *((drafted, accepted) if drafted else ()),
        )  # fmt: skip


class PromptProgress(Struct):
    """Of ``total`` tokens ``processed`` are in memory, ``cache`` of which were there before; all prompts of a request
    together. ``time_ms`` since the first of them was begun."""

    total: int
    cache: int
    processed: int
    time_ms: int


def _rate(n: int, milliseconds: float) -> float:
    return 1000 * n / milliseconds if milliseconds else 0.0
