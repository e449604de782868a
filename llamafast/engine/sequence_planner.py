"""Plan → Sequences: the core's end of what one request wants generated."""

from __future__ import annotations

import secrets
from array import array
from functools import lru_cache
from itertools import count

import xxhash
from msgspec.structs import asdict

from llamafast._core.constraint import Constraint
from llamafast._core.sampler import Sampler
from llamafast._core.sequence import Sequence
from llamafast._core.vocab import Vocab
from llamafast.engine.types import ModelInfo, Plan, SamplingParams
from llamafast.errors import ContextLengthExceeded, InvalidRequest

# Lists of DRY's sequence breakers that are kept, and the most tokens that may hold one of them: a list takes tens of
# milliseconds to find otherwise.
BREAKERS_KEPT = 64
MAX_BREAKERS = 4096


class SequencePlanner:
    """Makes Sequences for one model; their tags are unique."""

    def __init__(self, vocab: Vocab, info: ModelInfo) -> None:
        self._vocab = vocab
        self._info = info
        self._tags = count(1)
        self._breakers = lru_cache(BREAKERS_KEPT)(self._find_breakers)

    def of(self, plan: Plan) -> list[Sequence | None]:
        """A Sequence for every choice, by index; None where there is nothing to generate.

        Raises ContextLengthExceeded or InvalidRequest.
        """
        return [
            self._sequence(plan, prompt, prompt_index * plan.n + k)
            for prompt_index, prompt in enumerate(plan.prompts)
            for k in range(plan.n)
        ]

    def _sequence(self, plan: Plan, prompt: array[int], index: int) -> Sequence | None:
        """The sequence of choice ``index``; None when there is nothing to generate."""
        room = self._info.max_seq_len - len(prompt)
        if room < 0:
            raise ContextLengthExceeded(
                f"the prompt has {len(prompt)} tokens, this model takes {self._info.max_seq_len}", param="prompt"
            )
        limits = (plan.max_tokens, self._info.max_output_tokens, room)
        max_tokens = min(limit for limit in limits if limit is not None)
        if max_tokens == 0 and not plan.prompt_logprobs:
            return None
        tag = next(self._tags)
        salt = _salt(plan, tag)
        logprobs = plan.top_logprobs is not None
        try:
            return Sequence(
                self._vocab,
                prompt,
                self._sampler(plan.sampling, index),
                tag=tag,
                max_tokens=max_tokens,
                min_tokens=plan.min_tokens,
                stop_tokens=plan.stop_token_ids,
                keep_stop=plan.keep_stop,
                stops=tuple(stop.encode() for stop in plan.stop),
                ignore_eos=plan.ignore_eos,
                show_control=not plan.skip_special_tokens,
                preserved=array("i", plan.preserved_tokens),
                top_logprobs=-1 if plan.top_logprobs is None else plan.top_logprobs,
                score_prompt=plan.prompt_logprobs,
                salt=salt,
                seed=xxhash.xxh3_64_intdigest(salt),
                checkpoints=plan.checkpoints,
                constraint=None
                if plan.matcher is None
                else Constraint(plan.matcher.deep_copy(), self._info.n_vocab, fast_forward=not logprobs),
            )
        except ValueError as error:
            raise InvalidRequest(str(error), param="prompt") from error

    def _sampler(self, params: SamplingParams, index: int) -> Sampler:
        seed = secrets.randbits(64) if params.seed is None else (params.seed + index) & 0xFFFF_FFFF_FFFF_FFFF
        values = asdict(params) | {"seed": seed}
        breakers = values.pop("dry_sequence_breakers")
        if params.dry_multiplier:
            values["dry_breakers"] = self._breakers(breakers)
        return Sampler(self._info.n_vocab, **values)

    def _find_breakers(self, texts: tuple[str, ...]) -> list[tuple[int, tuple[int, ...]]]:
        """The tokens that spell one of ``texts``: a look at the whole vocabulary for each."""
        try:
            found = {pair for text in texts for pair in self._vocab.breakers(text.encode(), MAX_BREAKERS)}
        except ValueError as error:
            raise InvalidRequest(f"`dry_sequence_breakers`: {error}", param="dry_sequence_breakers") from error
        return sorted(found)


def _salt(plan: Plan, tag: int) -> bytes:
    """Who may share with it. Every row of a scored prompt has to be computed, so it shares with nobody: no client's
    salt, which is UTF-8, has its first byte."""
    return b"\xff%d" % tag if plan.prompt_logprobs else plan.cache_salt.encode()
